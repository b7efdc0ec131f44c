"""Programs run by kernels: what the emitters have in common. A step is a pure function, or is taken in place."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.kernel_first import missing, with_literals
from updsl.back.kernel_kind import WIDTHS, Kind, Table, default_dtypes, dtype_key
from updsl.back.kernel_tables import (
    Kernel,
    Tables,
    addresses,
    counted,
    dense,
    dtypes_of,
    keys_of,
    owned,
    point_in_place,
    point_to_gradients,
    point_to_inputs,
    point_to_states,
    point_to_weights,
)
from updsl.back.kernel_watch import Shown
from updsl.back.torch_names import to_identifier
from updsl.core import frame
from updsl.core.frame import Counts, Frame, Key, Result, RuleState
from updsl.core.ir import Every, Program, State, is_shared, returned
from updsl.core.kept import kept
from updsl.core.plan import Plan, Stream, Summary, TensorsOfClass
from updsl.core.scope import ELEMENT
from updsl.core.straight import blocks_due

if TYPE_CHECKING:
    from updsl.back.torch_exec import TorchBackend

COUNT_BYTES = 8
"""Of how many slots of a window are filled, for each of its cells."""
MOST_RUNS = 16
"""Runs in place that one backend remembers: optimizers that have the same rule and tensors."""

ToPlan = Callable[[Mapping[int, Program], frozenset[tuple[int, str]]], Plan]


class Run:
    """A run of steps in place over the same tensors: where a step goes on from the last, its tables hold. tables: by the blocks that run. alike: what
    the places of its steps have in common. counts: of the state, where the tensors are those that it counts the steps of."""

    def __init__(self, state: RuleState, frame: Frame):
        self.names, self.groups = list(frame.g), frame.group_of
        self.dtypes = dtypes_of(frame)
        self.alike: object = None
        self.counts: Counts | None = None
        self.tables: dict[frozenset[tuple[int, str]], Tables] = {}
        self.goes_on_from(state)

    def goes_on_from(self, state: RuleState) -> None:
        """The state is its owner's: a run ends where nobody holds it any more."""
        self._state = weakref.ref(state)
        t, before = state.t, self.counts
        self.counts = t if isinstance(t, Counts) and ((before is not None and t.base is before.base) or list(t) == self.names) else None

    @property
    def state(self) -> RuleState | None:
        return self._state()

    def goes_on(self, frame: Frame) -> bool:
        alike = None if frame.places is None else frame.places.alike
        if alike is None or alike is not self.alike:
            if not (self.names == list(frame.g) and (self.groups is frame.group_of or self.groups == frame.group_of) and self.dtypes == dtypes_of(frame)):
                return False
            self.alike = alike
        return True

    def counted(self, state: RuleState, frame: Frame) -> Mapping[str, Any]:
        """The steps of each tensor, with the next one."""
        if self.counts is not None and self.counts is state.t:
            return Counts(self.counts.base, self.counts.more + 1)
        return counted(state, frame)


class KernelBackend(ABC):
    """The Programs of a rule's tensor classes as kernels. source: file name → text, as far as it was needed; ending: of these names. device_type: of the
    tensors that the kernels take; others are run by torch."""

    ending: str
    device_type: str

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], to_plan: ToPlan):
        self.programs, self.class_of = tuple(programs), dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.to_plan = to_plan
        self.source: dict[str, str] = {}
        self._has_streams = any(i.type.scope == ELEMENT for p in self.programs for i in p.inputs)
        self._has_blocks = any(isinstance(s, Every) for p in self.programs for s in p.body)
        self.writes = any(p.weight is not None for p in self.programs)
        self._plans: dict[tuple, Plan] = {}
        self._kernels: dict[tuple, Kernel] = {}
        self._runs: list[Run] = []
        self._lock = threading.Lock()

    # --- what an emitter does ----------------------------------------------------------------------------------------

    @abstractmethod
    def generated(self, plan: Plan, kinds: Sequence[Kind], name: str) -> Any:
        """The text of a plan, with its tables."""

    @abstractmethod
    def loaded(self, text: str, name: str) -> Any:
        """What runs a text."""

    @abstractmethod
    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int], order: Sequence[str]) -> Tables:
        """Tables for these tensors, but for what changes from step to step."""

    @abstractmethod
    def run(self, tables: Tables, frame: Frame, after: RuleState, in_place: bool) -> dict[str, Any]:
        """Fills in the numbers, and runs the kernel; gives the watches."""

    @abstractmethod
    def launches(self, kernel: Kernel) -> int:
        """Kernels, or parallel regions, of a step."""

    @abstractmethod
    def workspace(self, tables: Tables) -> int:
        """Bytes beside tensors and states."""

    # --- steps -------------------------------------------------------------------------------------------------------

    @cached_property
    def fallback(self) -> TorchBackend:
        """What takes the steps that kernels do not, made when there is one."""
        from updsl.back.torch_exec import TorchBackend

        return TorchBackend(self.programs, self.class_of, tuple(self.tensors.values()))

    def started(self, state: RuleState, frame: Frame) -> RuleState:
        """The state before the step, dense, with the first values of what takes its first step."""
        lacking = list(missing(self.programs, self.class_of, state, frame))
        if lacking:
            state = with_literals(lacking, self.tensors, state, frame) or self.fallback.started(state, frame)
        return owned(state)

    @torch.no_grad()
    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step: a pure function of state and frame."""
        if not self.takes(frame):
            return self.fallback.step(state, frame)
        frame = dense(frame)
        state = self.started(state, frame)
        tables = self.new_tables(state, frame)
        out = {name: torch.empty_like(g) for name, g in frame.g.items() if self.gives(name)}
        weights = {name: torch.empty_like(frame.w[name]) for name in frame.g if self.writes}
        after = RuleState({n: dict(cells) for n, cells in state.values.items()}, state.run + 1, counted(state, frame))
        for name, key in tables.stored:
            after.values[name][key] = torch.empty_like(state.values[name][key])
        point_to_states(tables, state, after, frame)
        point_to_gradients(tables, addresses(frame.g), out)
        point_to_weights(tables, frame, weights)
        watches = self.run(tables, frame, after, in_place=False)
        for name in frame.g:
            if name not in out and self.writes:
                out[name] = frame.w[name] - weights[name]
        return Result({name: out[name] for name in frame.g if name in out}, weights if self.writes else None, watches, after)

    def steps_in_place(self, frame: Frame) -> bool:
        """Whether this step can be taken in place. Not with inputs for each entry, which may be memory that an earlier sweep writes."""
        return not self._has_streams and self.takes(frame) and all(x.is_contiguous() for x in (*frame.g.values(), *frame.w.values()))

    def step_in_place(self, state: RuleState, frame: Frame) -> Result:
        """One step: `out` into the gradients of the frame (if the rule gives one), new weights into its weights, states into their own memory: the state
        before is gone. Everything that can fail is done before the first entry is written."""
        run = next((r for r in self._runs if r.state is state), None)
        if run is None or not run.goes_on(frame):
            state = self.started(state, frame)
            run = self.new_run(state, frame)
        running = self.running(state, frame)
        tables = run.tables.get(running)
        if tables is None:
            tables = self.new_tables(state, frame)
            point_to_states(tables, state, state, frame)
            run.tables[running] = tables
        point_in_place(tables, frame)
        after = RuleState(state.values, state.run + 1, run.counted(state, frame))
        result = Result(frame.g, frame.w if self.writes else None, {}, after)
        result.watches = self.run(tables, frame, after, in_place=True)
        run.goes_on_from(after)
        result.overflowed = tables.overflowed
        return result

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
        """Whether the tensors are memory of one device, of a kind that the kernels run on."""
        xs = (*frame.g.values(), *frame.w.values())
        return bool(frame.g) and xs[0].device.type == self.device_type and are_plain(xs)

    def gives(self, name: str) -> bool:
        """Whether the Program of this tensor says what `out` is."""
        return bool(returned(self.programs[self.class_of[name]]))

    # --- kernels and tables ------------------------------------------------------------------------------------------

    def running(self, state: RuleState, frame: Frame) -> frozenset[tuple[int, str]]:
        """The blocks that run on the step after `state`."""
        if not self._has_blocks:
            return frozenset()
        return blocks_due({c: self.programs[c] for c in {self.class_of[name] for name in frame.g}}, state.run + 1)

    def new_tables(self, state: RuleState, frame: Frame) -> Tables:
        """For these tensors, of these types, in these groups, with the blocks that run on this step."""
        kinds = self.signatures(state, frame)
        programs = {c: self.programs[c] for c in sorted({owner for owner, _ in kinds})}
        with self._lock:
            kernel = self.kernel(programs, self.running(state, frame), tuple(kinds))
        return self.laid_out(kernel, tuple(map(tuple, kinds.values())), frame.group_of, list(frame.g))

    def signatures(self, state: RuleState, frame: Frame) -> dict[tuple, list[str]]:
        """The class of a tensor, and the types of its arrays → the tensors that are so."""
        names: dict[int, list[str]] = {}
        for name in frame.g:
            names.setdefault(self.class_of[name], []).append(name)
        arrays = {owner: dict(self.arrays(owner, own, state, frame)) for owner, own in names.items()}
        types = {owner: zip(*(map(dtype_of, xs) for xs in own.values()), strict=True) for owner, own in arrays.items()}
        kinds: dict[tuple, list[str]] = {}
        for name in frame.g:
            owner = self.class_of[name]
            kinds.setdefault((owner, next(types[owner])), []).append(name)
        return {(owner, named_types(arrays[owner], dtypes)): own for (owner, dtypes), own in kinds.items()}

    def arrays(self, owner: int, names: Sequence[str], state: RuleState, frame: Frame) -> Iterator[tuple[tuple[str, str], list[Tensor | None]]]:
        """What a kernel reads and writes entry by entry, and what it is for each of these tensors of a class."""
        yield ("g", ""), [frame.g[n] for n in names]
        yield ("w", ""), [frame.w.get(n) for n in names]
        for s in self.programs[owner].states:
            cells = state.values[s.name]
            yield ("state", s.name), [cells[key] for key in keys_of(s, names, frame.group_of)]
        for i in self.programs[owner].inputs:
            if i.type.scope == ELEMENT:
                yield ("input", i.name), [frame.inputs[i.name][n] for n in names]

    def summary(self, dtypes: Mapping[str, tuple[str, str]], group_of: Mapping[str, int]) -> Summary:
        """The plan of the first step for tensors of these types (of the gradient, and of the weight)."""
        programs = {c: self.programs[c] for c in sorted(set(self.class_of.values()))}
        plan = self.to_plan(programs, blocks_due(programs, 1))
        kinds: dict[tuple, list[str]] = {}
        for name in self.class_of:
            kinds.setdefault((self.class_of[name], *dtypes[name]), []).append(name)
        made = [Kind(c, programs[c], default_dtypes(programs[c], g, w)) for c, g, w in kinds]
        kernel = Kernel(plan, self.generated(plan, made, ""), None)
        tables = self.laid_out(kernel, tuple(map(tuple, kinds.values())), group_of, list(self.class_of))
        classes = []
        for kind, names in zip(made, kinds.values(), strict=True):
            numel = sum(self.tensors[n].numel for n in names)
            streams = frozenset[Stream]().union(*(s.streams for s in plan.sweeps_of(kind.owner)))
            size = sum(self.state_bytes(s, n, WIDTHS[kind.dtypes["state", s.name]]) for s in kind.program.states for n in names)
            classes.append(TensorsOfClass(kind.owner, numel, {s: WIDTHS[kind.dtypes[dtype_key(s)]] for s in streams}, size))
        return Summary(plan, tuple(classes), self.launches(kernel), self.workspace(tables))

    def state_bytes(self, s: State, name: str, width: int) -> int:
        """That the state of a tensor has; none if it is of several tensors, or on the grid of a matrix that is not there yet."""
        if is_shared(s.type):
            return 0
        rows, cols = self.tensors[name].grid
        known: dict[Any, int] = {"rows": rows, "cols": cols, None: 1}
        cells = prod(known.get(d, d if isinstance(d, int) else 0) for d in (s.type.rows, s.type.cols))
        if s.type.scope.size:
            cells = -(-rows * cols // s.type.scope.size)
        return cells * (width * s.type.window + COUNT_BYTES if s.type.window else width)

    def kernel(self, programs: Mapping[int, Program], running: frozenset[tuple[int, str]], signatures: tuple[tuple, ...]) -> Kernel:
        key = (running, signatures)
        if key not in self._kernels:
            name = to_identifier(next(iter(programs.values())).name)
            of = sorted(programs.items()), sorted(running), signatures
            plan, code = kept(f"kernels{self.ending}", of, lambda: self.planned(programs, running, signatures, f"{name}, generated by updsl"))
            file = f"{name}{self.ending}" if not self.source else f"{name}_{len(self.source) + 1}{self.ending}"
            self.source[file] = code.text
            self._kernels[key] = Kernel(plan, code, self.loaded(code.text, name))
        return self._kernels[key]

    def planned(self, programs: Mapping[int, Program], running: frozenset[tuple[int, str]], signatures: tuple[tuple, ...], name: str) -> tuple[Plan, Any]:
        """The plan, and its text with its tables."""
        key = (tuple(programs), running)
        if key not in self._plans:
            self._plans[key] = self.to_plan(programs, running)
        kinds = [Kind(owner, programs[owner], {(what, name): dtype for what, name, dtype in dtypes}) for owner, dtypes in signatures]
        return self._plans[key], self.generated(self._plans[key], kinds, name)

    # --- one step ----------------------------------------------------------------------------------------------------

    def fill(self, tables: Tables, frame: Frame, after: RuleState, in_place: bool) -> list[Tensor]:
        """The numbers of a step, and its inputs; gives what must be kept alive."""
        held = point_to_inputs(tables, frame) if tables.has_inputs else []
        if tables.counts:
            base, more = (after.t.base, after.t.more) if isinstance(after.t, Counts) else (after.t, 0)
            if tables.base is None or tables.base[0] is not base:
                steps = np.fromiter(map(base.__getitem__, frame.g), np.float64, len(frame.g))
                tables.base = base, [steps[places] for _, places, _ in tables.counts]
            for (table, _, field), steps in zip(tables.counts, tables.base[1], strict=True):
                table[field] = steps + more
        self.fill_shared(tables.kernel.code.group, tables.group, tables.groups, frame, after)
        self.fill_shared(tables.kernel.code.model, tables.model, ("",), frame, after)
        tables.model["in_place"] = in_place
        return held

    def fill_shared(self, table: Table, into: np.ndarray, keys: Sequence[Key], frame: Frame, after: RuleState) -> None:
        """What is given for groups, or for the model."""

        def at(numbers: Mapping, key: Key) -> Any:
            return numbers[key] if key in numbers else next(iter(numbers.values()))

        for field_, what, of in table.given:
            match what:
                case "param":
                    into[field_] = [float(at(frame.params, key)[of]) for key in keys]
                case "builtin" if of == "lr":
                    into[field_] = [float(at(frame.lr, key)) for key in keys]
                case "builtin" if of == "t":
                    into[field_] = float(after.run)
                case "input":
                    into[field_] = [float(frame.inputs[of][key]) if key in frame.inputs[of] else 0.0 for key in keys]

    @staticmethod
    def shown(tables: Tables, numbers: Callable[[np.ndarray, str], Any]) -> Shown:
        """What the step shows. numbers: of a table's field, one for each row."""
        found = Shown()
        for label, names, table, field in tables.watched:
            found.add(label, names, numbers(table, field))
        for field, label in tables.kernel.code.group.watched:
            shown = shown_by(tables.kernel.plan, label)
            keys = [key if classes & shown else None for key, classes in zip(tables.groups, tables.classes, strict=True)]
            found.add(label, keys, numbers(tables.group, field))
        for field, label in tables.kernel.code.model.watched:
            found.model[label] = numbers(tables.model, field)
        return found


def shown_by(plan: Plan, label: str) -> set[int]:
    """The classes that have a watch of groups."""
    return {c for (_, classes), roots in plan.joint.items() for r in roots if (r.role, r.name) == ("watch", label) for c in classes}


def watch_dtype(tables: Tables) -> str:
    """Of the numbers that are watched: the widest arithmetic."""
    return "float64" if any(kind.kind.real == "double" for kind in tables.kernel.code.kinds) else "float32"


def are_plain(xs: Sequence[Tensor]) -> bool:
    """Whether they are memory of one device that a kernel can read."""
    ordinary = set(map(type, xs)) <= {Tensor, torch.nn.Parameter} and len(set(map(attrgetter("device"), xs))) == 1
    return ordinary and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, xs))


def dtype_of(x: Tensor | None) -> torch.dtype | None:
    return None if x is None else x.dtype


def named_types(arrays: Iterable[tuple[str, str]], dtypes: Sequence[torch.dtype | None]) -> tuple[tuple[str, str, str], ...]:
    """The types of these arrays, without those that a tensor has not."""
    return tuple((*array, str(dtype).removeprefix("torch.")) for array, dtype in zip(arrays, dtypes, strict=True) if dtype is not None)
