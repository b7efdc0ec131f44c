"""A step in parts, where kernels do not cover all of it: torch computes the rest between sweeps.

Parts take turns: kernels, torch, kernels, … . Everything that leaves the step leaves by the last part, which is kernels', so that torch may fail in any other
and nothing has changed. A part hands on what it adds up, what torch gives, and what torch reads; whatever else a later part needs, it computes anew. What both
torch and kernels read is rounded once, for both: an entry that is the median of its tensor is not above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from updsl.core import schedule
from updsl.core.ir import Apply, Binding, Const, Expr, Input, Program, Ref, State, Type, rewrite, roots, walk
from updsl.core.plan import HANDED
from updsl.core.scope import ELEMENT
from updsl.core.straight import local_roots, shared_roots, values_read
from updsl.middle.flat import Programs, bindings_of, changing
from updsl.middle.lift import is_full
from updsl.middle.separate import Foreign, any_foreign, is_leaf, is_of_numbers, is_one_pass, is_summed, separated

Name = tuple[int, str]
"""Class and name of a value."""
ZERO, ONE = Const(0.0), Const(1.0)
COLLECTIVE = ("total", "pooled")
"""Ops of what each rank has, which a part before them gives."""


@dataclass(frozen=True)
class Part:
    """Programs of a part of the step, run by kernels or by torch. hands_on: the states of each that are no states of the rule, but what later parts read,
    as inputs of that name; keeps: the states that torch gives."""

    kernels: bool
    programs: Mapping[int, Program]
    hands_on: Mapping[int, tuple[State, ...]]
    keeps: Mapping[int, tuple[str, ...]]


def parts(programs: Programs, foreign: Foreign) -> tuple[Part, ...]:
    """The parts of a step without blocks, in order; one, where nothing is foreign."""
    split = Split(separated(programs, foreign), foreign)
    made = [split.part(k) for k in range(split.last, -1, -1)]
    return tuple(part for part in reversed(made) if part.programs)


class Split:
    """In which part values are known. level: the part that gives a sum or a result of torch; the earliest that can compute another value.
    torch_level: the earliest part in which torch can read a value; home: the part that gives it to all later ones."""

    def __init__(self, programs: Programs, foreign: Foreign):
        self.programs, self.foreign = programs, foreign
        self.order = schedule.merge({c: p.body for c, p in programs.items()})
        self.exprs: dict[Name, Expr] = {(c, b.name): b.expr for step in self.order for c, b in bindings_of(step)}
        self.partial = {(c, a.name) for (c, _), e in self.exprs.items() if isinstance(e, Apply) and e.op in COLLECTIVE for a in e.args if isinstance(a, Ref)}
        self.level: dict[Name, int] = {}
        self.torch_level: dict[Name, int] = {}
        self.home: dict[Name, int] = {}
        self.owners = {step.name: tuple(step.bindings) for step in self.order if isinstance(step, schedule.Shared)}
        for step in self.order:
            self.place(step)
        self.last = even(max(self.level.values(), default=0))
        self.wanted: dict[int, set[Name]] = {}

    # --- what is known when ------------------------------------------------------------------------------------------

    def place(self, step: schedule.Step) -> None:
        found = bindings_of(step)
        torch = any(any_foreign(b.expr, self.foreign) for _, b in found)
        read = self.read_by_torch if torch else lambda c, n: self.level[c, n]
        level = max((read(c, n) for c, b in found for n in values_read(b.expr)), default=0)
        summed = any(is_summed(b.expr) or (c, b.name) in self.partial for c, b in found)
        level = level | 1 if torch else even(level) if summed else level
        for c, b in found:
            self.level[c, b.name] = level
            if (torch or summed) and not self.is_foreign_array(b.expr):
                self.home[c, b.name] = level

    def read_by_torch(self, c: int, name: str) -> int:
        """From which part on torch can have a value: a longer elementwise one, when a kernel has stored it."""
        if (c, name) not in self.torch_level:
            self.torch_level[c, name] = self.first_read_by_torch(c, name)
        return self.torch_level[c, name]

    def first_read_by_torch(self, c: int, name: str) -> int:
        e, level = self.exprs[c, name], self.level[c, name]
        if (c, name) not in self.home and not self.is_foreign_array(e):
            if is_full(e) and not self.is_cheap(c, e):
                self.home[c, name] = even(level)
            elif not is_full(e) and not is_leaf(e) and not self.is_of_numbers(c, e):
                home = level if self.operands_read_by_torch(c, e) == level else even(level)
                self.home |= {(owner, name): home for owner in self.owners.get(name, (c,))}
        if (c, name) in self.home:
            return self.home[c, name] | 1
        return self.operands_read_by_torch(c, e)

    def operands_read_by_torch(self, c: int, e: Expr) -> int:
        return max((self.read_by_torch(c, n) for n in values_read(e)), default=0)

    def is_cheap(self, c: int, e: Expr) -> bool:
        """Whether torch computes it in one pass over what is there."""
        return is_one_pass(e) and all((c, n) in self.home or not is_full(self.exprs[c, n]) for n in values_read(e))

    def is_of_numbers(self, c: int, e: Expr) -> bool:
        """Whether it depends on no tensor: torch computes it in float64, as kernels do."""
        return is_of_numbers(e, lambda name: self.is_of_numbers(c, self.exprs[c, name]))

    def is_rounded(self, c: int, name: str) -> bool:
        """Whether a value of coarser scope is read by torch: in the type of entries, so that no kernel may know it better."""
        e = self.exprs[c, name]
        return not is_full(e) and not e.type.boolean and any((owner, name) in self.torch_level for owner in self.owners.get(name, (c,)))

    def is_foreign_array(self, e: Expr) -> bool:
        """Which kernels cannot hold: windows, samples, other grids. Every part of torch that reads one computes it."""
        return self.foreign(Ref("", "value", e.type))

    # --- parts, from the last to the first ---------------------------------------------------------------------------

    def part(self, k: int) -> Part:
        """The part of this number, when all later ones are made; without Programs if it has nothing to do."""
        leaving = {c: self.leaving(c, k) for c in self.programs}
        start = {(c, n) for c, exprs in leaving.items() for e in exprs for n in values_read(e)} | self.wanted.get(k, set())
        kept = self.computed(start, k)
        here = [c for c in self.programs if leaving[c] or any(owner == c for owner, _ in kept)]
        made = {c: self.program(c, k, kept) for c in here}
        handed = {c: tuple(s for s in made[c].states if s.name.startswith(HANDED)) for c in here}
        keeps = {c: tuple(name for name, e in made[c].commits if k != self.last and not name.startswith(HANDED) and not is_kept(name, e)) for c in here}
        return Part(k % 2 == 0, made, handed, keeps)

    def leaving(self, c: int, k: int) -> list[Expr]:
        """What leaves the step by this part: arrays that only torch can hold by the part that gives them, all else by the last."""
        found = [r for r in changing(self.roots(c)) if (self.is_foreign_array(r.expr) and r.role == "state") == (k != self.last)]
        return [r.expr for r in found if k == self.last or max(self.level[c, n] for n in values_read(r.expr)) == k]

    def roots(self, c: int) -> Iterator:
        yield from local_roots(self.programs[c])
        for found in shared_roots({c: self.programs[c]}).values():
            yield from found

    def computed(self, start: set[Name], k: int) -> set[Name]:
        """The bindings of a part: all that its results need, but for what earlier parts hand on."""
        waiting, kept = list(start), set()
        while waiting:
            name = waiting.pop()
            home = self.home.get(name, k)
            if home != k:
                self.wanted.setdefault(home, set()).add(name)
            elif name not in kept:
                for owner in self.owners.get(name[1], (name[0],)):
                    kept.add((owner, name[1]))
                    waiting += [(owner, n) for n in values_read(self.exprs[owner, name[1]])]
        return kept

    def program(self, c: int, k: int, kept: set[Name]) -> Program:
        p = self.programs[c]
        body = tuple(made for b in p.body if isinstance(b, Binding) and (c, b.name) in kept for made in self.bound(c, k, b))
        given = [(n, self.exprs[c, n]) for owner, n in sorted(self.wanted.get(k, ())) if owner == c]
        final = k == self.last
        commits = dict(p.commits)
        made = replace(
            p,
            body=body,
            out=self.handed(c, k, p.out) if final and p.out is not None else None,
            weight=self.handed(c, k, p.weight) if final and p.weight is not None else None,
            watches=tuple(replace(w, expr=self.handed(c, k, w.expr)) for w in p.watches) if final else (),
            commits=(),
        )
        own = [s for s in p.states if self.is_foreign_array(Ref(s.name, "state", s.type)) != final]
        gives = {s.name for s in own if final or self.leaves_by(c, k, s, commits[s.name])}
        read = {name for e in roots(made) for n in walk(e) for name in states_named(n)}
        states = [s for s in p.states if s.name in gives or s.name in read]
        kept_as = [(s.name, self.handed(c, k, commits[s.name]) if s.name in gives else Ref(s.name, "state", s.type)) for s in states]
        handing = [State(HANDED + n, None, as_number(e.type), None if is_full(e) or k % 2 or self.is_rounded(c, n) else "float64") for n, e in given]
        made = replace(
            made,
            states=(*states, *handing),
            commits=(*kept_as, *((HANDED + n, numbered(self.handed(c, k, Ref(n, "value", e.type)))) for n, e in given)),
        )
        return replace(made, inputs=tuple(self.inputs(c, made)))

    def leaves_by(self, c: int, k: int, s: State, e: Expr) -> bool:
        return not is_kept(s.name, e) and max((self.level[c, n] for n in values_read(e)), default=1) == k

    def inputs(self, c: int, made: Program) -> Iterator[Input]:
        """Those that the part reads: the rule's own, and what earlier parts hand on."""
        own = {i.name: i for i in self.programs[c].inputs}
        seen = {n.name: n for e in roots(made) for n in walk(e) if isinstance(n, Ref) and (n.kind == "input" or n.name == "batch")}
        counts = any(n.kind == "builtin" for n in seen.values())
        for name, i in own.items():
            if name in seen or (counts and i.kind == "samples"):
                yield i
        for name, n in seen.items():
            if name not in own and n.kind == "input":
                yield Input(name, "stream" if n.type.scope == ELEMENT else "per", n.type)

    def bound(self, c: int, k: int, b: Binding) -> Iterator[Binding]:
        """A binding in this part, and what it is rounded to."""
        yield replace(b, expr=self.handed(c, k, b.expr))
        if self.rounds(c, k, b.name):
            t = b.expr.type
            yield Binding(HANDED + b.name, Apply("store", (Ref(b.name, "value", t),), t, ("state", HANDED + b.name)))

    def rounds(self, c: int, k: int, name: str) -> bool:
        """Whether this part, of kernels, hands on the value as torch reads it."""
        return k % 2 == 0 and (c, name) in self.wanted.get(k, ()) and self.is_rounded(c, name)

    def handed(self, c: int, k: int, e: Expr) -> Expr:
        """e, where what an earlier part handed on is an input, and what this part rounds is rounded."""

        def step(n: Expr) -> Expr:
            if not (isinstance(n, Ref) and n.kind == "value"):
                return n
            if self.home.get((c, n.name), k) == k:
                return replace(n, name=HANDED + n.name) if self.rounds(c, k, n.name) else n
            x = Ref(HANDED + n.name, "input", as_number(n.type))
            return x if x.type == n.type else Apply("ne", (x, ZERO), n.type)

        return rewrite(e, step)


def states_named(n: Expr) -> tuple[str, ...]:
    """The state that a node reads, or rounds to the type of."""
    match n:
        case Ref(name, "state"):
            return (name,)
        case Apply("store", static=(_, name)) if name != "w":
            return (name,)
        case _:
            return ()


def even(level: int) -> int:
    return level + level % 2


def is_kept(name: str, e: Expr) -> bool:
    """Whether a state keeps its value."""
    return isinstance(e, Ref) and (e.kind, e.name) == ("state", name)


def as_number(t: Type) -> Type:
    """What a value is handed on as: a condition for each entry as it is, others as numbers."""
    return t if t.scope == ELEMENT else replace(t, boolean=False)


def numbered(e: Expr) -> Expr:
    return Apply("select", (e, ONE, ZERO), as_number(e.type)) if as_number(e.type) != e.type else e
