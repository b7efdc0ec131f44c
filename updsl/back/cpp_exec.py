"""Programs run by C++ kernels: a call for a step, in one parallel region."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from updsl.back.cpp_finite import Finite
from updsl.back.cpp_source import Code, Tensors, generate
from updsl.back.kernel_exec import MOST_RUNS, KernelBackend, ToPlan, watch_dtype
from updsl.back.kernel_kind import Kind
from updsl.back.kernel_tables import Kernel, Tables, attribute, dtype_name, empty, places_of, stored_states
from updsl.back.kernel_where import Where, stay_function, view_function
from updsl.core import frame
from updsl.core.frame import Frame, RuleState
from updsl.core.ir import Program
from updsl.core.plan import Plan

CHUNK = 1 << 16
"""Entries of a chunk, about."""
MOST_PARTS = 8
"""Chunks of a tensor whose columns are added up: each has an array of parts for them."""
SERIAL = 1 << 15
"""Up to so many entries in all, one thread does the step."""
LINE = 64
"""Bytes of a cache line, which two threads should not write to."""
BAD = 4
"""The field of a chunk that says whether an entry that it gave is not finite."""

Build = Callable[[str, str], ctypes.CDLL]


@dataclass
class HostTables(Tables):
    """Tables that a C++ function is handed by their addresses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pointers: tuple[ctypes.c_void_p, ...] = ()
        self.overflowed = self.has_bad

    def has_bad(self) -> bool:
        """Whether the last step gave an entry that is not finite."""
        return any(bool(chunks[:, BAD].any()) for chunks in self.chunks)

    def ready(self) -> HostTables:
        """When all arrays are there."""
        super().ready()
        pairs = [x for pair in zip(self.tensors, self.chunks, strict=True) for x in pair]
        self.pointers = tuple(ctypes.c_void_p(x.ctypes.data) for x in (self.model, self.group, *pairs))
        return self

    def memory(self, cells: np.ndarray, dtype: type) -> np.ndarray:
        """Addresses of runs of so many cells, apart from each other by cache lines: memory that lives as long as the tables."""
        sizes = -(-cells * np.dtype(dtype).itemsize // LINE) * LINE
        ends = sizes.cumsum()
        self.held.append(np.zeros(int(sizes.sum()) + LINE, np.uint8))
        return -(-self.held[-1].ctypes.data // LINE) * LINE + ends - sizes


class CppBackend(KernelBackend):
    """The Programs of a rule's tensor classes as C++ kernels. build: a text and a name → the loaded library."""

    ending, device_type = ".cpp", "cpu"

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], to_plan: ToPlan, build: Build):
        super().__init__(programs, class_of, tensors, to_plan)
        self.build = build
        self._finite: list[Finite] = []

    def generated(self, plan: Plan, kinds: Sequence[Kind], name: str) -> Code:
        return generate(plan, kinds, name)

    def loaded(self, text: str, name: str) -> Any:
        step = self.build(text, name).step
        step.restype = None
        if view_function() is not None:
            stay_function(self.build)  # the second step needs it: what is compiled is compiled in the first
        return step

    def launches(self, kernel: Kernel) -> int:
        return 1

    def workspace(self, tables: Tables) -> int:
        return sum(x.nbytes for x in tables.held)

    # --- tables ------------------------------------------------------------------------------------------------------

    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int], order: Sequence[str]) -> HostTables:
        code: Code = kernel.code
        groups = tuple(sorted(set(group_of.values())))
        stored, places = stored_states(kernel, names, group_of), places_of(names, order)
        made = HostTables(kernel, names, groups, [], [], empty(code.group, len(groups)), empty(code.model, 1), stored, places)
        for kind, own in zip(code.kinds, names, strict=True):
            grids = [self.tensors[name].grid for name in own]
            runs = {grid: np.array(list(chunks_of(kind, *grid)), np.int64).reshape(-1, 2) for grid in set(grids)}
            counts = np.array([len(runs[grid]) for grid in grids], np.int64)
            firsts = counts.cumsum() - counts
            chunks = np.zeros((int(counts.sum()), BAD + 1), np.int64)
            chunks[:, 0] = np.repeat(np.arange(len(own)), counts)
            chunks[:, 1] = np.arange(len(chunks)) - np.repeat(firsts, counts)
            chunks[:, 2:BAD] = np.concatenate([runs[grid] for grid in grids])
            made.chunks.append(chunks)
            made.tensors.append(empty(kind.table, len(own)))
            self.lay_out(made, kind, own, {"group": np.array([groups.index(group_of[name]) for name in own]), "chunks": counts, "first": firsts})
        made.divide(group_of)
        self.size_model(made)
        return made.ready()

    def lay_out(self, tables: HostTables, kind: Tensors, names: Sequence[str], known: Mapping[str, np.ndarray]) -> None:
        """What is known of the tensors of a kind; their workspace."""
        table = tables.tensors[-1]
        rows, cols = np.array([self.tensors[name].grid for name in names], np.int64).T
        blocks = -(-rows * cols // kind.block) if kind.block else np.zeros_like(rows)
        sizes = {"rows": rows, "cols": cols, "numel": rows * cols, "blocks": blocks, **known}
        wide = np.longdouble if any(k.kind.real == "double" for k in tables.kernel.code.kinds) else np.float64
        for field, (_, (what, of)) in kind.table.fields.items():
            match what:
                case "size":
                    table[field] = sizes[of]
                case "builtin" if of != "t":
                    table[field] = [attribute(of, self.tensors[name].shape) for name in names]
                case "workspace":
                    table[field] = tables.memory(known["chunks"] * (kind.slots if of == "parts" else kind.columns * cols), wide)
                case _ if what.startswith(("array", "real array")):
                    cells = {"row": rows, "column": cols, "block": blocks}[what.split()[-1]]
                    table[field] = tables.memory(cells, np.float32 if what.startswith("real") and kind.kind.real == "float" else np.float64)

    def size_model(self, tables: HostTables) -> None:
        """How much there is of everything."""
        numel = sum(self.tensors[n].numel for own in tables.names for n in own)
        sizes = {"groups": len(tables.groups), "parallel": numel > SERIAL}
        for field, (_, (what, of)) in tables.kernel.code.model.fields.items():
            match what:
                case "size" if of in sizes:
                    tables.model[field] = sizes[of]
                case "tensors":
                    tables.model[field] = len(tables.names[int(of)])
                case "chunks":
                    tables.model[field] = len(tables.chunks[int(of)])

    # --- one step ----------------------------------------------------------------------------------------------------

    def is_finite(self, frame: Frame) -> bool | None:
        """Whether all gradients are, where the caller knows where they lie; else None."""
        places = frame.places
        if places is None:
            return None
        found = next((f for f in self._finite if f.alike is places.alike), None)
        if found is None:
            found = Finite(places.alike, [(x.numel(), dtype_name(x)) for x in frame.g.values()], self.build)
            self._finite = [*self._finite[-MOST_RUNS + 1 :], found]
        return found.holds(places)

    def where(self, tensors: Sequence[Tensor]) -> Where | None:
        """Tells whether these tensors stay where they are; None where torch does not show it to C."""
        view = view_function()
        return None if view is None else Where(tensors, self.build, view)

    def run(self, tables: Tables, frame: Frame, after: RuleState, in_place: bool) -> dict[str, Any]:
        """Everything is made before the kernel runs, after which nothing can fail."""
        assert isinstance(tables, HostTables)
        held = self.fill(tables, frame, after, in_place)
        dtype = np.dtype(watch_dtype(tables))
        copies: list[tuple[np.ndarray, np.ndarray, str]] = []

        def numbers(table: np.ndarray, field: str) -> np.ndarray:
            copies.append((np.empty(len(table), dtype), table, field))
            return copies[-1][0]

        watches = self.shown(tables, numbers).watches
        tables.kernel.step(*tables.pointers)
        with np.errstate(over="ignore"):
            for into, table, field in copies:
                into[:] = table[field]
        del held
        return watches


def chunks_of(kind: Tensors, rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Where chunks begin and end, in rows, blocks or entries."""
    units, width = {"rows": (rows, cols), "blocks": (-(-rows * cols // (kind.block or 1)), kind.block), "flat": (rows * cols, 1)}[kind.layout]
    step = max(1, -(-CHUNK // width))
    if kind.columns:
        step = max(step, -(-units // MOST_PARTS))
    for begin in range(0, units, step):
        yield begin, min(begin + step, units)
