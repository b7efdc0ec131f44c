"""Plan → C++: one function for each sweep and stage of each kind of tensor, and `step`, which runs them in one parallel region.

A *kind* is a class of tensors whose streams have the same types. Kernels find tensors through tables: an array of structs for each kind, one for the
groups, one struct for the model; and a table of *chunks*, runs of rows (or of blocks, or of entries) of about 64 Ki entries. All values of scope tensor and
coarser are doubles in these structs; those for rows and columns are arrays that the structs point to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from updsl.back.cpp_expression import TYPES, Expressions
from updsl.back.cpp_prelude import PRELUDE
from updsl.back.cpp_reduce import Accumulation, accumulations, accumulator, one_more, result, statements
from updsl.back.cpp_sweep import DEPTH, Sweeping, expressions, indented
from updsl.back.torch_names import Names
from updsl.core.ir import Binding, Expr, Program, Reduce, Ref, State, is_shared, roots, walk
from updsl.core.plan import AFTER, Joint, Local, Plan, Sweep
from updsl.core.scope import COLUMN, GROUP, ROW, TENSOR, Scope
from updsl.core.straight import Root

Layout = Literal["flat", "rows", "blocks"]


@dataclass(frozen=True)
class Kind:
    """A class of tensors of the same types. dtypes: of "g", "w", and of each state and input stream by ("state", name), ("input", name)."""

    owner: int
    program: Program
    dtypes: Mapping[tuple[str, str], str]

    @property
    def real(self) -> str:
        return "double" if self.dtypes["g", ""] == "float64" else "float"


@dataclass
class Table:
    """A struct: field name → C++ type and what the field holds, in the order of its memory; every field has 8 bytes."""

    fields: dict[str, tuple[str, tuple[str, str]]] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    def of(self, what: tuple[str, str], type_: str, wish: str) -> str:
        """The field that holds `what`."""
        name = self.names.of(what, wish)
        self.fields.setdefault(name, (type_, what))
        return name


@dataclass(frozen=True)
class Tensors:
    """What must be known of a kind to lay out its tables. slots: numbers of a part in a chunk; columns: arrays of a part for each column."""

    kind: Kind
    layout: Layout
    block: int
    table: Table
    slots: int
    columns: int

    @property
    def arrays(self) -> frozenset[str]:
        """The fields that point to memory."""
        return frozenset(name for name, (type_, _) in self.table.fields.items() if type_.endswith("*"))


@dataclass(frozen=True)
class Code:
    """A translation unit, and its tables."""

    text: str
    kinds: tuple[Tensors, ...]
    group: Table
    model: Table


def generate(plan: Plan, kinds: Sequence[Kind], name: str) -> Code:
    """The plan for tensors of these kinds."""
    return Writer(plan, kinds, name).code()


def layout_of(plan: Plan, owner: int) -> tuple[Layout, int]:
    """How the tensors of a class are walked through: by rows, by blocks of k entries, or as one run of entries."""
    scopes = {n.scope if isinstance(n, Reduce) else n.type.scope for s in plan.sweeps_of(owner) for e in expressions(s) for n in walk(e)}
    program = plan.programs[owner]
    everywhere = (n.type.scope for e in roots(program) for n in walk(e))
    sizes = {s.size for s in (*everywhere, *(s.type.scope for s in program.states)) if s.size}
    if sizes:
        return "blocks", sizes.pop()
    return ("rows" if scopes & {ROW, COLUMN} else "flat"), 0


CELLS: dict[str, tuple[str, str, str]] = {"row": ("i", "T.rows", "r"), "column": ("j", "T.cols", "c"), "block": ("i", "T.blocks", "b")}
"""Scopes finer than tensor: index, how many cells, prefix of their arrays."""
SLOTS, COLUMNS = "SLOTS", "COLUMNS"
"""Constants of a kind: how many numbers a chunk's parts are, and how many arrays its parts for columns."""


class Writer:
    """Writes one translation unit."""

    def __init__(self, plan: Plan, kinds: Sequence[Kind], name: str):
        self.plan, self.name = plan, name
        self.model, self.group = Table(), Table()
        self.group.of(("size", "present"), "i64", "present")
        self.of_kind = [OfKind(plan, k, f"{n}", self) for n, k in enumerate(kinds)]
        self.lines: list[str] = []
        self.states: dict[str, State] = {s.name: s for p in plan.programs.values() for s in p.states}

    def code(self) -> Code:
        body = [line for level in range(len(self.plan.levels)) for line in self.level(level)]
        body += [*self.commits(), *self.step()]
        structs = [*self.struct("Model", self.model), *self.struct("Group", self.group)]
        structs += [line for k in self.of_kind for line in self.struct(f"Tensor{k.n}", k.table)]
        sizes = [f"constexpr i64 {SLOTS}{k.n} = {k.slots}, {COLUMNS}{k.n} = {k.columns};" for k in self.of_kind]
        wide = "long double" if any(k.kind.real == "double" for k in self.of_kind) else "double"
        head = [
            f"// {self.name}",
            "",
            PRELUDE.strip(),
            f"typedef {wide} wide;",
            "",
            "struct Chunk { i64 tensor, number, begin, end, bad; };",
            *structs,
            "",
            *sizes,
            "",
        ]
        made = tuple(Tensors(k.kind, k.layout, k.block, k.table, k.slots, k.columns) for k in self.of_kind)
        return Code("\n".join([*head, *body]) + "\n", made, self.group, self.model)

    def struct(self, name: str, table: Table) -> Iterator[str]:
        yield f"struct {name} {{"
        for n, (type_, _) in table.fields.items():
            yield f"{DEPTH}{type_} {n};"
        yield "};"

    def level(self, level: int) -> Iterator[str]:
        for k in self.of_kind:
            for s in self.plan.levels[level].sweeps:
                if s.owner == k.kind.owner:
                    yield from k.sweep(s, level)
        for n, phase in enumerate(self.plan.levels[level].phases):
            match phase:
                case Local(owner, bindings):
                    for k in self.of_kind:
                        if k.kind.owner == owner:
                            yield from k.stage(f"stage{level}_{n}_{k.n}", bindings, level)
                case Joint(bindings):
                    yield from self.joint(f"stage{level}_{n}", bindings, level)

    # --- values of a group and of the model --------------------------------------------------------------------------

    @property
    def tables(self) -> str:
        return "Model& M, Group* G" + "".join(f", Tensor{k.n}* T{k.n}, Chunk* K{k.n}" for k in self.of_kind)

    @property
    def given(self) -> str:
        return "M, G" + "".join(f", T{k.n}, K{k.n}" for k in self.of_kind)

    def joint(self, name: str, bindings: Sequence[tuple[str, Mapping[int, Expr]]], level: int) -> Iterator[str]:
        yield f"static void {name}({self.tables}) {{"
        for value, exprs in bindings:
            e = next(iter(exprs.values()))
            target = f"{self.place(e.type.scope)}.{self.value(value, e.type.scope)}"
            over_time = isinstance(e, Reduce)
            body = list(self.reduced(value, exprs, level, target) if over_time else [f"{target} = {self.expression(e.type.scope).outer(e)};"])
            yield from indented(self.for_each(e.type.scope, body))
        yield "}"
        yield ""

    def for_each(self, scope: Scope, body: Sequence[str]) -> Iterator[str]:
        """For the model, or for each group."""
        if scope == GROUP:
            yield "for (i64 k = 0; k < M.groups; ++k) if (G[k].present) {"
            yield from indented(body)
            yield "}"
        else:
            yield from body

    @staticmethod
    def place(scope: Scope) -> str:
        return "G[k]" if scope == GROUP else "M"

    def value(self, name: str, scope: Scope) -> str:
        return self.shared(scope).of(("value", name), "double", f"v_{name}")

    def shared(self, scope: Scope) -> Table:
        return self.group if scope == GROUP else self.model

    def expression(self, scope: Scope) -> Expressions:
        """Expressions of a group (k), or of the model."""
        dtypes = {name: d for k in self.of_kind for (what, name), d in k.kind.dtypes.items() if what == "state"}
        return Expressions(lambda r: self.refer(r, self.place(GROUP)), dtypes, "double")

    def refer(self, r: Ref, group: str) -> str:
        """A value of a group or of the model, where `group` is."""
        place = group if r.type.scope == GROUP else "M"
        table = self.shared(r.type.scope)
        match r.kind:
            case "state":
                dtype = next(k.kind.dtypes["state", r.name] for k in self.of_kind if ("state", r.name) in k.kind.dtypes)
                text = f"load(*{place}.{table.of(('state', r.name), f'const {TYPES[dtype]}*', f's_{r.name}')})"
                return text if r.type.boolean else f"double({text})"
            case "value" if r.type.boolean:
                return f"({place}.{self.value(r.name, r.type.scope)} != 0)"
            case "value":
                return f"{place}.{self.value(r.name, r.type.scope)}"
            case kind:
                return f"{place}.{table.of((kind, r.name), 'double', f'{kind[0]}_{r.name}')}"

    def reduced(self, name: str, exprs: Mapping[int, Expr], level: int, target: str) -> Iterator[str]:
        """A reduction over the cells of all tensors, or of those of the group k: part after part."""
        e = next(iter(exprs.values()))
        assert isinstance(e, Reduce)
        kind = accumulator(e)
        slots = [f"a{i}" for i in range(len(kind.start))]
        yield "{"
        yield f"{DEPTH}wide {', '.join(f'{s} = {start}' for s, start in zip(slots, kind.start, strict=True))}, n = 0;"
        for k in self.of_kind:
            mine = exprs.get(k.kind.owner)
            if isinstance(mine, Reduce):
                yield from indented(k.parts(name, mine, level, slots))
        if all(is_shared(a.type) for a in e.args):
            yield from indented(self.over_groups(e, slots))
        yield f"{DEPTH}{target} = {statements(result(e, kind), slots, n='n')};"
        yield "}"

    def over_groups(self, e: Reduce, slots: Sequence[str]) -> Iterator[str]:
        """Of values of groups, to the model."""
        yield "for (i64 k = 0; k < M.groups; ++k) if (G[k].present) {"
        express = self.expression(GROUP)
        yield from indented(one_more(e, [express.as_real(a) for a in e.args], slots))
        yield "}"

    # --- what leaves the step ----------------------------------------------------------------------------------------

    def commits(self) -> Iterator[str]:
        for k in self.of_kind:
            yield from k.commit(self.plan.leaving.get(k.kind.owner, ()))
        yield f"static void commit({self.tables}) {{"
        for (scope, classes), leaving in self.plan.joint.items():
            if any(k.kind.owner in classes for k in self.of_kind):
                yield from indented(self.for_each(scope, list(self.commit(scope, leaving))))
        yield "}"
        yield ""

    def commit(self, scope: Scope, roots: Sequence[Root]) -> Iterator[str]:
        express, place = self.expression(scope), self.place(scope)
        yield "{"
        for n, r in enumerate(roots):
            yield f"{DEPTH}const double x{n} = {express.as_real(r.expr)};"
        for n, r in enumerate(roots):
            if r.role == "watch":
                yield f"{DEPTH}{place}.{self.shared(scope).of(('watch', r.name), 'double', f'w_{r.name}')} = x{n};"
            else:
                dtype = next(k.kind.dtypes["state", r.name] for k in self.of_kind if ("state", r.name) in k.kind.dtypes)
                new = self.shared(scope).of(("new", r.name), f"{TYPES[dtype]}*", f"n_{r.name}")
                yield f"{DEPTH}if ({place}.{new}) *{place}.{new} = store<{TYPES[dtype]}>(x{n});"
        yield "}"

    # --- the step ----------------------------------------------------------------------------------------------------

    def step(self) -> Iterator[str]:
        self.model.of(("size", "groups"), "i64", "groups")
        self.model.of(("size", "in_place"), "i64", "in_place")
        self.model.of(("size", "parallel"), "i64", "parallel")
        for k in self.of_kind:
            self.model.of(("tensors", k.n), "i64", f"tensors{k.n}")
            self.model.of(("chunks", k.n), "i64", f"chunks{k.n}")
        arguments = "Model* model, Group* G" + "".join(f", Tensor{k.n}* T{k.n}, Chunk* K{k.n}" for k in self.of_kind)
        yield f'extern "C" void step({arguments}) {{'
        yield f"{DEPTH}Model& M = *model;"
        yield f"{DEPTH}#pragma omp parallel if (M.parallel)"
        yield f"{DEPTH}{{"
        for n, level in enumerate(self.plan.levels):
            swept = [k for k in self.of_kind if any(s.owner == k.kind.owner for s in level.sweeps)]
            for k in swept:
                yield from indented(self.over(f"chunks{k.n}", f"sweep{n}_{k.n}(M, G, T{k.n}[K{k.n}[i].tensor], K{k.n}[i])", k is swept[-1], "dynamic, 1"), 2)
            for i, phase in enumerate(level.phases):
                last = i + 1 == len(level.phases) or not isinstance(level.phases[i + 1], Local)
                match phase:
                    case Local(owner):
                        mine = [k for k in self.of_kind if k.kind.owner == owner]
                        for k in mine:
                            yield from indented(
                                self.over(f"tensors{k.n}", f"stage{n}_{i}_{k.n}(M, G, T{k.n}[i], K{k.n})", last and k is mine[-1], "dynamic, 4"), 2
                            )
                    case Joint():
                        yield f"{DEPTH * 2}#pragma omp single"
                        yield f"{DEPTH * 2}stage{n}_{i}({self.given});"
        for k in self.of_kind:
            yield from indented(self.over(f"tensors{k.n}", f"commit{k.n}(M, G, T{k.n}[i])", False, "static"), 2)
        yield f"{DEPTH * 2}#pragma omp single"
        yield f"{DEPTH * 2}commit({self.given});"
        yield f"{DEPTH}}}"
        yield "}"

    @staticmethod
    def over(count: str, call: str, wait: bool, schedule: str) -> Iterator[str]:
        yield f"#pragma omp for schedule({schedule}){'' if wait else ' nowait'}"
        yield f"for (i64 i = 0; i < M.{count}; ++i) {call};"


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
        self.full = {b.name for s in plan.sweeps_of(kind.owner) for b in s.bindings}
        self.swept = {n.name for s in plan.sweeps_of(kind.owner) for e in expressions(s) for n in walk(e) if isinstance(n, Ref) and n.type.scope.name in CELLS}

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
                text = f"T.{self.field('state', r.name, f'const {TYPES[self.dtype_of(r)]}*')}"
                text = f"load({text}{cell})" if cell else f"load(*{text})"
                return text if r.type.boolean else f"double({text})"
            case "input" if cell:
                return f"T.{self.field('input', r.name, 'const double*')}{cell}"
            case "builtin" if r.name in ("rows", "cols", "numel"):
                return f"double(T.{r.name})"
            case kind:
                return f"T.{self.field(kind, r.name, 'double')}"

    def dtype_of(self, r: Ref) -> str:
        return self.kind.dtypes[r.kind, r.name.removesuffix(AFTER)]

    @property
    def stored_types(self) -> dict[str, str]:
        return {name: d for (what, name), d in self.kind.dtypes.items() if what == "state"} | {"w": self.kind.dtypes.get(("w", ""), "")}

    def stage_expression(self) -> Expressions:
        return Expressions(self.refer, self.stored_types, "double")

    # --- stages ------------------------------------------------------------------------------------------------------

    def stage(self, name: str, bindings: Sequence[Binding], level: int) -> Iterator[str]:
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
        yield from indented(self.over_cells(e, slots))
        yield f"{DEPTH}T.{self.value(name, e.scope)} = {statements(result(e, kind), slots, n='n')};"
        yield "}"

    def over_cells(self, e: Reduce, slots: Sequence[str]) -> Iterator[str]:
        """Each cell of the operands added to the slots, and to n."""
        express = self.stage_expression()
        scope = max((a.type.scope for a in e.args), key=lambda s: len(s.indices))
        values = [express.as_real(a) for a in e.args]
        if scope.name in CELLS:
            index, count, _ = CELLS[scope.name]
            yield f"for (i64 {index} = 0; {index} < {count}; ++{index}) {{"
            yield from indented(one_more(e, values, slots))
            yield "}"
        else:
            yield "{"
            yield from indented(one_more(e, values, slots))
            yield "}"

    def parts(self, name: str, e: Reduce, level: int, slots: Sequence[str]) -> Iterator[str]:
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
        made = accumulations(s.partials)
        slots, columns = self.slots, 0  # parts that are completed with those of other classes wait for them; those of columns do not
        for a in made:
            if a.readers[0][1].scope == COLUMN:
                at, columns = columns, columns + len(a.kind.start)
            else:
                at, slots = slots, slots + len(a.kind.start)
            self.parts_of |= {name: (a, at) for name, _ in a.readers}
        self.slots, self.columns = max(self.slots, slots), max(self.columns, columns)
        yield from Sweeping(self, s, made).lines(level)
