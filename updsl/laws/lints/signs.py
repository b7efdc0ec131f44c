"""What a step does to signs, zeros, infinities and NaN: a Program run on sets of kinds of numbers instead of numbers.

What is finite stays finite here: no sum overflows, nothing but 0 alone is a divisor of 0. So an infinity or a NaN that comes out has come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from types import MappingProxyType
from typing import TypeAlias

from updsl.core.ir import Apply, Const, Expr, Reduce, Ref
from updsl.laws.lints.flow import NEAR, Flow, computed, is_clock

Kinds: TypeAlias = frozenset[str]
"""Some of "nan", "-inf", "-", "0", "+", "inf". True is "+", false is "0"."""

NAN, ZERO, POSITIVE, ONE_OF_BOTH = frozenset(("nan",)), frozenset("0"), frozenset("+"), frozenset("0+")
FINITE, NONZERO, BAD = frozenset("-0+"), frozenset("-+"), frozenset(("nan", "-inf", "inf"))
RANK = {"-inf": -2, "-": -1, "0": 0, "+": 1, "inf": 2}
OF_RANK = {r: k for k, r in RANK.items()}
COMPARE = {"lt": (True, False, False), "le": (True, True, False), "gt": (False, False, True), "ge": (False, True, True), "eq": (False, True, False)}
"""Whether it holds where the first is smaller, equal, larger."""
CHOSEN = frozenset((*COMPARE, "ne", "any", "largest", "isfinite"))
LATE = 1e18
"""A step after every warm-up."""


def kind(x: float) -> Kinds:
    if x != x:
        return NAN
    return frozenset((OF_RANK[(x > 0) - (x < 0) if abs(x) != float("inf") else 2 if x > 0 else -2],))


def added(a: str, b: str) -> str:
    if "nan" in (a, b) or {a, b} == {"-inf", "inf"}:
        return "nan"
    x, y = sorted((a, b), key=lambda k: abs(RANK[k]))
    return "-0+" if {a, b} == {"-", "+"} else x if y == "0" else y


def multiplied(a: str, b: str) -> str:
    if "nan" in (a, b) or ({a, b} & {"inf", "-inf"} and "0" in (a, b)):
        return "nan"
    x, y = RANK[a], RANK[b]
    return OF_RANK[max(abs(x), abs(y)) * ((x > 0) - (x < 0)) * ((y > 0) - (y < 0))]


def inverse(a: str) -> str:
    return {"nan": "nan", "inf": "0", "-inf": "0", "0": "inf"}.get(a, a)


def of_pairs(f: Callable[[str, str], str], x: Kinds, y: Kinds) -> Kinds:
    """f of each pair; several kinds are written side by side where they are "-0+"."""
    return frozenset(k for a, b in product(x, y) for k in (f(a, b) if f(a, b) == "-0+" else (f(a, b),)))


def mapped(x: Kinds, **to: str) -> Kinds:
    """Each kind, or what it becomes: minf, neg, zero, pos, inf."""
    names = {"-inf": "minf", "-": "neg", "0": "zero", "+": "pos", "inf": "inf"}
    return frozenset(k for a in x for k in (to.get(names.get(a, ""), a).split()))


class Signs:
    """The kinds of all values of one step.

    given: of g, inputs, w and states, by kind and name ("builtin g"); others are finite, or what they are. t: the step, None for any. cancels: whether what has
    both signs may sum to 0. choices: how comparisons come out that may go both ways; open: those not chosen."""

    def __init__(
        self, flow: Flow, given: Mapping[str, Kinds], t: float | None = None, cancels: bool = True, choices: Mapping[Expr, Kinds] = MappingProxyType({})
    ):
        self.flow, self.given, self.t, self.cancels, self.choices = flow, given, t, cancels, choices
        self.known: dict[str, Kinds] = {}
        self.open: dict[Expr, None] = {}

    def commit(self, state: str) -> Kinds:
        return self.of(self.flow.commits[state])

    def of(self, e: Expr) -> Kinds:
        match e:
            case Const(value=v):
                return kind(float(v))
            case Ref():
                return self.named(e)
        value = self.number(e)
        found = kind(value) if value is not None else self.combined(e)
        if found == ONE_OF_BOTH and e.type.boolean and e.op in CHOSEN:
            found = self.choices.get(e, found)
            if found == ONE_OF_BOTH:
                self.open.setdefault(e)
        return found

    def named(self, e: Ref) -> Kinds:
        key = f"{e.kind} {e.name}"
        if key in self.given:
            return self.given[key]
        match e.kind:
            case "value":
                if e.name not in self.known:
                    y = self.flow.yields.get(e.name)
                    self.known[e.name] = self.of(self.flow.bindings[e.name].expr) if y is None else self.of(y.inner) | self.of(y.outer)
                return self.known[e.name]
            case "param":
                value = self.flow.number(e)
                return POSITIVE if value is None else kind(value)
            case "builtin" if e.name not in ("g", "w"):
                return POSITIVE
            case "state" if is_clock(e.name):
                return POSITIVE
        return FINITE

    def number(self, e: Expr) -> float | None:
        """The value of an expression of literals, parameters and, where it is given, the step."""
        if self.t is not None:
            match e:
                case Ref(kind="builtin", name="t"):
                    return self.t
                case Ref(kind="state", name=name) if is_clock(name):
                    return self.t
                case Ref(kind="value", name=name) if name in self.flow.bindings:
                    return self.number(self.flow.bindings[name].expr)
                case Apply(op="store" | "spread", args=(x,)):
                    return self.number(x)
                case Apply(op=op, args=args):
                    return computed(op, [self.number(a) for a in args]) if op in NEAR else None
        return self.flow.number(e)

    def combined(self, e: Apply | Reduce) -> Kinds:
        x, *others = [self.of(a) for a in e.args] or [FINITE]
        y = others[0] if others else x
        match e.op:
            case "neg":
                return frozenset(OF_RANK[-RANK[k]] if k != "nan" else k for k in x)
            case "add" | "sub":
                y = mapped(y, minf="inf", neg="+", pos="-", inf="-inf") if e.op == "sub" else y
                sum_ = of_pairs(added, x, y)
                return sum_ if self.cancels or "0" in x & y else sum_ - {"0"}
            case "mul" | "matmul" | "dot":
                return of_pairs(multiplied, x, y) | (FINITE if e.op != "mul" and (x | y) <= FINITE else frozenset())
            case "div":
                return of_pairs(lambda a, b: multiplied(a, inverse(b)), x, (y - ZERO) or y)
            case "pow":
                return self.power(e, x)
            case "select":
                return (others[0] if "+" in x else frozenset()) | (others[1] if "0" in x else frozenset())
            case "and" | "or" | "not":
                return frozenset(k for a, b in product(x, y) for k in (truth(e.op, a, b),))
            case "isfinite":
                return frozenset("0" if k in BAD else "+" for k in x)
            case "lt" | "le" | "gt" | "ge" | "eq" | "ne":
                return frozenset(k for a, b in product(x, y) for k in self.compared(e.op, a, b))
            case "minimum" | "maximum":
                return of_pairs(smaller if e.op == "minimum" else larger, x, y)
            case "clamp":
                return of_pairs(smaller, of_pairs(larger, x, y), others[1])
            case "average":
                return of_pairs(added, of_pairs(multiplied, x, y), of_pairs(multiplied, others[1], others[2]))
            case "mod" | "atan2":
                lost = (x | y) & NAN if e.op == "atan2" else ((x | y) & NAN) | (NAN if x & BAD else frozenset())
                far = y & BAD - NAN if e.op == "mod" else frozenset()
                return NAN if NAN in (x, y) or (e.op == "mod" and x <= BAD) else lost | FINITE | far
            case "any":
                return x
            case "push":
                return x | y
        return self.function(e, x)

    def power(self, e: Apply | Reduce, x: Kinds) -> Kinds:
        y, exponent = self.of(e.args[1]), self.number(e.args[1])
        if exponent is None or not math.isfinite(exponent):
            bad = (x | y) & BAD
            known = POSITIVE if x | y <= FINITE and x == POSITIVE else FINITE if bad <= NAN else FINITE | BAD
            return NAN if NAN in (x, y) else known | bad & NAN
        if exponent == 0:
            return mapped(x, minf="+", neg="+", zero="+", inf="+")
        if exponent < 0:
            x = frozenset(map(inverse, (x - ZERO) or x))
        if exponent % 2 == 1:
            return x
        return mapped(x, minf="inf", neg="+") if exponent % 2 == 0 else mapped(x, minf="inf nan", neg="- 0 +")

    def compared(self, op: str, a: str, b: str) -> str:
        """ "+" if it holds, "0" if not, "0+" if both may be."""
        if "nan" in (a, b):
            return "+" if op == "ne" else "0"
        if a == b and a in "-+":
            return "0+"
        place = (RANK[a] > RANK[b]) - (RANK[a] < RANK[b]) + 1
        return "+" if COMPARE["eq" if op == "ne" else op][place] != (op == "ne") else "0"

    def function(self, e: Apply | Reduce, x: Kinds) -> Kinds:
        """Of one argument, or all of whose arguments count alike."""
        match e.op:
            case "abs" | "norm" | "rms" | "absmax" | "matrix_power":
                return mapped(x, minf="inf", neg="+")
            case "sqrt":
                return mapped((x - frozenset("-")) or x, minf="nan", neg="nan")
            case "sign" | "tanh":
                return mapped(x, minf="-", inf="+")
            case "exp" | "sigmoid":
                return mapped(x, minf="0", neg="+", zero="+", inf="+" if e.op == "sigmoid" else "inf")
            case "log":
                return mapped(x, minf="nan", neg="- 0 +", zero="- 0 +", pos="- 0 +")
            case "sin" | "cos":
                return mapped(x, minf="nan", neg="- 0 +", zero="0" if e.op == "sin" else "+", pos="- 0 +", inf="nan")
            case "floor" | "round":
                return mapped(x, neg="- 0", pos="0 +")
            case "var" | "std":
                return mapped(x, minf="nan", neg="0 +", pos="0 +", inf="nan")
            case "cosine":
                y = self.of(e.args[1])
                return (NAN if (x | y) & BAD else frozenset()) | (ZERO if "0" in x | y else frozenset()) | (FINITE if x - BAD and y - BAD else frozenset())
            case "count" | "largest":
                return ONE_OF_BOTH
            case "rows" | "cols":
                return POSITIVE
            case "eye" | "empty":
                return ONE_OF_BOTH
            case "left_basis" | "right_basis" | "polar" | "orthonormal" | "solve":
                return mapped(x, minf="nan", neg="- 0 +", zero="- 0 +", pos="- 0 +", inf="nan")
            case "gaussian" | "uniform" | "bernoulli":
                return FINITE
            case "sum" | "mean" | "trace" | "sample_mean" | "sample_sum" if not self.cancels or {"-", "+"} - x:
                return x
            case "sum" | "mean" | "trace" | "sample_mean" | "sample_sum":
                return x | ZERO
        return x


def truth(op: str, a: str, b: str) -> str:
    holds = {"and": a != "0" and b != "0", "or": a != "0" or b != "0", "not": a == "0"}[op]
    return "+" if holds else "0"


def smaller(a: str, b: str) -> str:
    return "nan" if "nan" in (a, b) else min(a, b, key=RANK.__getitem__)


def larger(a: str, b: str) -> str:
    return "nan" if "nan" in (a, b) else max(a, b, key=RANK.__getitem__)
