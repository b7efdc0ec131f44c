"""One sweep over one chunk of a tensor, in Triton.

A chunk is a rectangle of a tensor's matrix. It is gone through in tiles of R × C entries. Tensors without rows and columns are one row; blocks of k entries are
rows of length k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from updsl.back.kernel_kind import dtype_key
from updsl.back.kernel_reduce import Accumulation
from updsl.back.kernel_text import DEPTH, indented
from updsl.back.triton_expression import TYPES, Expressions, converted, fresh_names
from updsl.back.triton_reduce import result, settled
from updsl.core.ir import Expr, Ref, Type, walk
from updsl.core.plan import Stream, Sweep, stream_of
from updsl.core.scope import COLUMN, ELEMENT, GROUP, TENSOR

if TYPE_CHECKING:
    from updsl.back.triton_source import OfKind

CONDITION = Type(TENSOR, boolean=True)
Shape = Literal["flat", "tiles", "rows"]
"""Chunks are runs of entries, rectangles that are one tile wide, or runs of whole rows."""


def shape_of(layout: str, made: Sequence[Accumulation]) -> Shape:
    """How the chunks of a sweep are cut."""
    return "flat" if layout == "flat" else "rows" if layout == "blocks" or any(a.is_of_cells for a in made) else "tiles"


class Sweeping:
    """Writes the function of a sweep, for the tensors of a kind."""

    def __init__(self, kind: OfKind, sweep: Sweep, made: Sequence[Accumulation], level: int):
        self.kind, self.sweep, self.made, self.level = kind, sweep, made, level
        self.shape = shape_of(kind.layout, made)
        self.names = fresh_names()
        self.real = TYPES["float64" if kind.double else "float32"]
        self.express = Expressions(self.refer, kind.kind.stored_types, self.real)
        refs = {n: None for e in sweep.expressions for n in walk(e) if isinstance(n, Ref)}
        self.numbers = [r for r in refs if r.type.scope <= TENSOR]
        self.of_cells = [r for r in refs if TENSOR < r.type.scope and r.type.scope != ELEMENT]
        self.slots = {id(a): [self.names.fresh(f"a{n}_{i}") for i in range(len(a.kind.add))] for n, a in enumerate(made)}
        self.anchors = {id(a): self.names.fresh(f"a{n}_from") for n, a in enumerate(made) if a.kind.shifted}

    # --- names -------------------------------------------------------------------------------------------------------

    def refer(self, r: Ref) -> str:
        if r.type.scope == ELEMENT and r.kind != "value":
            text = self.entry(stream_of(r))
            return f"({text} != 0)" if r.type.boolean else text
        return self.names.of((r.kind, r.name), r.name)

    def entry(self, s: Stream) -> str:
        """The variable that holds the entries of a stream."""
        return self.names.of(("entry", s), f"{s}{' after' if s.after else ''}")

    def pointer(self, s: Stream, stored: bool = False) -> str:
        return self.names.of(("pointer", s, stored), f"{s}_new" if stored else f"{s}{' after' if s.after else ''}_at")

    def dtype(self, s: Stream) -> str:
        return TYPES[self.kind.kind.dtypes[dtype_key(s)]]

    def field(self, s: Stream, stored: bool) -> str:
        """Of the table: where a stream is read, or where it is stored."""
        what = "new" if stored or s.after else "old"
        return self.kind.at((f"{what} {s.role}", s.name), "void*", f"{s}_{what}")

    # --- the function ------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        s = self.sweep
        added = f"; adds up {', '.join(name for name, _ in s.partials)}" if s.partials else ""
        stores = f"; stores {', '.join(str(store.stream) for store in s.stores)}" if s.stores else ""
        yield "@triton.jit"
        yield f"def sweep{self.level}_{self.kind.n}(chunk, M, G, T, P, ALIGNED: tl.constexpr, R: tl.constexpr, C: tl.constexpr):"
        yield f"{DEPTH}# reads {', '.join(map(str, s.reads)) or 'nothing'}{added}{stores}"
        yield from indented(self.body())
        yield ""
        yield ""

    def body(self) -> Iterator[str]:
        yield f"t = T + tl.load(chunk + K_tensor) * {self.kind.size}"
        if any(r.type.scope == GROUP for r in self.numbers):
            yield f"group = G + tl.load(t + {self.kind.at(('size', 'group'), 'i64', 'group')}) * G_SIZE"
        yield from self.bounds()
        for r in self.numbers:
            text = self.kind.writer.loaded(r, self.kind, "group")
            yield f"{self.refer(r)} = {text if r.type.boolean else f'{text}.to({self.real})'}"
        for s in self.sweep.reads:
            yield f"{self.pointer(s)} = array(t + {self.field(s, False)}, {self.dtype(s)}, ALIGNED)"
        for store in self.sweep.stores:
            yield f"{self.pointer(store.stream, True)} = array(t + {self.field(store.stream, True)}, {self.dtype(store.stream)}, ALIGNED)"
        for r in self.of_cells:
            yield f"{self.names.of(('array', r.name), f'{r.name}_of')} = {self.kind.array_of(r.name, r.type.scope)}"
        tensors = [a for a in self.made if a.is_of_tensor]
        columns = [a for a in self.made if a.is_of_columns]
        cells = [a for a in self.made if a.is_of_cells]
        for a in (*tensors, *(columns if self.shape == "tiles" else ())):
            yield from self.started(a)
        match self.shape:
            case "flat":
                yield from self.flat(tensors)
            case "tiles":
                yield from self.tiles(tensors, columns)
            case _:
                yield from self.rows(tensors, columns, cells)
        for a in tensors:
            yield from self.finished(a)

    def bounds(self) -> Iterator[str]:
        """The rectangle, empty where the sweep is left out."""
        if self.shape != "flat":
            yield "top = tl.load(chunk + K_top)"
            yield "bottom = tl.load(chunk + K_bottom)"
        yield "left = tl.load(chunk + K_left)"
        yield "right = tl.load(chunk + K_right)"
        if self.kind.layout == "blocks":
            yield f"numel = tl.load(t + {self.kind.at(('size', 'numel'), 'i64', 'numel')})"
        if self.shape != "flat":
            yield f"cols = tl.load(t + {self.kind.at(('size', 'cols'), 'i64', 'cols')})" if self.kind.layout == "rows" else f"cols = {self.kind.block}"
        yield "if ALIGNED:"
        yield f"{DEPTH}left = tl.multiple_of(left, 16)"
        yield f"{DEPTH}right = tl.multiple_of(right, 16)"
        if self.shape != "flat" and self.kind.layout == "rows":
            yield f"{DEPTH}cols = tl.multiple_of(cols, 16)"
        if self.sweep.idle is not None:
            idle = self.kind.writer.loaded(Ref(self.sweep.idle, "value", CONDITION), self.kind, "group")
            yield f"idle = (tl.load(M + {self.kind.writer.model_at(('size', 'in_place'), 'i64', 'in_place')}) != 0) & {idle}"
            end, start = ("right", "left") if self.shape == "flat" else ("bottom", "top")
            yield f"{end} = tl.where(idle, {start}, {end})"

    # --- loops -------------------------------------------------------------------------------------------------------

    @property
    def tile(self) -> str:
        return "[C]" if self.shape == "flat" else "[R, C]"

    def flat(self, tensors: Sequence[Accumulation]) -> Iterator[str]:
        yield "for j0 in range(left, right, C):"
        yield f"{DEPTH}at = j0 + tl.arange(0, C)"
        yield f"{DEPTH}inside = at < right"
        yield from indented(self.entries(tensors, "j0 == left"))

    def tiles(self, tensors: Sequence[Accumulation], columns: Sequence[Accumulation]) -> Iterator[str]:
        yield "j = left + tl.arange(0, C)[None, :]"
        yield from self.cell_values(COLUMN, "j", "right")
        yield "for i0 in range(top, bottom, R):"
        yield f"{DEPTH}i = i0 + tl.arange(0, R)[:, None]"
        yield from indented(self.cell_values(None, "i", "bottom"))
        yield f"{DEPTH}inside = (i < bottom) & (j < right)"
        yield f"{DEPTH}at = i * cols + j"
        yield from indented(self.entries((*tensors, *columns), "i0 == top"))
        for a in columns:
            yield from self.columns_finished(a)

    def rows(self, tensors: Sequence[Accumulation], columns: Sequence[Accumulation], cells: Sequence[Accumulation]) -> Iterator[str]:
        for a in columns:
            yield from self.columns_started(a)
        yield "for i0 in range(top, bottom, R):"
        yield f"{DEPTH}i = i0 + tl.arange(0, R)[:, None]"
        yield from indented(self.cell_values(None, "i", "bottom"))
        for a in cells:
            yield from indented(self.started(a))
        yield f"{DEPTH}for j0 in range(left, right, C):"
        yield f"{DEPTH * 2}j = j0 + tl.arange(0, C)[None, :]"
        yield from indented(self.cell_values(COLUMN, "j", "right"), 2)
        yield f"{DEPTH * 2}at = i * cols + j"
        yield f"{DEPTH * 2}inside = (i < bottom) & (j < right)" + (" & (at < numel)" if self.kind.layout == "blocks" else "")
        yield from indented(self.entries((*tensors, *cells), "(i0 == top) & (j0 == left)", cells, "j0 == left"), 2)
        for a in columns:
            yield from indented(self.columns_added(a), 2)
        for a in cells:
            yield from indented(self.cells_finished(a))

    def cell_values(self, scope, index: str, end: str) -> Iterator[str]:
        """Values of the columns j, or of the rows or blocks i."""
        for r in self.of_cells:
            if (r.type.scope == COLUMN) == (scope == COLUMN):
                place = f"{self.names.of(('array', r.name), '')} + {index}"
                yield f"{self.refer(r)} = tl.load({place}, {index} < {end}, other=0)" + (" != 0" if r.type.boolean else f".to({self.real})")

    def entries(self, added: Sequence[Accumulation], first: str, cells: Sequence[Accumulation] = (), first_of_row: str = "") -> Iterator[str]:
        """What is done with a tile."""
        for s in self.sweep.reads:
            yield f"{self.entry(s)} = tl.load({self.pointer(s)} + at, inside, other=0).to({self.real})"
        for b in self.sweep.bindings:
            yield f"{self.names.of(('value', b.name), b.name)} = {self.express.outer(b.expr)}"
        for a in added:
            yield from self.added(a, first_of_row if a in cells else first)
        for store in self.sweep.stores:
            value, type_ = self.express.outer(store.expr), self.dtype(store.stream)
            if type_ != self.real:
                value = converted(value, type_)
            yield f"tl.store({self.pointer(store.stream, True)} + at, {value}, inside)"

    # --- accumulators ------------------------------------------------------------------------------------------------

    def wide(self, e: Expr) -> str:
        """An operand in float64."""
        text = self.express(e)
        return text if self.real == "tl.float64" and not e.type.boolean else f"{text}.to(tl.float64)"

    def started(self, a: Accumulation) -> Iterator[str]:
        for slot in self.slots[id(a)]:
            yield f"{slot} = tl.full({self.tile}, {a.kind.start}, tl.float64)"
        if id(a) in self.anchors:
            yield f"{self.anchors[id(a)]} = tl.full({self.lanes(a)}, 0.0, tl.float64)"

    def lanes(self, a: Accumulation) -> str:
        """The shape of what an anchor is of."""
        return "[1]" if self.shape == "flat" else "[R, 1]" if a.is_of_cells else "[1, C]" if a.is_of_columns else "[1, 1]"

    def added(self, a: Accumulation, first: str) -> Iterator[str]:
        slots = self.slots[id(a)]
        x = self.names.of(("added", id(a)), f"{slots[0]}_x")
        yield f"{x} = {self.wide(a.operands[0])}"
        y = x
        if len(a.operands) > 1:
            y = self.names.of(("added", id(a), 1), f"{slots[0]}_y")
            yield f"{y} = {self.wide(a.operands[1])}"
        if id(a) in self.anchors:
            axes = "0" if self.shape == "flat" or a.is_of_columns else "1"
            anchored = f"anchor({x}, inside, {axes})"
            if a.is_of_tensor and self.shape != "flat":
                anchored = f"anchor(anchor({x}, inside, 1), holds(True), 0)"
            yield f"if {first}:"
            yield f"{DEPTH}{self.anchors[id(a)]} = {anchored}"
            yield f"{x} = {x} - {self.anchors[id(a)]}"
        for slot, add in zip(slots, a.kind.add, strict=True):
            yield a.kind.put(slot, add.format(x=x, y=y), "inside")

    def finished(self, a: Accumulation) -> Iterator[str]:
        """The part of a chunk."""
        slots = self.slots[id(a)]
        for slot in slots:
            yield f"{slot} = {a.kind.over(slot, 0)}" if self.shape == "flat" else f"{slot} = {a.kind.over(a.kind.over(slot, 1), 0)}"
        if a.kind.shifted:
            yield from settled(a.kind, self.anchors[id(a)], slots, "tl.load(chunk + K_count).to(tl.float64)")
        _, at = self.kind.parts_of[a.readers[0][0]]
        index = "tl.arange(0, 1)" if self.shape == "flat" else "tl.arange(0, 1)[None, :]"
        for i, slot in enumerate(slots):
            yield f"put(P + tl.load(chunk + K_number) * P{self.level}_SIZE + {at + i} + {index}, {slot}, {index} == 0)"

    def cells_finished(self, a: Accumulation) -> Iterator[str]:
        """The result of each row or block."""
        slots = self.slots[id(a)]
        for slot in slots:
            yield f"{slot} = {a.kind.over(slot, 1)}"
        n = self.names.of("n", "n")
        yield f"{n} = " + (
            f"tl.minimum(numel - i * {self.kind.block}, {self.kind.block}).to(tl.float64)" if self.kind.layout == "blocks" else "cols.to(tl.float64)"
        )
        if a.kind.shifted:
            yield from settled(a.kind, self.anchors[id(a)], slots, n)
        for name, e in a.readers:
            place = self.kind.array_of(name, e.scope, stored=True)
            value = result(e, a.kind, slots, n)
            yield f"put({place} + i, {value}, i < bottom)"

    # --- columns -----------------------------------------------------------------------------------------------------

    def part(self, a: Accumulation, slot: int) -> str:
        """Where the chunk's part of the columns j lies."""
        _, at = self.kind.parts_of[a.readers[0][0]]
        field = self.kind.at(("workspace", f"columns{self.level}"), "double*", f"columns{self.level}")
        return f"array(t + {field}, tl.float64, False) + (tl.load(chunk + K_part) * C{self.level}_{self.kind.n}_SIZE + {at + slot}) * cols + j"

    def columns_finished(self, a: Accumulation) -> Iterator[str]:
        slots = self.slots[id(a)]
        for slot in slots:
            yield f"{slot} = {a.kind.over(slot, 0)}"
        if a.kind.shifted:
            yield from settled(a.kind, self.anchors[id(a)], slots, "(bottom - top).to(tl.float64)")
        for i, slot in enumerate(slots):
            yield f"tl.store({self.part(a, i)}, {slot}, j < right)"

    def columns_started(self, a: Accumulation) -> Iterator[str]:
        """In memory, where a chunk goes through its columns again and again."""
        yield "for j0 in range(left, right, C):"
        yield f"{DEPTH}j = j0 + tl.arange(0, C)[None, :]"
        for i in range(len(a.kind.add)):
            yield f"{DEPTH}tl.store({self.part(a, i)}, j.to(tl.float64) * 0 + {a.kind.start}, j < right)"
        yield "tl.debug_barrier()"

    def columns_added(self, a: Accumulation) -> Iterator[str]:
        """One tile's; differences are from 0 here, of what float64 holds exactly."""
        x = self.names.of(("added", id(a)), f"{self.slots[id(a)][0]}_x")
        y = self.names.of(("added", id(a), 1), f"{self.slots[id(a)][0]}_y")
        for name, operand in zip((x, y), a.operands, strict=False):
            yield f"{name} = {self.wide(operand)}"
        past = [self.names.of(("past", s), f"{s}_past") for s in self.slots[id(a)]]
        for i, name in enumerate(past):
            yield f"{name} = tl.load({self.part(a, i)}, j < right, other=0)"
        yield "tl.debug_barrier()"
        for i, (name, add) in enumerate(zip(past, a.kind.add, strict=True)):
            value = f"tl.where(inside, {add.format(x=x, y=y)}, {a.kind.start})"
            more = a.kind.over(f"{value}", 0)
            merged = f"{name} + {more}" if a.kind.how == "sum" else f"{'larger' if a.kind.how == 'max' else 'smaller'}({name}, {more})"
            if a.kind.shifted:
                yield f"{self.slots[id(a)][i]} = {merged}"
            else:
                yield f"tl.store({self.part(a, i)}, {merged}, j < right)"
        if a.kind.shifted:
            yield from self.columns_settled(a)
        yield "tl.debug_barrier()"

    def columns_settled(self, a: Accumulation) -> Iterator[str]:
        """After the last tile, what was added up is made a mean."""
        slots = self.slots[id(a)]
        yield "if i0 + R >= bottom:"
        yield from indented(settled(a.kind, "0.0", slots, "(bottom - top).to(tl.float64)"))
        for i, slot in enumerate(slots):
            yield f"tl.store({self.part(a, i)}, {slot}, j < right)"
