"""One order for the Programs of several tensor classes, in which shared values are evaluated once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from updsl.core.diagnostic import InternalError
from updsl.core.ir import Binding, Every, Statement, is_joint


@dataclass(frozen=True)
class Local:
    """A binding of scope tensor or finer, of one class."""

    owner: int
    binding: Binding


@dataclass(frozen=True)
class Shared:
    """A binding of scope group or all: class → its binding of that name. Where it is a Reduce over finer values, every class contributes its own
    operand; else all classes have the same expression. Where it is a `largest` over group or all, its value is of each class's own cells, but every
    class contributes the operand that is compared."""

    name: str
    bindings: Mapping[int, Binding]


@dataclass(frozen=True)
class Guarded:
    """A block `every` of one place: class → its block; `body` is the merged order of the blocks."""

    name: str
    blocks: Mapping[int, Every]
    body: tuple[Step, ...]


Step: TypeAlias = Local | Shared | Guarded


def merge(bodies: Mapping[int, Sequence[Statement]]) -> tuple[Step, ...]:
    """The steps of all classes (class → statements) in one order that keeps each class's own: a shared binding or a block waits until every class that
    has one of its name has come to it. Texts are walked in one order for all classes, so that never blocks."""
    at = dict.fromkeys(bodies, 0)
    left = {c: [_name(s) for s in body if _is_joint(s)] for c, body in bodies.items()}
    steps: list[Step] = []
    while any(at[c] < len(body) for c, body in bodies.items()):
        progress = False
        for c, body in bodies.items():
            while at[c] < len(body):
                statement = body[at[c]]
                if not _is_joint(statement):
                    assert isinstance(statement, Binding)
                    steps.append(Local(c, statement))
                    at[c] += 1
                    progress = True
                    continue
                name = statement.name
                owners = [d for d in bodies if name in left[d]]
                if not all(at[d] < len(bodies[d]) and bodies[d][at[d]].name == name for d in owners):
                    break
                steps.append(_joint(name, {d: bodies[d][at[d]] for d in owners}))
                for d in owners:
                    at[d] += 1
                    left[d].remove(name)
                progress = True
        if not progress:
            raise InternalError("the programs of two tensor classes do not agree on an order")
    return tuple(steps)


def _name(s: Statement) -> str:
    return s.name


def _is_joint(s: Statement) -> bool:
    return isinstance(s, Every) or is_joint(s.expr)


def _joint(name: str, statements: Mapping[int, Statement]) -> Step:
    blocks = {c: s for c, s in statements.items() if isinstance(s, Every)}
    if blocks:
        return Guarded(name, blocks, merge({c: b.body for c, b in blocks.items()}))
    return Shared(name, {c: s for c, s in statements.items() if isinstance(s, Binding)})
