"""Laws that follow from units: rule(k*g) is a power of k times rule(g)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from updsl.front import syntax
from updsl.front.module import Module
from updsl.front.statics import number
from updsl.front.unit import Constant
from updsl.front.units import units_of

G = syntax.Name("g")
OUT = (syntax.Name("out"), syntax.Call("rule", (syntax.Argument(None, G),)))


def by_units(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> str | None:
    """The argument, if units prove `rule(k*g) == k^a*rule(g) for k in [lo, hi]`, 0 < lo; with a premise all the more."""
    match law:
        case syntax.Law(claim=syntax.Compare(first=a, rest=(("==", b),)), quantifiers=(syntax.Quantifier(name=k, kind="in", low=low),)) if low is not None:
            sides = [_power(side, k) for side in (a, b)]
        case _:
            return None
    scaled, plain = next(((x, y) for x, y in (sides, sides[::-1]) if x and y and x[0] == 1 and y[0] == 0), (None, None))
    if scaled is None or plain is None or number(low, parameters) <= 0 or k in parameters:
        return None
    units = units_of(module, parameters)
    degree = plain[1] - scaled[1]
    if not units.equivariant or units.degree != degree or any(u.g for u in units.inputs.values()):
        return None
    carried = {0: "no unit of [g]", 1: "[g]"}.get(int(degree) if degree.denominator == 1 else -1, f"[g]^{degree}")
    return f"by units: what the rule gives has {carried}, and nothing that is fixed carries [g]"


def _power(e: syntax.Expr, k: str) -> tuple[int, Fraction] | None:
    """Of `k^a*rule(k*g)` 1 and a, of `k^a*rule(g)` 0 and a."""
    match e:
        case syntax.Binary(op="*", left=a, right=b):
            for factor, rest in ((a, b), (b, a)):
                power, inner = _of_k(factor, k), _power(rest, k)
                if power is not None and inner is not None:
                    return inner[0], inner[1] + power
            return None
        case syntax.Call(callee="rule", arguments=(syntax.Argument(name=None, value=syntax.Binary(op="*", left=a, right=b)),)) if {a, b} == {syntax.Name(k), G}:
            return 1, Fraction(0)
        case _ if e in OUT:
            return 0, Fraction(0)
        case _:
            return None


def _of_k(e: syntax.Expr, k: str) -> Fraction | None:
    match e:
        case syntax.Name(id=name) if name == k:
            return Fraction(1)
        case syntax.Binary(op="^", left=syntax.Name(id=name), right=syntax.Number(value=v)) if name == k:
            return Fraction(v).limit_denominator(1000)
        case _:
            return None
