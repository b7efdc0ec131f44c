"""Values of one tensor in a stage: numbers, and those of its rows, columns or blocks, in loops that have as much of them as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from updsl.back.kernel_reduce import Accumulation
from updsl.back.kernel_text import DEPTH
from updsl.back.triton_expression import TYPES, converted
from updsl.back.triton_over import BLOCK, Over
from updsl.back.triton_reduce import one_of, result, settled
from updsl.core.ir import Binding, Expr, Reduce
from updsl.core.scope import COLUMN, TENSOR, Scope
from updsl.core.straight import Root, values_read

if TYPE_CHECKING:
    from updsl.back.triton_source import OfKind
    from updsl.back.triton_stage import Staging


class Cells:
    """Writes what belongs to the tensor t of a kind."""

    def __init__(self, stage: Staging, k: OfKind):
        self.stage, self.k = stage, k

    def local(self, bindings: Sequence[Binding]) -> Iterator[str]:
        """In order: numbers one by one; runs of what is of the same cells in one loop."""
        left = [b for b in bindings if not self.is_there(b)]
        while left:
            scope = self.loop_of(left[0])
            if scope is None:
                b = left.pop(0)
                if b.name not in self.stage.done:
                    yield from self.stage.fenced(self.scalar(b))
                continue
            run: list[Binding] = []
            numbers: set[str] = set()
            for b in left:
                if self.loop_of(b) == scope and not numbers & set(values_read(b.expr)):
                    run.append(b)
                    if b.expr.type.scope == TENSOR:
                        numbers.add(b.name)
                else:
                    break
            left = left[len(run) :]
            yield from self.stage.fenced(self.loop(scope, run))

    def is_there(self, b: Binding) -> bool:
        """A sweep has completed it: it is of rows or blocks."""
        return b.name in self.k.parts_of and isinstance(b.expr, Reduce) and TENSOR < b.expr.scope and b.expr.scope != COLUMN

    def loop_of(self, b: Binding) -> Scope | None:
        """The cells that are gone through for it; None for a number."""
        e = b.expr
        if b.name in self.k.parts_of:
            return COLUMN if isinstance(e, Reduce) and e.scope == COLUMN else None
        if isinstance(e, Reduce):
            scope = max((a.type.scope for a in e.args), key=lambda s: len(s.indices))
            return scope if TENSOR < scope else None
        return e.type.scope if TENSOR < e.type.scope else None

    def scalar(self, b: Binding) -> Iterator[str]:
        if b.name in self.k.parts_of:
            yield from self.completed(b)
        elif isinstance(b.expr, Reduce):
            over = Over(self.stage, self.k)
            over.start(b.expr, self.k.double)
            yield from over.started()
            yield f"ok = tl.arange(0, {BLOCK}) == 0"
            yield from over.cells([self.stage.expression(self.k).as_real(a) for a in b.expr.args])
            yield from self.ended(over, b.name, b.expr)
        else:
            yield from self.stage.number(b.name, b.expr, self.k)

    def completed(self, b: Binding) -> Iterator[str]:
        """The reductions of the parts of all chunks: those that share them, all at once."""
        made, at = self.k.parts_of[b.name]
        level = self.k.level_of[b.name]
        over = Over(self.stage, self.k)
        assert isinstance(b.expr, Reduce)
        over.start(b.expr, self.k.double, made.kind)
        yield from over.started()
        first = self.k.at(("size", f"first {level}"), "i64", f"first{level}")
        count = self.k.at(("size", f"chunks {level}"), "i64", f"chunks{level}")
        yield from over.chunks(f"tl.load(t + {first})", f"tl.load(t + {count})", list(over.parts(level, at)))
        yield from over.summed()
        for name, e in made.readers:
            self.stage.done.add(name)
            variable = self.stage.names.fresh(name)
            yield from over.resulting(e, variable)
            yield from self.number(name, variable)

    def ended(self, over: Over, name: str, e: Reduce) -> Iterator[str]:
        variable = self.stage.names.fresh(name)
        yield from over.ended(e, variable)
        yield from self.number(name, variable)

    def number(self, name: str, variable: str) -> Iterator[str]:
        """A number that is in a variable."""
        self.stage.known[self.k.n, name] = variable
        if self.stage.writer.is_stored((self.k.n, name)):
            yield f"put(t + {self.k.at(('value', name), 'double', f'v_{name}')}, {variable}, True)"
            self.stage.dirty.add((self.k.n, name))

    # --- loops -------------------------------------------------------------------------------------------------------

    def loop(self, scope: Scope, run: Sequence[Binding]) -> Iterator[str]:
        before = dict(self.stage.known)
        sums: list[tuple[Over, Binding]] = []
        lines: list[str] = []
        for b in run:
            if b.name in self.stage.done:
                continue
            e = b.expr
            if b.name in self.k.parts_of:
                lines += self.columns(*self.k.parts_of[b.name], self.k.level_of[b.name])
            elif isinstance(e, Reduce):
                over = Over(self.stage, self.k)
                over.start(e, self.k.double)
                sums.append((over, b))
                lines += over.cells([self.stage.expression(self.k).as_real(a) for a in e.args])
            else:
                variable = self.stage.names.fresh(b.name)
                lines.append(f"{variable} = {self.stage.expression(self.k).outer(e)}")
                lines += self.cell(b.name, e, variable)
        for over, _ in sums:
            yield from over.started()
        if lines:
            yield from Over(self.stage, self.k).of_scope(scope.name, lines)
        self.stage.known = before
        for over, b in sums:
            assert isinstance(b.expr, Reduce)
            yield from self.ended(over, b.name, b.expr)

    def cell(self, name: str, e: Expr, variable: str) -> Iterator[str]:
        """A value of the cells j that is in a variable."""
        self.stage.known[self.k.n, name] = variable
        if self.stage.writer.is_stored((self.k.n, name)):
            yield f"put({self.k.array_of(name, e.type.scope, stored=True)} + j, {variable}, ok)"
            self.stage.dirty.add((self.k.n, name))

    def columns(self, made: Accumulation, at: int, level: int) -> list[str]:
        """The reductions of the parts of all chunks, for the columns j: those that share them, all at once."""
        fresh, k = self.stage.names.fresh, self.k
        slots, part = [fresh("a") for _ in made.kind.add], [fresh("b") for _ in made.kind.add]
        anchor, m, r, parts, step = fresh("from_") if made.kind.shifted else "", fresh("m"), fresh("r"), fresh("parts"), fresh("step")
        rows = k.at(("size", "rows"), "i64", "rows")
        lines = [f"{slot} = tl.full([{BLOCK}], {made.kind.start}, tl.float64)" for slot in slots]
        lines += [f"{anchor} = tl.full([{BLOCK}], 0.0, tl.float64)"] if anchor else []
        lines.append(f"{parts} = tl.load(t + {k.at(('size', f'parts {level}'), 'i64', f'parts{level}')})")
        lines.append(f"{step} = tl.load(t + {k.at(('size', f'step {level}'), 'i64', f'step{level}')})")
        lines.append(f"for {r} in range(0, {parts}):")
        lines.append(f"{DEPTH}{m} = tl.minimum(tl.load(t + {rows}) - {r} * {step}, {step}).to(tl.float64)")
        memory = f"array(t + {k.at(('workspace', f'columns{level}'), 'double*', f'columns{level}')}, tl.float64, False)"
        cols = f"tl.load(t + {k.at(('size', 'cols'), 'i64', 'cols')})"
        for i, b in enumerate(part):
            lines.append(f"{DEPTH}{b} = tl.load({memory} + ({r} * C{level}_{k.n}_SIZE + {at + i}) * {cols} + j, ok, other=0)")
        if anchor:
            lines.append(f"{DEPTH}{anchor} = tl.where(({r} == 0) & is_finite({part[0]}), {part[0]}, {anchor})")
        lines += [f"{DEPTH}{made.kind.put(slot, value, '')}" for slot, value in zip(slots, one_of(part, made.kind, anchor, m), strict=True)]
        n = fresh("n")
        lines.append(f"{n} = tl.load(t + {rows}).to(tl.float64)")
        lines += settled(made.kind, anchor, slots, n)
        for name, e in made.readers:
            self.stage.done.add(name)
            variable = fresh(name)
            lines.append(f"{variable} = {result(e, made.kind, slots, n)}")
            lines += self.cell(name, e, variable)
        return lines

    # --- what leaves the step ----------------------------------------------------------------------------------------

    def leaving(self, roots: Sequence[Root]) -> Iterator[str]:
        """States of rows, columns or blocks."""
        for r in roots:
            yield from self.stage.fenced(self.state(r))

    def state(self, r: Root) -> Iterator[str]:
        assert r.type is not None
        type_ = TYPES[self.k.kind.dtypes["state", r.name]]
        x = self.stage.names.fresh(f"new_{r.name}")
        new = f"array(t + {self.k.at(('new', r.name), 'void*', f'n_{r.name}')}, {type_}, False)"
        lines = [f"{x} = {self.stage.expression(self.k).as_real(r.expr, True)}", f"tl.store({new} + j, {converted(x, type_)}, ok)"]
        yield from Over(self.stage, self.k).of_scope(r.type.scope.name, lines)
