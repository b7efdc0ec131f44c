"""Programs run by C++ kernels: tables of pointers, and one call for a step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.cpp_source import Code, Kind, Table, Tensors, generate
from updsl.back.torch_exec import TorchBackend
from updsl.back.torch_names import to_identifier
from updsl.core import frame
from updsl.core.frame import Frame, Key, Result, RuleState
from updsl.core.ir import Every, Program, State, is_shared
from updsl.core.plan import Plan
from updsl.core.scope import ELEMENT, GROUP
from updsl.core.straight import blocks_due

CHUNK = 1 << 16
"""Entries of a chunk, about."""
MOST_PARTS = 64
"""Chunks of a tensor whose columns are added up: each has an array of parts for them."""
SERIAL = 1 << 15
"""Up to so many entries in all, one thread does the step."""

Build = Callable[[str, str], ctypes.CDLL]
ToPlan = Callable[[Mapping[int, Program], frozenset[tuple[int, str]]], Plan]


@dataclass(frozen=True)
class Kernel:
    """A step of tensors of some kinds: its plan, its text, and the compiled function."""

    plan: Plan
    code: Code
    step: Any


@dataclass
class Tables:
    """The memory that a kernel works on, for one set of tensors; `names`: of the tensors of each kind."""

    kernel: Kernel
    names: tuple[tuple[str, ...], ...]
    groups: tuple[int, ...]
    tensors: list[np.ndarray]
    chunks: list[np.ndarray]
    group: np.ndarray
    model: np.ndarray
    stored: frozenset[tuple[str, Key]]
    held: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts: list[tuple[np.ndarray, tuple[str, ...], str]] = []
        self.pointers: tuple[ctypes.c_void_p, ...] = ()

    def ready(self) -> Tables:
        """When all arrays are there."""
        for kind, table, names in zip(self.kernel.code.kinds, self.tensors, self.names, strict=True):
            self.counts += [(table, names, field_) for field_, (_, what) in kind.table.fields.items() if what == ("builtin", "t")]
        pairs = [x for pair in zip(self.tensors, self.chunks, strict=True) for x in pair]
        self.pointers = tuple(ctypes.c_void_p(x.ctypes.data) for x in (self.model, self.group, *pairs))
        return self


class Last:
    """The step before, in place: where it goes on with the same tensors, its tables hold."""

    def __init__(self, tables: Tables, state: RuleState, frame: Frame):
        self.tables, self.state = tables, state
        self.names, self.groups = list(frame.g), frame.group_of
        self.dtypes = [x.dtype for x in frame.g.values()]
        self.w: Mapping[str, Tensor] | None = None
        self.has_blocks = any(isinstance(s, Every) for p in tables.kernel.plan.programs.values() for s in p.body)

    def goes_on(self, state: RuleState, frame: Frame) -> bool:
        return state is self.state and self.names == list(frame.g) and self.groups == frame.group_of and self.dtypes == [x.dtype for x in frame.g.values()]


class CppBackend:
    """The Programs of a rule's tensor classes as C++ kernels. source: file name → text, as far as it was needed."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], to_plan: ToPlan, build: Build):
        self.programs, self.class_of = tuple(programs), dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.to_plan, self.build = to_plan, build
        self.torch = TorchBackend(programs, class_of, tensors)
        self.source: dict[str, str] = {}
        self.writes = any(p.weight is not None for p in self.programs)
        self._plans: dict[tuple, Plan] = {}
        self._kernels: dict[tuple, Kernel] = {}
        self._tables: dict[tuple, Tables] = {}
        self._last: Last | None = None

    # --- steps -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step: a pure function of state and frame."""
        if not self.takes(frame):
            return self.torch.step(state, frame)
        frame = dense(frame)
        state = owned(self.torch.started(state, frame))
        tables = self.tables(state, frame)
        out = {name: torch.empty_like(g) for name, g in frame.g.items() if self.gives(name)}
        weights = {name: torch.empty_like(frame.w[name]) for name in frame.g if self.writes}
        after = RuleState({n: dict(cells) for n, cells in state.values.items()}, state.run + 1, counted(state, frame))
        for name, key in tables.stored:
            after.values[name][key] = torch.empty_like(state.values[name][key])
        point_to_states(tables, state, after, frame)
        point_to_gradients(tables, frame, out)
        point_to_weights(tables, frame, weights)
        watches = self.run(tables, frame, after, in_place=False)
        for name in frame.g:
            if name not in out:
                out[name] = frame.w[name] - weights[name]
        return Result({name: out[name] for name in frame.g}, weights if self.writes else None, watches, after)

    def steps_in_place(self, frame: Frame) -> bool:
        """Whether this step can be taken in place."""
        return self.takes(frame) and all(x.is_contiguous() for x in (*frame.g.values(), *frame.w.values()))

    @torch.no_grad()
    def step_in_place(self, state: RuleState, frame: Frame) -> Result:
        """One step: `out` into the gradients of the frame (if the rule gives one), new weights into its weights, states into their own memory: the state
        before is gone. Everything that can fail is done before the first entry is written."""
        last = self._last
        if last is None or not last.goes_on(state, frame):
            state = owned(self.torch.started(state, frame))
            last = self._last = Last(self.tables(state, frame), state, frame)
            point_to_states(last.tables, state, state, frame)
        elif last.has_blocks and (tables := self.tables(state, frame)) is not last.tables:
            last = self._last = Last(tables, state, frame)
            point_to_states(tables, state, state, frame)
        point_to_gradients(last.tables, frame, frame.g)
        if last.w is not frame.w:
            point_to_weights(last.tables, frame, frame.w)
            last.w = frame.w
        after = RuleState(state.values, state.run + 1, counted(state, frame))
        watches = self.run(last.tables, frame, after, in_place=True)
        last.state = after
        return Result(dict(frame.g), dict(frame.w) if self.writes else None, watches, after)

    def takes(self, frame: Frame) -> bool:
        """Whether the tensors are memory of the host, as kernels need it."""
        return bool(frame.g) and all(map(is_plain, (*frame.g.values(), *frame.w.values())))

    def gives(self, name: str) -> bool:
        """Whether the Program of this tensor says what `out` is."""
        program = self.programs[self.class_of[name]]
        return program.weight is None or program.returns

    # --- kernels and tables ------------------------------------------------------------------------------------------

    def tables(self, state: RuleState, frame: Frame) -> Tables:
        """For these tensors, of these types, in these groups, with the blocks that run on this step."""
        kinds: dict[tuple, list[str]] = {}
        for name in frame.g:
            kinds.setdefault(self.signature(name, state, frame), []).append(name)
        programs = {c: self.programs[c] for c in sorted({self.class_of[name] for name in frame.g})}
        running = blocks_due(programs, state.run + 1)
        key = (running, tuple((signature, tuple(names)) for signature, names in kinds.items()), tuple(frame.group_of[name] for name in frame.g))
        if key not in self._tables:
            kernel = self.kernel(programs, running, tuple(kinds))
            self._tables[key] = self.laid_out(kernel, tuple(map(tuple, kinds.values())), frame)
        return self._tables[key]

    def signature(self, name: str, state: RuleState, frame: Frame) -> tuple:
        """The class of a tensor, and the types of its arrays."""
        owner = self.class_of[name]
        dtypes = [("g", "", dtype_name(frame.g[name]))]
        if name in frame.w:
            dtypes.append(("w", "", dtype_name(frame.w[name])))
        for s in self.programs[owner].states:
            dtypes.append(("state", s.name, dtype_name(state.values[s.name][key_of(s, name, frame)])))
        for i in self.programs[owner].inputs:
            if i.type.scope == ELEMENT:
                dtypes.append(("input", i.name, dtype_name(frame.inputs[i.name][name])))
        return owner, tuple(dtypes)

    def kernel(self, programs: Mapping[int, Program], running: frozenset[tuple[int, str]], signatures: tuple[tuple, ...]) -> Kernel:
        key = (running, signatures)
        if key not in self._kernels:
            plan_key = (tuple(programs), running)
            if plan_key not in self._plans:
                self._plans[plan_key] = self.to_plan(programs, running)
            plan = self._plans[plan_key]
            kinds = [Kind(owner, programs[owner], {(what, name): dtype for what, name, dtype in dtypes}) for owner, dtypes in signatures]
            name = to_identifier(next(iter(programs.values())).name)
            code = generate(plan, kinds, f"{name}, generated by updsl")
            file = f"{name}.cpp" if not self.source else f"{name}_{len(self.source) + 1}.cpp"
            self.source[file] = code.text
            step = self.build(code.text, name).step
            step.restype = None
            self._kernels[key] = Kernel(plan, code, step)
        return self._kernels[key]

    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], frame: Frame) -> Tables:
        """Tables for these tensors, but for what changes from step to step."""
        groups = tuple(sorted(frame.group_of[n] for n in frame.group_of))
        groups = tuple(dict.fromkeys(groups))
        stored = stored_states(kernel, names, frame)
        made = Tables(kernel, names, groups, [], [], empty(kernel.code.group, len(groups)), empty(kernel.code.model, 1), stored)
        present = {frame.group_of[n] for n in frame.g}
        for kind, own in zip(kernel.code.kinds, names, strict=True):
            table, chunks = empty(kind.table, len(own)), []
            for i, name in enumerate(own):
                rows, cols = self.tensors[name].grid
                numel = rows * cols
                mine = list(chunks_of(kind, rows, cols))
                row = table[i]
                sizes = {"rows": rows, "cols": cols, "numel": numel, "group": groups.index(frame.group_of[name]), "chunks": len(mine), "first": len(chunks)}
                sizes["blocks"] = -(-numel // kind.block) if kind.block else 0
                for field_, (_, (what, of)) in kind.table.fields.items():
                    match what:
                        case "size":
                            row[field_] = sizes[of]
                        case "builtin" if of != "t":
                            row[field_] = attribute(of, self.tensors[name].shape)
                        case "workspace":
                            wide = np.longdouble if any(k.kind.real == "double" for k in kernel.code.kinds) else np.float64
                            count = len(mine) * (kind.slots if of == "parts" else kind.columns * cols)
                            row[field_] = held(made, np.zeros(count, wide))
                        case _ if what.startswith(("array", "real array")):
                            cells = {"row": rows, "column": cols, "block": sizes["blocks"]}[what.split()[-1]]
                            real = kind.kind.real if what.startswith("real") else "double"
                            row[field_] = held(made, np.zeros(cells, np.float32 if real == "float" else np.float64))
                chunks += [(i, n, begin, end) for n, (begin, end) in enumerate(mine)]
            made.tensors.append(table)
            made.chunks.append(np.array(chunks, np.int64).reshape(-1, 4))
        sizes = {"groups": len(groups), "parallel": sum(self.tensors[n].numel for n in frame.g) > SERIAL}
        for field_, (_, (what, of)) in kernel.code.model.fields.items():
            match what:
                case "size" if of in sizes:
                    made.model[field_] = sizes[of]
                case "tensors":
                    made.model[field_] = len(names[int(of)])
                case "chunks":
                    made.model[field_] = len(made.chunks[int(of)])
        made.group["present"] = [g in present for g in groups]
        return made.ready()

    # --- one step ----------------------------------------------------------------------------------------------------

    def run(self, tables: Tables, frame: Frame, after: RuleState, in_place: bool) -> dict[str, Any]:
        """Fills in the numbers, and runs the kernel; gives the watches."""
        held = point_to_inputs(tables, frame)
        for table, names, field_ in tables.counts:
            table[field_] = [after.t[n] for n in names]
        self.fill_shared(tables.kernel.code.group, tables.group, tables.groups, frame, after)
        self.fill_shared(tables.kernel.code.model, tables.model, ("",), frame, after)
        tables.model["in_place"] = in_place
        tables.kernel.step(*tables.pointers)
        del held
        return self.watches(tables)

    def fill_shared(self, table: Table, into: np.ndarray, keys: Sequence[Key], frame: Frame, after: RuleState) -> None:
        """What is given for groups, or for the model."""

        def at(numbers: Mapping, key: Key) -> Any:
            return numbers[key] if key in numbers else next(iter(numbers.values()))

        for field_, (_, (what, of)) in table.fields.items():
            match what:
                case "param":
                    into[field_] = [float(at(frame.params, key)[of]) for key in keys]
                case "builtin" if of == "lr":
                    into[field_] = [float(at(frame.lr, key)) for key in keys]
                case "builtin" if of == "t":
                    into[field_] = float(after.run)
                case "input":
                    into[field_] = [float(frame.inputs[of][key]) if key in frame.inputs[of] else 0.0 for key in keys]

    def watches(self, tables: Tables) -> dict[str, Any]:
        """label → 0-d tensor (scope all), or key → 0-d tensor."""
        real = torch.float64 if any(kind.kind.real == "double" for kind in tables.kernel.code.kinds) else torch.float32
        found: dict[str, Any] = {}

        def numbers(values: np.ndarray) -> tuple[Tensor, ...]:
            return torch.from_numpy(values.astype(np.float64)).to(real).unbind()

        for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
            for field_, (_, (what, of)) in kind.table.fields.items():
                if what == "watch":
                    found.setdefault(of, {}).update(zip(names, numbers(table[field_]), strict=True))
        for field_, (_, (what, of)) in tables.kernel.code.group.fields.items():
            if what == "watch":
                cells = dict(zip(tables.groups, numbers(tables.group[field_]), strict=True))
                found[of] = {key: x for key, x in cells.items() if tables.group["present"][tables.groups.index(key)]}
        for field_, (_, (what, of)) in tables.kernel.code.model.fields.items():
            if what == "watch":
                (found[of],) = numbers(tables.model[field_])
        return found


def stored_states(kernel: Kernel, names: tuple[tuple[str, ...], ...], frame: Frame) -> frozenset[tuple[str, Key]]:
    """The states that a step stores: name and key."""
    found: set[tuple[str, Key]] = set()
    for kind, own in zip(kernel.code.kinds, names, strict=True):
        states, owner = {s.name: s for s in kind.kind.program.states}, kind.kind.owner
        stored = [s.stream.name for sweep in kernel.plan.sweeps_of(owner) for s in sweep.stores if s.stream.role == "state"]
        stored += [r.name for r in kernel.plan.leaving.get(owner, ()) if r.role == "state"]
        stored += [r.name for (_, classes), roots in kernel.plan.joint.items() if owner in classes for r in roots if r.role == "state"]
        found |= {(name, key_of(states[name], n, frame)) for name in stored for n in own}
    return frozenset(found)


def counted(state: RuleState, frame: Frame) -> dict[str, Any]:
    """The steps of each tensor, with this one."""
    return state.t | {name: state.t.get(name, 0) + 1 for name in frame.g}


def owned(state: RuleState) -> RuleState:
    """The state, dense."""
    values = {name: {key: x if x.is_contiguous() else x.contiguous() for key, x in cells.items()} for name, cells in state.values.items()}
    return RuleState(values, state.run, state.t)


def dense(frame: Frame) -> Frame:
    """The frame with gradients and weights that are dense in row-major order."""
    g, w = ({name: x.contiguous() for name, x in xs.items()} for xs in (frame.g, frame.w))
    return replace(frame, g=g, w=w)


def point_to_states(tables: Tables, state: RuleState, after: RuleState, frame: Frame) -> None:
    """The addresses of states before and after the step."""
    for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
        states = {s.name: s for s in kind.kind.program.states}
        for field_, (_, (what, of)) in kind.table.fields.items():
            if what in ("old state", "state", "new state", "new"):
                cells = (after if what.startswith("new") else state).values[of]
                table[field_] = [cells[key_of(states[of], n, frame)].data_ptr() for n in names]
    for own, into, keys in ((tables.kernel.code.group, tables.group, tables.groups), (tables.kernel.code.model, tables.model, ("",))):
        for field_, (_, (what, of)) in own.fields.items():
            if what in ("state", "new"):
                cells = (state if what == "state" else after).values.get(of, {})
                into[field_] = [cells[key].data_ptr() if key in cells and (what == "state" or (of, key) in tables.stored) else 0 for key in keys]


def point_to_gradients(tables: Tables, frame: Frame, out: Mapping[str, Tensor]) -> None:
    for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
        for field_, (_, (what, _)) in kind.table.fields.items():
            if what in ("old g", "new out"):
                xs = frame.g if what == "old g" else out
                table[field_] = [xs[n].data_ptr() for n in names]


def point_to_weights(tables: Tables, frame: Frame, new: Mapping[str, Tensor]) -> None:
    for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
        for field_, (_, (what, _)) in kind.table.fields.items():
            if what in ("old w", "new w"):
                xs = frame.w if what == "old w" else new
                table[field_] = [xs[n].data_ptr() for n in names]


def point_to_inputs(tables: Tables, frame: Frame) -> list[Tensor]:
    """The addresses of inputs, or their numbers; gives what must be kept alive."""
    held: list[Tensor] = []

    def address(x: Any, dtype: torch.dtype | None = None) -> int:
        held.append(torch.as_tensor(x, dtype=dtype).contiguous())
        return held[-1].data_ptr()

    for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
        for field_, (_, (what, of)) in kind.table.fields.items():
            if what == "old input":
                table[field_] = [address(frame.inputs[of][n]) for n in names]
            elif what == "input":
                table[field_] = [address(frame.inputs[of][n], torch.float64) if field_ in kind.arrays else float(frame.inputs[of][n]) for n in names]
    return held


def is_plain(x: Tensor) -> bool:
    """Memory of the host that a kernel can read."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def key_of(s: State, name: str, frame: Frame) -> Key:
    """Under which the state of a tensor is kept."""
    if not is_shared(s.type):
        return name
    return frame.group_of[name] if s.type.scope == GROUP else ""


def attribute(name: str, shape: tuple[int, ...]) -> float:
    """ndim, or dim(i)."""
    return float(len(shape) if name == "ndim" else shape[int(name[4:-1])])


def chunks_of(kind: Tensors, rows: int, cols: int):
    """Where chunks begin and end, in rows, blocks or entries."""
    units, width = {"rows": (rows, cols), "blocks": (-(-rows * cols // (kind.block or 1)), kind.block), "flat": (rows * cols, 1)}[kind.layout]
    step = max(1, -(-CHUNK // width))
    if kind.columns:
        step = max(step, -(-units // MOST_PARTS))
    for begin in range(0, units, step):
        yield begin, min(begin + step, units)


def empty(table: Table, n: int) -> np.ndarray:
    """An array of structs."""
    fields = [(name, np.float64 if type_ == "double" else np.int64) for name, (type_, _) in table.fields.items()]
    return np.zeros(n, np.dtype(fields or [("unused", np.int64)]))


def held(tables: Tables, memory: np.ndarray) -> int:
    """The address of memory that lives as long as the tables."""
    tables.held.append(memory)
    return memory.ctypes.data
