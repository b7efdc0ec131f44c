"""Units [g]^a·[w]^b as pairs of exponents, and linear equations between unknown ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

Unknown = tuple[int, str]
"""Its rank and its name. What equations leave open is 0 for the unknowns of the highest ranks first."""
FREE, STATE, PARAMETER, LITERAL = range(4)
"""Ranks: zeros, infinities and inputs; states; parameters and lr; literals."""


@dataclass(frozen=True, slots=True)
class Exponents:
    """[g]^g·[w]^w."""

    g: Fraction = Fraction(0)
    w: Fraction = Fraction(0)

    def __str__(self) -> str:
        powers = [f"[{name}]" if e == 1 else f"[{name}]^{e}" for name, e in (("g", self.g), ("w", self.w)) if e]
        return "·".join(powers) or "no unit"

    def of(self, g: float, w: float) -> float:
        """The factor that a value of this unit takes when gradients are scaled by g, and weights by w."""
        return g ** float(self.g) * w ** float(self.w)


NONE, G, W = Exponents(), Exponents(g=Fraction(1)), Exponents(w=Fraction(1))


@dataclass(frozen=True)
class Linear:
    """A sum of known exponents and multiples of unknown ones: the logarithm of a unit."""

    known: Exponents = NONE
    terms: Mapping[Unknown, Fraction] = field(default_factory=dict)

    def plus(self, other: Linear, times: Fraction | int = 1) -> Linear:
        """self + times·other."""
        terms = dict(self.terms)
        for name, k in other.terms.items():
            terms[name] = terms.get(name, Fraction(0)) + times * k
        known = Exponents(self.known.g + times * other.known.g, self.known.w + times * other.known.w)
        return Linear(known, {name: k for name, k in terms.items() if k})

    def times(self, k: Fraction) -> Linear:
        return Linear().plus(self, k)


def unknown(rank: int, name: str) -> Linear:
    return Linear(NONE, {(rank, name): Fraction(1)})


class Equations:
    """Linear equations, each solved for its unknown of the lowest rank; those that contradict earlier ones are left out."""

    def __init__(self) -> None:
        self.solved: dict[Unknown, Linear] = {}

    def add(self, a: Linear, b: Linear) -> bool:
        """Whether a = b can hold with all before; from here on it does."""
        difference = self.reduced(a.plus(b, -1))
        if not difference.terms:
            return difference.known == NONE
        pivot = min(difference.terms)
        value = Linear(NONE, {pivot: Fraction(1)}).plus(difference, -1 / difference.terms[pivot])
        self.solved = {name: _replaced(e, {pivot: value}) for name, e in self.solved.items()} | {pivot: value}
        return True

    def reduced(self, e: Linear) -> Linear:
        return _replaced(e, self.solved)

    def value(self, e: Linear) -> Exponents:
        """With 0 for what the equations leave open."""
        return self.reduced(e).known


def _replaced(e: Linear, values: Mapping[Unknown, Linear]) -> Linear:
    hit: Iterable[Unknown] = e.terms.keys() & values.keys()
    for name in sorted(hit):
        e = e.plus(Linear(NONE, {name: Fraction(1)}), -e.terms[name]).plus(values[name], e.terms[name])
    return e
