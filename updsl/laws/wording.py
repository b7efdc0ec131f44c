"""Terms and proofs in words."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from updsl.core.scope import TENSOR
from updsl.laws.term import Term, walk

LONG = 90
"""Letters of a term that is still worth reading."""
SIGNS = {"lt": "<", "le": "≤", "eq": "="}


def argument(compared: Iterable[tuple[str, Term, Term]], choices: Iterable[Term]) -> str:
    """Of a law that was proved by these comparisons, in every case of these choices."""
    compared = list(compared)
    found = [f"{shown(x)} {SIGNS[op]} {shown(y)}" for op, x, y in compared if is_short(x) and is_short(y)]
    cases = [text for c in choices if is_short(c) and len(text := condition(c)) <= LONG]
    averages = any(t.op == "average" for _, x, y in compared for t in walk(x, y))
    how = "by algebra, averages over time being of weights that sum to 1" if averages else "by algebra"
    short = min((text for text in found if len(text) <= LONG), key=len, default="")
    if cases:
        where = f"whether or not {cases[0]}" if len(cases) == 1 else f"in every case of {', '.join(cases[:3])}{' …' if len(cases) > 3 else ''}"
        return f"{how}: {short} {where}" if short else f"{how}: it holds {where}"
    return f"{how}: {short or 'both sides come to the same'}"


def is_short(t: Term) -> bool:
    """Whether it has few operands, each counted as often as it would be written."""
    size: dict[Term, int] = {}
    for x in walk(t):
        size[x] = 1 + sum(size[a] for a in x.args)
    return size[t] <= LONG


def condition(c: Term) -> str:
    match c.op, c.args:
        case "lt" | "le" | "eq" as op, (x, y):
            return f"{shown(x)} {SIGNS[op]} {shown(y)}"
        case _:
            return shown(c)


def shown(t: Term) -> str:
    """As a reader would write it; products and sums of others in brackets."""
    match t.op, t.args:
        case "const", ():
            return number(t.value)
        case "leaf", ():
            return str(t.data[1]).split(" ")[-1]
        case "lin", args:
            *factors, rest = t.data
            parts = [f"{'- ' if c < 0 else '+ '}{'' if abs(c) == 1 else number(abs(c)) + '·'}{inner(a)}" for c, a in zip(factors, args, strict=True)]
            parts += [f"{'- ' if rest < 0 else '+ '}{number(abs(rest))}"] if rest else []
            return " ".join(parts).removeprefix("+ ")
        case "mul", args:
            up = [powered(a, p) for a, p in zip(args, t.data, strict=True) if p > 0]
            down = [powered(a, -p) for a, p in zip(args, t.data, strict=True) if p < 0]
            return "·".join(up or ["1"]) + "".join(f"/{d}" for d in down)
        case "not", (x,):
            return f"not {condition(x)}"
        case "average", (x,):
            return f"average({shown(x)})"
        case op, args:
            where = f" per {t.scope}" if op in ("norm", "rms", "absmax", "mean", "sum") and t.scope != TENSOR else ""
            return f"{op}({', '.join(condition(a) for a in args)}{where})"


def inner(t: Term) -> str:
    return f"({shown(t)})" if t.op == "lin" else shown(t)


def powered(t: Term, p: Fraction) -> str:
    if p == Fraction(1, 2):
        return f"√({shown(t)})"
    base = f"({shown(t)})" if t.op in ("lin", "mul") else shown(t)
    return base if p == 1 else f"{base}^{p}"


def number(x: object) -> str:
    return f"{float(x):g}" if isinstance(x, Fraction) else str(x).lower()
