"""In which launches a Plan runs: sweeps, and stages between them, as few as its dependences allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from updsl.core.ir import Reduce
from updsl.core.plan import Joint, Local, Plan
from updsl.core.scope import TENSOR, Scope
from updsl.core.straight import Root, values_read


@dataclass(frozen=True)
class Leaving:
    """What leaves the step for each tensor of a class."""

    owner: int
    roots: tuple[Root, ...]


@dataclass(frozen=True)
class JointLeaving:
    """What leaves the step once for a group or for the model."""

    scope: Scope
    classes: tuple[int, ...]
    roots: tuple[Root, ...]


Phase: TypeAlias = Local | Joint | Leaving | JointLeaving


@dataclass
class Segment:
    """Phases of one launch: a program for each tensor, or one program in which what is of tensors is computed for many of them at once."""

    over: Literal["tensors", "one"]
    phases: list[Phase] = field(default_factory=list)


def segments(plan: Plan, owners: Sequence[int]) -> Iterator[Segment | int]:
    """The launches in order: stages, and levels whose sweeps run. A stage waits until a sweep reads something of it."""
    waiting: list[Phase] = []
    leaving: list[Phase] = [Leaving(c, roots) for c, roots in plan.leaving.items() if roots and c in owners]
    leaving += [JointLeaving(scope, classes, tuple(roots)) for (scope, classes), roots in plan.joint.items() if roots and set(classes) & set(owners)]
    last = max([n for n, level in enumerate(plan.levels) if level.phases], default=0)
    for n, level in enumerate(plan.levels):
        sweeps = [s for s in level.sweeps if s.owner in owners]
        if sweeps:
            wanted = {name for s in sweeps for e in s.expressions for name in values_read(e)} | {s.idle for s in sweeps if s.idle is not None}
            if wanted & {name for phase in waiting for name in names_of(phase)}:
                yield from cut(waiting)
                waiting = []
            yield n
        waiting += [p for p in level.phases if isinstance(p, Joint) or p.owner in owners]
        if n == last:
            waiting += leaving
    yield from cut(waiting)


def names_of(phase: Phase) -> list[str]:
    """The values that a phase makes."""
    match phase:
        case Local(bindings=bindings):
            return [b.name for b in bindings]
        case Joint(bindings=bindings):
            return [name for name, _ in bindings]
        case _:
            return []


def cut(phases: Sequence[Phase]) -> Iterator[Segment]:
    """Phases in order, in as few launches as possible."""
    light: list[Phase] = []
    now: Segment | None = None
    for p in phases:
        over = None if is_light(p) else "one" if isinstance(p, (Joint, JointLeaving)) else "tensors"
        if over is None and now is None:
            light.append(p)
        elif now is None or (over is not None and over != now.over):
            if now is not None:
                yield now
            now = Segment(over or "tensors", [*light, p])
            light = []
        else:
            now.phases.append(p)
    if now is not None or light:
        yield now or Segment("tensors", light)


def is_light(phase: Phase) -> bool:
    """Numbers for each tensor that are made of numbers: one program computes them for many tensors at once."""
    match phase:
        case Local(bindings=bindings):
            return all(b.expr.type.scope == TENSOR and not isinstance(b.expr, Reduce) for b in bindings)
        case Leaving(roots=roots):
            return all((r.type or r.expr.type).scope <= TENSOR for r in roots)
        case _:
            return False
