"""From where to where values go, on every step and stream: intervals, NaN apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from updsl.core.ir import Apply, Const, Expr, Reduce, Ref
from updsl.core.scope import Scope
from updsl.laws.lints.flow import Flow, is_clock

Range = tuple[float, float]
ANYTHING: Range = (-math.inf, math.inf)
FROM_ZERO: Range = (0.0, math.inf)
MAGNITUDES = frozenset("norm absmax rms abs var std count".split())
WITHIN = {"sign": (-1.0, 1.0), "tanh": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0), "cosine": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
HELD: dict[str, tuple[str, ...]] = {"norm": ("norm", "absmax", "rms"), "absmax": ("absmax", "rms"), "abs": ("absmax", "rms"), "rms": ("rms",)}
"""A measure that is under a bound → the reductions that then are, too, on the same cells or finer ones."""


@dataclass(frozen=True)
class Clipped:
    """What a clip lets through: `measure` of it, per `scope`, is at most `bound`. place: of the clip."""

    measure: str
    scope: Scope
    bound: float
    place: Expr


class Bounds:
    """The ranges of the values of a Program. given: of inputs, by kind and name; else anything. clips: those whose bound gave a range. averages: whether those
    of states are looked for."""

    def __init__(self, flow: Flow, given: Mapping[str, Range] | None = None, averages: bool = True):
        self.flow, self.given = flow, given or {}
        self.known: dict[str, Range] = {}
        self.states: dict[str, Range] = {}
        self.clips: dict[int, Clipped] = {}
        for name, s in flow.states.items() if averages else ():
            if s.init is not None and not is_clock(name) and (start := flow.number(s.init)) is not None:
                self.states[name] = self.held(name, start)

    def held(self, name: str, start: float) -> Range:
        """Of a state whose update is an average of itself and of what stays in a range, else anything."""
        ends: list[Range] = []
        for guess in ((0.0, 0.0), (-1.0, 1.0)):
            self.known, self.states[name] = {}, guess
            ends.append(self.of(self.flow.commits[name]))
        self.known, self.states[name] = {}, ANYTHING
        (low, high), (lower, higher) = ends
        keeps = max(higher - high, low - lower)
        if not math.isfinite(keeps) or not keeps < 1 or start != 0:
            return FROM_ZERO if start >= 0 and low >= 0 and self._stays_positive(name) else ANYTHING
        most = max(abs(low), abs(high)) / (1 - keeps)
        guess = (0.0 if low >= 0 else -most, most)
        self.states[name] = guess
        now = self.of(self.flow.commits[name])
        self.known = {}
        slack = most * 1e-9
        return guess if guess[0] - slack <= now[0] and now[1] <= guess[1] + slack else ANYTHING

    def _stays_positive(self, name: str) -> bool:
        self.known, self.states[name] = {}, FROM_ZERO
        found = self.of(self.flow.commits[name])[0] >= 0
        self.known = {}
        return found

    def of(self, e: Expr) -> Range:
        match e:
            case Const(value=v):
                return float(v), float(v)
            case Ref(kind="value", name=name) if f"value {name}" not in self.given:
                if name not in self.known:
                    y = self.flow.yields.get(name)
                    self.known[name] = self.of(self.flow.bindings[name].expr) if y is None else hull(self.of(y.inner), self.of(y.outer))
                return self.known[name]
            case Ref():
                return self.named(e)
        number = self.flow.number(e)
        if number is not None:
            return number, number
        if e.type.boolean:
            return 0.0, 1.0
        found = self.entries(e) or self.combined(e, [self.of(a) for a in e.args])
        return ANYTHING if math.isnan(found[0]) or math.isnan(found[1]) else found

    def named(self, e: Ref) -> Range:
        if f"{e.kind} {e.name}" in self.given:
            return self.given[f"{e.kind} {e.name}"]
        match e.kind, e.name:
            case "param", _:
                value = self.flow.number(e)
                return ANYTHING if value is None else (value, value)
            case "builtin", ("t" | "rows" | "cols" | "numel" | "batch"):
                return 1.0, math.inf
            case "state", name:
                return (1.0, math.inf) if is_clock(name) else self.states.get(name, ANYTHING)
        return ANYTHING

    def combined(self, e: Apply | Reduce, parts: list[Range]) -> Range:
        (a, b), (c, d) = (*parts, ANYTHING, ANYTHING)[:2]
        match e.op:
            case "neg":
                return -b, -a
            case "add":
                return a + c, b + d
            case "sub":
                return (0.0, 0.0) if e.args[0] == e.args[1] else (a - d, b - c)
            case "mul":
                return products((a, b), (c, d))
            case "div":
                return ANYTHING if c <= 0 <= d else products((a, b), (1 / d, 1 / c))
            case "pow":
                return powers((a, b), (c, d))
            case "sqrt":
                return math.sqrt(max(a, 0)), math.sqrt(max(b, 0))
            case "minimum":
                return min(a, c), min(b, d)
            case "maximum":
                return max(a, c), max(b, d)
            case "clamp":
                return min(max(a, c), parts[2][0]), min(max(b, d), parts[2][1])
            case "select":
                return hull(parts[1], parts[2])
            case "exp":
                return 0.0, math.inf
        return self.function(e, (a, b))

    def function(self, e: Apply | Reduce, x: Range) -> Range:
        if e.op in WITHIN:
            return WITHIN[e.op]
        if e.op in MAGNITUDES:
            bound = self.clipped(e)
            if bound is not None:
                return 0.0, bound
            return (0.0, math.inf) if e.op not in ("abs", "absmax", "rms") else (0.0 if x[0] <= 0 <= x[1] else min(map(abs, x)), max(map(abs, x)))
        if e.op in ("mean", "median", "quantile", "min", "max", "store", "spread", "sample_mean"):
            return x
        if e.op in ("sum", "sample_sum", "trace"):
            return (0.0 if x[0] >= 0 else -math.inf), (0.0 if x[1] <= 0 else math.inf)
        return ANYTHING

    # --- clips -------------------------------------------------------------------------------------------------------

    def clipped(self, e: Apply | Reduce) -> float | None:
        """The bound of a magnitude of what a clip lets through."""
        found = self.clip_of(e.args[0])
        if found is None or e.op not in ("abs", *HELD[found.measure]):
            return None
        if isinstance(e, Reduce) and not found.scope <= e.scope and found.measure != "abs":
            return None
        self.clips[id(found.place)] = found
        return found.bound

    def entries(self, e: Apply | Reduce) -> Range | None:
        """Of the entries that a clip lets through."""
        found = self.clip_of(e) if e.op in ("select", "mul") else None
        if found is None or found.measure == "rms" or not math.isfinite(found.bound):
            return None
        self.clips[id(found.place)] = found
        return -found.bound, found.bound

    def clip_of(self, e: Expr) -> Clipped | None:
        match self.flow.behind(e):
            case Apply(op="select", args=(beyond, moved, x)):
                return self._clip(e, beyond, moved, x)
            case Apply(op="mul", args=(a, b)):
                return self._least(e, a, b) or self._least(e, b, a)
        return None

    def _clip(self, e: Expr, beyond: Expr, moved: Expr, x: Expr) -> Clipped | None:
        """`if m(x) > c then x*(c/m(x)) else x`."""
        match self.flow.behind(beyond), self.flow.behind(moved):
            case Apply(op="gt", args=(m, c)), Apply(op="mul", args=(y, f)) if self.flow.behind(y) == self.flow.behind(x):
                match self.flow.behind(f):
                    case Apply(op="div", args=(c2, m2)) if self.flow.behind(c2) == self.flow.behind(c) and self.flow.behind(m2) == self.flow.behind(m):
                        return self._of(e, m, c, x)
        return None

    def _least(self, e: Expr, f: Expr, x: Expr) -> Clipped | None:
        """`min(1, c / (m(x) + eps)) * x`."""
        match self.flow.behind(f):
            case Apply(op="minimum", args=(one, q)) if self.flow.number(one) == 1:
                match self.flow.behind(q):
                    case Apply(op="div", args=(c, n)):
                        match self.flow.behind(n):
                            case Apply(op="add", args=(m, eps)) if (self.flow.number(eps) or 0) >= 0:
                                return self._of(e, m, c, x)
                            case m:
                                return self._of(e, m, c, x)
        return None

    def _of(self, e: Expr, m: Expr, c: Expr, x: Expr) -> Clipped | None:
        measure, bound = self.flow.behind(m), self.of(c)[1]
        match measure:
            case Reduce(op="norm" | "absmax" | "rms" as op, args=(y,), scope=scope) if self.flow.behind(y) == self.flow.behind(x):
                return Clipped(op, scope, bound, e) if op != "norm" or measure.static == (2.0,) else None
            case Apply(op="abs", args=(y,)) if self.flow.behind(y) == self.flow.behind(x):
                return Clipped("abs", measure.type.scope, bound, e)
        return None


def hull(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), max(a[1], b[1])


def products(a: Range, b: Range) -> Range:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def powers(x: Range, exponent: Range) -> Range:
    """Of a range to a range."""
    n, m = exponent
    try:
        if n == m and n > 0 and n % 2 == 0:
            far = max(abs(x[0]), abs(x[1])) ** n
            return 0.0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1])) ** n, far
        if n == m and n > 0 and (n % 2 == 1 or x[0] >= 0):
            return x[0] ** n, x[1] ** n
        if x[0] >= 0 and n >= 0:
            return 0.0, (x[1] ** m if x[1] > 1 else x[1] ** n)
    except OverflowError:
        pass
    return (0.0 if x[0] >= 0 else -math.inf), math.inf
