"""Programs run by Triton kernels: tables in the memory of the device, one small copy to it, and a few launches for a step. Nothing waits for the device."""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.back.cpp_exec import (
    CHUNK,
    WIDTHS,
    CppBackend,
    Kernel,
    Kind,
    Tables,
    ToPlan,
    attribute,
    default_dtypes,
    dtype_key,
    empty,
    point_to_inputs,
    stored_states,
)
from updsl.back.torch_names import to_identifier
from updsl.back.triton_source import CHUNK as CHUNK_FIELDS
from updsl.back.triton_source import TILES, Code, Tensors, generate
from updsl.core import frame
from updsl.core.frame import Frame, RuleState
from updsl.core.ir import Program, is_shared
from updsl.core.plan import Plan, Summary, TensorsOfClass
from updsl.core.straight import blocks_due

WARPS = 8
NARROW = 16
"""Tensors of fewer columns have tiles of their own."""
STREAMS = ("old g", "old w", "old state", "old input", "new out", "new w", "new state")
STAGING = 4
"""Copies of the tables that may be under way to the device."""


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing() -> tuple[str, str]:
    """What is missing to run Triton kernels, and what to do about it; "" if nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed", 'install it: pip install "updsl[gpu]"'
    if is_interpreted():
        return "", ""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device", 'run on a machine with one, with a torch that is built for it; or choose "auto"'
    return "", ""


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
    overflowed = None  # type: ignore[assignment]  # nobody looks: that would wait for the device

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

    def ready(self) -> DeviceTables:
        """When all arrays are there."""
        for kind, table, places in zip(self.kernel.code.kinds, self.tensors, self.places, strict=True):
            self.counts += [(table, places, field) for field, (_, what) in kind.table.fields.items() if what == ("builtin", "t")]
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


class TritonBackend(CppBackend):
    """The Programs of a rule's tensor classes as Triton kernels. source: file name → text, as far as it was needed."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], to_plan: ToPlan):
        super().__init__(programs, class_of, tensors, to_plan, no_build)

    def takes(self, frame: Frame) -> bool:
        """Whether the tensors are memory of one device, as kernels need it."""
        xs = [*frame.g.values(), *frame.w.values()]
        device = xs[0].device if xs else None
        wanted = "cpu" if is_interpreted() else "cuda"
        return bool(frame.g) and device is not None and device.type == wanted and all(is_plain(x, device) for x in xs)

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
            file = f"{name}.py" if not self.source else f"{name}_{len(self.source) + 1}.py"
            self.source[file] = code.text
            self._kernels[key] = Kernel(plan, code, load(code.text, name))
        return self._kernels[key]

    def new_tables(self, state: RuleState, frame: Frame) -> Tables:
        self.device = next(iter(frame.g.values())).device
        return super().new_tables(state, frame)

    device: Any = torch.device("cpu")

    def laid_out(self, kernel: Kernel, names: tuple[tuple[str, ...], ...], group_of: Mapping[str, int], order: Sequence[str]) -> DeviceTables:
        """Tables for these tensors, but for what changes from step to step."""
        code: Code = kernel.code
        groups = tuple(sorted(set(group_of.values())))
        tensors = [empty(kind.table, len(own)) for kind, own in zip(code.kinds, names, strict=True)]
        stored = stored_states(kernel, names, group_of)
        place = {name: i for i, name in enumerate(order)}
        places = tuple(np.array([place[n] for n in own], np.intp) for own in names)
        made = DeviceTables(kernel, names, groups, tensors, [], empty(code.group, len(groups)), empty(code.model, 1), stored, places)
        made.device = self.device
        made.group["present"] = [g in {group_of[n] for own in names for n in own} for g in groups]
        made.model["groups"] = len(groups)
        made.chunks_of = {level: self.chunks(level, made, group_of) for level in code.slots}
        for n, (kind, own) in enumerate(zip(code.kinds, names, strict=True)):
            made.model[f"tensors{n}"] = len(own)
            for row, name in zip(made.tensors[n], own, strict=True):
                self.sizes(made, kind, row, name, groups.index(group_of[name]))
        counts = {"tensors": sum(map(len, names))} | {f"chunks{level}": len(chunks) for level, chunks in made.chunks_of.items()}
        return made.placed(self.device, counts).ready()

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
        """Fills in the numbers, and launches the kernels; gives the watches."""
        assert isinstance(tables, DeviceTables)
        held = point_to_inputs(tables, frame)
        if tables.counts:
            t = np.fromiter(map(after.t.__getitem__, frame.g), np.float64, len(frame.g))
            for table, places, field in tables.counts:
                table[field] = t[places]
        self.fill_shared(tables.kernel.code.group, tables.group, tables.groups, frame, after)
        self.fill_shared(tables.kernel.code.model, tables.model, ("",), frame, after)
        tables.model["in_place"] = in_place
        for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
            table["variant"] = self.variants(kind, table, names)
        watches, _ = self.watches(tables)
        tables.launch()
        del held
        return watches

    def variants(self, kind: Tensors, table: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Which code each tensor takes: 0 where every row is aligned to 16 bytes, 2 where there are few columns, else 1."""
        addresses = [table[field] for field, (_, (what, _)) in kind.table.fields.items() if what in STREAMS]
        aligned = np.bitwise_or.reduce([*addresses, np.zeros(len(table), np.int64)]) % 16 == 0
        if kind.layout == "flat":
            return np.where(aligned & (table["numel"] % 16 == 0), 0, 1)
        cols = np.full(len(table), kind.block) if kind.layout == "blocks" else table["cols"]
        return np.where(aligned & (cols % 16 == 0) & (table["numel"] % 16 == 0), 0, np.where(cols < NARROW, 2, 1))

    def watches(self, tables: Tables) -> tuple[dict[str, Any], Callable[[], None]]:
        """label → 0-d tensor (scope all), or key → 0-d tensor, which the kernels fill in."""
        assert isinstance(tables, DeviceTables)
        real = torch.float64 if any(k.kind.real == "double" for k in tables.kernel.code.kinds) else torch.float32
        found: dict[str, Any] = {}

        def numbers(table: np.ndarray, field: str) -> tuple[Tensor, ...]:
            made = torch.empty(len(table), dtype=real, device=tables.device)
            table[field] = made.data_ptr() + np.arange(len(table)) * made.element_size()
            return made.unbind()

        for kind, table, names in zip(tables.kernel.code.kinds, tables.tensors, tables.names, strict=True):
            for field, (_, (what, of)) in kind.table.fields.items():
                if what == "watch":
                    found.setdefault(of, {}).update(zip(names, numbers(table, field), strict=True))
        for field, (_, (what, of)) in tables.kernel.code.group.fields.items():
            if what == "watch":
                cells = zip(tables.groups, numbers(tables.group, field), tables.group["present"], strict=True)
                found[of] = {key: x for key, x, present in cells if present}
        for field, (_, (what, of)) in tables.kernel.code.model.fields.items():
            if what == "watch":
                (found[of],) = numbers(tables.model, field)
        return found, lambda: None

    def summary(self, dtypes: Mapping[str, tuple[str, str]], group_of: Mapping[str, int]) -> Summary:
        """The plan of the first step for tensors of these types (of the gradient, and of the weight)."""
        programs = {c: self.programs[c] for c in sorted(set(self.class_of.values()))}
        plan: Plan = self.to_plan(programs, blocks_due(programs, 1))
        kinds: dict[tuple, list[str]] = {}
        for name in self.class_of:
            kinds.setdefault((self.class_of[name], *dtypes[name]), []).append(name)
        made = [Kind(c, programs[c], default_dtypes(programs[c], g, w)) for c, g, w in kinds]
        code = generate(plan, made, "")
        tables = self.laid_out(Kernel(plan, code, None), tuple(map(tuple, kinds.values())), group_of, list(self.class_of))  # type: ignore[arg-type]
        classes = []
        for kind, names in zip(made, kinds.values(), strict=True):
            streams = {stream for s in plan.sweeps_of(kind.owner) for stream in (*s.reads, *(store.stream for store in s.stores))}
            size = sum(self.cells(s, n) * WIDTHS[kind.dtypes["state", s.name]] for s in kind.program.states if not is_shared(s.type) for n in names)
            widths = {s: WIDTHS[kind.dtypes[dtype_key(s)]] for s in streams}
            classes.append(TensorsOfClass(kind.owner, sum(self.tensors[n].numel for n in names), widths, size))
        return Summary(plan, tuple(classes), len(code.launches), tables.workspace)


def no_build(text: str, name: str) -> Any:
    """Triton compiles when it launches."""


def is_plain(x: Tensor, device: torch.device) -> bool:
    """Memory of this device that a kernel can read."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device == device and not torch._C._functorch.is_functorch_wrapped_tensor(x)


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
