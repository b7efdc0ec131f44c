"""Programs run by C++ kernels: tables of pointers, and one call for a step."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.cpp_source import Kind, Table, Tensors, generate
from updsl.back.torch_exec import TorchBackend
from updsl.back.torch_names import to_identifier
from updsl.core import frame
from updsl.core.frame import Frame, Key, Result, RuleState
from updsl.core.ir import Every, Program, State, is_shared
from updsl.core.plan import Plan, Stream, Summary, TensorsOfClass
from updsl.core.scope import ELEMENT, GROUP
from updsl.core.straight import blocks_due

CHUNK = 1 << 16
"""Entries of a chunk, about."""
MOST_PARTS = 64
"""Chunks of a tensor whose columns are added up: each has an array of parts for them."""
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "bool": 1}
"""Bytes of an entry."""
MOST_RUNS = 16
"""Runs in place that one backend remembers: optimizers that have the same rule and tensors."""
SERIAL = 1 << 15
"""Up to so many entries in all, one thread does the step."""

DTYPE = attrgetter("dtype")

Build = Callable[[str, str], ctypes.CDLL]
ToPlan = Callable[[Mapping[int, Program], frozenset[tuple[int, str]]], Plan]


@dataclass(frozen=True)
class Kernel:
    """A step of tensors of some kinds: its plan, its text with its tables (the emitter's own `Code`), and the compiled function."""

    plan: Plan
    code: Any
    step: Any


@dataclass
class Tables:
    """The memory that a kernel works on, for one set of tensors; `names`: of the tensors of each kind; `places`: theirs among all, in the order of the step."""

    kernel: Kernel
    names: tuple[tuple[str, ...], ...]
    groups: tuple[int, ...]
    tensors: list[np.ndarray]
    chunks: list[np.ndarray]
    group: np.ndarray
    model: np.ndarray
    stored: frozenset[tuple[str, Key]]
    places: tuple[np.ndarray, ...]
    held: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.pointers: tuple[ctypes.c_void_p, ...] = ()

    @property
    def overflowed(self) -> bool:
        """Whether the last step gave an entry that is not finite."""
        return any(bool(chunks[:, 4].any()) for chunks in self.chunks)

    def ready(self) -> Tables:
        """When all arrays are there."""
        for kind, table, places in zip(self.kernel.code.kinds, self.tensors, self.places, strict=True):
            self.counts += [(table, places, field_) for field_, (_, what) in kind.table.fields.items() if what == ("builtin", "t")]
        pairs = [x for pair in zip(self.tensors, self.chunks, strict=True) for x in pair]
        self.pointers = tuple(ctypes.c_void_p(x.ctypes.data) for x in (self.model, self.group, *pairs))
        return self


class Run:
    """A run of steps in place over the same tensors: where a step goes on from the last, its tables hold. tables: by the blocks that run, each with the
    addresses of the weights that it points to."""

    def __init__(self, state: RuleState, frame: Frame):
        self.names, self.groups = list(frame.g), frame.group_of
        self.dtypes = dtypes_of(frame)
        self.tables: dict[frozenset[tuple[int, str]], tuple[Tables, np.ndarray]] = {}
        self.goes_on_from(state)

    def goes_on_from(self, state: RuleState) -> None:
        """The state is its owner's: a run ends where nobody holds it any more."""
        self._state = weakref.ref(state)

    @property
    def state(self) -> RuleState | None:
        return self._state()

    def goes_on(self, frame: Frame) -> bool:
        return self.names == list(frame.g) and (self.groups is frame.group_of or self.groups == frame.group_of) and self.dtypes == dtypes_of(frame)


class CppBackend:
    """The Programs of a rule's tensor classes as C++ kernels. source: file name → text, as far as it was needed."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], to_plan: ToPlan, build: Build):
        self.programs, self.class_of = tuple(programs), dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.to_plan, self.build = to_plan, build
        self.torch = TorchBackend(programs, class_of, tensors)
        self.source: dict[str, str] = {}
        self._has_streams = any(i.type.scope == ELEMENT for p in self.programs for i in p.inputs)
        self._has_blocks = any(isinstance(s, Every) for p in self.programs for s in p.body)
        self.writes = any(p.weight is not None for p in self.programs)
        self._plans: dict[tuple, Plan] = {}
        self._kernels: dict[tuple, Kernel] = {}
        self._runs: list[Run] = []
        self._lock = threading.Lock()

    # --- steps -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step: a pure function of state and frame."""
        if not self.takes(frame):
            return self.torch.step(state, frame)
        frame = dense(frame)
        state = owned(self.torch.started(state, frame))
        tables = self.new_tables(state, frame)
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
        """Whether this step can be taken in place. Not with inputs for each entry, which may be memory that an earlier sweep writes."""
        return not self._has_streams and self.takes(frame) and all(x.is_contiguous() for x in (*frame.g.values(), *frame.w.values()))

    @torch.no_grad()
    def step_in_place(self, state: RuleState, frame: Frame) -> Result:
        """One step: `out` into the gradients of the frame (if the rule gives one), new weights into its weights, states into their own memory: the state
        before is gone. Everything that can fail is done before the first entry is written."""
        run = next((r for r in self._runs if r.state is state), None)
        if run is None or not run.goes_on(frame):
            state = owned(self.torch.started(state, frame))
            run = self.new_run(state, frame)
        running = self.running(state, frame)
        tables, pointed = run.tables.get(running, (None, None))
        if tables is None:
            tables = self.new_tables(state, frame)
            point_to_states(tables, state, state, frame)
        w = addresses(frame.w)
        if pointed is None or not np.array_equal(w, pointed):
            point_to_weights(tables, frame, frame.w)
            run.tables[running] = tables, w
        point_to_gradients(tables, frame, frame.g)
        after = RuleState(state.values, state.run + 1, counted(state, frame))
        result = Result(dict(frame.g), dict(frame.w) if self.writes else None, {}, after)
        watches = self.run(tables, frame, after, in_place=True)
        run.goes_on_from(after)
        return replace(result, watches=watches, overflowed=tables.overflowed)

    def new_run(self, state: RuleState, frame: Frame) -> Run:
        """In the place of the oldest, where there are many."""
        with self._lock:
            living = [run for run in self._runs if run.state is not None]
            self._runs = [*living[-MOST_RUNS + 1 :], Run(state, frame)]
            return self._runs[-1]

    def forget(self, state: RuleState) -> None:
        """The run that goes on from this state: its arrays are elsewhere now."""
        with self._lock:
            self._runs = [run for run in self._runs if run.state is not state]

    def takes(self, frame: Frame) -> bool:
        """Whether the tensors are memory of the host, as kernels need it."""
        return bool(frame.g) and all(map(is_plain, (*frame.g.values(), *frame.w.values())))

    def gives(self, name: str) -> bool:
        """Whether the Program of this tensor says what `out` is."""
        program = self.programs[self.class_of[name]]
        return program.weight is None or program.returns

    # --- kernels and tables ------------------------------------------------------------------------------------------

    def running(self, state: RuleState, frame: Frame) -> frozenset[tuple[int, str]]:
        """The blocks that run on the step after `state`."""
        if not self._has_blocks:
            return frozenset()
        return blocks_due({c: self.programs[c] for c in {self.class_of[name] for name in frame.g}}, state.run + 1)

    def new_tables(self, state: RuleState, frame: Frame) -> Tables:
        """For these tensors, of these types, in these groups, with the blocks that run on this step."""
        kinds: dict[tuple, list[str]] = {}
        for name in frame.g:
            kinds.setdefault(self.signature(name, state, frame), []).append(name)
        programs = {c: self.programs[c] for c in sorted({self.class_of[name] for name in frame.g})}
        with self._lock:
            kernel = self.kernel(programs, self.running(state, frame), tuple(kinds))
        return self.laid_out(kernel, tuple(map(tuple, kinds.values())), frame.group_of, list(frame.g))

    def signature(self, name: str, state: RuleState, frame: Frame) -> tuple:
        """The class of a tensor, and the types of its arrays."""
        owner = self.class_of[name]
        dtypes = [("g", "", dtype_name(frame.g[name]))]
        if name in frame.w:
            dtypes.append(("w", "", dtype_name(frame.w[name])))
        for s in self.programs[owner].states:
            dtypes.append(("state", s.name, dtype_name(state.values[s.name][key_of(s, name, frame.group_of)])))
        for i in self.programs[owner].inputs:
            if i.type.scope == ELEMENT:
                dtypes.append(("input", i.name, dtype_name(frame.inputs[i.name][name])))
        return owner, tuple(dtypes)

    def summary(self, dtypes: Mapping[str, tuple[str, str]], group_of: Mapping[str, int]) -> Summary:
        """The plan of the first step for tensors of these types (of the gradient, and of the weight)."""
        programs = {c: self.programs[c] for c in sorted(set(self.class_of.values()))}
        plan = self.to_plan(programs, blocks_due(programs, 1))
        kinds: dict[tuple, list[str]] = {}
        for name in self.class_of:
            kinds.setdefault((self.class_of[name], *dtypes[name]), []).append(name)
        made = [Kind(c, programs[c], default_dtypes(programs[c], g, w)) for c, g, w in kinds]
        code = generate(plan, made, "")
        tables = self.laid_out(Kernel(plan, code, None), tuple(map(tuple, kinds.values())), group_of, list(self.class_of))
        classes = []
        for kind, names in zip(made, kinds.values(), strict=True):
            numel = sum(self.tensors[n].numel for n in names)
            streams = {stream for s in plan.sweeps_of(kind.owner) for stream in (*s.reads, *(store.stream for store in s.stores))}
            size = sum(self.cells(s, n) * WIDTHS[kind.dtypes["state", s.name]] for s in kind.program.states if not is_shared(s.type) for n in names)
            classes.append(TensorsOfClass(kind.owner, numel, {s: WIDTHS[kind.dtypes[dtype_key(s)]] for s in streams}, size))
        return Summary(plan, tuple(classes), 1, sum(x.nbytes for x in tables.held))

    def cells(self, s: State, name: str) -> int:
        """How many values a state has for a tensor."""
        rows, cols = self.tensors[name].grid
        return {"element": rows * cols, "row": rows, "column": cols, "block": -(-rows * cols // (s.type.scope.size or 1))}.get(s.type.scope.name, 1)

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

    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int], order: Sequence[str]) -> Tables:
        """Tables for these tensors, but for what changes from step to step."""
        groups = tuple(sorted(group_of[n] for n in group_of))
        groups = tuple(dict.fromkeys(groups))
        stored = stored_states(kernel, names, group_of)
        place = {name: i for i, name in enumerate(order)}
        places = tuple(np.array([place[n] for n in own], np.intp) for own in names)
        made = Tables(kernel, names, groups, [], [], empty(kernel.code.group, len(groups)), empty(kernel.code.model, 1), stored, places)
        present = {group_of[n] for own in names for n in own}
        for kind, own in zip(kernel.code.kinds, names, strict=True):
            table, chunks = empty(kind.table, len(own)), []
            for i, name in enumerate(own):
                rows, cols = self.tensors[name].grid
                numel = rows * cols
                mine = list(chunks_of(kind, rows, cols))
                row = table[i]
                sizes = {"rows": rows, "cols": cols, "numel": numel, "group": groups.index(group_of[name]), "chunks": len(mine), "first": len(chunks)}
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
                chunks += [(i, n, begin, end, 0) for n, (begin, end) in enumerate(mine)]
            made.tensors.append(table)
            made.chunks.append(np.array(chunks, np.int64).reshape(-1, 5))
        sizes = {"groups": len(groups), "parallel": sum(self.tensors[n].numel for own in names for n in own) > SERIAL}
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
        if tables.counts:
            t = np.fromiter(map(after.t.__getitem__, frame.g), np.float64, len(frame.g))
            for table, places, field_ in tables.counts:
                table[field_] = t[places]
        self.fill_shared(tables.kernel.code.group, tables.group, tables.groups, frame, after)
        self.fill_shared(tables.kernel.code.model, tables.model, ("",), frame, after)
        tables.model["in_place"] = in_place
        watches, fill = self.watches(tables)
        tables.kernel.step(*tables.pointers)
        fill()
        del held
        return watches

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

    def watches(self, tables: Tables) -> tuple[dict[str, Any], Callable[[], None]]:
        """label → 0-d tensor (scope all), or key → 0-d tensor; and what fills them in after the step, in which nothing can fail."""
        real = torch.float64 if any(kind.kind.real == "double" for kind in tables.kernel.code.kinds) else torch.float32
        found: dict[str, Any] = {}
        filled: list[tuple[np.ndarray, np.ndarray, str]] = []

        def numbers(table: np.ndarray, field_: str) -> tuple[Tensor, ...]:
            made = torch.empty(len(table), dtype=real)
            filled.append((made.numpy(), table, field_))
            return made.unbind()

        for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
            for field_, (_, (what, of)) in kind.table.fields.items():
                if what == "watch":
                    found.setdefault(of, {}).update(zip(names, numbers(table, field_), strict=True))
        for field_, (_, (what, of)) in tables.kernel.code.group.fields.items():
            if what == "watch":
                cells = zip(tables.groups, numbers(tables.group, field_), tables.group["present"], strict=True)
                found[of] = {key: x for key, x, present in cells if present}
        for field_, (_, (what, of)) in tables.kernel.code.model.fields.items():
            if what == "watch":
                (found[of],) = numbers(tables.model, field_)

        def fill() -> None:
            for into, table, field_ in filled:
                into[:] = table[field_]

        return found, fill


def stored_states(kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int]) -> frozenset[tuple[str, Key]]:
    """The states that a step stores: name and key."""
    found: set[tuple[str, Key]] = set()
    for kind, own in zip(kernel.code.kinds, names, strict=True):
        states, owner = {s.name: s for s in kind.kind.program.states}, kind.kind.owner
        stored = [s.stream.name for sweep in kernel.plan.sweeps_of(owner) for s in sweep.stores if s.stream.role == "state"]
        stored += [r.name for r in kernel.plan.leaving.get(owner, ()) if r.role == "state"]
        stored += [r.name for (_, classes), roots in kernel.plan.joint.items() if owner in classes for r in roots if r.role == "state"]
        found |= {(name, key_of(states[name], n, group_of)) for name in stored for n in own}
    return frozenset(found)


def counted(state: RuleState, frame: Frame) -> dict[str, Any]:
    """The steps of each tensor, with this one."""
    if state.t.keys() == frame.g.keys():
        return {name: n + 1 for name, n in state.t.items()}
    return state.t | {name: state.t.get(name, 0) + 1 for name in frame.g}


def dtypes_of(frame: Frame) -> list[torch.dtype]:
    """Of the gradients and weights."""
    return [*map(DTYPE, frame.g.values()), *map(DTYPE, frame.w.values())]


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
                table[field_] = [cells[key_of(states[of], n, frame.group_of)].data_ptr() for n in names]
    for own, into, keys in ((tables.kernel.code.group, tables.group, tables.groups), (tables.kernel.code.model, tables.model, ("",))):
        for field_, (_, (what, of)) in own.fields.items():
            if what in ("state", "new"):
                cells = (state if what == "state" else after).values.get(of, {})
                into[field_] = [cells[key].data_ptr() if key in cells and (what == "state" or (of, key) in tables.stored) else 0 for key in keys]


def point_to_gradients(tables: Tables, frame: Frame, out: Mapping[str, Tensor]) -> None:
    g = addresses(frame.g)
    new = g if out is frame.g else addresses(out)
    for kind, table, names, places in zip(tables.kernel.code.kinds, tables.tensors, tables.names, tables.places, strict=True):
        for field_, (_, (what, _)) in kind.table.fields.items():
            if what == "old g":
                table[field_] = g[places]
            elif what == "new out":
                table[field_] = new[places] if len(new) == len(g) else [out[n].data_ptr() for n in names]


def addresses(xs: Mapping[str, Tensor]) -> np.ndarray:
    return np.fromiter(map(Tensor.data_ptr, xs.values()), np.int64, len(xs))


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


def default_dtypes(program: Program, g: str, w: str) -> dict[tuple[str, str], str]:
    """The types of a tensor's arrays where the gradient and the weight have these."""
    real = "float32" if WIDTHS[g] == 2 else g
    states = {("state", s.name): "bool" if s.type.boolean else s.dtype or real for s in program.states}
    return {("g", ""): g, ("w", ""): w} | states | {("input", i.name): g for i in program.inputs if i.type.scope == ELEMENT}


def dtype_key(s: Stream) -> tuple[str, str]:
    """What has the type of a stream."""
    return {"g": ("g", ""), "out": ("g", ""), "w": ("w", "")}.get(s.role, (s.role, s.name))


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def key_of(s: State, name: str, group_of: Mapping[str, int]) -> Key:
    """Under which the state of a tensor is kept."""
    if not is_shared(s.type):
        return name
    return group_of[name] if s.type.scope == GROUP else ""


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
