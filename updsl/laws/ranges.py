"""Where the values of terms lie: intervals of the extended reals, whether they may be 0, infinite or no number, under facts known at a cell.

A fact is a condition that holds (or does not) in the cell that is looked at. Inside a reduction only facts of coarser cells are known; inside an average
over time, none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from updsl.core.ops import REDUCTIONS
from updsl.core.scope import ALL, TENSOR
from updsl.laws.intervals import (
    ANYTHING,
    INF,
    ONE,
    REAL,
    TRUTH,
    Range,
    compared,
    exponential,
    extreme,
    measure,
    meet,
    point,
    powered,
    scaled,
    times,
    total,
    wide,
)
from updsl.laws.term import MEASURES, Term, monomial

Fact = tuple[Term, bool]


class Ranges:
    """The ranges of terms. leaves: of some of them; else those of any real number, where a leaf is one."""

    def __init__(self, leaves: Mapping[Term, Range]):
        self.leaves = dict(leaves)
        self.memo: dict[tuple[Term, frozenset[Fact]], Range] = {}

    def of(self, t: Term, facts: frozenset[Fact] = frozenset()) -> Range:
        key = t, facts
        if key not in self.memo:
            found = self.plainly(t, facts)
            for narrow in self.told(t, facts):
                found = narrow(found)
            self.memo[key] = found
        return self.memo[key]

    # --- facts -------------------------------------------------------------------------------------------------------

    def told(self, t: Term, facts: frozenset[Fact]) -> Iterator[Callable[[Range], Range]]:
        """What the facts say of t itself."""
        for c, holds in facts:
            match c.op, c.args:
                case "lt" | "le", (x, y) if t is x or t is y:
                    yield from self.compared(t, c, holds, facts)
                case "lt" | "le", (x, y) if holds and x.op == "abs" and x.args[0] is t:
                    high = self.of(y, facts - {(c, holds)}).high
                    yield lambda r, high=high: r.within(-high, high)
                case "eq", (x, y) if t is x or t is y:
                    yield from self.equal(t, x if t is y else y, holds, facts)
                case "lt", (x, y) if holds and y.op == "mul" and t in y.args and self.of(x, facts - {(c, holds)}).low >= 0:
                    yield from over_zero(t, y)
                case "lt", (x, y) if holds and t.op == "mul" and self.of(x, facts - {(c, holds)}).low >= 0 and self.has_factor(t, y):
                    yield lambda r: r.within(0.0, INF)
                case "eq", (x, y) if holds and 0 in (x.value, y.value) and within(t, x if y.value == 0 else y):
                    yield lambda r: replace(point(0.0), nan=r.nan)
                case "eq", (x, y) if not holds and 0 in (x.value, y.value):
                    yield from over_zero(t, x if y.value == 0 else y)
                case "isfinite", (x,) if x is t and holds:
                    yield lambda r: replace(r, inf=False, nan=False)
        if t.op == "lin" and len(t.args) == 1 and not t.data[-1]:  # c·x, where x is told of
            yield lambda r: meet(r, scaled(self.of(t.args[0], facts), float(t.data[0])))

    def compared(self, t: Term, c: Term, holds: bool, facts: frozenset[Fact]) -> Iterator[Callable[[Range], Range]]:
        x, y = c.args
        other = self.of(y if t is x else x, facts - {(c, holds)})
        if t.op == "leaf" and t.data == ("builtin", "t") and c.op == "lt" and holds and t is x and math.isfinite(other.high):
            yield lambda r: r.within(-INF, math.ceil(other.high) - 1)  # a count
        if not holds and (other.nan or self.of(t, facts - {(c, holds)}).nan):
            return
        less = (t is x) == holds
        strict = (c.op == "lt") == holds
        bound = other.high if less else other.low
        apart = strict and bound == 0
        if less:
            yield lambda r: replace(n := r.within(-INF, bound), zero=n.zero and not apart, inf=n.inf and not (strict and n.low > -INF), nan=r.nan and not holds)
        else:
            yield lambda r: replace(n := r.within(bound, INF), zero=n.zero and not apart, inf=n.inf, nan=r.nan and not holds)

    def equal(self, t: Term, other: Term, holds: bool, facts: frozenset[Fact]) -> Iterator[Callable[[Range], Range]]:
        if holds:
            r = self.of(other, frozenset(f for f in facts if t not in f[0].args))
            yield lambda own: replace(own.within(r.low, r.high), nan=False, zero=own.zero and r.zero, inf=own.inf and r.inf)
        elif other.value == 0 and not isinstance(other.value, bool):
            yield lambda own: replace(own, zero=False)
        elif other.value == INF:
            yield lambda own: replace(own, inf=own.inf and own.low == -INF)

    def has_factor(self, t: Term, positive: Term) -> bool:
        """Whether a product has another as a factor (of which it may have x for the sign of x), and what is left is at least 0."""
        left = list(zip(t.args, t.data, strict=True))
        for x, p in monomial(positive, Fraction(1))[1]:
            part = next((q for q in left if q == (x, p) or (x.op == "sign" and q == (x.args[0], p))), None)
            if part is None:
                return False
            left.remove(part)
        return monomial(positive, Fraction(1))[0] > 0 and all(self.of(x).low >= 0 for x, _ in left)

    # --- what each op gives ------------------------------------------------------------------------------------------

    def plainly(self, t: Term, facts: frozenset[Fact]) -> Range:
        match t.op:
            case "const":
                return point(float(t.value))
            case "leaf":
                return self.leaves.get(t, REAL)
            case "select":
                c, x, y = t.args
                known = self.truth(c, facts)
                if known is not None:
                    return self.of(x if known else y, facts)
                return self.of(x, self.with_fact(facts, c, True)) | self.of(y, self.with_fact(facts, c, False))
            case "lin":
                *factors, number = t.data
                return total([*(scaled(self.of(x, facts), float(c)) for c, x in zip(factors, t.args, strict=True)), point(float(number))])
            case "mul":
                return self.product(t, facts)
            case "average":
                return replace(self.of(t.args[0]), zero=self.of(t.args[0]).zero or self.of(t.args[0]).low < 0)
            case "spread":
                return self.of(t.args[0], facts)
            case "part":
                return self.of(t.args[0])
            case "joint":
                parts = [self.of(a, inside(facts, t)) for a in t.args]
                return parts[0] if all(p == parts[0] for p in parts) else wide(parts, t.data in MEASURES)
            case _ if t.type.boolean:
                return TRUTH
            case _:
                return self.op(t, facts)

    def product(self, t: Term, facts: frozenset[Fact]) -> Range:
        found = point(1.0)
        for x, p in zip(t.args, t.data, strict=True):
            found = times(found, powered(self.of(x, facts), p))
        return found

    def op(self, t: Term, facts: frozenset[Fact]) -> Range:
        inner = inside(facts, t)
        args = [self.of(a, inner) for a in t.args]
        if t.op in ONE and len(args) == 1:
            made = ONE[t.op](args[0])
            return replace(made, nan=made.nan or args[0].nan or args[0].empty)
        match t.op, args:
            case "minimum" | "maximum" as word, [x, y]:
                return extreme(word, x, y)
            case "clamp", [x, lo, hi]:
                return extreme("minimum", extreme("maximum", x, lo), hi)
            case "pow", [x, y]:
                return exponential(x, y)
            case "mod", [x, y] if y.low > 0 and x.finite and y.finite:
                return Range(0.0, y.high)
            case ("norm" | "rms" | "absmax" | "std" | "var") as word, [x]:
                made = measure(word, t.data[0] if t.data else 2.0, x)
                if word not in ("std", "var") and not of_negative_power(t) and self.is_told_nonzero(t.args[0], facts):
                    made = replace(made, zero=False)
                return made
            case "sum" | "trace", [x]:
                low, high = (0.0 if x.low >= 0 else -INF), (0.0 if x.high <= 0 else INF)
                return Range(low, high, x.zero or not (x.low >= 0 or x.high <= 0), x.inf, x.nan or x.inf or x.empty)
            case "mean" | "min" | "max" | "median" | "quantile", [x, *_]:
                odd = t.op == "quantile" and not (args[1].low >= 0 and args[1].high <= 1 and not args[1].nan)
                mixed = x.zero or (x.low < 0 < x.high)
                mixed = mixed and not (t.op == "mean" and (t.args[0], True) in facts)
                return Range(x.low, x.high, mixed, x.inf, x.nan or x.empty or odd or (x.inf and t.op in ("mean", "median", "quantile")))
            case "dot", [x, y]:
                one = t.args[0] is t.args[1]
                return Range(0.0 if one else -INF, INF, True, False, not (x.finite and y.finite))
            case "cosine", [x, y]:
                return Range(-1.0, 1.0, True, False, not (x.finite and y.finite))
            case "count", [_]:
                return Range(0.0, INF, (t.args[0], True) not in facts)
            case "select" | "and" | "or" | "not", _:
                return TRUTH
            case "atan2", [y, x]:
                return Range(-math.pi, math.pi, True, False, y.nan or x.nan)
            case "push", [window, x]:
                return replace(window | x, empty=False) if not window.empty or window.low <= window.high else x
            case "gaussian", [x]:
                return Range(nan=not x.finite, zero=True) if x.high > 0 or x.low < 0 else replace(point(0.0), nan=not x.finite)
            case (("bernoulli" | "uniform"), _) if all(a.finite for a in args):
                return Range(0.0, 1.0) if t.op == "bernoulli" else Range(min(a.low for a in args), max(a.high for a in args))
            case (("matmul" | "transpose" | "diag" | "polar" | "orthonormal" | "left_basis" | "right_basis" | "eye" | "sample_sum" | "store"), _):
                low = 0.0 if t.op in ("transpose", "sample_sum", "eye", "diag", "store") and all(a.low >= 0 for a in args) else -INF
                return Range(low, INF, True, False, not all(a.finite for a in args))
            case "sample_mean", [x]:
                return replace(x, zero=True, nan=x.nan or x.inf)
            case (("rows" | "cols"), _):
                return Range(1.0, INF, False)
            case _:
                return ANYTHING

    def is_told_nonzero(self, x: Term, facts: frozenset[Fact]) -> bool:
        """Whether the cell that is looked at is known not to be 0: then no measure of cells with it is."""
        _, parts = monomial(x, Fraction(1))
        return all(self.magnitude_told(f, facts) for f, _ in parts)

    def magnitude_told(self, x: Term, facts: frozenset[Fact]) -> bool:
        if not self.of(x, facts).zero:
            return True
        told = (b for c, _ in facts for a in c.args for b in ((a, *a.args) if a.op == "mul" else (a,)))
        tells = (a for a in told if a.op == "abs" and a.args[0] is x)
        return any(not self.of(a, facts).zero for a in tells)

    # --- conditions --------------------------------------------------------------------------------------------------

    def with_fact(self, facts: frozenset[Fact], c: Term, holds: bool) -> frozenset[Fact]:
        """The facts and what c says where it holds, or does not."""
        match c.op, c.args:
            case "not", (x,):
                return self.with_fact(facts, x, not holds)
            case "and" | "or" as word, (x, y):
                if (word == "and") == holds:
                    return self.with_fact(self.with_fact(facts, x, holds), y, holds)
                for a, b in ((x, y), (y, x)):
                    if self.truth(a, facts) == (word == "and"):
                        return self.with_fact(facts, b, holds)
                return facts | {(c, holds)}
            case "const", _:
                return facts
            case _:
                return facts | {(c, holds)}

    def truth(self, c: Term, facts: frozenset[Fact]) -> bool | None:
        """Whether c holds, where that is known."""
        if isinstance(c.value, bool):
            return c.value
        for holds in (True, False):
            if (c, holds) in facts:
                return holds
        match c.op, c.args:
            case "not", (x,):
                known = self.truth(x, facts)
                return None if known is None else not known
            case "and" | "or" as word, (x, y):
                parts = [self.truth(a, facts) for a in (x, y)]
                if (word == "or") in parts:
                    return word == "or"
                return (word == "and") if None not in parts else None
            case "isfinite", (x,):
                return True if self.of(x, facts).finite else None
            case "lt" | "le" | "eq" as word, (x, y) if not x.type.boolean:
                known = compared(word, self.of(x, facts), self.of(y, facts), x is y)
                return self.by_order(c, facts) if known is None else known
        return None

    def by_order(self, c: Term, facts: frozenset[Fact]) -> bool | None:
        """Whether a comparison follows from another of the same two."""
        x, y = c.args
        for f, holds in facts:
            if set(f.args) != {x, y} or f.op not in ("lt", "le", "eq"):
                continue
            same = f.args == c.args
            if not holds and (f.op == "eq" or self.of(x, facts).nan or self.of(y, facts).nan):
                continue
            match f.op, holds, c.op:
                case "eq", True, word:
                    return word != "lt"
                case "lt", True, word:
                    return same and word != "eq"
                case "le", True, "lt" if not same:
                    return False
                case "le", False, word:
                    return not same and word != "eq"
                case "lt", False, "le" if not same:
                    return True
                case "lt", False, "lt" if same:
                    return False
        return None


def within(t: Term, measure: Term) -> bool:
    """Whether this is a measure of t, so that t is 0 where it is."""
    return (
        measure.op in ("norm", "rms", "absmax")
        and not of_negative_power(measure)
        and (measure.args[0] is t or (t.op == "abs" and t.args == measure.args))
        and not measure.type.samples
    )


def of_negative_power(measure: Term) -> bool:
    """A norm with p < 0 is 0 where any of its cells is."""
    return measure.op == "norm" and bool(measure.data) and measure.data[0] < 0


def over_zero(t: Term, product: Term) -> Iterator[Callable[[Range], Range]]:
    """A factor of a product that is not 0 is not 0."""
    if product.op == "mul" and any(x is t and p > 0 for x, p in zip(product.args, product.data, strict=True)):
        yield lambda r: replace(r, zero=False)


def inside(facts: frozenset[Fact], t: Term) -> frozenset[Fact]:
    """The facts that are known in every cell that t is made of."""
    if t.op in ELEMENTWISE or t.op in ONE:
        return facts
    if t.op == "part":
        return frozenset()
    if t.op == "largest":
        scope = ALL  # its cells may be compared with those of all tensors
    else:
        scope = t.scope if t.op in REDUCTIONS or t.op == "joint" or t.scope <= TENSOR else TENSOR
    return frozenset((c, h) for c, h in facts if c.scope <= scope and c.type.samples <= t.type.samples)


ELEMENTWISE = frozenset("const leaf lin mul select minimum maximum clamp pow div mod atan2 lt le eq and or not isfinite spread store push".split())
