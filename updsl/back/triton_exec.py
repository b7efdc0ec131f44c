"""Programs run by Triton kernels: tables in the memory of the device, one small copy to it, and a few launches for a step. Nothing waits for the device."""

from __future__ import annotations

import linecache
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.kernel_exec import KernelBackend, watch_dtype
from updsl.back.kernel_kind import Kind
from updsl.back.kernel_tables import Kernel, Tables, attribute, empty, places_of, stored_states
from updsl.back.triton_source import CHUNK as CHUNK_FIELDS
from updsl.back.triton_source import TILES, Code, Tensors, generate
from updsl.core.frame import Frame, RuleState
from updsl.core.plan import Plan

CHUNK = 1 << 16
"""Entries of a chunk, about."""
WARPS = 8
NARROW = 16
"""Tensors of fewer columns have tiles of their own."""
STREAMS = ("old g", "old w", "old state", "old input", "new out", "new w", "new state")
STAGING = 4
"""Copies of the tables that may be under way to the device."""


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing() -> str:
    """What is missing to run Triton kernels, and what to do about it; "" if nothing."""
    if find_spec("triton") is None:
        return 'Triton is not installed (pip install "updsl[gpu]")'
    if not is_interpreted() and not torch.cuda.is_available():
        return "torch sees no CUDA device (it needs a machine with one, and a torch that is built for it)"
    return ""


def load(text: str, name: str) -> ModuleType:
    """The module of a generated text; Triton reads its functions' source."""
    file = f"<updsl {name} {hash(text) & 0xFFFFFFFF:08x}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    module = ModuleType(f"updsl_triton_{name}")
    module.__file__ = file
    exec(compile(text, file, "exec"), module.__dict__)
    return module


class DeviceTables(Tables):
    """Tables whose host side is one buffer, which is copied to the device as a whole."""

    device: Any
    chunks_of: dict[int, np.ndarray]

    def placed(self, device: torch.device, counts: Mapping[str, int]) -> DeviceTables:
        """With their memory on a device; counts: programs of each grid."""
        kernel, code = self.kernel, self.kernel.code
        named = {"M": self.model, "G": self.group} | {f"T{n}": table for n, table in enumerate(self.tensors)}
        self.rows = {name: (table, np.ascontiguousarray(table).view(np.int64).reshape(len(table), -1)) for name, table in named.items()}
        size = sum(-(-ints.size // 2) * 2 for _, ints in self.rows.values())
        self.host = torch.zeros(size, dtype=torch.int64)
        self.device_buffer = self.host if device.type == "cpu" else torch.zeros(size, dtype=torch.int64, device=device)
        self.given: dict[str, Tensor] = {}
        at = 0
        for name, (table, ints) in self.rows.items():
            there = self.host[at : at + ints.size].numpy().view(table.dtype)
            there[:] = table
            self.given[name] = self.device_buffer[at : at + ints.size]
            self.replace_table(name, there)
            at += -(-ints.size // 2) * 2
        for level, slots in code.slots.items():
            chunks = self.chunks_of[level]
            self.given[f"K{level}"] = torch.from_numpy(chunks).to(device)
            self.given[f"P{level}"] = torch.zeros(len(chunks) * slots, dtype=torch.int64, device=device)
        self.launches: list[tuple[Any, int, list[Tensor]]] = []
        for launch in code.launches:
            grid = {"one": 1, "tensors": counts["tensors"]}.get(launch.over, counts.get(f"chunks{launch.level}", 0))
            self.launches.append((getattr(kernel.step, launch.name) if kernel.step else None, grid, [self.given[a] for a in launch.arguments]))
        if device.type != "cpu":
            self.staging = [(torch.empty(size, dtype=torch.int64, pin_memory=True), torch.cuda.Event()) for _ in range(STAGING)]
        self.turn = 0
        return self

    def memory(self, cells: int) -> int:
        """The address of float64 memory that lives as long as the tables."""
        x = torch.zeros(int(cells), dtype=torch.float64, device=self.device)
        self.held.append(x)  # type: ignore[arg-type]
        return x.data_ptr()

    def replace_table(self, name: str, there: np.ndarray) -> None:
        match name:
            case "M":
                self.model = there
            case "G":
                self.group = there
            case _:
                self.tensors[int(name[1:])] = there

    def launch(self) -> None:
        """The step, on the current stream."""
        if self.device_buffer is not self.host:
            staged, copied = self.staging[self.turn % STAGING]
            copied.synchronize()
            staged.copy_(self.host)
            self.device_buffer.copy_(staged, non_blocking=True)
            copied.record()
            self.turn += 1
        with torch.cuda.device_of(self.device_buffer):
            for function, grid, arguments in self.launches:
                function[(grid,)](*arguments, num_warps=WARPS)

    @property
    def workspace(self) -> int:
        """Bytes on the device beside tensors and states."""
        return sum(x.nbytes for x in self.given.values()) + sum(x.nbytes for x in self.held)


class TritonBackend(KernelBackend):
    """The Programs of a rule's tensor classes as Triton kernels. Whether what a step gives is finite is not looked at: that would wait for the device."""

    ending = ".py"
    device: Any = torch.device("cpu")

    @property
    def device_type(self) -> str:  # type: ignore[override]
        return "cpu" if is_interpreted() else "cuda"

    def generated(self, plan: Plan, kinds: Sequence[Kind], name: str) -> Code:
        return generate(plan, kinds, name)

    def loaded(self, text: str, name: str) -> ModuleType:
        return load(text, name)

    def launches(self, kernel: Kernel) -> int:
        return len(kernel.code.launches)

    def workspace(self, tables: Tables) -> int:
        assert isinstance(tables, DeviceTables)
        return tables.workspace

    def new_tables(self, state: RuleState, frame: Frame) -> Tables:
        self.device = next(iter(frame.g.values())).device
        return super().new_tables(state, frame)

    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int], order: Sequence[str]) -> DeviceTables:
        code: Code = kernel.code
        groups = tuple(sorted(set(group_of.values())))
        tensors = [empty(kind.table, len(own)) for kind, own in zip(code.kinds, names, strict=True)]
        stored, places = stored_states(kernel, names, group_of), places_of(names, order)
        made = DeviceTables(kernel, names, groups, tensors, [], empty(code.group, len(groups)), empty(code.model, 1), stored, places)
        made.device = self.device
        made.divide(group_of)
        made.model["groups"] = len(groups)
        made.chunks_of = {level: self.chunks(level, made, group_of) for level in code.slots}
        for n, (kind, own) in enumerate(zip(code.kinds, names, strict=True)):
            made.model[f"tensors{n}"] = len(own)
            for row, name in zip(made.tensors[n], own, strict=True):
                self.sizes(made, kind, row, name, groups.index(group_of[name]))
        counts = {"tensors": sum(map(len, names))} | {f"chunks{level}": len(chunks) for level, chunks in made.chunks_of.items()}
        made.placed(self.device, counts).ready()
        return made

    def sizes(self, tables: DeviceTables, kind: Tensors, row: Any, name: str, group: int) -> None:
        """What is known of one tensor; its workspace."""
        rows, cols = self.tensors[name].grid
        sizes = {"rows": rows, "cols": cols, "numel": rows * cols, "group": group, "blocks": -(-rows * cols // kind.block) if kind.block else 0}
        for field, (_, (what, of)) in kind.table.fields.items():
            if what == "size" and of in sizes:
                row[field] = sizes[of]
            elif what == "builtin" and of != "t":
                row[field] = attribute(of, self.tensors[name].shape)
            elif what == "workspace":
                level = int(of.removeprefix("columns"))
                row[field] = tables.memory(kind.columns[level] * row[f"parts{level}"] * cols)
            elif what.startswith("array"):
                row[field] = tables.memory({"row": rows, "column": cols, "block": sizes["blocks"]}[what.split()[-1]])

    def chunks(self, level: int, tables: DeviceTables, group_of: Mapping[str, int]) -> np.ndarray:
        """The chunks of a level's sweeps, kind by kind and tensor by tensor; where they lie is written to the tables."""
        found: list[tuple[int, ...]] = []
        for n, (kind, own) in enumerate(zip(tables.kernel.code.kinds, tables.names, strict=True)):
            if level not in kind.shapes:
                continue
            start = len(found)
            for i, name in enumerate(own):
                first = len(found)
                group = tables.groups.index(group_of[name])
                pieces, step = rectangles(kind, kind.shapes[level], *self.tensors[name].grid)
                found += [(n, i, first + c, *piece, group) for c, piece in enumerate(pieces)]
                values = {f"first {level}": first, f"chunks {level}": len(pieces), f"parts {level}": pieces[-1][0] + 1, f"step {level}": step}
                write(tables.tensors[n][i], kind.table, {("size", key): value for key, value in values.items()})
            write(tables.model[0], tables.kernel.code.model, {("first", f"{level} {n}"): start, ("chunks", f"{level} {n}"): len(found) - start})
        return np.array(found, np.int64).reshape(-1, len(CHUNK_FIELDS))

    # --- one step ----------------------------------------------------------------------------------------------------

    def run(self, tables: Tables, frame: Frame, after: RuleState, in_place: bool) -> dict[str, Any]:
        """Watches are memory of the device, which the kernels fill in."""
        assert isinstance(tables, DeviceTables)
        held = self.fill(tables, frame, after, in_place)
        for kind, table in zip(tables.kernel.code.kinds, tables.tensors, strict=True):
            table["variant"] = self.variants(kind, table)
        dtype = getattr(torch, watch_dtype(tables))

        def numbers(table: np.ndarray, field: str) -> Tensor:
            made = torch.empty(len(table), dtype=dtype, device=tables.device)
            table[field] = made.data_ptr() + np.arange(len(table)) * made.element_size()
            return made

        watches = self.shown(tables, numbers).watches
        tables.launch()
        del held
        return watches

    def variants(self, kind: Tensors, table: np.ndarray) -> np.ndarray:
        """Which code each tensor takes: 0 where every row is aligned to 16 bytes, 2 where there are few columns, else 1."""
        addresses = [table[field] for field, (_, (what, _)) in kind.table.fields.items() if what in STREAMS]
        aligned = np.bitwise_or.reduce([*addresses, np.zeros(len(table), np.int64)]) % 16 == 0
        if kind.layout == "flat":
            return np.where(aligned & (table["numel"] % 16 == 0), 0, 1)
        cols = np.full(len(table), kind.block) if kind.layout == "blocks" else table["cols"]
        return np.where(aligned & (cols % 16 == 0) & (table["numel"] % 16 == 0), 0, np.where(cols < NARROW, 2, 1))


def write(row: Any, table: Any, values: Mapping[tuple[str, str], int]) -> None:
    """Into those fields that a table has."""
    for field, (_, what) in table.fields.items():
        if what in values:
            row[field] = values[what]


def rectangles(kind: Tensors, shape: str, rows: int, cols: int) -> tuple[list[tuple[int, ...]], int]:
    """(part, top, bottom, left, right, count) of each chunk, and the rows of a part."""
    numel = rows * cols
    if shape == "flat":
        return [(0, 0, 1, a, min(a + CHUNK, numel), min(a + CHUNK, numel) - a) for a in range(0, numel, CHUNK)], 1
    if kind.layout == "blocks":
        rows, cols = -(-numel // kind.block), kind.block
    tile = TILES[shape][2 if cols < NARROW else 0]
    width = tile[1] if shape == "tiles" else cols
    step = max(1, CHUNK // (width * tile[0])) * tile[0]
    found: list[tuple[int, ...]] = []
    for part, top in enumerate(range(0, rows, step)):
        bottom = min(top + step, rows)
        for left in range(0, cols, width):
            right = min(left + width, cols)
            count = min(bottom * cols, numel) - top * cols if shape == "rows" else (bottom - top) * (right - left)
            found.append((part, top, bottom, left, right, count))
    return found, step
