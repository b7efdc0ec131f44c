"""Intervals of the extended reals, and what the ops of numbers make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

INF = math.inf


@dataclass(frozen=True, slots=True)
class Range:
    """From low to high; zero, inf, nan: whether it may be 0, infinite, no number; empty: whether it may be a window without values."""

    low: float = -INF
    high: float = INF
    zero: bool = True
    inf: bool = False
    nan: bool = False
    empty: bool = False

    @property
    def finite(self) -> bool:
        return not (self.inf or self.nan or self.empty)

    def __or__(self, other: Range) -> Range:
        return Range(
            min(self.low, other.low),
            max(self.high, other.high),
            self.zero or other.zero,
            self.inf or other.inf,
            self.nan or other.nan,
            self.empty or other.empty,
        )

    def within(self, low: float, high: float) -> Range:
        """What of it lies between these."""
        low, high = max(self.low, low), min(self.high, high)
        return replace(self, low=low, high=high, zero=self.zero and low <= 0 <= high, inf=self.inf and (math.isinf(low) or math.isinf(high)))

    @property
    def nonzero(self) -> bool:
        return not self.zero and not self.nan

    @property
    def positive(self) -> bool:
        return self.low >= 0 and self.nonzero


REAL = Range()
ANYTHING = Range(inf=True, nan=True)
TRUTH = Range(0.0, 1.0)


def point(x: float) -> Range:
    return Range(x, x, x == 0, math.isinf(x), math.isnan(x))


def compared(op: str, x: Range, y: Range, same: bool) -> bool | None:
    if x.nan or y.nan or x.empty or y.empty:
        return None
    if same:
        return op != "lt"
    if op == "eq":
        apart = x.high < y.low or y.high < x.low or (x == point(0.0) and not y.zero) or (y == point(0.0) and not x.zero)
        apart = apart or (x.low == x.high == INF and (not y.inf or y.high < INF)) or (y.low == y.high == INF and (not x.inf or x.high < INF))
        return False if apart else True if x.low == x.high == y.low == y.high and math.isfinite(x.low) else None
    if op == "le":
        return True if x.high <= y.low else False if y.high < x.low else None
    strictly = x.high < y.low or (x.high == y.low == 0 and (not x.zero or not y.zero)) or (y.low == y.high == INF and not x.inf)
    return True if strictly else False if y.high <= x.low else None


def total(parts: Sequence[Range]) -> Range:
    low, high = sum_of([p.low for p in parts]), sum_of([p.high for p in parts])
    if low != low:
        low = -INF
    if high != high:
        high = INF
    up = any(p.inf and p.high == INF for p in parts)
    down = any(p.inf and p.low == -INF for p in parts)
    one_sign = (all(p.low >= 0 for p in parts) or all(p.high <= 0 for p in parts)) and any(not p.zero for p in parts)
    zero = low <= 0 <= high and not one_sign and not (len([p for p in parts if p != point(0.0)]) == 1 and not any(p.zero for p in parts if p != point(0.0)))
    return Range(low, high, zero, up or down, any(p.nan for p in parts) or (up and down), any(p.empty for p in parts))


def sum_of(xs: Sequence[float]) -> float:
    """Rounded outwards far too little to matter for 0."""
    return math.fsum(xs) if not (INF in xs and -INF in xs) else math.nan


def scaled(r: Range, c: float) -> Range:
    return times(r, point(c))


def times(x: Range, y: Range) -> Range:
    ends = [0.0 if 0 in (a, b) else a * b for a in (x.low, x.high) for b in (y.low, y.high)]
    nan = x.nan or y.nan or (x.inf and y.zero) or (y.inf and x.zero)
    return Range(min(ends), max(ends), x.zero or y.zero, x.inf or y.inf, nan, x.empty or y.empty)


def powered(x: Range, p: Fraction) -> Range:
    """x^p of a number p that is not 0."""
    if p < 0:
        return inverse(powered(x, -p))
    if p.denominator == 1:
        if p == 1:
            return x
        n = int(p)
        if n % 2 == 0:
            top = max(abs(x.low), abs(x.high))
            bottom = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
            return replace(x, low=raised(bottom, n), high=raised(top, n))
        return replace(x, low=raised(x.low, n), high=raised(x.high, n))
    low, high = max(x.low, 0.0), max(x.high, 0.0)
    return replace(x, low=raised(low, float(p)), high=raised(high, float(p)), nan=x.nan or x.low < 0)


def raised(x: float, p: float) -> float:
    try:
        return x**p
    except OverflowError:
        return INF if x > 0 or p % 2 == 0 else -INF


def inverse(x: Range) -> Range:
    low, high = -INF, INF
    if x.low >= 0:
        low, high = (1 / x.high if x.high else INF), (1 / x.low if x.low else INF)
    elif x.high <= 0:
        low, high = (1 / x.high if x.high else -INF), (1 / x.low if x.low else -INF)
    return Range(low, high, x.inf, x.zero, x.nan, x.empty)


def extreme(op: str, x: Range, y: Range) -> Range:
    f = min if op == "minimum" else max
    low, high = f(x.low, y.low), f(x.high, y.high)
    inf = (x.inf or y.inf) and (math.isinf(low) or math.isinf(high))
    if op == "minimum" and inf and not (x.inf and y.inf) and low > -INF:
        inf = False
    if op == "maximum" and inf and not (x.inf and y.inf) and high < INF:
        inf = False
    if op == "minimum" and low > -INF and (not x.inf or not y.inf):
        inf = False
    return Range(low, high, (x.zero or y.zero) and low <= 0 <= high, inf, x.nan or y.nan, x.empty or y.empty)


def exponential(x: Range, y: Range) -> Range:
    """x^y of a base that is at least 0."""
    if x.low < 0 or not x.finite or not y.finite:
        return ANYTHING
    if x.zero and y.low <= 0:
        return ANYTHING
    if x.high > 1 and (y.low == -INF or y.high == INF):
        return Range(0.0, INF, x.zero)
    ends = [
        raised(a, b) if math.isfinite(b) else (1.0 if a == 1 else 0.0 if (a < 1) == (b > 0) else INF)
        for a in (x.low, x.high)
        for b in (y.low, y.high)
        if a or b > 0
    ]
    low = 0.0 if x.low == 0 or (y.high == INF and x.low < 1) else min(ends)
    high = INF if x.low == 0 and y.low < 0 else max(ends)  # the base comes near 0
    return Range(low, high, x.zero)


def measure(op: str, p: float, x: Range) -> Range:
    """A reduction that is at least 0."""
    low = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
    top = max(abs(x.low), abs(x.high))
    if op in ("std", "var"):
        return Range(0.0, top if op == "std" else raised(top, 2), True, False, not x.finite)
    if op == "norm":
        top = top if p == INF or top == 0 else INF
        if p <= 0:
            return replace(ANYTHING, low=0.0)
    return Range(low, top, x.zero, x.inf, x.nan or x.empty)


def wide(parts: Sequence[Range], measure: bool) -> Range:
    found = parts[0]
    for p in parts[1:]:
        found = found | p
    return replace(found, low=0.0 if measure else -INF, high=INF, zero=True)


def meet(x: Range, y: Range) -> Range:
    low, high = max(x.low, y.low), min(x.high, y.high)
    return Range(low, high, x.zero and y.zero, x.inf and y.inf, x.nan and y.nan, x.empty and y.empty)


def monotone(f: Callable[[float], float], x: Range, zero: bool) -> Range:
    return Range(f(x.low), f(x.high), zero, False, x.nan)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return INF


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


ONE: dict[str, Callable[[Range], Range]] = {
    "abs": lambda x: replace(x, low=0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high)), high=max(abs(x.low), abs(x.high))),
    "sign": lambda x: Range(float((x.low > 0) - (x.low < 0)), float((x.high > 0) - (x.high < 0)), x.zero, False, x.nan),
    "exp": lambda x: Range(_exp(x.low), _exp(x.high), x.inf, x.inf, x.nan),
    "log": lambda x: Range(zero=True, inf=x.zero or x.inf, nan=x.nan or x.low < 0),
    "tanh": lambda x: monotone(math.tanh, x, x.zero),
    "sigmoid": lambda x: monotone(_sigmoid, x, x.inf),
    "sin": lambda x: Range(-1.0, 1.0, True, False, not x.finite),
    "cos": lambda x: Range(-1.0, 1.0, True, False, not x.finite),
    "floor": lambda x: replace(
        x, low=math.floor(x.low) if math.isfinite(x.low) else x.low, high=math.floor(x.high) if math.isfinite(x.high) else x.high, zero=True
    ),
    "round": lambda x: replace(x, low=round(x.low) if math.isfinite(x.low) else x.low, high=round(x.high) if math.isfinite(x.high) else x.high, zero=True),
}
