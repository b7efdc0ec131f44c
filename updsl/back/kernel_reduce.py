"""What the reductions of a sweep have in common, whatever adds them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from updsl.core.ir import Expr, Reduce, is_shared
from updsl.core.scope import COLUMN, TENSOR, Scope

MOMENTS = ("mean", "var", "std", "norm", "rms")


@dataclass(frozen=True)
class Accumulation:
    """What is added up of some operands: an `Accumulator` of the emitter's own. readers: the reductions that are made of it, by name."""

    kind: Any
    operands: tuple[Expr, ...]
    readers: tuple[tuple[str, Reduce], ...]

    @property
    def scope(self) -> Scope:
        return self.readers[0][1].scope

    @property
    def is_of_tensor(self) -> bool:
        """Of a tensor, or of several: chunks give parts of it."""
        return self.scope <= TENSOR

    @property
    def is_of_columns(self) -> bool:
        return self.scope == COLUMN

    @property
    def is_of_cells(self) -> bool:
        """Of rows or blocks: a chunk holds whole ones."""
        return not (self.is_of_tensor or self.is_of_columns)


def accumulations(partials: Iterable[tuple[str, Reduce]], kind_of: Callable[[Reduce], Any], variance: Any, within: tuple[Any, ...]) -> list[Accumulation]:
    """The reductions of a sweep, where those of one operand in the same cells share what they can: a mean, a norm and a deviation are made of the same sums.
    variance: what gives all of these; within: the kinds that it can stand for."""
    by_operand: dict[tuple, list[tuple[str, Reduce]]] = {}
    for name, e in partials:
        by_operand.setdefault((e.args, e.scope), []).append((name, e))
    found: list[Accumulation] = []
    for (operands, _), readers in by_operand.items():
        moments = [r for r in readers if not is_shared(r[1].type) and r[1].op in MOMENTS and kind_of(r[1]) in (variance, *within)]
        if any(kind_of(e) is variance for _, e in moments):
            found.append(Accumulation(variance, operands, tuple(moments)))
            readers = [r for r in readers if r not in moments]
        kinds: dict[Any, list[tuple[str, Reduce]]] = {}
        for name, e in readers:
            kinds.setdefault(kind_of(e), []).append((name, e))
        found += [Accumulation(kind, operands, tuple(some)) for kind, some in kinds.items()]
    return found
