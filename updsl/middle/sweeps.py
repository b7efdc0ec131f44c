"""Programs → Plan: which sweep computes what, and what the stages between them complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from updsl.core import schedule
from updsl.core.ir import Binding, Expr, Reduce, Ref, rewrite
from updsl.core.plan import AFTER, Joint, Level, Local, Plan, Store, Stream, Sweep, streams
from updsl.core.straight import Root, local_roots, shared_roots, values_read
from updsl.middle.flat import Programs, bindings_of, changing, flat
from updsl.middle.idle import with_idle
from updsl.middle.lift import is_full, is_streamed, lift
from updsl.middle.pushdown import pushdown
from updsl.middle.rewrite import simplified

WIDTH = 4
"""Bytes of an entry, where only one choice is compared with another."""
CHOICES = 6
"""Up to so many states, every choice of when they are stored is tried."""


def to_plan(programs: Programs, running: frozenset[tuple[int, str]]) -> Plan:
    """The step of these classes with these blocks running, by the plan with the least memory traffic: with reductions pushed down, or as they are."""
    step = simplified(flat(programs, running))
    plans = [Levels(*with_idle(lift(p))).plan(programs) for p in (step, pushdown(step))]
    return min(plans, key=lambda plan: [sum(plan.bytes_of(c, lambda stream: WIDTH, idle) for c in programs) for idle in (False, True)])


class Levels:
    """When values are known. `level` of (class, name): the sweep (counted from 1) that first computes an elementwise value; the sweep after whose stage a
    coarser one is known, 0 for before the first."""

    def __init__(self, programs: Programs, idle: Mapping[int, str]):
        self.programs, self.idle = programs, idle
        self.order = schedule.merge({c: p.body for c, p in programs.items()})
        self.roots = {c: tuple(changing(local_roots(p))) for c, p in programs.items()}
        self.level: dict[tuple[int, str], int] = {}
        self.full: dict[tuple[int, str], Expr] = {}
        for step in self.order:
            match step:
                case schedule.Local(c, b):
                    self.level[c, b.name] = self.of(c, b.expr)
                    if is_full(b.expr):
                        self.full[c, b.name] = b.expr
                case schedule.Shared(name, bindings):
                    known = max(self.of(c, b.expr) for c, b in bindings.items())
                    self.level |= {(c, name): known for c in programs}

    def of(self, c: int, e: Expr) -> int:
        """The sweep that can compute an elementwise e; the stage that can compute a coarser one."""
        match e:
            case Reduce(args=args):
                swept = any(map(is_full, args))
                return max(self.of(c, a) + (swept and not is_full(a)) for a in args)
            case _:
                known = [self.level[c, n] + (is_full(e) and (c, n) not in self.full) for n in values_read(e)]
                return max([int(is_full(e)), *known])

    # --- the plan ----------------------------------------------------------------------------------------------------

    def plan(self, originals: Programs) -> Plan:
        """originals: the Programs as they were elaborated."""
        sweeps = {c: self.sweeps(c) for c in self.programs}
        top = max([0, *self.level.values(), *(level for found in sweeps.values() for level in found)])
        levels = tuple(Level(tuple(found[k] for found in sweeps.values() if k in found), tuple(self.phases(k))) for k in range(top + 1))
        leaving = {c: tuple(r for r in found if not is_streamed(r)) for c, found in self.roots.items()}
        joint = {key: tuple(changing(found)) for key, found in shared_roots(self.programs).items()}
        return Plan(originals, levels, leaving, joint)

    def phases(self, level: int) -> Iterator[Local | Joint]:
        """The coarser values of a stage, in order: as few phases as their dependences allow."""
        waiting = [s for s in self.order if self.is_of_stage(s, level)]
        while waiting:
            names = {name for s in waiting for name in self.given_by(s)}
            done: set[tuple[int, str]] = set()
            for kind in (schedule.Local, schedule.Shared):
                taken, left = [], []
                for s in waiting:
                    reads = {(c, n) for c, b in bindings_of(s) for n in values_read(b.expr) if (c, n) not in self.full}
                    fits = isinstance(s, kind) and not (reads & names - done)
                    (taken if fits else left).append(s)
                    if fits:
                        done |= self.given_by(s)
                waiting = left
                if kind is schedule.Local:
                    for c in self.programs:
                        own_ = tuple(s.binding for s in taken if isinstance(s, schedule.Local) and s.owner == c)
                        if own_:
                            yield Local(c, own_)
                elif taken:
                    yield Joint(tuple((s.name, {c: b.expr for c, b in s.bindings.items()}) for s in taken if isinstance(s, schedule.Shared)))

    def given_by(self, step: schedule.Step) -> set[tuple[int, str]]:
        """(class, name) of the values that a step gives; one of several tensors is known to all classes."""
        found = {(c, b.name) for c, b in bindings_of(step)}
        return found | {(c, name) for _, name in found for c in self.programs} if isinstance(step, schedule.Shared) else found

    def is_of_stage(self, step: schedule.Step, level: int) -> bool:
        match step:
            case schedule.Local(c, b):
                return (c, b.name) not in self.full and self.level[c, b.name] == level
            case schedule.Shared(name, bindings):
                return self.level[next(iter(bindings)), name] == level
            case _:
                return False

    # --- sweeps of a class -------------------------------------------------------------------------------------------

    def sweeps(self, c: int) -> dict[int, Sweep]:
        """Of a class, by level: what it adds up as early as possible, what it stores as late as possible or, where that costs less traffic, as early."""
        stores = [r for r in self.roots[c] if is_streamed(r)]
        first = [self.of(c, r.expr) for r in stores]
        tried: list[dict[int, Sweep]] = []
        for last in dict.fromkeys((max(first, default=0), max([0, *first, *(self.of(c, e) for _, e in self.partials(c))]))):
            free = [i for i, r in enumerate(stores) if first[i] < last and r.role == "state"]
            for early in product((False, True), repeat=len(free)) if len(free) <= CHOICES else [(False,) * len(free)]:
                chosen = {i for i, yes in zip(free, early, strict=True) if yes}
                made = self.sweeps_with(c, [(r, first[i] if i in chosen else last) for i, r in enumerate(stores)])
                tried += [] if made is None else [made]
        return min(tried, key=traffic)

    def partials(self, c: int) -> list[tuple[str, Reduce]]:
        """The reductions over entries."""
        return [(b.name, b.expr) for b in self.bindings(c) if isinstance(b.expr, Reduce) and any(map(is_full, b.expr.args))]

    def sweeps_with(self, c: int, stores: Sequence[tuple[Root, int]]) -> dict[int, Sweep] | None:
        """With each store in the sweep given; None where a later sweep reads what an earlier one overwrites."""
        partials = self.partials(c)
        stored: dict[str, str] = {}
        gone: set[Stream] = set()
        sweeps: dict[int, Sweep] = {}
        for level in sorted({*(self.of(c, e) for _, e in partials), *(at for _, at in stores)}):
            added = tuple((name, with_stored(e, stored)) for name, e in partials if self.of(c, e) == level)
            kept = tuple(Store(stored_in(r), with_stored(r.expr, stored)) for r, at in stores if at == level)
            wanted = [*(a for _, e in added for a in e.args), *(s.expr for s in kept)]
            bindings = self.read_by(c, wanted, stored)
            reads = tuple(dict.fromkeys(stream for e in [*(b.expr for b in bindings), *wanted] for stream in streams(e)))
            if gone & set(reads):
                return None
            sweeps[level] = Sweep(c, bindings, added, kept, reads, self.idle.get(c) if kept and not added else None)
            for r, at in stores:
                if at == level:
                    gone.add(Stream("g") if r.role == "out" else stored_in(r))
                    if isinstance(r.expr, Ref) and r.role == "state":
                        stored[r.expr.name] = r.name
        return sweeps

    def bindings(self, c: int) -> Iterator[Binding]:
        return (b for step in self.order for owner, b in bindings_of(step) if owner == c)

    def read_by(self, c: int, wanted: Sequence[Expr], stored: Mapping[str, str]) -> tuple[Binding, ...]:
        """The elementwise bindings that these need, in order."""
        waiting, found = [n for e in wanted for n in values_read(e)], set()
        while waiting:
            name = waiting.pop()
            if (c, name) in self.full and name not in found and name not in stored:
                found.add(name)
                waiting += values_read(with_stored(self.full[c, name], stored))
        return tuple(replace(b, expr=with_stored(b.expr, stored)) for b in self.bindings(c) if b.name in found)


def with_stored(e: Any, stored: Mapping[str, str]) -> Any:
    """e, where a state that an earlier sweep has stored (by the name of its new value) is read back."""

    def step(n: Expr) -> Expr:
        return replace(n, name=stored[n.name] + AFTER, kind="state") if isinstance(n, Ref) and n.kind == "value" and n.name in stored else n

    return rewrite(e, step) if stored else e


def stored_in(root: Root) -> Stream:
    """Where it is stored."""
    match root.role:
        case "state":
            return Stream("state", root.name)
        case "weight":
            return Stream("w")
        case _:
            return Stream("out")


def traffic(sweeps: Mapping[int, Sweep]) -> int:
    """How many streams are read and written."""
    return sum(len(s.reads) + len(s.stores) for s in sweeps.values())
