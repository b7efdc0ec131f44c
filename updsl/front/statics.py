"""Constants: expressions of literals and known parameters, worked out while elaborating."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ops import OPS
from updsl.front import syntax
from updsl.front.suggest import look_alike, suggestion
from updsl.front.unit import BUILTIN_NAMES, FUNCTIONS

INFIX = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul", "^": "pow", "and": "and", "or": "or"}
COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
EXACT: dict[str, Callable[..., float | bool]] = {op: getattr(operator, op) for op in ("neg", "add", "sub", "mul", "abs", "lt", "le", "gt", "ge", "eq", "ne")}
"""Ops that Python's own floats have, to the bit: most texts have no other constants, and are checked without loading NumPy."""


def fold(op: str, *values: float | bool) -> float | bool:
    """The op on numbers, in float64."""
    numbers = [float(v) for v in values]
    if op in EXACT:
        return EXACT[op](*numbers)
    from updsl.core.numeric import quiet

    reference = OPS[op].reference
    assert reference is not None
    result = quiet(reference)(*numbers)
    return bool(result) if OPS[op].boolean else float(result)


def constant(e: syntax.Expr, known: Mapping[str, float | bool | str]) -> float | bool | str:
    """The value of a constant expression. Raises UpdslError if it is none."""
    match e:
        case syntax.Number(value=v) | syntax.Boolean(value=v) | syntax.Text(value=v):
            return v
        case syntax.Name(id="pi"):
            return math.pi
        case syntax.Name(id=name) if name in known:
            return known[name]
        case syntax.Unary(op=op, operand=x):
            return fold("neg" if op == "-" else "not", number(x, known))
        case syntax.Binary(op=op, left=a, right=b) if op != "@":
            return fold(INFIX[op], number(a, known), number(b, known))
        case syntax.Compare(first=a, rest=rest) if all(op in COMPARISONS for op, _ in rest):
            return _comparison(constant(a, known), [(op, constant(b, known)) for op, b in rest], e)
        case syntax.If(condition=c, then=a, otherwise=b):
            return constant(a if number(c, known) else b, known)
        case syntax.Call(callee=name, arguments=arguments) if name in ("min", "max") and arguments:
            values = [number(a.value, known) for a in arguments]
            return min(values) if name == "min" else max(values)
        case syntax.Call(callee=name, arguments=arguments) if name in OPS and OPS[name].kind == "elementwise" and len(arguments) == len(OPS[name].args):
            if all(a.name is None for a in arguments):
                return fold(name, *(number(a.value, known) for a in arguments))
        case syntax.Name(id=name) if name not in BUILTIN_NAMES and name not in FUNCTIONS:
            message = f"unknown name `{name}`: a constant is made of literals, and of parameters that stand before it"
            raise UpdslError(Diagnostic("unknown-name", message, e.span, notes=look_alike(name), help=suggestion(name, [*known, "pi"])))
    raise UpdslError(
        Diagnostic(
            "not-constant",
            "this must be a constant: literals, and parameters before it",
            e.span,
            help="write a number, such as `0.9`, or an expression of numbers",
        )
    )


def number(e: syntax.Expr, known: Mapping[str, float | bool | str]) -> float | bool:
    """The value of a constant expression that is no text."""
    value = constant(e, known)
    if isinstance(value, str):
        raise UpdslError(Diagnostic("text-as-number", "this is a text, where a number is needed", e.span, help="compare texts with `==`, `!=` or `~`"))
    return value


def _comparison(first: float | bool | str, rest: list[tuple[str, float | bool | str]], e: syntax.Expr) -> bool:
    for op, value in rest:
        if isinstance(first, str) or isinstance(value, str):
            if op not in ("==", "!=") or not (isinstance(first, str) and isinstance(value, str)):
                raise UpdslError(Diagnostic("text-as-number", "a text compares with a text, by `==`, `!=` or `~`", e.span, help='write `mode == "mean"`'))
            holds = (first == value) == (op == "==")
        else:
            holds = bool(fold(COMPARISONS[op], first, value))
        if not holds:
            return False
        first = value
    return True
