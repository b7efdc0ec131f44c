"""Plans: in which passes over memory a step reads, reduces and writes the tensors of a model.

A step is a row of levels. In the *sweep* of a level every class of tensors reads some full-size streams once, carries elementwise values, adds up partial
results of reductions, and stores some streams in place. The *stage* after it computes all that is of coarser scope: it completes the reductions. A new
level starts only where an elementwise value needs a reduction that is not complete. Elementwise values are not kept from sweep to sweep: they are computed
anew from the streams, which costs no memory traffic but that of the streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from updsl.core.ir import Binding, Expr, Program, Reduce
from updsl.core.scope import Scope
from updsl.core.straight import Root

AFTER = " after"
"""Ends the name of a state that is read back, in a Ref."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A full-size array of each tensor: the gradient ("g"), the weight ("w"), a state or an input of that name, or what the step gives ("out"). after: read
    back when an earlier sweep has stored it."""

    role: Literal["g", "w", "state", "input", "out"]
    name: str = ""
    after: bool = False

    def __str__(self) -> str:
        return self.name or self.role


@dataclass(frozen=True, slots=True)
class Store:
    """stream ← expr, for every entry."""

    stream: Stream
    expr: Expr


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over the tensors of a class. bindings: elementwise, in order. partials: reductions over entries that it adds up, by name. idle: the name of a
    number for each tensor; where it holds, what would be stored is already there, and the pass is left out."""

    owner: int
    bindings: tuple[Binding, ...]
    partials: tuple[tuple[str, Reduce], ...]
    stores: tuple[Store, ...]
    reads: tuple[Stream, ...]
    idle: str | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """Values of scope tensor or finer of one class, each tensor by itself."""

    owner: int
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """Values of scope group or all, in order: name, and the expression of each class that has it (they differ where it reduces values of tensors)."""

    bindings: tuple[tuple[str, Mapping[int, Expr]], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """The sweeps of the classes, then the stage: phases one after the other. The first level has no sweeps."""

    sweeps: tuple[Sweep, ...]
    phases: tuple[Local | Joint, ...]


@dataclass(frozen=True)
class Plan:
    """The levels of one step; programs: of the classes. leaving: what leaves the step for each tensor of a class, but not by a sweep; joint: for groups and
    for all, by scope and the classes that have it."""

    programs: Mapping[int, Program]
    levels: tuple[Level, ...]
    leaving: Mapping[int, tuple[Root, ...]]
    joint: Mapping[tuple[Scope, tuple[int, ...]], tuple[Root, ...]] = field(default_factory=dict)

    @property
    def sweeps(self) -> int:
        """Passes over memory: levels that some class has a sweep in."""
        return sum(bool(level.sweeps) for level in self.levels)

    def sweeps_of(self, owner: int) -> Iterator[Sweep]:
        """In order."""
        for level in self.levels:
            yield from (s for s in level.sweeps if s.owner == owner)

    def bytes_of(self, owner: int, width: Callable[[Stream], int], idle: bool = False) -> int:
        """Memory traffic for an entry of a tensor of this class; width: bytes of an entry. idle: where sweeps that may be left out are."""
        return sum(
            sum(map(width, s.reads)) + sum(width(store.stream) for store in s.stores) for s in self.sweeps_of(owner) if not (idle and s.idle is not None)
        )
