"""What belongs to one kind of tensors, in C++: its struct, its sweeps, and the stages between them, in which each tensor's own coarser values are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from updsl.back.cpp_expression import TYPES, Expressions
from updsl.back.cpp_reduce import MEAN, SQUARES, VARIANCE, accumulator, added, one_more, result, statements
from updsl.back.cpp_sweep import COLUMNS, SLOTS, Sweeping
from updsl.back.kernel_kind import Kind, Table, layout_of
from updsl.back.kernel_reduce import Accumulation, accumulations
from updsl.back.kernel_text import DEPTH, indented
from updsl.core.ir import Binding, Reduce, Ref, is_shared, walk
from updsl.core.plan import Plan, Sweep
from updsl.core.scope import COLUMN, GROUP, TENSOR, Scope
from updsl.core.straight import Root

if TYPE_CHECKING:
    from updsl.back.cpp_source import Writer

CELLS: dict[str, tuple[str, str, str]] = {"row": ("i", "T.rows", "r"), "column": ("j", "T.cols", "c"), "block": ("i", "T.blocks", "b")}
"""Scopes finer than tensor: index, how many cells, prefix of their arrays."""


class OfKind:
    """Writes what belongs to one kind of tensors."""

    def __init__(self, plan: Plan, kind: Kind, n: str, writer: Writer):
        self.plan, self.kind, self.n, self.writer = plan, kind, n, writer
        self.layout, self.block = layout_of(plan, kind.owner)
        self.table = Table()
        self.slots = self.columns = 0
        self.parts_of: dict[str, tuple[Accumulation, int]] = {}
        sizes = ("rows", "cols", "numel", "group", "chunks", "first", *(("blocks",) if self.block else ()))
        for name in sizes:
            self.table.of(("size", name), "i64", name)
        self.table.of(("workspace", "parts"), "wide*", "parts")
        self.table.of(("workspace", "columns"), "wide*", "columns")
        self.swept = {n.name for s in plan.sweeps_of(kind.owner) for e in s.expressions for n in walk(e) if isinstance(n, Ref) and n.type.scope.name in CELLS}

    # --- references --------------------------------------------------------------------------------------------------

    def field(self, what: str, name: str, type_: str) -> str:
        return self.table.of((what, name), type_, f"{what[0]}_{name}")

    def value(self, name: str, scope: Scope) -> str:
        """The field of a value of scope tensor, or of the array of one for rows, columns or blocks, in double."""
        if scope == TENSOR:
            return self.field("value", name, "double")
        return self.table.of((f"array {scope.name}", name), "double*", f"{CELLS[scope.name][2]}_{name}")

    def array(self, name: str, scope: Scope) -> str:
        """The field of the array that sweeps read."""
        return self.table.of((f"real array {scope.name}", name), f"{self.kind.real}*", f"f_{name}")

    def refer(self, r: Ref) -> str:
        """In a stage, at the tensor T (at the row or block i, the column j)."""
        if is_shared(r.type):
            return self.writer.refer(r, "G[T.group]")
        cell = f"[{CELLS[r.type.scope.name][0]}]" if r.type.scope.name in CELLS else ""
        match r.kind:
            case "value":
                text = f"T.{self.value(r.name, r.type.scope)}{cell}"
                return f"({text} != 0)" if r.type.boolean else text
            case "state":
                text = f"T.{self.field('state', r.name, f'const {TYPES[self.kind.dtype_of(r)]}*')}"
                text = f"load({text}{cell})" if cell else f"load(*{text})"
                return text if r.type.boolean else f"double({text})"
            case "input" if cell:
                return f"T.{self.field('input', r.name, 'const double*')}{cell}"
            case "builtin" if r.name in ("rows", "cols", "numel"):
                return f"double(T.{r.name})"
            case kind:
                return f"T.{self.field(kind, r.name, 'double')}"

    def stage_expression(self) -> Expressions:
        return Expressions(self.refer, self.kind.stored_types, "double")

    # --- stages ------------------------------------------------------------------------------------------------------

    def stage(self, name: str, bindings: Sequence[Binding]) -> Iterator[str]:
        """Values of scope tensor or finer."""
        yield f"static void {name}(Model& M, Group* G, Tensor{self.n}& T, const Chunk* K) {{"
        merged: dict[int, str] = {}
        for b in bindings:
            yield f"{DEPTH}// {b.name}"
            yield from indented(self.bound(b, merged))
        yield "}"
        yield ""

    def bound(self, b: Binding, merged: dict[int, str]) -> Iterator[str]:
        e, scope = b.expr, b.expr.type.scope
        if isinstance(e, Reduce) and b.name in self.parts_of:
            yield from self.completed(b.name, e, merged)
        elif isinstance(e, Reduce):
            yield from self.reduced(b.name, e)
        elif scope == TENSOR:
            yield f"T.{self.value(b.name, scope)} = {self.stage_expression().outer(e)};"
        else:
            index, count, _ = CELLS[scope.name]
            yield f"for (i64 {index} = 0; {index} < {count}; ++{index}) {{"
            yield from indented(self.kept(b.name, scope, self.stage_expression().outer(e)))
            yield "}"

    def kept(self, name: str, scope: Scope, text: str) -> Iterator[str]:
        """The value of a cell."""
        if scope == TENSOR:
            yield f"T.{self.value(name, scope)} = {text};"
            return
        index = CELLS[scope.name][0]
        yield f"const double x = {text};"
        yield f"T.{self.value(name, scope)}[{index}] = x;"
        if name in self.swept:
            yield f"T.{self.array(name, scope)}[{index}] = ({self.kind.real})x;"

    def completed(self, name: str, e: Reduce, merged: dict[int, str]) -> Iterator[str]:
        """The reduction of the parts of all chunks; of rows and blocks a sweep has completed it."""
        made, at = self.parts_of[name]
        kind, scope = made.kind, e.scope
        if scope == TENSOR:
            if id(made) not in merged:
                merged[id(made)] = f"a{len(merged)}_"
                yield from self.merged(made, at, [f"{merged[id(made)]}{i}" for i in range(len(kind.start))])
            slots = [f"{merged[id(made)]}{i}" for i in range(len(kind.start))]
            yield f"T.{self.value(name, scope)} = {statements(result(e, kind), slots, n='wide(T.numel)')};"
        elif scope == COLUMN:
            if id(made) not in merged:
                merged[id(made)] = ""
                yield from self.merged_columns(made, at)
            slots = [f"T.columns[{at + i} * T.cols + j]" for i in range(len(kind.start))]
            yield "for (i64 j = 0; j < T.cols; ++j) {"
            yield from indented(self.kept(name, scope, statements(result(e, kind), slots, n="wide(T.rows)")))
            yield "}"

    def entries(self, c: str) -> str:
        """How many entries a chunk has."""
        match self.layout:
            case "rows":
                return f"wide(({c}.end - {c}.begin) * T.cols)"
            case "blocks":
                return f"wide(({c}.end == T.blocks ? T.numel : {c}.end * {self.block}) - {c}.begin * {self.block})"
            case _:
                return f"wide({c}.end - {c}.begin)"

    def merged(self, made: Accumulation, at: int, slots: Sequence[str], n: str = "") -> Iterator[str]:
        """One tensor's parts, in the order of the chunks, put together in new variables."""
        count = n or f"{slots[0]}n"
        if not n:
            yield f"wide {', '.join(f'{s} = {start}' for s, start in zip(slots, made.kind.start, strict=True))}, {count} = 0;"
        yield "for (i64 c = 0; c < T.chunks; ++c) {"
        parts = {f"b{i}": f"T.parts[c * {SLOTS}{self.n} + {at + i}]" for i in range(len(slots))}
        yield f"{DEPTH}const wide m = {self.entries('K[T.first + c]')};"
        yield from indented(self.merge(made, slots, parts, count, "m"))
        yield "}"

    def merge(self, made: Accumulation, slots: Sequence[str], parts: Mapping[str, str], n: str, m: str) -> Iterator[str]:
        """Put a part of m entries to those of n, which may be none."""
        if made.kind.shifted:
            first = " ".join(f"{s} = {p};" for s, p in zip(slots, parts.values(), strict=True))
            yield f"if ({n} == 0) {{ {first} }}"
            yield f"else {{ {statements(made.kind.merge, slots, **parts, n=n, m=m)} }}"
        else:
            yield statements(made.kind.merge, slots, **parts, n=n, m=m)
        yield f"{n} += {m};"

    def merged_columns(self, made: Accumulation, at: int) -> Iterator[str]:
        """The parts of all chunks put together in the place of the first."""
        slots = [f"a{i}[j]" for i in range(len(made.kind.start))]
        parts = {f"b{i}": f"b{i}[j]" for i in range(len(slots))}
        names = ", ".join(f"* a{i} = T.columns + {at + i} * T.cols" for i in range(len(slots)))
        yield "{"
        yield f"{DEPTH}wide {names};"
        yield f"{DEPTH}wide n = T.chunks ? K[T.first].end - K[T.first].begin : 0;"
        yield f"{DEPTH}for (i64 c = 1; c < T.chunks; ++c) {{"
        others = ", ".join(f"* b{i} = T.columns + (c * {COLUMNS}{self.n} + {at + i}) * T.cols" for i in range(len(slots)))
        yield f"{DEPTH * 2}const wide {others};"
        yield f"{DEPTH * 2}const wide m = K[T.first + c].end - K[T.first + c].begin;"
        yield "#pragma omp simd"
        yield f"{DEPTH * 2}for (i64 j = 0; j < T.cols; ++j) {{ {statements(made.kind.merge, slots, **parts, n='n', m='m')} }}"
        yield f"{DEPTH * 2}n += m;"
        yield f"{DEPTH}}}"
        yield "}"

    def reduced(self, name: str, e: Reduce) -> Iterator[str]:
        """A reduction of coarser cells, in one tensor."""
        kind = accumulator(e)
        slots = [f"a{i}" for i in range(len(kind.start))]
        assert e.scope == TENSOR
        yield "{"
        yield f"{DEPTH}wide {', '.join(f'{s} = {start}' for s, start in zip(slots, kind.start, strict=True))}, n = 0;"
        yield from indented(self.over_cells(e, slots, added))
        if kind.settle:
            yield f"{DEPTH}{statements(kind.settle, slots, n='n')}"
        yield f"{DEPTH}T.{self.value(name, e.scope)} = {statements(result(e, kind), slots, n='n')};"
        yield "}"

    def over_cells(self, e: Reduce, slots: Sequence[str], one: Callable[..., Iterator[str]] = one_more) -> Iterator[str]:
        """Each cell of the operands added to the slots, and to n, by `one`."""
        express = self.stage_expression()
        scope = max((a.type.scope for a in e.args), key=lambda s: len(s.indices))
        values = [express.as_real(a) for a in e.args]
        if scope.name in CELLS:
            index, count, _ = CELLS[scope.name]
            yield f"for (i64 {index} = 0; {index} < {count}; ++{index}) {{"
            yield from indented(one(e, values, slots))
            yield "}"
        else:
            yield "{"
            yield from indented(one(e, values, slots))
            yield "}"

    def parts(self, name: str, e: Reduce, slots: Sequence[str]) -> Iterator[str]:
        """What the tensors of this kind give to a reduction of the model, or of the group k."""
        if all(is_shared(a.type) for a in e.args):
            return
        yield f"for (i64 i_ = 0; i_ < M.tensors{self.n}; ++i_) {{"
        yield f"{DEPTH}Tensor{self.n}& T = T{self.n}[i_];"
        yield f"{DEPTH}const Chunk* K = K{self.n};"
        if e.scope == GROUP:
            yield f"{DEPTH}if (T.group != k) continue;"
        if name in self.parts_of:
            made, at = self.parts_of[name]
            yield from indented(self.merged(made, at, slots, n="n"))
        else:
            yield from indented(self.over_cells(e, slots))
        yield "}"

    def commit(self, roots: Sequence[Root]) -> Iterator[str]:
        """States and watches that are no streams."""
        yield f"static void commit{self.n}(Model& M, Group* G, Tensor{self.n}& T) {{"
        express = self.stage_expression()
        for r in roots:
            if r.role == "watch":
                yield f"{DEPTH}T.{self.field('watch', r.name, 'double')} = {express.as_real(r.expr)};"
                continue
            assert r.type is not None
            type_ = TYPES[self.kind.dtypes["state", r.name]]
            new = self.field("new", r.name, f"{type_}*")
            if r.type.scope.name in CELLS:
                index, count, _ = CELLS[r.type.scope.name]
                yield f"{DEPTH}for (i64 {index} = 0; {index} < {count}; ++{index}) T.{new}[{index}] = store<{type_}>({express.outer(r.expr)});"
            else:
                yield f"{DEPTH}*T.{new} = store<{type_}>({express.outer(r.expr)});"
        yield "}"
        yield ""

    def sweep(self, s: Sweep, level: int) -> Iterator[str]:
        made = accumulations(s.partials, accumulator, VARIANCE, (MEAN, SQUARES))
        slots, columns = self.slots, 0  # parts that are completed with those of other classes wait for them; those of columns do not
        for a in made:
            if a.is_of_columns:
                at, columns = columns, columns + len(a.kind.start)
            else:
                at, slots = slots, slots + len(a.kind.start)
            self.parts_of |= {name: (a, at) for name, _ in a.readers}
        self.slots, self.columns = max(self.slots, slots), max(self.columns, columns)
        yield from Sweeping(self, s, made).lines(level)
