"""How a rule depends on the scale of one of its values: multiplied by k > 0, what comes of it is multiplied by a power of k, or by none."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeAlias

from updsl.core.ir import Apply, Const, Expr, Reduce, Ref
from updsl.core.ops import OPS
from updsl.core.scope import TENSOR, Scope
from updsl.laws.lints.flow import Flow

Degree: TypeAlias = Fraction | str | None
"""The exponent of k; None if there is none; ANY for 0, which has all."""
ANY = "any"
FREE = Fraction(0)
SMALL = 1e-3
"""A constant that is added to what scales is no bigger than this: then it is there against a division by 0."""
MAX_ROUNDS = 6


class Degrees:
    """The degrees of all values in one: `cut`, whose factor k is one number for each cell of `scope`.

    absorbers: the nodes without a scale of operands with one, in order; small: the constants that are no longer seen where values are large."""

    def __init__(self, flow: Flow, cut: str, scope: Scope):
        self.flow, self.cut, self.scope = flow, cut, scope
        self.states: dict[str, Degree] = {name: ANY if s.init is None or starts_at_any_scale(flow, s.init) else FREE for name, s in flow.states.items()}
        for _ in range(MAX_ROUNDS):
            self.forget()
            after = {name: self.joined(self.states[name], self.of(flow.commits[name])) for name in self.states}
            if after == self.states:
                break
            self.states = after
        else:
            self.states = dict.fromkeys(flow.states)
        self.forget()

    def forget(self) -> None:
        self.known: dict[str, Degree] = {}
        self.absorbers: dict[int, Apply | Reduce] = {}
        self.small: list[Expr] = []

    def of(self, e: Expr) -> Degree:
        match e:
            case Const(value=v):
                return ANY if not isinstance(v, bool) and (v == 0 or math.isinf(v)) else FREE
            case Ref(kind="value", name=name):
                if name.removesuffix("@tensor") == self.cut:
                    return Fraction(1)
                if name not in self.known:
                    y = self.flow.yields.get(name)
                    self.known[name] = self.of(self.flow.bindings[name].expr) if y is None else self.joined(self.of(y.inner), self.of(y.outer))
                return self.known[name]
            case Ref(kind="state", name=name):
                return self.states[name]
            case Ref():
                return FREE
        degrees = [self.of(a) for a in e.args]
        if any(d is None for d in degrees):
            return None
        if all(d in (FREE, ANY) for d in degrees):
            return ANY if is_zero(e, [d == ANY for d in degrees]) else FREE
        if not self.keeps_cells(e):
            return None
        found = self.combined(e, degrees)
        if found == FREE and e.op not in ("isfinite", "and", "or", "not"):
            self.absorbers.setdefault(id(e), e)
        return found

    def keeps_cells(self, e: Apply | Reduce) -> bool:
        """Whether all that the node combines has one factor."""
        if isinstance(e, Reduce):
            return all(a.type.window for a in e.args) or self.scope <= e.scope
        if e.op == "largest":
            return self.scope <= e.static[0]
        return OPS[e.op].kind != "matrix" or e.op in ("transpose",) or self.scope <= TENSOR

    def combined(self, e: Apply | Reduce, degrees: list[Degree]) -> Degree:
        row = OPS[e.op]
        if e.op == "select":
            return self.joined(*degrees[1:]) if degrees[0] in (FREE, ANY) else None
        degrees = degrees[:-1] if row.numbers and len(degrees) > 1 else degrees
        match row.units:
            case "product" | "quotient" | "left-quotient":
                if ANY in degrees:
                    return ANY
                a, b = (Fraction(str(d)) for d in degrees)
                return a + b if row.units == "product" else a - b if row.units == "quotient" else b - a
            case "power":
                return self.power(e, degrees)
            case "any-none":
                return FREE
            case "none-none":
                return None
            case "equal-none":
                return FREE if self.joined(*degrees) is not None else None
        if e.op in ("add", "maximum", "sub") and FREE in degrees:
            return self.without_small(e, degrees)
        return self.joined(*degrees)

    def power(self, e: Apply | Reduce, degrees: list[Degree]) -> Degree:
        if degrees[0] == ANY or not isinstance(degrees[0], Fraction):
            return degrees[0]
        if e.op in ("sqrt", "var"):
            return degrees[0] * (2 if e.op == "var" else Fraction(1, 2))
        exponent = self.flow.number(e.args[1])
        return None if exponent is None else degrees[0] * Fraction(exponent).limit_denominator(1000)

    def joined(self, *degrees: Degree) -> Degree:
        """The degree that all have."""
        found = [d for d in dict.fromkeys(degrees) if d != ANY]
        return ANY if not found else found[0] if len(found) == 1 else None

    def without_small(self, e: Apply | Reduce, degrees: list[Degree]) -> Degree:
        """Of a sum with a small constant."""
        kept = [d for a, d in zip(e.args, degrees, strict=True) if not (d == FREE and is_small(self.flow, a))]
        if len(kept) == len(degrees):
            return None
        self.small += [a for a, d in zip(e.args, degrees, strict=True) if d == FREE]
        return self.joined(*kept)


def starts_at_any_scale(flow: Flow, init: Expr) -> bool:
    """Whether it is 0 or infinite, which it is at every scale."""
    number = flow.number(init)
    return number is not None and (number == 0 or math.isinf(number))


def is_zero(e: Apply | Reduce, zeros: list[bool]) -> bool:
    """Whether it is 0 where these operands are."""
    match e.op:
        case "mul" | "matmul" | "dot":
            return any(zeros)
        case "div" | "pow" | "sqrt":
            return zeros[0]
        case "select":
            return all(zeros[1:])
    return bool(zeros) and OPS[e.op].units == "same" and all(zeros)


def is_small(flow: Flow, e: Expr) -> bool:
    """Whether this is a constant of the kind of eps, or that times a factor of the step."""
    number = flow.number(e)
    if number is not None:
        return 0 < number <= SMALL
    match flow.behind(e):
        case Apply(op="mul" | "div", args=(x, _)):
            return is_small(flow, x)
        case _:
            return False


def name_of(flow: Flow, e: Expr) -> str:
    """A constant as messages call it: by the name it has in the text, else by its value."""
    if e.span.text.isidentifier():
        return f"`{e.span.text}`"
    number = flow.number(e)
    return "a small constant" if number is None else f"{number:g}"
