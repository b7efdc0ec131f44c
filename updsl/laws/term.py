"""A term, and what its form alone tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from updsl.core.ir import Type
from updsl.core.scope import Scope

MEASURES = frozenset(("norm", "rms", "absmax", "std"))
"""Reductions m with m(f·x) = |f|·m(x), at least 0."""
NONNEGATIVE = MEASURES | {"abs", "exp", "sigmoid", "var", "count", "any", "rows", "cols"}
HALF = Fraction(1, 2)
FLIPPED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True, eq=False, slots=True)
class Term:
    """op: of the op table, or "const" (data: a Fraction, ±inf or a boolean), "leaf" (data: kind and name), "lin" (data: the factors, then the number), "mul"
    (data: the powers; of 0 or less for what is divided by), "joint" (data: a reduction, over the terms of several classes), "part" (data: of which classes: a
    reduction over the tensors of these alone), "average" (data: what names its
    weights, which are of all steps so far, at least 0, and sum to 1). Else data is what is static. Equal terms of one `Terms` are one object."""

    op: str
    args: tuple[Term, ...]
    data: Any
    type: Type
    index: int
    """In the order in which they were made."""

    def __hash__(self) -> int:
        return self.index

    @property
    def scope(self) -> Scope:
        return self.type.scope

    @property
    def value(self) -> Any:
        """Of a literal, else None."""
        return self.data if self.op == "const" else None

    def __repr__(self) -> str:
        return f"{self.op}{list(self.args)}{self.data}" if self.args else f"{self.data}"


def monomial(t: Term, power: Fraction) -> tuple[Fraction, list[tuple[Term, Fraction]]]:
    """t^power as a number times terms to powers; a product in it is taken apart where the power is whole."""
    if power.denominator == 1:
        if isinstance(t.value, Fraction | bool) and (t.value or power > 0):
            return Fraction(t.value) ** int(power), []
        if t.op == "lin" and len(t.args) == 1 and not t.data[-1]:
            c, inner = monomial(t.args[0], power)
            return t.data[0] ** int(power) * c, inner
        if t.op == "mul":
            c, parts = Fraction(1), []
            for x, p in zip(t.args, t.data, strict=True):
                d, inner = monomial(x, p * power)
                c, parts = c * d, [*parts, *inner]
            return c, parts
    return Fraction(1), [(t, power)]


def is_even(p: Fraction) -> bool:
    return p.denominator == 1 and p.numerator % 2 == 0


def exact_root(c: Fraction) -> Fraction | None:
    root = Fraction(math.isqrt(c.numerator), math.isqrt(c.denominator))
    return root if root**2 == c else None


def is_count(t: Term) -> bool:
    """A number above 0 that is handed over."""
    return t.op == "leaf" and t.data[0] == "builtin" and (t.data[1] in ("t", "rows", "cols", "numel", "batch", "lr") or t.data[1].startswith("dim("))


def plain(type_: Type) -> Type:
    return replace(type_, boolean=False) if type_.boolean else type_


def finite_literals(*terms: Term) -> bool:
    """None is an infinite literal, nor a window."""
    return not any((isinstance(t.value, float) or t.type.window) for t in terms)


def is_nonnegative(t: Term) -> bool:
    """Whether it is, by its form."""
    match t.op:
        case "const":
            return t.value >= 0
        case "mul":
            return all(p.numerator % 2 == 0 or p.denominator % 2 == 0 or is_nonnegative(x) for x, p in zip(t.args, t.data, strict=True))
        case "lin":
            return all(c >= 0 for c in t.data) and all(map(is_nonnegative, t.args))
        case "leaf":
            return is_count(t) or t.data == ("builtin", "ndim")
        case "select":
            return all(map(is_nonnegative, t.args[1:]))
        case "sum" | "mean" | "max" | "min" | "average" | "minimum" | "part":
            return all(map(is_nonnegative, t.args))
        case "pow":
            return is_nonnegative(t.args[0])
        case "maximum":
            return any(map(is_nonnegative, t.args))
        case "joint":
            return t.data in NONNEGATIVE
        case op:
            return op in NONNEGATIVE


def walk(*terms: Term) -> Iterator[Term]:
    """Every term in these, each once, operands first."""
    seen: set[Term] = set()
    waiting = [(t, False) for t in reversed(terms)]
    while waiting:
        t, ready = waiting.pop()
        if ready:
            yield t
        elif t not in seen:
            seen.add(t)
            waiting.append((t, True))
            waiting.extend((a, False) for a in reversed(t.args))
