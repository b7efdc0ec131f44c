"""Terms under facts: the choices that facts decide, and those that are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from updsl.laws.intervals import ONE, point
from updsl.laws.ranges import ELEMENTWISE, Fact, Ranges, inside
from updsl.laws.term import Term, walk
from updsl.laws.terms import Terms, rebuilt

Facts = frozenset[Fact]
NONE: Facts = frozenset()
CELLWISE = ELEMENTWISE | ONE.keys()


class Cases:
    """What is known of terms where some facts hold."""

    def __init__(self, terms: Terms, ranges: Ranges):
        self.terms, self.ranges = terms, ranges

    def told(self, facts: Facts, c: Term, holds: bool) -> Facts | None:
        """The facts with another, each as the others settle it; None where they contradict each other."""
        if isinstance(c.value, bool):
            return facts if c.value == holds else None
        found = self.ranges.with_fact(facts, c, holds)
        for fact, known in list(found):
            rest = found - {(fact, known)}
            now = self.settled(fact, rest)
            truth = self.ranges.truth(now, rest)
            if truth is not None and truth != known:
                return None
            if now is not fact:
                found = self.ranges.with_fact(rest, now, known)
        return found

    def settled(self, t: Term, facts: Facts) -> Term:
        """The term with every choice made that the facts decide."""
        made: dict[tuple[Term, Facts], Term] = {}

        def of(x: Term, known: Facts) -> Term:
            if (x, known) not in made:
                args = [of(a, NONE if x.op == "average" else inside(known, x)) for a in x.args]
                kept, self.terms.dropped = self.terms.dropped, {}
                now = self.decided(rebuilt(self.terms, x, args), known)
                lost, self.terms.dropped = self.terms.dropped, kept
                made[x, known] = now if all(self.is_number(y, known) for y in lost) else x
            return made[x, known]

        while (now := of(t, facts)) is not t:  # what is put together anew may be settled in turn
            t = now
        return t

    def decided(self, x: Term, facts: Facts) -> Term:
        """One choice, if the facts decide it."""
        match x.op, x.args:
            case "select", (c, a, b):
                known = self.ranges.truth(c, facts)
                return x if known is None else a if known else b
            case "minimum" | "maximum" as op, (a, b) if not (self.ranges.of(a, facts).nan or self.ranges.of(b, facts).nan):
                below = self.ranges.truth(self.terms.apply("le", (a, b), (), x.type), facts)
                return x if below is None else a if below == (op == "minimum") else b
            case "clamp", (a, *_):
                r, lo, hi = (self.ranges.of(y, facts) for y in x.args)
                return a if r.finite and lo.high <= r.low and r.high <= hi.low and not (lo.nan or hi.nan) else x
            case "abs", (a,):
                return a if self.ranges.of(a, facts).low >= 0 else x
            case "mul", _:
                return self.without_inverses(x, facts)
            case "max" | "min", (a,) if a.op == "mul":
                return self.before_extreme(x, a, facts)
            case "isfinite", _:
                known = self.ranges.truth(x, facts)
                return x if known is None else self.terms.const(known)
            case "leaf" | "lin", _ if self.ranges.of(x, facts) == point(0.0):
                return self.terms.const(0)
        return x

    def before_extreme(self, x: Term, product: Term, facts: Facts) -> Term:
        """max(c·y) = c·max(y), where c is above 0 and the same in all cells."""
        parts = list(zip(product.args, product.data, strict=True))
        outer = [p for p in parts if p[0].scope <= x.scope and self.ranges.of(p[0], facts).positive]
        if not outer or len(outer) == len(parts):
            return x
        inner = self.terms.mul([p for p in parts if p not in outer])
        made = self.terms.mul([*outer, (self.terms.apply(x.op, (inner,), x.data, x.type), Fraction(1))])
        return self.without_inverses(made, facts) if made.op == "mul" else made

    def without_inverses(self, t: Term, facts: Facts) -> Term:
        """x · 1/x = 1, where x is a number other than 0."""
        parts = list(zip(t.args, t.data, strict=True))
        both = {x for x, p in parts if p > 0} & {x for x, p in parts if p < 0}
        sure = [x for x in both if (r := self.ranges.of(x, facts)).nonzero and r.finite and (r.low >= 0 or all(p.denominator == 1 for y, p in parts if y is x))]
        if not sure:
            return t
        powers = [(x, sum((p for y, p in parts if y is x), Fraction(0))) for x in sure]
        return self.terms.mul([*(p for p in parts if p[0] not in sure), *(p for p in powers if p[1])])

    def choices(self, t: Term) -> Iterator[Term]:
        """The conditions of choices in t that hold in all of the cells that a place of it sees, or in none; then whether what it divides by is 0."""
        return (c for c in self.conditions(t) if c.type.samples <= t.type.samples and not c.type.window)

    def conditions(self, t: Term) -> Iterator[Term]:
        waiting: list[tuple[Term, tuple[Term, ...]]] = [(t, ())]
        seen: set[Term] = set()
        zeros: list[Term] = []
        while waiting:
            x, over = waiting.pop(0)
            if x in seen or x.op == "average":
                continue
            seen.add(x)
            if x.op == "select" and all(x.args[0].scope <= m.scope for m in over):
                yield from self.zeros(x.args[0])
                yield from self.atoms(x.args[0])
            if x.op == "mul":
                zeros += [y for y, p in zip(x.args, x.data, strict=True) if p < 0 and all(y.scope <= m.scope for m in over)]
            waiting += [(a, over if x.op in CELLWISE else (*over, x)) for a in x.args]
        yield from map(self.is_zero, filter(lambda y: self.ranges.of(y).zero, zeros))

    def zeros(self, c: Term) -> Iterator[Term]:
        """Whether what a condition divides by is 0."""
        for x in walk(c):
            if x.op == "mul":
                yield from (self.is_zero(y) for y, p in zip(x.args, x.data, strict=True) if p < 0 and self.ranges.of(y).zero and y.scope <= c.scope)

    def is_zero(self, y: Term) -> Term:
        return self.terms.apply("eq", (y, self.terms.const(0)), (), replace(y.type, boolean=True))

    def atoms(self, c: Term) -> Iterator[Term]:
        """The first comparison that a condition is made of."""
        if c.op in ("and", "or", "not"):
            yield from self.atoms(c.args[0])
        else:
            yield c

    def is_number(self, t: Term, facts: Facts) -> bool:
        return self.ranges.of(t, facts).finite
