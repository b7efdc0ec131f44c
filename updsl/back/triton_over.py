"""Reductions of a stage in Triton: over chunks, tensors, groups, rows or columns, many at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from updsl.back.kernel_text import DEPTH, indented
from updsl.back.triton_reduce import Accumulator, accumulator, one_of, result, settled
from updsl.core.ir import Expr, Reduce
from updsl.core.scope import GROUP, TENSOR

if TYPE_CHECKING:
    from updsl.back.triton_source import OfKind
    from updsl.back.triton_stage import Staging

BLOCK = 512
"""How many tensors, chunks, rows or columns a program of a stage takes at once."""


class Over:
    """Lanes that add up cells of a kind of tensors (of any kind, where k is None). shared: whose lanes these are."""

    def __init__(self, stage: Staging, k: OfKind | None, shared: Over | None = None):
        self.stage, self.k = stage, k
        self.kind: Accumulator
        self.slots: tuple[str, ...]
        if shared is not None:
            self.kind, self.slots, self.anchor, self.n = shared.kind, shared.slots, shared.anchor, shared.n

    def start(self, e: Reduce, double: bool, kind: Accumulator | None = None) -> None:
        """kind: what the parts are, where they are made already."""
        self.kind = kind or accumulator(e, double)
        fresh = self.stage.names.fresh
        self.n = fresh("n")
        self.slots = tuple(fresh("a") for _ in self.kind.add)
        self.anchor = fresh("from_") if self.kind.shifted else ""

    def started(self) -> Iterator[str]:
        yield f"{self.n} = tl.full([1], 0.0, tl.float64)"
        if self.anchor:
            yield f"{self.anchor} = tl.full([1], 0.0, tl.float64)"
        for slot in self.slots:
            yield f"{slot} = tl.full([{BLOCK}], {self.kind.start}, tl.float64)"

    def ended(self, e: Reduce, variable: str) -> Iterator[str]:
        """The result in a variable."""
        yield from self.summed()
        yield from self.resulting(e, variable)

    def summed(self) -> Iterator[str]:
        for slot in self.slots:
            yield f"{slot} = {self.kind.over(slot, 0)}"
        yield from settled(self.kind, self.anchor, self.slots, self.n)

    def resulting(self, e: Reduce, variable: str) -> Iterator[str]:
        text = result(e, self.kind, self.slots, self.n)
        yield f"{variable} = tl.sum({text}.to(tl.float64), 0) != 0" if e.type.boolean else f"{variable} = tl.sum({text}, 0)"

    # --- what is added -----------------------------------------------------------------------------------------------

    def cells(self, values: Sequence[str]) -> Iterator[str]:
        """One cell of each lane, where ok holds."""
        fresh = self.stage.names.fresh
        x = fresh("x")
        yield f"{x} = {values[0]}"
        y = x
        if len(values) > 1:
            y = fresh("y")
            yield f"{y} = {values[1]}"
        if self.anchor:
            yield f"{self.anchor} = tl.where({self.n} == 0, anchor({x}, ok, 0), {self.anchor})"
            yield f"{x} = {x} - {self.anchor}"
        yield f"{self.n} += total(ok.to(tl.float64), 0)"
        for slot, add in zip(self.slots, self.kind.add, strict=True):
            yield self.kind.put(slot, add.format(x=x, y=y), "ok")

    def parts(self, level: int, at: int) -> Iterator[str]:
        """The part of a chunk in each lane: of the chunks c, where ok holds."""
        fresh = self.stage.names.fresh
        m, part = fresh("m"), [fresh("b") for _ in self.slots]
        yield f"{m} = tl.load(K{level} + c * K_SIZE + K_count).to(tl.float64)"
        for i, b in enumerate(part):
            yield f"{b} = number(P{level} + c * P{level}_SIZE + {at + i})"
        if self.anchor:
            yield f"{self.anchor} = tl.where({self.n} == 0, anchor({part[0]}, ok, 0), {self.anchor})"
        yield f"{self.n} += total(tl.where(ok, {m}, 0.0), 0)"
        for slot, value in zip(self.slots, one_of(part, self.kind, self.anchor, m), strict=True):
            yield self.kind.put(slot, value, "ok")

    # --- over what ---------------------------------------------------------------------------------------------------

    def given(self, name: str, e: Reduce) -> Iterator[str]:
        """What the tensors of this kind give to a value of the model, or of the group k."""
        k = self.k
        assert k is not None
        if name in k.parts_of:
            _, at = k.parts_of[name]
            level = k.level_of[name]
            first = self.stage.writer.model_at(("first", f"{level} {k.n}"), "i64", f"first{level}_{k.n}")
            count = self.stage.writer.model_at(("chunks", f"{level} {k.n}"), "i64", f"chunks{level}_{k.n}")
            lines = [*([f"ok = ok & (tl.load(K{level} + c * K_SIZE + K_group) == k)"] if e.scope == GROUP else []), *self.parts(level, at)]
            yield from self.chunks(f"tl.load(M + {first})", f"tl.load(M + {count})", lines)
            return
        scope = max((a.type.scope for a in e.args), key=lambda s: len(s.indices))
        group = f"tl.load(t + {k.at(('size', 'group'), 'i64', 'group')})"
        values = [self.stage.expression(k, group=f"(G + {group} * G_SIZE)").as_real(a) for a in e.args]
        lines = list(self.cells(values))
        if scope == TENSOR:
            yield from self.tensors([*([f"ok = ok & ({group} == k)"] if e.scope == GROUP else []), *lines])
            return
        yield f"for i in range(0, tl.load(M + {self.stage.writer.model_at(('tensors', k.n), 'i64', f'tensors{k.n}')})):"
        yield f"{DEPTH}t = T{k.n} + i * {k.size}"
        over = self.of_scope(scope.name, lines)
        yield from indented([f"if {group} == k:", *indented(over)] if e.scope == GROUP else over)

    def chunks(self, first: str, count: str, lines: Sequence[str]) -> Iterator[str]:
        """Over chunks that lie side by side."""
        fresh = self.stage.names.fresh
        start, end, c0 = fresh("first"), fresh("count"), fresh("c0")
        yield f"{start} = {first}"
        yield f"{end} = {count}"
        yield f"for {c0} in range(0, {end}, {BLOCK}):"
        yield f"{DEPTH}c = {c0} + tl.arange(0, {BLOCK})"
        yield f"{DEPTH}ok = c < {end}"
        yield f"{DEPTH}c = {start} + tl.minimum(c, {end} - 1)"
        yield from indented(lines)

    def tensors(self, lines: Sequence[str]) -> Iterator[str]:
        """Over the tensors of the kind."""
        k = self.k
        assert k is not None
        count, i0 = self.stage.names.fresh("count"), self.stage.names.fresh("i0")
        yield f"{count} = tl.load(M + {self.stage.writer.model_at(('tensors', k.n), 'i64', f'tensors{k.n}')})"
        yield f"for {i0} in range(0, {count}, {BLOCK}):"
        yield f"{DEPTH}i = {i0} + tl.arange(0, {BLOCK})"
        yield f"{DEPTH}ok = i < {count}"
        yield f"{DEPTH}t = T{k.n} + tl.minimum(i, {count} - 1) * {k.size}"
        if any("group + " in line for line in lines):
            yield f"{DEPTH}group = G + tl.load(t + {k.at(('size', 'group'), 'i64', 'group')}) * G_SIZE"
        yield from indented(lines)

    def of_scope(self, scope: str, lines: Sequence[str]) -> Iterator[str]:
        """Over the rows, columns or blocks j of the tensor t."""
        k = self.k
        assert k is not None
        what = {"row": "rows", "column": "cols", "block": "blocks"}[scope]
        j0, count = self.stage.names.fresh("j0"), self.stage.names.fresh(what)
        yield f"{count} = tl.load(t + {k.at(('size', what), 'i64', what)})"
        yield f"for {j0} in range(0, {count}, {BLOCK}):"
        yield f"{DEPTH}j = {j0} + tl.arange(0, {BLOCK})"
        yield f"{DEPTH}ok = j < {count}"
        yield from indented(lines)

    def groups(self, e: Reduce, classes: Collection[int]) -> Iterator[str]:
        """Over the groups that have tensors of these classes."""
        values: list[Expr] = list(e.args)
        count, k0 = self.stage.names.fresh("count"), self.stage.names.fresh("k0")
        express = self.stage.expression(None, group="every")
        lines = list(self.cells([express.as_real(a) for a in values]))
        yield f"{count} = tl.load(M + {self.stage.writer.model_at(('size', 'groups'), 'i64', 'groups')})"
        yield f"for {k0} in range(0, {count}, {BLOCK}):"
        yield f"{DEPTH}ok = {k0} + tl.arange(0, {BLOCK}) < {count}"
        yield f"{DEPTH}every = G + tl.minimum({k0} + tl.arange(0, {BLOCK}), {count} - 1) * G_SIZE"
        yield f"{DEPTH}ok = ok & ({self.stage.writer.present(classes, 'every')})"
        yield from indented(lines)
