"""One step of a rule in torch: which tensors go together, the order of pieces and joint steps, and what becomes of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from updsl.back import torch_runtime as runtime
from updsl.back.torch_given import Code, Given, Parts
from updsl.back.torch_layout import Call, even_runs, memory_of, sizes_of
from updsl.back.torch_plan import BY_ORDER, Join, Piece, Plan, cells_of
from updsl.back.torch_source import Function
from updsl.core import frame
from updsl.core.frame import Frame, Key, Result, RuleState
from updsl.core.ir import GRID, Apply, Program, Reduce, State, is_shared
from updsl.core.scope import ELEMENT, GROUP, Scope

Where = Call | Key


def take_step(code: Code, class_of: Mapping[str, int], tensors: Mapping[str, frame.Tensor], state: RuleState, frame: Frame, writes: bool) -> Result:
    """(state, inputs) ↦ (state', out, new weights, watches); all is computed before anything is handed out."""
    calls = calls_of(code.plan.programs, class_of, tensors, state, frame)
    given = Given(code, calls, state, frame)
    if _is_first(given):
        first = _Step(given, class_of, code.run_once)
        first.take_all(code.first, code.first_functions)
        first.become_first()
    step = _Step(given, class_of, code.run)
    step.take_all(code.plan, code.functions)
    return step.result(writes)


def first_values(code: Code, class_of: Mapping[str, int], tensors: Mapping[str, frame.Tensor], state: RuleState, frame: Frame) -> RuleState:
    """The state before the step, with the first values of what takes its first step; in memory of their own."""
    given = Given(code, calls_of(code.plan.programs, class_of, tensors, state, frame), state, frame)
    if not _is_first(given):
        return state
    first = _Step(given, class_of, code.run_once)
    first.take_all(code.first, code.first_functions)
    first.become_first()
    values = {name: dict(cells) for name, cells in state.values.items()}
    for c, program in given.programs.items():
        for s in program.states:
            cells, new = values.setdefault(s.name, {}), ("first", s.name)
            if s.init is not None and is_shared(s.type):
                cells |= {key: given.joint[new][key].reshape(()).clone() for key in first.keys([c], s.type.scope) if key not in cells}
            elif s.init is not None:
                for call in given.calls:
                    if call.owner == c and call.names[0] not in cells:
                        cells |= {name: x.clone() for name, x in call.each(call.values[new], s.type).items()}
    return RuleState(values, state.run, dict(state.t))


def _is_first(given: Given) -> bool:
    """Whether a state has no value yet in some cell of the step."""
    for c, program in given.programs.items():
        for s in program.states:
            kept = given.state.values.get(s.name, {})
            for call in given.calls:
                if call.owner == c and s.init is not None and call.key(s.type.scope) not in kept:
                    return True
    return False


# --- which tensors go together ---------------------------------------------------------------------------------------


def calls_of(programs: Mapping[int, Program], class_of: Mapping[str, int], tensors: Mapping[str, frame.Tensor], state: RuleState, frame: Frame) -> list[Call]:
    """Tensors of one class, group, shape and dtype, stacked where their streams lie evenly in one buffer."""
    buckets: dict[tuple, list[str]] = {}
    for name in frame.g:
        buckets.setdefault(_bucket(name, programs[class_of[name]], class_of[name], tensors[name].shape, state, frame), []).append(name)
    calls = []
    for (owner, group, shape, given, device, weight_dtype, *_), names in buckets.items():
        matrices = {i.name: frame.inputs[i.name][names[0]] for i in programs[owner].inputs if i.kind == "matrix" and names[0] in frame.inputs.get(i.name, {})}
        sizes = sizes_of(tensors[names[0]], matrices)
        runs = even_runs({n: _streams(n, programs[owner], state, frame) for n in names}, names) if len(names) > 1 else [tuple(names)]
        calls += [Call(owner, group, run, shape, given, weight_dtype, device, sizes) for run in runs]
    return calls


def _bucket(name: str, program: Program, owner: int, shape: tuple[int, ...], state: RuleState, frame: Frame) -> tuple:
    g, w = frame.g[name], frame.w.get(name)
    inputs = tuple((x.dtype, tuple(x.shape)) for x in _given(name, program, frame))
    have = tuple(name in state.values.get(s.name, {}) for s in program.states if not is_shared(s.type))
    return owner, frame.group_of[name], shape, g.dtype, g.device, None if w is None else w.dtype, inputs, have


def _given(name: str, program: Program, frame: Frame) -> list[Tensor]:
    """The full-size inputs of a tensor that are there."""
    return [frame.inputs[i.name][name] for i in program.inputs if i.kind != "per" and name in frame.inputs.get(i.name, {})]


def _streams(name: str, program: Program, state: RuleState, frame: Frame) -> list[Tensor]:
    """The full-size arrays of a tensor."""
    found = [frame.g[name], *([frame.w[name]] if name in frame.w else [])]
    found += _given(name, program, frame)
    for s in program.states:
        if s.type.scope == ELEMENT and name in state.values.get(s.name, {}):
            x = state.values[s.name][name]
            found += list(x) if s.type.window else [x]
    return found


# --- the order of a step ---------------------------------------------------------------------------------------------


class _Step:
    """What is known so far. `parts`: what was contributed to joins, by name, from each call or group. `left`: what leaves the step."""

    def __init__(self, given: Given, class_of: Mapping[str, int], run: Callable[..., tuple[Tensor | Parts, ...]]):
        self.given, self.class_of, self.frame, self.run = given, class_of, given.frame, run
        self.parts: dict[str, list[tuple[Where, Tensor | Parts]]] = {}
        self.left: list[tuple[Where, str, str, Tensor]] = []

    def take_all(self, plan: Plan, functions: Sequence[Function | None]) -> None:
        for part, f in zip(plan.steps, functions, strict=True):
            self.take(part, f)

    def become_first(self) -> None:
        """What left as states is what states are before their first step."""
        for where, _, name, x in self.left:
            x = x.contiguous()
            if isinstance(where, Call):
                where.values["first", name] = x
            else:
                self.given.joint.setdefault(("first", name), {})[where] = x

    def take(self, part: Piece | Join, f: Function | None) -> None:
        match part:
            case Join():
                self.join(part)
            case Piece(owner=int() as owner) if f is not None:
                for call in self.given.calls:
                    if call.owner == owner:
                        results = self.run(f, [self.given.local(a, call) for a in f.args])
                        self.keep(call, f, results)
            case Piece(owner=Scope() as scope, classes=classes) if f is not None:
                for key in self.keys(classes, scope):
                    results = self.run(f, [self.given.shared(a, key) for a in f.args])
                    self.keep(key, f, results)

    def keys(self, classes: Sequence[int], scope: Scope) -> list[Key]:
        """The cells of a shared value of these classes."""
        if scope != GROUP:
            return [""]
        return list(dict.fromkeys(self.frame.group_of[name] for name in self.frame.g if self.class_of[name] in classes))

    def keep(self, where: Where, f: Function, results: Sequence[Tensor | Parts]) -> None:
        """Puts each result where it is looked for."""
        for (role, name), x in zip(f.gives, results, strict=True):
            if role == "part":
                self.parts.setdefault(name, []).append((where, x))
                continue
            assert isinstance(x, Tensor)
            if role not in ("value", "value count"):
                self.left.append((where, role, name, x))
            elif isinstance(where, Call):
                where.values[role, name] = x
            else:
                self.given.joint.setdefault((role, name), {})[where] = x

    # --- joint steps -------------------------------------------------------------------------------------------------

    def join(self, j: Join) -> None:
        for key in self.keys(list(j.exprs), j.scope):
            contributed = [(where, x) for where, x in self.parts[j.name] if j.scope != GROUP or where.group == key]  # type: ignore[union-attr]
            number = None if j.number is None else self.given.joint["value", j.number][key]
            if isinstance(j.expr, Apply):
                self.join_largest(j, j.expr, contributed, number)
            else:
                self.given.joint.setdefault(("value", j.name), {})[key] = self.joined(j, j.expr, [x for _, x in contributed], number)

    def joined(self, j: Join, e: Reduce, parts: Sequence[Tensor | Parts], number: Tensor | None) -> Tensor:
        """A reduction over several tensors or groups, in the compute dtype of all of them."""
        device = self.given.device
        if e.op in BY_ORDER:
            value = runtime.joined_quantile([x.to(device) for x in parts if isinstance(x, Tensor)], 0.5 if number is None else number)
        else:
            here = [tuple(y.to(device) if isinstance(y, Tensor) else y for y in x) for x in parts]
            value = runtime.joined(e.op, here, e.type.samples, {"p": float(e.static[0])} if e.static else {})
        return value if e.type.boolean or j.name in self.given.hosts else value.to(self.given.real)

    def join_largest(self, j: Join, e: Apply, contributed: Sequence[tuple[Where, Tensor | Parts]], number: Tensor | None) -> None:
        """The mask of each tensor, among the entries of all."""
        assert number is not None
        if j.over_groups:
            operands = [x[0].flatten(-2) for _, x in contributed if isinstance(x, Tensor)]
            for (where, _), mask in zip(contributed, runtime.joined_largest(operands, number, bool(e.static[1])), strict=True):
                self.given.joint.setdefault(("value", j.name), {})[where] = mask.squeeze(-1)  # type: ignore[index]
            return
        place = {name: i for i, name in enumerate(self.frame.g)}
        each: list[tuple[int, Call, int, Tensor]] = []
        for call, x in contributed:
            assert isinstance(call, Call)
            assert isinstance(x, Tensor)
            each += [(place[name], call, k, x[k].flatten(-2)) for k, name in enumerate(call.names)]
        each.sort(key=lambda item: item[0])
        masks = runtime.joined_largest([x.to(self.given.device) for *_, x in each], number, bool(e.static[1]))
        of_call: dict[int, dict[int, Tensor]] = {}
        for (_, call, k, x), mask in zip(each, masks, strict=True):
            of_call.setdefault(id(call), {})[k] = mask.to(x.device)
        for call, _ in contributed:
            assert isinstance(call, Call)
            found = of_call[id(call)]
            own = j.exprs[call.owner]
            have = cells_of(own)
            mask = torch.stack([found[k] for k in range(len(call.names))]).unflatten(-1, call.cells(have))
            if have.scope.size and own.type.scope == ELEMENT:
                mask = runtime.from_blocks(mask, have.scope.size, *call.cells(own.type))
            call.values["value", j.name] = mask.expand(*mask.shape[:-2], *call.cells(own.type))

    # --- results -----------------------------------------------------------------------------------------------------

    def result(self, writes: bool) -> Result:
        owned = _Owned(self.given)
        out: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        watches: dict[str, object] = {}
        for where, role, name, x in self.left:
            match role:
                case "out" | "weight":
                    assert isinstance(where, Call)
                    found = self.untouched(where, x) if role == "out" and self.frame.consumed else {}
                    (out if role == "out" else weights).update(found or where.each(owned.apart(x), GRID))
                case "watch" if isinstance(where, Call):
                    watches.setdefault(name, {}).update({n: x[k].reshape(()).clone() for k, n in enumerate(where.names)})  # type: ignore[attr-defined]
                case "watch" if where == "":
                    watches[name] = owned.apart(x)
                case "watch":
                    watches.setdefault(name, {})[where] = owned.apart(x)  # type: ignore[index]
        order = self.frame.g
        return Result(
            {name: out[name] for name in order if name in out},
            {name: weights[name] for name in order if name in weights} if writes else None,
            watches,
            self.after(owned),
        )

    def untouched(self, call: Call, x: Tensor) -> dict[str, Tensor]:
        """The gradients of a call, if x is these very arrays; else none."""
        if x.dtype != call.given or memory_of(x) != memory_of(self.frame.g[call.names[0]]):
            return {}
        same = all(
            a.data_ptr() == g.data_ptr() and a.shape == g.shape and a.stride() == g.stride()
            for a, g in ((a, self.frame.g[name]) for name, a in call.each(x, GRID).items())
        )
        return {name: self.frame.g[name] for name in call.names} if same else {}

    def after(self, owned: _Owned) -> RuleState:
        """The states after the step; those that the step does not assign stay, those of tensors that take no part too."""
        before = self.given.state
        values = {name: dict(cells) for name, cells in before.values.items()}
        new = {(id(where) if isinstance(where, Call) else where, role, name): x for where, role, name, x in self.left if role in ("state", "state count")}
        for c, program in self.given.programs.items():
            for s in program.states:
                cells = values.setdefault(s.name, {})
                if is_shared(s.type):
                    for key in self.keys([c], s.type.scope):
                        x, count = self.given.joint_state(s, key) if (key, "state", s.name) not in new else (new[key, "state", s.name], None)
                        count = new.get((key, "state count", s.name), count)
                        cells[key] = (owned.kept(x), owned.kept(count)) if s.type.window else owned.kept(x)  # type: ignore[arg-type]
                    continue
                for call in self.given.calls:
                    if call.owner == c:
                        cells.update(self.local_after(call, s, new, owned))
        return RuleState(values, self.given.run, dict(before.t) | {name: before.t.get(name, 0) + 1 for name in self.frame.g})

    def local_after(self, call: Call, s: State, new: Mapping[tuple, Tensor], owned: _Owned) -> dict[str, object]:
        """A state of each tensor of a call."""
        if (id(call), "state", s.name) in new:
            x, count = new[id(call), "state", s.name], new.get((id(call), "state count", s.name))
        else:
            x, count = self.given.local_state(s, call)
        if not s.type.window:
            return dict(call.each(owned.kept(x), s.type))
        assert count is not None
        slots = call.each(owned.kept(x), s.type, lead=1)
        counts = call.each(owned.kept(count.squeeze(1).expand(len(call.names), *call.cells(s.type))), s.type)
        return {n: (slots[n], counts[n]) for n in call.names}


class _Owned:
    """Results in memory of their own: no later write to an input or to one result may show in another. States may share with states, which nobody writes."""

    def __init__(self, given: Given):
        self.taken: set[int] = set()
        self.states: set[int] = set()
        for xs in (given.frame.g, given.frame.w, *given.frame.inputs.values()):
            self.taken |= {memory_of(x) for x in xs.values() if isinstance(x, Tensor)}
        for cells in given.state.values.values():
            for x in cells.values():
                self.states |= {memory_of(y) for y in (x if isinstance(x, tuple) else (x,))}

    def apart(self, x: Tensor) -> Tensor:
        """x, dense, in memory that nothing else of the step has."""
        x = x.contiguous()
        if memory_of(x) in self.taken or memory_of(x) in self.states:
            x = x.clone()
        self.taken.add(memory_of(x))
        return x

    def kept(self, x: Tensor) -> Tensor:
        """x, dense, in memory that no input and no other result than states has."""
        x = x.contiguous()
        return x.clone() if memory_of(x) in self.taken else x
