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

from updsl.core.ir import Binding, Expr, Program, Reduce, Ref, walk
from updsl.core.scope import ELEMENT, Scope
from updsl.core.straight import Root

HANDED = "from "
"""Begins the name of an input that an earlier part of the step hands on."""
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


def stream_of(r: Ref) -> Stream:
    """That an elementwise reference to no binding reads."""
    if r.kind == "builtin":
        return Stream("w" if r.name == "w" else "g")
    return Stream("input" if r.kind == "input" else "state", r.name.removesuffix(AFTER), after=r.name.endswith(AFTER))


def streams(e: Expr) -> Iterator[Stream]:
    """That an elementwise expression reads."""
    return (stream_of(n) for n in walk(e) if isinstance(n, Ref) and n.kind != "value" and n.type.scope == ELEMENT)


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

    @property
    def expressions(self) -> Iterator[Expr]:
        """All that is computed in it."""
        yield from (b.expr for b in self.bindings)
        yield from (e for _, e in self.partials)
        yield from (s.expr for s in self.stores)

    @property
    def streams(self) -> frozenset[Stream]:
        """All that is read or stored."""
        return frozenset((*self.reads, *(s.stream for s in self.stores)))


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


@dataclass(frozen=True)
class TensorsOfClass:
    """How many entries the tensors of a class have in all, and how many bytes an entry of each of their streams, and of the state that is kept for it, has."""

    owner: int
    numel: int
    widths: Mapping[Stream, int]
    state_bytes: int


@dataclass(frozen=True)
class Summary:
    """A Plan for the tensors of a model. launches: kernels, or parallel regions, of a step. workspace_bytes: memory beside tensors and states. collectives: 0,
    on one device. before: the parts of the step
    that run first, where torch computes something between sweeps, as `torch` says."""

    plan: Plan
    classes: tuple[TensorsOfClass, ...]
    launches: int
    workspace_bytes: int
    collectives: int = 0
    before: tuple[Summary, ...] = ()
    torch: str = ""

    @property
    def sweeps(self) -> int:
        """Passes over memory of a step, in kernels."""
        return self.plan.sweeps + sum(part.sweeps for part in self.before)

    @property
    def bytes_per_parameter(self) -> float:
        """Memory traffic of a step, read and written, over the number of parameters."""
        return self._bytes(idle=False)

    @property
    def idle_bytes_per_parameter(self) -> float:
        """The same of a step that changes no gradient, and so leaves out the sweeps that would store them as they are."""
        return self._bytes(idle=True)

    @property
    def state_bytes_per_parameter(self) -> float:
        """Memory of the states, over the number of parameters."""
        return self._mean(lambda c: c.state_bytes / c.numel)

    @property
    def _numel(self) -> int:
        return max(1, sum(c.numel for c in self.classes))

    def _bytes(self, idle: bool) -> float:
        """Of all parts, for a parameter of this one."""
        own = self._mean(lambda c: self.plan.bytes_of(c.owner, c.widths.__getitem__, idle))
        return own + sum(part._bytes(idle) * part._numel for part in self.before) / self._numel

    def _mean(self, of: Callable[[TensorsOfClass], float]) -> float:
        return sum(of(c) * c.numel for c in self.classes) / self._numel

    def __str__(self) -> str:
        lines = [line for part in (*self.before, self) for line in part._passes()]
        lines += [self.torch] if self.torch else []
        idle = f" ({self.idle_bytes_per_parameter:g} where nothing changes)" if self.idle_bytes_per_parameter < self.bytes_per_parameter else ""
        lines.append(f"{self.sweeps} sweeps, {self.bytes_per_parameter:g} bytes a parameter{idle}, {self.launches} launches, {self.collectives} collectives")
        lines.append(f"state: {self.state_bytes_per_parameter:g} bytes a parameter; workspace: {self.workspace_bytes} bytes")
        return "\n".join(lines)

    def _passes(self) -> list[str]:
        """Class by class, sweep by sweep."""
        lines = []
        for c in self.classes:
            lines.append(f"{c.numel} parameters:")
            for n, s in enumerate(self.plan.sweeps_of(c.owner), 1):
                reads = ", ".join(f"{stream} ({c.widths[stream]} B)" for stream in s.reads) or "nothing"
                stores = ", ".join(f"{store.stream} ({c.widths[store.stream]} B)" for store in s.stores)
                added = ", ".join(name for name, _ in s.partials)
                lines.append(f"  sweep {n}: reads {reads}" + (f"; adds up {added}" if added else "") + (f"; stores {stores}" if stores else ""))
                if s.idle is not None:
                    lines[-1] += "; left out where that changes nothing"
        return lines
