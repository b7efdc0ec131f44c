"""The memory that a kernel works on: tables of addresses and numbers, and what is written to them from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.kernel_kind import Table
from updsl.core.frame import Counts, Frame, Key, Places, RuleState
from updsl.core.ir import State, is_shared
from updsl.core.plan import Plan
from updsl.core.scope import GROUP

DTYPE = attrgetter("dtype")


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
        """classes: of the tensors of each group. counts: where the steps of each tensor are handed over; base: how many there were when the run began, for
        each of these places. pointed, weights: the addresses that the tables hold, where they are known. overflowed: tells whether the last step gave an
        entry that is not finite; None where nobody looks."""
        self.classes: list[set[int]] = [set() for _ in self.groups]
        self.counts: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.watched: list[tuple[str, tuple[str, ...], np.ndarray, str]] = []
        self.base: tuple[Mapping[str, int], list[np.ndarray]] | None = None
        self.overflowed: Callable[[], bool] | None = None
        self.pointed: Places | None = None
        self.weights: np.ndarray | None = None
        held = {what for kind in self.kernel.code.kinds for _, (what, _) in kind.table.fields.values()}
        self.has_weights, self.has_inputs = bool(held & {"old w", "new w"}), bool(held & {"old input", "input"})

    def divide(self, group_of: Mapping[str, int]) -> None:
        """Says of each group which tensors it has."""
        for kind, own in zip(self.kernel.code.kinds, self.names, strict=True):
            for g in {group_of[name] for name in own}:
                self.classes[self.groups.index(g)].add(kind.kind.owner)
        for field_, (_, (what, of)) in self.kernel.code.group.fields.items():
            if what == "present":
                self.group[field_] = [bool(c & set(map(int, of.split())) if of else c) for c in self.classes]

    def ready(self) -> Tables:
        """When all arrays are there."""
        for kind, table, places, names in zip(self.kernel.code.kinds, self.tensors, self.places, self.names, strict=True):
            self.counts += [(table, places, field_) for field_, (_, what) in kind.table.fields.items() if what == ("builtin", "t")]
            self.watched += [(of, names, table, field_) for field_, of in kind.table.watched]
        return self


def stored_states(kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int]) -> frozenset[tuple[str, Key]]:
    """The states that a step stores: name and key."""
    found: set[tuple[str, Key]] = set()
    for kind, own in zip(kernel.code.kinds, names, strict=True):
        states, owner = {s.name: s for s in kind.kind.program.states}, kind.kind.owner
        stored = [s.stream.name for sweep in kernel.plan.sweeps_of(owner) for s in sweep.stores if s.stream.role == "state"]
        stored += [r.name for r in kernel.plan.leaving.get(owner, ()) if r.role == "state"]
        stored += [r.name for (_, classes), roots in kernel.plan.joint.items() if owner in classes for r in roots if r.role == "state"]
        found |= {(name, key) for name in stored for key in keys_of(states[name], own, group_of)}
    return frozenset(found)


def counted(state: RuleState, frame: Frame) -> Mapping[str, Any]:
    """The steps of each tensor, with this one."""
    if state.t.keys() == frame.g.keys():
        return Counts({name: n + 1 for name, n in state.t.items()})
    return {**state.t, **{name: state.t.get(name, 0) + 1 for name in frame.g}}


def dtypes_of(frame: Frame) -> list[torch.dtype]:
    """Of the gradients and weights."""
    return [*map(DTYPE, frame.g.values()), *map(DTYPE, frame.w.values())]


def owned(state: RuleState) -> RuleState:
    """The state, dense."""
    values = {
        name: {key: x if isinstance(x, tuple) or x.is_contiguous() else x.contiguous() for key, x in cells.items()} for name, cells in state.values.items()
    }
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
                table[field_] = [cells[key].data_ptr() for key in keys_of(states[of], names, frame.group_of)]
    for own, into, keys in ((tables.kernel.code.group, tables.group, tables.groups), (tables.kernel.code.model, tables.model, ("",))):
        for field_, (_, (what, of)) in own.fields.items():
            if what in ("state", "new"):
                cells = (state if what == "state" else after).values.get(of, {})
                into[field_] = [cells[key].data_ptr() if key in cells and (what == "state" or (of, key) in tables.stored) else 0 for key in keys]


def point_to_gradients(tables: Tables, g: np.ndarray, out: Mapping[str, Tensor] | np.ndarray) -> None:
    """The addresses of gradients, and of what the step gives: those of the gradients, or tensors that the rule gives something for."""
    for kind, table, names, places in zip(tables.kernel.code.kinds, tables.tensors, tables.names, tables.places, strict=True):
        for field_, (_, (what, _)) in kind.table.fields.items():
            if what == "old g":
                table[field_] = g[places]
            elif what == "new out":
                table[field_] = out[places] if isinstance(out, np.ndarray) else [out[n].data_ptr() for n in names]


def addresses(xs: Mapping[str, Tensor]) -> np.ndarray:
    return np.fromiter(map(Tensor.data_ptr, xs.values()), np.int64, len(xs))


def point_in_place(tables: Tables, frame: Frame) -> None:
    """The addresses of gradients and weights, which the step itself overwrites."""
    now = frame.places
    if now is not None and tables.pointed is now:
        return
    tables.pointed = None
    if tables.has_weights:
        w = addresses(frame.w) if now is None or now.w is None else np.array(now.w, np.int64)
        if tables.weights is None or not np.array_equal(w, tables.weights):
            tables.weights = None
            point_to_weights(tables, frame, frame.w)
            tables.weights = w
    g = addresses(frame.g) if now is None else np.array(now.g, np.int64)
    point_to_gradients(tables, g, g)
    tables.pointed = now


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


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def key_of(s: State, name: str, group_of: Mapping[str, int]) -> Key:
    """Under which the state of a tensor is kept."""
    if not is_shared(s.type):
        return name
    return group_of[name] if s.type.scope == GROUP else ""


def keys_of(s: State, names: Sequence[str], group_of: Mapping[str, int]) -> Sequence[Key]:
    """`key_of` for each of the tensors."""
    return [key_of(s, n, group_of) for n in names] if is_shared(s.type) else names


def attribute(name: str, shape: tuple[int, ...]) -> float:
    """ndim, or dim(i)."""
    return float(len(shape) if name == "ndim" else shape[int(name[4:-1])])


def empty(table: Table, n: int) -> np.ndarray:
    """An array of structs."""
    fields = [(name, np.float64 if type_ == "double" else np.int64) for name, (type_, _) in table.fields.items()]
    return np.zeros(n, np.dtype(fields or [("unused", np.int64)]))


def places_of(names: tuple[tuple[str, ...], ...], order: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Where the tensors of each kind stand in the order of the step."""
    place = {name: i for i, name in enumerate(order)}
    return tuple(np.array([place[n] for n in own], np.intp) for own in names)
