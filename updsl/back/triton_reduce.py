"""Reductions in Triton: what each entry adds, how lanes and then chunks are put together, and what the result is made of.

Every lane of a program adds up its own entries in float64; then the lanes are added as a tree, and the parts of the chunks in their order, so that results are
the same from run to run. Means and variances are sums of differences from one of the entries: equal entries have exactly their value as mean and a variance
of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from updsl.core.ir import Reduce


@dataclass(frozen=True)
class Accumulator:
    """add: what the entries {x} {y} add to each slot. how: "sum", "max" or "min" of it. shifted: x is the difference from `anchor`."""

    add: tuple[str, ...]
    how: str = "sum"
    shifted: bool = False

    @property
    def start(self) -> str:
        """Of a slot."""
        return {"sum": "0.0", "max": '-float("inf")', "min": 'float("inf")'}[self.how]

    def put(self, slot: str, value: str, inside: str) -> str:
        """A statement that adds a value where `inside` holds."""
        value = f"tl.where({inside}, {value}, {self.start})" if inside else value
        if self.how == "sum":
            return f"{slot} = {slot} + {value}"
        return f"{slot} = {'larger' if self.how == 'max' else 'smaller'}({slot}, {value})"

    def over(self, slot: str, axis: int) -> str:
        """Of all lanes along an axis, which stays."""
        name = {"sum": "total", "max": "greatest", "min": "least"}[self.how]
        return f"{name}({slot}, {axis})"


SUM = Accumulator(("{x}",))
SQUARES = Accumulator(("{x} * {x}",))
MEAN = Accumulator(("{x}",), shifted=True)
VARIANCE = Accumulator(("{x}", "{x} * {x}"), shifted=True)
"""As parts: the mean, and the sum of the squared differences from it."""
SCALED = Accumulator(("scaled({x}, 0)", "scaled({x}, 1)", "scaled({x}, 2)"))
"""Squares of float64: of what is small, what is neither, and what is large, each scaled so that it is normal."""
LARGEST, SMALLEST = Accumulator(("{x}",), "max"), Accumulator(("{x}",), "min")
DOT = Accumulator(("{x} * {y}",))
COSINE = Accumulator(("{x} * {y}", "{x} * {x}", "{y} * {y}"))


def accumulator(e: Reduce, double: bool) -> Accumulator:
    """What a reduction needs by itself; double: of float64 entries, whose squares may overflow."""
    match e.op:
        case "mean":
            return MEAN
        case "var" | "std":
            return VARIANCE
        case "rms":
            return SCALED if double else SQUARES
        case "norm":
            return _of_norm(float(e.static[0]) if e.static else 2.0, double)
        case "max":
            return LARGEST
        case "min":
            return SMALLEST
        case "absmax":
            return Accumulator(("tl.abs({x})",), "max")
        case "dot":
            return DOT
        case "cosine":
            return COSINE
        case _:
            return SUM


def _of_norm(p: float, double: bool) -> Accumulator:
    if p == 2:
        return SCALED if double else SQUARES
    if p in (float("inf"), float("-inf")):
        return Accumulator(("tl.abs({x})",), "max" if p > 0 else "min")
    if p == 0:
        return Accumulator(("tl.where({x} == {x}, ({x} != 0).to(tl.float64), {x})",))
    return Accumulator(("tl.abs({x})" if p == 1 else f"power(tl.abs({{x}}), f64({p!r}))",))


def result(e: Reduce, kind: Accumulator, slots: Sequence[str], n: str) -> str:
    """The reduction of the slots of n entries."""
    a = slots[0]
    match e.op:
        case "var":
            return f"{slots[1]} / {n}"
        case "std":
            return f"tl.sqrt({slots[1]} / {n})"
        case "norm" if kind is VARIANCE:
            return f"tl.where(is_finite({a}), tl.sqrt({slots[1]} + {n} * {a} * {a}), tl.abs({a}))"
        case "rms" if kind is VARIANCE:
            return f"tl.where(is_finite({a}), tl.sqrt({slots[1]} / {n} + {a} * {a}), tl.abs({a}))"
        case "rms":
            return f"root_of({', '.join(slots)}) / tl.sqrt({n})" if kind is SCALED else f"tl.sqrt({a} / {n})"
        case "norm" if kind is SCALED:
            return f"root_of({', '.join(slots)})"
        case "norm" if kind is SQUARES:
            return f"tl.sqrt({a})"
        case "norm" if kind.how == "sum" and e.static[0] not in (0.0, 1.0):
            return f"power({a}, f64({1 / float(e.static[0])!r}))"
        case "cosine":
            dot, x, y = slots
            return f"tl.where((({x} == 0) & ({y} == {y})) | (({y} == 0) & ({x} == {x})), 0.0, {dot} / (tl.sqrt({x}) * tl.sqrt({y})))"
        case "any":
            return f"({a} > 0)"
        case _:
            return a


def settled(kind: Accumulator, anchor: str, slots: Sequence[str], n: str) -> Iterator[str]:
    """Statements that make of shifted sums the mean, and the sum of the squared differences from it."""
    if kind.shifted:
        if len(slots) > 1:
            yield f"{slots[1]} = larger({slots[1]} - {slots[0]} * ({slots[0]} / {n}), 0.0 * {slots[1]})"
        yield f"{slots[0]} = {anchor} + {slots[0]} / {n}"


def one_of(part: Sequence[str], kind: Accumulator, anchor: str, m: str) -> tuple[str, ...]:
    """What a part of m entries adds to each slot."""
    if not kind.shifted:
        return tuple(part)
    d = f"({part[0]} - {anchor})"
    return (f"{m} * {d}",) if len(part) == 1 else (f"{m} * {d}", f"{part[1]} + {m} * {d} * {d}")
