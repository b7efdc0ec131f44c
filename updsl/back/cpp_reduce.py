"""Reductions in C++: what is added up entry by entry, how two parts are put together, and what the result is made of.

A part is a few numbers (slots) of the type `wide`: double, or long double for float64 tensors, whose squares would overflow. Parts are put together in a fixed
order, so that results do not depend on the number of threads. Means and variances are sums of differences from the first entry of the part: equal entries have
exactly their value as mean and a variance of 0, and what rounding loses is at most n·eps of the variance, wherever the mean lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from updsl.core.ir import Reduce


@dataclass(frozen=True)
class Accumulator:
    """start: of each slot. add: statements over the slots {0} {1} … and the entries {x} {y}. signs: how the slots of two lanes combine, "+", "max" or "min".
    settle: statements after the last entry of a part, of {n} entries. merge: statements that put the part {b0} {b1} … of {m} entries to one of {n}.
    shifted: slot 0 starts as the first entry. lane: the type of the slots while the entries of a chunk are gone through."""

    start: tuple[str, ...]
    add: str
    signs: tuple[str, ...]
    merge: str
    settle: str = ""
    shifted: bool = False
    lane: str = "wide"


SUM = Accumulator(("0",), "{0} += {x};", ("+",), "{0} += {b0};")
SQUARES = Accumulator(("0",), "{0} += {x} * {x};", ("+",), "{0} += {b0};")
MEAN = Accumulator(
    ("0", "0"),
    "{1} += {x} - {0};",
    ("", "+"),
    "{0} += ({b0} - (is_finite({0}) ? {0} : 0)) * ({m} / ({n} + {m}));",
    "{0} += {1} / {n};",
    shifted=True,
)
VARIANCE = Accumulator(
    ("0", "0", "0"),
    "{{ const wide d = {x} - {0}; {1} += d; {2} += d * d; }}",
    ("", "+", "+"),
    "{{ const wide d = {b0} - (is_finite({0}) ? {0} : 0); {0} += d * ({m} / ({n} + {m})); {1} += {b1} + d * d * ({n} * {m} / ({n} + {m})); }}",
    "{{ const wide d = {1} / {n}, rest = {2} - {1} * d; {1} = rest < 0 ? 0 : rest; {0} += d; }}",
    shifted=True,
)
"""{0} the mean, {1} the sum of the squared differences from it."""
COUNT = Accumulator(("0",), "{0} += {x} ? 1 : 0;", ("+",), "{0} += {b0};", lane="int")
NAN = "{1} += {x} != {x};"
LARGEST = Accumulator(("-INF", "0"), "{0} = {x} > {0} ? {x} : {0}; " + NAN, ("max", "+"), "{0} = {b0} > {0} ? {b0} : {0}; {1} += {b1};")
SMALLEST = Accumulator(("INF", "0"), "{0} = {x} < {0} ? {x} : {0}; " + NAN, ("min", "+"), "{0} = {b0} < {0} ? {b0} : {0}; {1} += {b1};")
DOT = Accumulator(("0",), "{0} += {x} * {y};", ("+",), "{0} += {b0};")
COSINE = Accumulator(("0", "0", "0"), "{0} += {x} * {y}; {1} += {x} * {x}; {2} += {y} * {y};", ("+", "+", "+"), "{0} += {b0}; {1} += {b1}; {2} += {b2};")
HIGHEST_POWER = 4.0
"""Powers up to this one neither overflow nor underflow in `wide`."""


def of(x: Accumulator, entry: str) -> Accumulator:
    """The accumulator of a function of the entry."""
    return Accumulator(x.start, x.add.replace("{x}", entry), x.signs, x.merge)


def accumulator(e: Reduce) -> Accumulator:
    """What a reduction needs by itself."""
    match e.op:
        case "sum":
            return SUM
        case "mean":
            return MEAN
        case "var" | "std":
            return VARIANCE
        case "rms":
            return SQUARES
        case "norm":
            return _of_norm(float(e.static[0]) if e.static else 2.0)
        case "max":
            return LARGEST
        case "min":
            return SMALLEST
        case "absmax":
            return of(LARGEST, "std::abs({x})")
        case "dot":
            return DOT
        case "cosine":
            return COSINE
        case _:
            return COUNT


def _of_norm(p: float) -> Accumulator:
    if p == 2:
        return SQUARES
    if p in (float("inf"), float("-inf")):
        return of(LARGEST if p > 0 else SMALLEST, "std::abs({x})")
    if p == 0:
        return of(SUM, "({x} != {x} ? {x} : wide({x} != 0))")
    return of(SUM, "std::abs({x})" if p == 1 else f"std::pow(std::abs({{x}}), wide({p!r}))")


def is_power(e: Reduce) -> bool:
    """A norm whose entries' powers may overflow."""
    return e.op == "norm" and bool(e.static) and HIGHEST_POWER < abs(e.static[0]) < float("inf")


def result(e: Reduce, kind: Accumulator) -> str:
    """The reduction of the slots {0} {1} … of {n} entries."""
    match e.op:
        case "mean" | "sum" | "dot":
            return "double({0})"
        case "var":
            return "double({1} / {n})"
        case "std":
            return "double(std::sqrt({1} / {n}))"
        case "norm" | "rms" if kind is VARIANCE:
            size = "std::sqrt({1} + {n} * {0} * {0})" if e.op == "norm" else "std::sqrt({1} / {n} + {0} * {0})"
            return f"(is_finite({{0}}) ? double({size}) : double(std::abs({{0}})))"
        case "rms":
            return "double(std::sqrt({0} / {n}))"
        case "norm" if kind is SQUARES:
            return "double(std::sqrt({0}))"
        case "norm" if e.static[0] in (0.0, 1.0):
            return "double({0})"
        case "norm" if kind.signs[0] == "+":
            return f"double(std::pow({{0}}, wide({1 / float(e.static[0])!r})))"
        case "max" | "min" | "absmax" | "norm":
            return "({1} > 0 ? NOT_A_NUMBER : double({0}))"
        case "cosine":
            return "(({1} == 0 & {2} == {2}) | ({2} == 0 & {1} == {1}) ? 0.0 : double({0} / (std::sqrt({1}) * std::sqrt({2}))))"
        case "any":
            return "({0} > 0)"
        case _:
            return "double({0})"


def added(e: Reduce, values: Sequence[str], slots: Sequence[str]) -> Iterator[str]:
    """Statements that add one cell of these operands to the slots of n cells, as a sweep adds entries: to be settled after the last."""
    kind = accumulator(e)
    yield f"const wide {', '.join(f'{name} = {v}' for name, v in zip('xy', values, strict=False))};"
    if kind.shifted:
        yield f"if (n == 0) {slots[0]} = is_finite(x) ? x : wide(0);"
    yield statements(kind.add, slots, x="x", y="y")
    yield "n += 1;"


def one_more(e: Reduce, values: Sequence[str], slots: Sequence[str]) -> Iterator[str]:
    """Statements that add one cell of these operands to the slots of n cells, which may be none."""
    kind = accumulator(e)
    yield f"const wide {', '.join(f'{name} = {v}' for name, v in zip('xy', values, strict=False))};"
    if kind.shifted:
        parts = {f"b{i}": "x" if i == 0 else "wide(0)" for i in range(len(slots))}
        yield f"if (n == 0) {{ {' '.join(f'{s} = {p};' for s, p in zip(slots, parts.values(), strict=True))} }}"
        yield f"else {{ {statements(kind.merge, slots, **parts, n='n', m='wide(1)')} }}"
    else:
        yield statements(kind.add, slots, x="x", y="y")
    yield "n += 1;"


def statements(template: str, slots: Sequence[str], **names: str) -> str:
    """A template over these slots."""
    return template.format(*slots, **names)
