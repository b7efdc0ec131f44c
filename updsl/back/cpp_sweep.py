"""One sweep over one chunk of a tensor, in C++."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from updsl.back.cpp_expression import TYPES, Expressions
from updsl.back.cpp_prelude import PRELUDE
from updsl.back.cpp_reduce import result, statements
from updsl.back.kernel_kind import dtype_key
from updsl.back.kernel_reduce import Accumulation
from updsl.back.kernel_text import DEPTH, indented
from updsl.back.torch_names import Names
from updsl.core.ir import Binding, Expr, Ref, walk
from updsl.core.plan import Stream, Sweep, stream_of, streams
from updsl.core.scope import COLUMN, ELEMENT, TENSOR
from updsl.core.straight import values_read

if TYPE_CHECKING:
    from updsl.back.cpp_stage import OfKind

ROWS = 8
"""Rows that are gone through at once where columns are added up."""
LANES = 16
"""Sums that go on side by side where entries are added up: one alone would wait for each addition."""
COMBINED = {"+": "{0} += {1};", "max": "{0} = {1} > {0} ? {1} : {0};", "min": "{0} = {1} < {0} ? {1} : {0};"}
"""How two lanes combine, by the sign of a slot."""
SLOTS, COLUMNS = "SLOTS", "COLUMNS"
"""Constants of a kind: how many numbers a chunk's parts are, and how many arrays its parts for columns."""
WORDS = (
    "T K M G i j n r l b at x y d c m bad entry whole rest real wide float double bool long short int char void new this auto do goto register signed unsigned "
    "switch case default template typename typedef struct union using virtual volatile const constexpr enum extern static inline operator private public "
    "protected friend delete throw try catch sizeof namespace mutable export explicit asm alignas alignof decltype noexcept nullptr xor compl concept requires "
    "main std NAN INFINITY HUGE_VAL HUGE_VALF HUGE_VALL NULL"
)
DEFINED = re.findall(r"(?:struct|typedef \S+|inline \S+|constexpr double) (\w+)", PRELUDE)
RESERVED = frozenset([*WORDS.split(), *DEFINED, *(f"{name}{n}" for name in (SLOTS, COLUMNS) for n in range(100))])
"""Names of generated texts that no value may have."""


class Sweeping:
    """Writes the function of a sweep, for the tensors of a kind."""

    def __init__(self, kind: OfKind, sweep: Sweep, made: Sequence[Accumulation]):
        self.kind, self.sweep, self.made = kind, sweep, made
        self.names = Names()
        self.names.taken |= RESERVED
        self.express = Expressions(self.refer, kind.kind.stored_types, "real")
        refs = {n: None for e in sweep.expressions for n in walk(e) if isinstance(n, Ref)}
        self.numbers = [r for r in refs if r.type.scope <= TENSOR]
        self.of_cells = [r for r in refs if TENSOR < r.type.scope and r.type.scope != ELEMENT]
        self.held: dict[int, list[str]] = {}
        self.slots = {id(a): [self.names.fresh(f"a{n}_{i}") for i in range(len(a.kind.start))] for n, a in enumerate(made)}

    # --- names -------------------------------------------------------------------------------------------------------

    def refer(self, r: Ref) -> str:
        if r.type.scope == COLUMN:
            text = f"{self.names.of(r, r.name)}[j]"
            return f"({text} != 0)" if r.type.boolean else text
        if r.type.scope == ELEMENT and r.kind != "value":
            text = self.entry(stream_of(r))
            return f"({text} != 0)" if r.type.boolean else text
        return self.names.of((r.kind, r.name), r.name)

    def entry(self, s: Stream) -> str:
        """The variable that holds the entry of a stream."""
        return self.names.of(("entry", s), f"{s}{' after' if s.after else ''}")

    def pointer(self, s: Stream) -> str:
        return self.names.of(("pointer", s), f"{s}{' after' if s.after else ''}_at")

    def dtype(self, s: Stream) -> str:
        return TYPES[self.kind.kind.dtypes[dtype_key(s)]]

    def field(self, s: Stream, stored: bool) -> str:
        """Of the table: where a stream is read, or where it is stored."""
        type_ = f"{self.dtype(s)}*" if stored or s.after else f"const {self.dtype(s)}*"
        what = "new" if stored or s.after else "old"
        return self.kind.table.of((f"{what} {s.role}", s.name), type_, f"{s}_{what}")

    # --- the function ------------------------------------------------------------------------------------------------

    def lines(self, level: int) -> Iterator[str]:
        s = self.sweep
        reads = ", ".join(map(str, s.reads)) or "nothing"
        added = f"; adds up {', '.join(name for name, _ in s.partials)}" if s.partials else ""
        stores = f"; stores {', '.join(str(store.stream) for store in s.stores)}" if s.stores else ""
        yield f"// sweep {level}: reads {reads}{added}{stores}"
        yield f"static void sweep{level}_{self.kind.n}(Model& M, Group* G, Tensor{self.kind.n}& T, Chunk& K) {{"
        yield from indented(self.body())
        yield "}"
        yield ""

    def body(self) -> Iterator[str]:
        yield f"typedef {self.kind.kind.real} real;"
        if self.given_out:
            yield f"real bad{f'[{LANES}]' if self.in_lanes else ''} = {{}};"
            yield "K.bad = 0;"
        if self.sweep.idle is not None:
            yield f"if ((M.in_place != 0) & (T.{self.kind.value(self.sweep.idle, TENSOR)} != 0)) return;"
        yield from self.constants()
        tensors = [a for a in self.made if a.is_of_tensor]
        columns = [a for a in self.made if a.is_of_columns]
        cells = [a for a in self.made if a.is_of_cells]
        for a in tensors:
            yield from self.started(a, "K.begin", "0")
        for a in columns:
            yield from self.columns_started(a)
        if self.kind.layout == "flat":
            yield "const i64 at = K.begin, n = K.end - K.begin;"
            yield from self.row((), tensors, columns)
        elif columns and not cells:
            yield "i64 i = K.begin;"
            yield f"for (; i + {ROWS} <= K.end; i += {ROWS}) {{"
            yield from indented(self.rows(ROWS, tensors, columns))
            yield "}"
            yield "for (; i < K.end; ++i) {"
            yield from indented(self.rows(1, tensors, columns))
            yield "}"
        else:
            yield "for (i64 i = K.begin; i < K.end; ++i) {"
            yield from indented(self.row(cells, tensors, columns))
            yield "}"
        for a in tensors:
            yield from self.finished(a)
        for a in columns:
            yield from self.columns_finished(a)
        if self.given_out:
            yield f"for (i64 l = 0; l < {LANES}; ++l) K.bad |= !(bad[l] == 0);" if self.in_lanes else "K.bad = !(bad == 0);"

    @property
    def in_lanes(self) -> bool:
        """Whether entries are added up in lanes: for tensors, rows or blocks, and not for columns, which are lanes themselves."""
        return bool(self.made) and not any(a.is_of_columns for a in self.made)

    @property
    def given_out(self) -> bool:
        """Whether the sweep stores what the step gives; then it sees whether all is finite: 0·x is 0 of every number, and NaN of all else."""
        return any(s.stream.role != "state" for s in self.sweep.stores)

    def constants(self) -> Iterator[str]:
        """Numbers of the tensor, and where the arrays of its columns lie."""
        for r in self.numbers:
            place = self.kind.refer(r)
            type_, text = ("bool", place) if r.type.boolean else ("real", f"(real){place}")
            yield f"const {type_} {self.refer(r)} = {text};"
        for r in self.of_cells:
            if r.type.scope == COLUMN:
                yield f"const real* {self.names.of(r, r.name)} = T.{self.kind.array(r.name, r.type.scope)};"

    # --- rows --------------------------------------------------------------------------------------------------------

    @property
    def offset(self) -> str:
        """Where the row, or block, i begins, and how many entries it has."""
        if self.kind.layout == "blocks":
            k = self.kind.block
            return f"const i64 at = i * {k}, n = T.numel - at < {k} ? T.numel - at : {k};"
        return "const i64 at = i * T.cols, n = T.cols;"

    def row(self, cells: Sequence[Accumulation], tensors: Sequence[Accumulation], columns: Sequence[Accumulation]) -> Iterator[str]:
        if self.kind.layout != "flat":
            yield self.offset
        yield from self.pointers(self.sweep.reads)
        for s in self.sweep.stores:
            yield f"{self.dtype(s.stream)}* {self.names.of(('stored', s.stream), f'{s.stream}_new')} = T.{self.field(s.stream, True)} + at;"
        yield from self.cell_constants()
        for a in cells:
            yield from self.started(a, "i", "0")
        if self.in_lanes:
            yield from self.lanes()
        else:
            self.held = {id(a): [f"{s}[j]" for s in self.slots[id(a)]] for a in columns}
            yield f"#pragma omp simd{self.clauses((*cells, *tensors))}"
            yield "for (i64 j = 0; j < n; ++j) {"
            yield from indented(self.entry_of_row("j"))
            yield "}"
        for a in cells:
            yield from self.finished(a)

    def lanes(self) -> Iterator[str]:
        """The entries of a row, each added to a lane."""
        self.held = {id(a): [f"{s}[l]" if sign else s for s, sign in zip(self.slots[id(a)], a.kind.signs, strict=True)] for a in self.made}
        yield "const auto entry = [&](const i64 j, const i64 l) __attribute__((always_inline)) {"
        yield from indented(self.entry_of_row("j"))
        yield "};"
        yield f"const i64 whole = n - n % {LANES};"
        yield f"for (i64 b = 0; b < whole; b += {LANES}) {{"
        yield "#pragma omp simd"
        yield f"{DEPTH}for (i64 l = 0; l < {LANES}; ++l) entry(b + l, l);"
        yield "}"
        yield "for (i64 j = whole; j < n; ++j) entry(j, j - whole);"
        self.held = {}

    def entry_of_row(self, at: str) -> Iterator[str]:
        """What is done at one entry."""
        yield from self.entries(self.sweep.reads, self.sweep.bindings, at)
        for a in self.made:
            yield from self.added(a)
        for s in self.sweep.stores:
            place, value = f"{self.names.of(('stored', s.stream), '')}[{at}]", f"store<{self.dtype(s.stream)}>({self.express.outer(s.expr)})"
            if s.stream.role == "state":
                yield f"{place} = {value};"
            else:
                name = self.names.of(("given", s.stream), str(s.stream))
                yield f"const {self.dtype(s.stream)} {name} = {value};"
                yield f"bad{'[l]' if self.in_lanes else ''} += load({name}) * 0;"
                yield f"{place} = {name};"

    def rows(self, count: int, tensors: Sequence[Accumulation], columns: Sequence[Accumulation]) -> Iterator[str]:
        """Some rows at once: what is added up for the columns is loaded and stored once for all of them."""
        yield self.offset
        yield from self.pointers(self.sweep.reads)
        for s in self.sweep.stores:
            yield f"{self.dtype(s.stream)}* {self.names.of(('stored', s.stream), f'{s.stream}_new')} = T.{self.field(s.stream, True)} + at;"
        yield f"#pragma omp simd{self.clauses(tensors)}"
        yield "for (i64 j = 0; j < n; ++j) {"
        self.held = {id(a): [self.names.of(("held", s), f"{s}_j") for s in self.slots[id(a)]] for a in columns}
        for a in columns:
            pairs = zip(self.held[id(a)], self.slots[id(a)], strict=True)
            yield f"{DEPTH}wide {', '.join(f'{name} = {s}[j]' for name, s in pairs)};"
        yield f"#pragma GCC unroll {count}"
        yield f"{DEPTH}for (int r = 0; r < {count}; ++r) {{"
        yield from indented(self.cell_constants("i + r"), 2)
        yield from indented(self.entry_of_row("r * n + j"), 2)
        yield f"{DEPTH}}}"
        for a in columns:
            pairs = zip(self.held[id(a)], self.slots[id(a)], a.kind.signs, strict=True)
            yield f"{DEPTH}{' '.join(f'{s}[j] = {name};' for name, s, sign in pairs if sign)}"
        self.held = {}
        yield "}"

    def pointers(self, streams: Iterable[Stream]) -> Iterator[str]:
        for s in streams:
            yield f"const {self.dtype(s)}* {self.pointer(s)} = T.{self.field(s, False)} + at;"

    def cell_constants(self, i: str = "i") -> Iterator[str]:
        """Values of the row or block i."""
        for r in self.of_cells:
            if r.type.scope != COLUMN:
                text = f"T.{self.kind.array(r.name, r.type.scope)}[{i}]"
                yield f"const {'bool' if r.type.boolean else 'real'} {self.refer(r)} = {text}{' != 0' if r.type.boolean else ''};"

    def entries(self, streams: Iterable[Stream], bindings: Iterable[Binding], at: str = "j") -> Iterator[str]:
        """The entry of the streams there, and what is computed of it."""
        for s in streams:
            yield f"const real {self.entry(s)} = load({self.pointer(s)}[{at}]);"
        for b in bindings:
            type_ = "bool" if b.expr.type.boolean else "real"
            yield f"const {type_} {self.names.of(('value', b.name), b.name)} = {self.express.outer(b.expr)};"

    def clauses(self, made: Iterable[Accumulation]) -> str:
        signs: dict[str, list[str]] = {"+": ["bad"]} if self.given_out else {}
        for a in made:
            for slot, sign in zip(self.slots[id(a)], a.kind.signs, strict=True):
                if sign:
                    signs.setdefault(sign, []).append(slot)
        return "".join(f" reduction({sign}: {', '.join(slots)})" for sign, slots in signs.items())

    def added(self, a: Accumulation) -> Iterator[str]:
        slots = self.held[id(a)] if id(a) in self.held else self.slots[id(a)]
        values = [f"({self.express.outer(x)})" if a.kind.lane == "int" else f"wide({self.express.outer(x)})" for x in a.operands]
        if a.kind.add.count("{x}") > 1:
            inner = statements(a.kind.add, slots, x="x", y="y")
            yield f"{{ const wide {', '.join(f'{name} = {v}' for name, v in zip('xy', values, strict=False))}; {inner} }}"
        else:
            yield statements(a.kind.add, slots, x=values[0], y=values[-1])

    # --- accumulators ------------------------------------------------------------------------------------------------

    def started(self, a: Accumulation, i: str, j: str) -> Iterator[str]:
        """The slots before the first entry, which is that of row i and column j."""
        slots = self.slots[id(a)]
        each = [(s, start, bool(sign) and self.in_lanes) for s, start, sign in zip(slots, a.kind.start, a.kind.signs, strict=True)]
        yield f"{a.kind.lane} {', '.join(f'{s}[{LANES}]' if lanes else f'{s} = {start}' for s, start, lanes in each)};"
        if self.in_lanes:
            yield f"for (i64 l = 0; l < {LANES}; ++l) {{ {' '.join(f'{s}[l] = {start};' for s, start, lanes in each if lanes)} }}"
        if a.kind.shifted:
            yield "{"
            yield from indented(self.first(a, i, j, slots[0]))
            yield "}"

    def first(self, a: Accumulation, i: str, j: str, slot: str) -> Iterator[str]:
        """The first entry of the operand into a slot; 0 if it is not finite."""
        bindings = self.needed(a.operands)
        read = dict.fromkeys(s for e in (*a.operands, *(b.expr for b in bindings)) for s in streams(e))
        if self.kind.layout == "flat":
            yield "const i64 at = K.begin;"
        elif i != "i":
            yield f"const i64 i = {i};"
            yield self.offset.split(", n")[0] + ";"
            yield from self.cell_constants()
        if j != "j" and (read or self.of_cells):
            yield f"const i64 j = {j};"
        yield from self.pointers(read)
        yield from self.entries(read, bindings)
        yield f"const wide x = {self.express.outer(a.operands[0])};"
        yield f"{slot} = is_finite(x) ? x : wide(0);"

    def needed(self, wanted: Iterable[Expr]) -> tuple[Binding, ...]:
        """The bindings that these read."""
        names = {n for e in wanted for n in values_read(e)}
        found = []
        for b in reversed(self.sweep.bindings):
            if b.name in names:
                names |= set(values_read(b.expr))
                found.append(b)
        return tuple(found[::-1])

    def finished(self, a: Accumulation) -> Iterator[str]:
        """The part of a chunk, or the result of a row."""
        slots = self.slots[id(a)]
        if self.in_lanes:
            slots = yield from self.combined(a)
        if a.is_of_tensor:
            if a.kind.settle:
                yield statements(a.kind.settle, slots, n=self.kind.entries("K"))
            _, at = self.kind.parts_of[a.readers[0][0]]
            for i, s in enumerate(slots):
                yield f"T.parts[K.number * {SLOTS}{self.kind.n} + {at + i}] = {s};"
            return
        if a.kind.settle:
            yield statements(a.kind.settle, slots, n="wide(n)")
        for name, e in a.readers:
            yield "{"
            yield from indented(self.kind.kept(name, e.scope, statements(result(e, a.kind), slots, n="wide(n)")))
            yield "}"

    def combined(self, a: Accumulation) -> Generator[str, None, list[str]]:
        """The lanes in one: the names of the slots then."""
        triples = list(zip(self.slots[id(a)], a.kind.start, a.kind.signs, strict=True))
        names = [self.names.of(("combined", s), f"{s}_all") if sign else s for s, _, sign in triples]
        yield f"wide {', '.join(f'{name} = {start}' for name, (_, start, sign) in zip(names, triples, strict=True) if sign)};"
        merged = " ".join(COMBINED[sign].format(name, f"{s}[l]") for name, (s, _, sign) in zip(names, triples, strict=True) if sign)
        yield f"for (i64 l = 0; l < {LANES}; ++l) {{ {merged} }}"
        return names

    def columns_started(self, a: Accumulation) -> Iterator[str]:
        slots = self.slots[id(a)]
        _, at = self.kind.parts_of[a.readers[0][0]]
        for k, s in enumerate(slots):
            yield f"wide* {s} = T.columns + (K.number * {COLUMNS}{self.kind.n} + {at + k}) * T.cols;"
        yield f"for (i64 j = 0; j < T.cols; ++j) {{ {' '.join(f'{s}[j] = {start};' for s, start in zip(slots, a.kind.start, strict=True))} }}"
        if a.kind.shifted:
            yield "for (i64 j = 0; j < T.cols; ++j) {"
            yield from indented(self.first(a, "K.begin", "j", f"{slots[0]}[j]"))
            yield "}"

    def columns_finished(self, a: Accumulation) -> Iterator[str]:
        if a.kind.settle:
            slots = [f"{s}[j]" for s in self.slots[id(a)]]
            yield f"for (i64 j = 0; j < T.cols; ++j) {{ {statements(a.kind.settle, slots, n='wide(K.end - K.begin)')} }}"
