"""Comparisons of terms, proved case by case: by ranges, by bounds that terms have of one another, by algebra.

A bound of a term is another that is at least (or at most) as large in every cell where the facts hold. All terms that are compared are numbers there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice, product

from updsl.core.ir import NUMBER, Type, on_grid
from updsl.core.scope import COLUMN, ELEMENT, ROW, TENSOR
from updsl.laws.cases import NONE, Cases, Facts
from updsl.laws.ranges import Ranges, inside
from updsl.laws.term import MEASURES, Term, monomial, walk
from updsl.laws.terms import Terms
from updsl.middle.algebra import Algebra, Node

CASES = 8
"""Choices that are told apart on the way to one comparison."""
PATIENCE = 300
"""Cases that are looked at for one set of tensors."""
LARGE = 400
"""Terms in an expression that algebra is not asked about."""
MANY, DEEP = 10, 7
"""Bounds of a term that are kept, and how deep they are looked for."""


class Prover(Cases):
    """Decides conditions on terms. still: what is the same at every step; algebra: to ask where nothing else tells."""

    def __init__(self, terms: Terms, ranges: Ranges, still: Callable[[Term], bool], algebra: Algebra):
        super().__init__(terms, ranges)
        self.still, self.algebra = still, algebra
        self.memo: dict[tuple[str, Term, Facts], list[Term]] = {}
        self.patience = PATIENCE
        self.compares_anything = False
        """Whether there is a tensor for which a premise can hold."""
        self.compared: list[tuple[str, Term, Term]] = []
        self.chosen: dict[Term, None] = {}
        """What a proof is made of: comparisons, and the choices whose cases were told apart."""

    # --- conditions --------------------------------------------------------------------------------------------------

    def proves(self, c: Term, facts: Facts, cases: int = CASES) -> bool:
        """Whether c holds in every cell where the facts do."""
        c = self.settled(c, facts)
        known = self.ranges.truth(c, facts)
        self.patience -= 1
        if self.patience < 0:
            return False
        if known is not None:
            return known
        match c.op, c.args:
            case "and", (x, y):
                if self.proves(x, facts, cases) and self.proves(y, facts, cases):
                    return True
            case "or", (x, y):
                for a, b in ((x, y), (y, x)):
                    if self.proves(a, facts, 0) or self.proves(b, self.ranges.with_fact(facts, a, False), 0):
                        return True
            case "not", (x,) if x.op == "eq":
                gap = self.ranges.of(self.terms.sub(*x.args), facts)
                if gap.nonzero:
                    return True
            case "le" | "lt" | "eq" as op, (x, y):
                if self.compares(op, x, y, facts):
                    self.compared.append((op, x, y))
                    return True
        choice = next((x for x in self.choices(c) if self.ranges.truth(x, facts) is None), None) if cases else None
        if choice is None:
            return False
        self.chosen[choice] = None
        sides = (self.told(facts, choice, holds) for holds in (True, False))
        return all(side is None or self.proves(c, side, cases - 1) for side in sides)

    # --- comparisons -------------------------------------------------------------------------------------------------

    def compares(self, op: str, x: Term, y: Term, facts: Facts) -> bool:
        if not (self.is_number(x, facts) and self.is_number(y, facts)):
            return False
        if op == "eq":
            gap = self.terms.sub(y, x)
            return gap.value == 0 or self.ask("zero", gap, facts)
        if op == "lt":
            return self.ranges.of(self.terms.sub(y, x), facts).low > 0
        pairs = islice(product(self.bounds(x, True, facts), self.bounds(y, False, facts)), MANY * MANY)
        return any(self.below(u, low, facts) for u, low in pairs) or self.ask("nonnegative", self.terms.sub(y, x), facts)

    def below(self, x: Term, y: Term, facts: Facts) -> bool:
        """Whether x ≤ y, as they stand: by their difference, or that of what is left without factors that both have."""
        gap = self.expanded(self.terms.sub(y, x))
        if isinstance(gap.value, Fraction):
            return gap.value >= 0
        if self.ranges.of(gap, facts).low >= 0:
            return True
        (c, over), (d, under) = monomial(x, Fraction(1)), monomial(y, Fraction(1))
        shared = [p for p in over if p in under and self.ranges.of(p[0], facts).low >= 0]
        if not shared:
            return False
        x, y = (self.terms.mul([(self.terms.const(f), Fraction(1)), *(p for p in parts if p not in shared)]) for f, parts in ((c, over), (d, under)))
        return self.below(x, y, facts) or any(self.ranges.of(self.terms.sub(y, u), facts).low >= 0 for u in self.bounds(x, True, facts))

    def expanded(self, t: Term) -> Term:
        """A sum, with products of a sum as sums of products."""
        if t.op != "lin":
            return t
        parts = [(Fraction(1), self.terms.const(t.data[-1]))]
        for c, x in zip(t.data[:-1], t.args, strict=True):
            whole = next((y for y, p in zip(x.args, x.data, strict=True) if p == 1 and y.op == "lin"), None) if x.op == "mul" else None
            if whole is None:
                parts.append((c, x))
            else:
                rest = [(y, p) for y, p in zip(x.args, x.data, strict=True) if y is not whole or p != 1]
                parts += [(c * d, self.terms.mul([*rest, (y, Fraction(1))])) for d, y in zip(whole.data[:-1], whole.args, strict=True)]
                parts.append((c * whole.data[-1], self.terms.mul(rest)))
        return self.terms.lin(parts)

    def ask(self, question: str, t: Term, facts: Facts) -> bool:
        """By algebra: the graph's arithmetic, over names for all else."""
        names: dict[Term, str] = {}

        def node(x: Term) -> Node:
            match x.op:
                case "const" if isinstance(x.value, Fraction):
                    return ["number", str(x.value)]
                case "lin":
                    *factors, number = x.data
                    return ["add", ["number", str(number)], *(["mul", ["number", str(c)], node(a)] for c, a in zip(factors, x.args, strict=True))]
                case "mul":
                    return ["mul", *(["power", node(a), str(p)] for a, p in zip(x.args, x.data, strict=True))]
            r = self.ranges.of(x, facts)
            return ["symbol", names.setdefault(x, f"x{len(names)}"), "positive" if r.positive else "nonnegative" if r.low >= 0 else "real"]

        e = node(t)
        return bool(names) and len(list(walk(t))) < LARGE and self.algebra.ask(question, e) is True

    # --- bounds ------------------------------------------------------------------------------------------------------

    def bounds(self, t: Term, upper: bool, facts: Facts, deep: int = DEEP) -> list[Term]:
        """Terms that t is at most (at least), itself first."""
        key = "upper" if upper else "lower", t, facts
        if key not in self.memo:
            self.memo[key] = [t]  # while it is looked for
            found: dict[Term, None] = {t: None}
            end = self.ranges.of(t, facts).high if upper else self.ranges.of(t, facts).low
            if math.isfinite(end):
                found[self.terms.const(end)] = None
            if deep:
                found.update(dict.fromkeys(islice((u for u in self.steps(t, upper, facts, deep - 1) if u is not t), 4 * MANY)))
            self.memo[key] = list(found)[: 2 * MANY]
        return self.memo[key]

    def steps(self, t: Term, upper: bool, facts: Facts, deep: int) -> Iterator[Term]:
        for x, y in self.ordered(facts):
            yield from self.solved(t, x, y) if upper else self.solved_below(t, x, y)
        match t.op, t.args:
            case "minimum" | "maximum" as op, (x, y):
                yield from self.extreme((op == "minimum") == upper, x, y, upper, facts, deep)
            case "clamp", (_, _, high) if upper:
                yield from self.bounds(high, True, facts, deep)
            case "lin", _:
                yield from self.of_sum(t, upper, facts, deep)
            case "mul", _:
                yield from self.of_product(t, upper, facts, deep)
            case "abs", (x,) if upper:
                yield from self.of_magnitude(x, facts, deep)
            case "average", (x,):
                yield from (u for u in self.bounds(x, upper, NONE, deep) if self.still(u))
            case op, (x,) if op in MEASURES:
                yield from self.of_measure(t, x, facts, deep) if upper else self.under_measure(t, x)

    def ordered(self, facts: Facts) -> Iterator[tuple[Term, Term]]:
        """Pairs of which the first is at most the second, by the facts."""
        for c, holds in facts:
            if c.op in ("le", "lt", "eq"):
                x, y = c.args
                rest = facts - {(c, holds)}
                if holds:
                    yield x, y
                if holds == (c.op == "eq") and (holds or not (self.ranges.of(x, rest).nan or self.ranges.of(y, rest).nan)):
                    yield y, x

    def solved(self, t: Term, x: Term, y: Term) -> Iterator[Term]:
        """What t is at most, where x ≤ y."""
        if x is t:
            yield y
        elif x.op == "mul" and t in x.args and all(self.ranges.of(a).low >= 0 for a in x.args):
            parts = list(zip(x.args, x.data, strict=True))
            others = [(a, -p) for a, p in parts if a is not t]
            if (t, 1) in parts and len(others) == len(parts) - 1 and all(p > 0 or self.ranges.of(a).positive for a, p in others):
                yield self.terms.mul([(y, Fraction(1)), *others])

    def solved_below(self, t: Term, x: Term, y: Term) -> Iterator[Term]:
        if y is t:
            yield x

    def extreme(self, either: bool, x: Term, y: Term, upper: bool, facts: Facts, deep: int) -> Iterator[Term]:
        """Of the smaller (larger) of two: what bounds either; or what bounds one, and the other too."""
        for a, b in ((x, y), (y, x)):
            for u in self.bounds(a, upper, facts, deep):
                if either or (self.below(b, u, facts) if upper else self.below(u, b, facts)):
                    yield u

    def of_sum(self, t: Term, upper: bool, facts: Facts, deep: int) -> Iterator[Term]:
        *factors, number = t.data
        options = [self.bounds(x, upper == (c > 0), facts, deep)[:4] for c, x in zip(factors, t.args, strict=True)]
        for choice in islice(product(*options), 4 * MANY):
            yield self.terms.lin([*zip(factors, choice, strict=True), (Fraction(1), self.terms.const(number))])
        if not upper:  # what is at least 0 can be left out
            parts = [(c, x, self.ranges.of(x, facts)) for c, x in zip(factors, t.args, strict=True)]
            if number >= 0 and all((r.low >= 0) if c > 0 else (r.high <= 0) for c, _, r in parts):
                yield from (self.terms.scaled(c, u) for c, x, _ in parts for u in self.bounds(x, c < 0, facts, deep)[:6])
                yield self.terms.const(number)

    def of_product(self, t: Term, upper: bool, facts: Facts, deep: int) -> Iterator[Term]:
        """Where all factors are at least 0: one of them bounded, and what then stands above and below cancelled."""
        parts = list(zip(t.args, t.data, strict=True))
        signed = [self.ranges.of(x, facts).low < 0 for x, _ in parts]
        if any(s and p.numerator % 2 for s, (_, p) in zip(signed, parts, strict=True)):
            return
        for i, (x, p) in enumerate(parts):
            for u in self.bounds(self.terms.abs(x) if signed[i] else x, upper == (p > 0), facts, deep)[: 2 * MANY]:
                if u is not x and self.ranges.of(u, facts).low >= 0:
                    made = self.cancelled([*parts[:i], *self.factors(u, p), *parts[i + 1 :]], facts)
                    if made is not None:
                        yield made
                        yield from self.bounds(made, upper, facts, deep - 1) if deep > 0 else ()

    def factors(self, u: Term, p: Fraction) -> list[tuple[Term, Fraction]]:
        """u^p, of a u that is at least 0."""
        u, p = (self.terms.root(u), 2 * p) if p.denominator == 2 else (u, p)
        if p.denominator > 1 or u.value == 0:
            return [(u, p)]
        c, parts = monomial(u, p)
        return [(self.terms.const(c), Fraction(1)), *parts]

    def cancelled(self, parts: Sequence[tuple[Term, Fraction]], facts: Facts) -> Term | None:
        """The product, where a factor above cancels one below; None where it may still divide by 0. Where such a factor is 0 the product was 0."""
        powers: dict[Term, tuple[Fraction, Fraction]] = {}
        for x, p in parts:
            up, down = powers.get(x, (Fraction(0), Fraction(0)))
            powers[x] = (up + max(p, Fraction(0)), down + max(-p, Fraction(0)))
        left: list[tuple[Term, Fraction]] = []
        for x, (up, down) in powers.items():
            if x.value == 0 and down:
                return None
            if down > up and not self.ranges.of(x, facts).positive and not isinstance(x.value, Fraction):
                return None
            if up != down:
                left.append((x, up - down))
        return self.terms.mul(left)

    def of_magnitude(self, x: Term, facts: Facts, deep: int) -> Iterator[Term]:
        """Of |x|."""
        match x.op, x.args:
            case "lin", _:
                sizes = [self.terms.scaled(abs(c), self.terms.abs(a)) for c, a in zip(x.data[:-1], x.args, strict=True)]
                whole = self.terms.add(*sizes, self.terms.const(abs(x.data[-1])))
                yield whole
                yield from self.bounds(whole, True, facts, deep)
            case "clamp", (_, low, high):
                if self.terms.add(low, high).value == 0:
                    yield self.settled(self.terms.abs(high), facts)
            case "select", (c, a, b):
                for one, other, holds in ((a, b, True), (b, a, False)):
                    beside = self.ranges.with_fact(facts, c, not holds)
                    for u in self.bounds(self.terms.abs(one), True, self.ranges.with_fact(facts, c, holds), deep):
                        if self.below(self.terms.abs(other), u, beside):
                            yield u
            case "average", (a,):
                yield from (u for u in self.bounds(self.terms.abs(a), True, NONE, deep) if self.still(u))
                yield from self.of_squares(x, a)
        for m in list(self.terms.table.values()):
            if m.op in ("norm", "absmax") and m.args == (x,) and not m.type.samples and (m.op != "norm" or m.data[0] >= 1):
                yield m

    def of_squares(self, average: Term, x: Term) -> Iterator[Term]:
        """|average of x by a| ≤ √K · √(average of x² by b): by Cauchy and Schwarz, step by step, where a² < b, and 1 - (1 - a)² ≤ b or a ≤ b ≤ a."""
        a, square = average.data, self.terms.power(x, self.terms.const(2))
        for v in list(self.terms.table.values()):
            if v.op == "average" and v.args == (square,):
                b = v.data
                if b == a:
                    yield self.terms.root(v)
                elif 2 * a - a * a <= b:
                    yield self.terms.times(self.terms.root(self.terms.const((1 - a) ** 2 / ((1 - b) * (1 - a * a / b)))), self.terms.root(v))

    def of_measure(self, t: Term, x: Term, facts: Facts, deep: int) -> Iterator[Term]:
        """Of a norm or the like of x, at least 0."""
        known = inside(facts, t)
        match x.op, x.args:
            case "lin", _ if t.op != "norm" or t.data[0] >= 1:
                if not x.data[-1] and all(a.scope == x.scope for a in x.args):
                    sizes = [self.terms.scaled(abs(c), self.again(t, a)) for c, a in zip(x.data[:-1], x.args, strict=True)]
                    yield from self.bounds(self.settled(self.terms.add(*sizes), facts), True, facts, deep)
            case "average", (a,) if (t.op != "norm" or t.data[0] >= 1) and a.scope == x.scope:
                yield from (u for u in self.over_choices(self.settled(self.again(t, a), NONE), NONE, deep) if self.still(u))
            case "sample_mean" | "sample_sum" as op, (a,) if t.op != "norm" or t.data[0] >= 1:
                many = self.terms.leaf("builtin", "batch", NUMBER) if op == "sample_sum" else self.terms.const(1)
                type_ = on_grid(t.scope, t.type.rows, t.type.cols, samples=True)
                each = self.settled(self.terms.apply(t.op, (self.terms.spread(a, replace(x.type, samples=True)),), t.data, type_), known)
                yield from (self.terms.times(many, u) for u in self.over_choices(each, known, deep) if not u.type.samples)
        cells = self.terms.cells(x.type, t.type)
        for u in self.bounds(self.terms.abs(x), True, known, deep):
            if u.scope <= t.scope and not u.type.samples:
                if t.op in ("absmax", "rms"):
                    yield u
                elif t.op == "norm" and cells is not None and t.data[0] == 2:
                    yield self.terms.times(u, self.terms.root(cells))
            elif t.op != "std" and u.op == "abs" and u.args[0] is not x and u.args[0].scope == x.scope:
                yield from self.bounds(self.again(t, u.args[0]), True, facts, deep)
        yield from self.by_parts(t, x, facts, deep)

    def over_choices(self, each: Term, facts: Facts, deep: int) -> Iterator[Term]:
        """Bounds of a term that hold in every case of its first choice."""
        choice = next((x for x in self.choices(each) if self.ranges.truth(x, facts) is None), None)
        if choice is None or not deep:
            yield from self.bounds(each, True, facts, deep)
            return
        sides = []
        for holds in (True, False):
            known = self.ranges.with_fact(facts, choice, holds)
            sides.append(list(self.over_choices(self.settled(each, known), known, deep - 1)))
        for u in [*sides[0], *sides[1]]:
            if all(any(v is u or self.below(v, u, facts) for v in side) for side in sides):
                yield u

    def by_parts(self, t: Term, x: Term, facts: Facts, deep: int) -> Iterator[Term]:
        """Of the norm of a tensor by those of its rows or columns."""
        if t.op == "norm" and t.data[0] == 2 and t.scope == TENSOR and x.scope == ELEMENT:
            for scope, many in ((ROW, x.type.rows), (COLUMN, x.type.cols)):
                n = self.size(many)
                part = self.terms.apply("norm", (x,), t.data, on_grid(scope, x.type.rows, x.type.cols))
                if n is not None:
                    known = inside(facts, t)
                    found = self.over_choices(self.settled(part, known), known, deep)
                    yield from (self.terms.times(u, self.terms.root(n)) for u in found if u.scope <= t.scope)

    def under_measure(self, t: Term, x: Term) -> Iterator[Term]:
        """What a measure of x is at least: the magnitude of each of its cells, and the same of fewer of them."""
        if t.op in ("norm", "absmax") and (t.op == "absmax" or t.data[0] >= 1) and not t.type.samples:
            yield self.terms.abs(x)
            for m in list(self.terms.table.values()):
                if m.op == t.op and m.args == t.args and m.data == t.data and t.scope < m.scope:
                    yield m
        if t.op == "rms" and not t.type.samples:
            n = self.terms.cells(x.type, t.type)
            if n is not None:
                yield self.terms.mul([(self.terms.abs(x), Fraction(1)), (self.terms.root(n), Fraction(-1))])

    def again(self, t: Term, x: Term) -> Term:
        """The same measure of another term."""
        return self.terms.apply(t.op, (x,), t.data, t.type)

    def size(self, n: str | int | None) -> Term | None:
        if isinstance(n, int):
            return self.terms.const(n)
        return self.terms.leaf("builtin", n, Type(TENSOR)) if n in ("rows", "cols") else None
