"""Plan → C++: one function for each sweep and stage of each kind of tensor, and `step`, which runs them in one parallel region.

A *kind* is a class of tensors whose streams have the same types. Kernels find tensors through tables: an array of structs for each kind, one for the
groups, one struct for the model; and a table of *chunks*, runs of rows (or of blocks, or of entries) of about 64 Ki entries. All values of scope tensor and
coarser are doubles in these structs; those for rows and columns are arrays that the structs point to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from updsl.back.cpp_expression import TYPES, Expressions
from updsl.back.cpp_prelude import PRELUDE
from updsl.back.cpp_reduce import accumulator, one_more, result, statements
from updsl.back.cpp_stage import OfKind
from updsl.back.cpp_sweep import COLUMNS, SLOTS
from updsl.back.kernel_kind import Kind, Layout, Table, present
from updsl.back.kernel_text import DEPTH, indented
from updsl.core.ir import Expr, Reduce, Ref, is_shared
from updsl.core.plan import Joint, Local, Plan
from updsl.core.scope import GROUP, Scope
from updsl.core.straight import Root


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


class Writer:
    """Writes one translation unit."""

    def __init__(self, plan: Plan, kinds: Sequence[Kind], name: str):
        self.plan, self.name = plan, name
        self.model, self.group = Table(), Table()
        self.group.of(("present", ""), "i64", "present")
        self.of_kind = [OfKind(plan, k, f"{n}", self) for n, k in enumerate(kinds)]

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
                            yield from k.stage(f"stage{level}_{n}_{k.n}", bindings)
                case Joint(bindings):
                    yield from self.joint(f"stage{level}_{n}", bindings)

    # --- values of a group and of the model --------------------------------------------------------------------------

    @property
    def tables(self) -> str:
        return "Model& M, Group* G" + "".join(f", Tensor{k.n}* T{k.n}, Chunk* K{k.n}" for k in self.of_kind)

    @property
    def given(self) -> str:
        return "M, G" + "".join(f", T{k.n}, K{k.n}" for k in self.of_kind)

    def joint(self, name: str, bindings: Sequence[tuple[str, Mapping[int, Expr]]]) -> Iterator[str]:
        yield f"static void {name}({self.tables}) {{"
        for value, exprs in bindings:
            e = next(iter(exprs.values()))
            target = f"{self.place(e.type.scope)}.{self.value(value, e.type.scope)}"
            body = list(self.reduced(value, exprs, target) if isinstance(e, Reduce) else [f"{target} = {self.expression().outer(e)};"])
            yield from indented(self.for_each(e.type.scope, exprs, body))
        yield "}"
        yield ""

    def for_each(self, scope: Scope, classes: Collection[int], body: Sequence[str]) -> Iterator[str]:
        """For the model, or for each group that has tensors of these classes."""
        if scope == GROUP:
            yield f"for (i64 k = 0; k < M.groups; ++k) if ({self.present(classes)}) {{"
            yield from indented(body)
            yield "}"
        else:
            yield from body

    def present(self, classes: Collection[int]) -> str:
        """Whether the group k has tensors of these classes."""
        what = present(classes, [k.kind for k in self.of_kind])
        return f"G[k].{self.group.of(what, 'i64', ' '.join(what).strip())}"

    @staticmethod
    def place(scope: Scope) -> str:
        return "G[k]" if scope == GROUP else "M"

    def value(self, name: str, scope: Scope) -> str:
        return self.shared(scope).of(("value", name), "double", f"v_{name}")

    def shared(self, scope: Scope) -> Table:
        return self.group if scope == GROUP else self.model

    def expression(self) -> Expressions:
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

    def reduced(self, name: str, exprs: Mapping[int, Expr], target: str) -> Iterator[str]:
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
                yield from indented(k.parts(name, mine, slots))
        if all(is_shared(a.type) for a in e.args):
            yield from indented(self.over_groups(e, exprs, slots))
        yield f"{DEPTH}{target} = {statements(result(e, kind), slots, n='n')};"
        yield "}"

    def over_groups(self, e: Reduce, classes: Collection[int], slots: Sequence[str]) -> Iterator[str]:
        """Of values of groups, to the model."""
        express = self.expression()
        yield from self.for_each(GROUP, classes, list(one_more(e, [express.as_real(a) for a in e.args], slots)))

    # --- what leaves the step ----------------------------------------------------------------------------------------

    def commits(self) -> Iterator[str]:
        for k in self.of_kind:
            yield from k.commit(self.plan.leaving.get(k.kind.owner, ()))
        yield f"static void commit({self.tables}) {{"
        for (scope, classes), leaving in self.plan.joint.items():
            if any(k.kind.owner in classes for k in self.of_kind):
                yield from indented(self.for_each(scope, classes, list(self.commit(scope, leaving))))
        yield "}"
        yield ""

    def commit(self, scope: Scope, roots: Sequence[Root]) -> Iterator[str]:
        express, place = self.expression(), self.place(scope)
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
