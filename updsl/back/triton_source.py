"""Plan → Triton: a kernel for each sweep and one or two for each stage, whatever the number of tensors.

Kernels find tensors through tables, rows of fields of 8 bytes: one for the model (M), one of groups (G), and one of tensors for each kind (T0, T1, …), a class
of tensors whose streams have the same types. A sweep has a program for each chunk of each tensor (K); what a chunk adds up goes to the row of its number in P.
Everything of coarser scope is computed on the device too, by one program for each tensor or by one for all, so that no number comes to the host between
launches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from updsl.back.kernel_kind import Kind, Layout, Table, layout_of, present
from updsl.back.kernel_reduce import Accumulation, accumulations
from updsl.back.kernel_text import DEPTH
from updsl.back.triton_expression import TYPES
from updsl.back.triton_launch import Segment, segments
from updsl.back.triton_prelude import PRELUDE
from updsl.back.triton_reduce import MEAN, SQUARES, VARIANCE, accumulator
from updsl.back.triton_stage import Staging
from updsl.back.triton_sweep import Shape, Sweeping, shape_of
from updsl.core.ir import Ref, State, is_shared
from updsl.core.plan import Plan, Sweep
from updsl.core.scope import GROUP, Scope

CHUNK = ("kind", "tensor", "number", "part", "top", "bottom", "left", "right", "count", "group")
"""The fields of a chunk: of which tensor of which kind; its number in the sweep; which part of the tensor's rows it is; its rectangle; entries; the group."""
TILES = {"flat": ((1, 1024), (1, 1024)), "tiles": ((8, 128), (8, 128), (128, 8)), "rows": ((8, 128), (8, 128), (128, 8))}
"""Rows and columns of a tile: of tensors that are aligned to 16 bytes in every row, of others, and of those with few columns."""


@dataclass(frozen=True)
class Tensors:
    """What must be known of a kind to lay out its tables. shapes: of the chunks of its sweep of a level; columns: arrays of a part for each column."""

    kind: Kind
    layout: Layout
    block: int
    table: Table
    shapes: dict[int, Shape]
    columns: dict[int, int]

    @property
    def arrays(self) -> frozenset[str]:
        """The fields that point to memory."""
        return frozenset(name for name, (type_, _) in self.table.fields.items() if type_.endswith("*"))


@dataclass(frozen=True)
class Launch:
    """A kernel. over: "chunks" of its level, "tensors", or "one" program."""

    name: str
    over: str
    level: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """A module, its launches in order, and its tables. slots: numbers of a chunk's part, by level."""

    text: str
    kinds: tuple[Tensors, ...]
    group: Table
    model: Table
    launches: tuple[Launch, ...]
    slots: dict[int, int]


def generate(plan: Plan, kinds: Sequence[Kind], name: str) -> Code:
    """The plan for tensors of these kinds. Written twice: only then is known which values are read back from memory."""
    first = Writer(plan, kinds, name, None)
    first.code()
    return Writer(plan, kinds, name, frozenset(first.loaded_names)).code()


class Writer:
    """Writes one module. stored: the values that some kernel reads back, if known."""

    def __init__(self, plan: Plan, kinds: Sequence[Kind], name: str, stored: frozenset[tuple[str, str]] | None):
        self.plan, self.name, self.stored = plan, name, stored
        self.loaded_names: set[tuple[str, str]] = set()
        self.model, self.group = Table(), Table()
        self.of_kind = [OfKind(plan, k, str(n), self) for n, k in enumerate(kinds)]
        self.slots: dict[int, int] = {}
        self.states: dict[str, State] = {s.name: s for p in plan.programs.values() for s in p.states}
        self.launches: list[Launch] = []

    def code(self) -> Code:
        for what in ("groups", "in_place"):
            self.model.of(("size", what), "i64", what)
        self.group.of(("present", ""), "i64", "present")
        for k in self.of_kind:
            self.model.of(("tensors", k.n), "i64", f"tensors{k.n}")
        body: list[str] = []
        for step in segments(self.plan, [k.kind.owner for k in self.of_kind]):
            body += self.stage(step) if isinstance(step, Segment) else self.sweep(step)
        head = [f'"""{self.name}."""', PRELUDE.rstrip(), "", "", *self.fields(), "", ""]
        while body and not body[-1]:
            body.pop()
        made = tuple(Tensors(k.kind, k.layout, k.block, k.table, k.shapes, k.columns) for k in self.of_kind)
        return Code("\n".join([*head, *body]) + "\n", made, self.group, self.model, tuple(self.launches), self.slots)

    def fields(self) -> Iterator[str]:
        """Where the fields of tables lie."""
        tables = [("K", list(CHUNK)), ("M", list(self.model.fields)), ("G", list(self.group.fields))]
        for name, fields in [*tables, *((f"T{k.n}", list(k.table.fields)) for k in self.of_kind)]:
            yield f"{name}_SIZE = tl.constexpr({max(1, len(fields))})"
            yield from (f"{name}_{field} = tl.constexpr({i})" for i, field in enumerate(fields))
        for level, slots in self.slots.items():
            yield f"P{level}_SIZE = tl.constexpr({slots})"
        for k in self.of_kind:
            yield from (f"C{level}_{k.n}_SIZE = tl.constexpr({count})" for level, count in k.columns.items())

    # --- fields ------------------------------------------------------------------------------------------------------

    def model_at(self, what: tuple[str, str], type_: str, wish: str) -> str:
        return f"M_{self.model.of(what, type_, wish)}"

    def group_at(self, what: tuple[str, str], type_: str, wish: str) -> str:
        return f"G_{self.group.of(what, type_, wish)}"

    def shared_at(self, scope: Scope, what: tuple[str, str], type_: str, wish: str, group: str = "group") -> str:
        """The address of a field of the model, or of a group."""
        return f"{group} + {self.group_at(what, type_, wish)}" if scope == GROUP else f"M + {self.model_at(what, type_, wish)}"

    def present(self, classes: Collection[int], group: str) -> str:
        """Whether a group has tensors of these classes."""
        what = present(classes, [k.kind for k in self.of_kind])
        return f"tl.load({group} + {self.group_at(what, 'i64', ' '.join(what).strip())}) != 0"

    def is_stored(self, key: tuple[str, str]) -> bool:
        return self.stored is None or key in self.stored

    def loaded(self, r: Ref, kind: OfKind | None, group: str) -> str:
        """A value of scope tensor or coarser, from the tables: of the tensor t, of a group, or of the model."""
        if not is_shared(r.type):
            assert kind is not None
            return kind.number(r)
        match r.kind:
            case "state":
                dtype = self.dtype_of(r.name)
                place = self.shared_at(r.type.scope, ("state", r.name), "void*", f"s_{r.name}", group)
                text = f"tl.load(array({place}, {TYPES[dtype]}, False))"
                return f"({text} != 0)" if r.type.boolean else f"{text}.to(tl.float64)"
            case "value":
                self.loaded_names.add(("", r.name))
                text = f"number({self.shared_at(r.type.scope, ('value', r.name), 'double', f'v_{r.name}', group)})"
                return f"truth({text})" if r.type.boolean else text
            case what:
                return f"number({self.shared_at(r.type.scope, (what, r.name), 'double', f'{what[0]}_{r.name}', group)})"

    def dtype_of(self, state: str) -> str:
        return next(k.kind.dtypes["state", state] for k in self.of_kind if ("state", state) in k.kind.dtypes)

    # --- launches ----------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> tuple[str, ...]:
        return ("M", "G", *(f"T{k.n}" for k in self.of_kind))

    def sweep(self, level: int) -> Iterator[str]:
        """The kernel of the sweeps of a level."""
        swept = [(k, s) for k in self.of_kind for s in self.plan.levels[level].sweeps if s.owner == k.kind.owner]
        for k, s in swept:
            yield from k.sweep(s, level)
        arguments = (f"K{level}", f"P{level}", *self.tables)
        yield "@triton.jit"
        yield f"def sweep{level}({', '.join(arguments)}):"
        yield f"{DEPTH}chunk = K{level} + tl.program_id(0) * K_SIZE"
        yield f"{DEPTH}kind = tl.load(chunk + K_kind)"
        for n, (k, _) in enumerate(swept):
            yield f"{DEPTH}{'if' if n == 0 else 'elif'} kind == {k.n}:"
            tiles = TILES[k.shapes[level]]
            variant = k.at(("size", "variant"), "i64", "variant")
            yield f"{DEPTH * 2}variant = tl.load(T{k.n} + tl.load(chunk + K_tensor) * T{k.n}_SIZE + {variant})"
            for i, (rows, cols) in enumerate(tiles):
                yield f"{DEPTH * 2}{'if' if i == 0 else 'elif'} variant == {i}:" if i + 1 < len(tiles) else f"{DEPTH * 2}else:"
                yield f"{DEPTH * 3}sweep{level}_{k.n}(chunk, M, G, T{k.n}, P{level}, {i == 0}, {rows}, {cols})"
        yield ""
        yield ""
        self.launches.append(Launch(f"sweep{level}", "chunks", level, arguments))

    def stage(self, segment: Segment) -> Iterator[str]:
        number = sum(launch.name.startswith("stage") for launch in self.launches)
        staging = Staging(self, segment, f"stage{number}")
        yield from staging.lines()
        self.launches.append(Launch(f"stage{number}", segment.over, 0, staging.arguments))


class OfKind:
    """Writes what belongs to one kind of tensors."""

    def __init__(self, plan: Plan, kind: Kind, n: str, writer: Writer):
        self.plan, self.kind, self.n, self.writer = plan, kind, n, writer
        self.layout, self.block = layout_of(plan, kind.owner)
        self.table = Table()
        self.double = kind.dtypes["g", ""] == "float64"
        self.columns: dict[int, int] = {}
        self.shapes: dict[int, Shape] = {}
        self.parts_of: dict[str, tuple[Accumulation, int]] = {}
        self.level_of: dict[str, int] = {}
        for name in ("rows", "cols", "numel", "group", "variant", *(("blocks",) if self.block else ())):
            self.table.of(("size", name), "i64", name)

    @property
    def size(self) -> str:
        return f"T{self.n}_SIZE"

    def at(self, what: tuple[str, str], type_: str, wish: str) -> str:
        """The place of a field."""
        return f"T{self.n}_{self.table.of(what, type_, wish)}"

    def number(self, r: Ref) -> str:
        """A value of scope tensor at the tensor t."""
        match r.kind:
            case "value":
                self.writer.loaded_names.add((self.n, r.name))
                text = f"number(t + {self.at(('value', r.name), 'double', f'v_{r.name}')})"
                return f"truth({text})" if r.type.boolean else text
            case "state":
                text = f"tl.load(array(t + {self.at(('state', r.name), 'void*', f's_{r.name}')}, {TYPES[self.kind.dtype_of(r)]}, False))"
                return f"({text} != 0)" if r.type.boolean else f"{text}.to(tl.float64)"
            case "builtin" if r.name in ("rows", "cols", "numel"):
                return f"tl.load(t + {self.at(('size', r.name), 'i64', r.name)}).to(tl.float64)"
            case what:
                return f"number(t + {self.at((what, r.name), 'double', f'{what[0]}_{r.name}')})"

    def array_of(self, name: str, scope: Scope, stored: bool = False) -> str:
        """The memory of a value for each row, column or block, which is read there, or stored."""
        if not stored:
            self.writer.loaded_names.add((self.n, name))
        prefix = {"row": "r", "column": "c", "block": "b"}[scope.name]
        return f"array(t + {self.at((f'array {scope.name}', name), 'double*', f'{prefix}_{name}')}, tl.float64, False)"

    def sweep(self, s: Sweep, level: int) -> Iterator[str]:
        made = accumulations(s.partials, lambda e: accumulator(e, self.double), VARIANCE, (MEAN, SQUARES))
        slots = columns = 0
        for a in made:
            if a.is_of_columns:
                at, columns = columns, columns + len(a.kind.add)
            else:
                at, slots = slots, slots + (len(a.kind.add) if a.is_of_tensor else 0)
            self.parts_of |= {name: (a, at) for name, _ in a.readers}
            self.level_of |= {name: level for name, _ in a.readers}
        self.writer.slots[level] = max(self.writer.slots.get(level, 1), slots)
        if columns:
            self.columns[level] = columns
        self.shapes[level] = shape_of(self.layout, made)
        yield from Sweeping(self, s, made, level).lines()
