"""Scopes as index sets, so that order and join are derived, not tabulated.

A value of a scope has one number for each combination of the scope's indices: G (group), T (tensor), i (row), j (column),
b (block of k entries). An entry's indices determine its block, so `element` refines every block.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Scope:
    """One of the language's scopes; `size` is the k of `block(k)`, else 0."""

    name: str
    indices: frozenset[str] = field(repr=False)
    size: int = 0

    def __le__(self, other: Scope) -> bool:
        """Coarser than or equal to `other`: whatever is constant on the cells of self is on those of other."""
        return other is ELEMENT or other == ELEMENT or self.indices <= other.indices

    def __lt__(self, other: Scope) -> bool:
        return self != other and self <= other

    def __or__(self, other: Scope) -> Scope:
        """The coarsest scope that refines both."""
        if self <= other:
            return other
        return self if other <= self else ELEMENT

    def __str__(self) -> str:
        return f"block({self.size})" if self.size else self.name

    @property
    def one_for_each(self) -> str:
        """How messages name the cells: "one value for each …"."""
        match self.name:
            case "element":
                return "one value for each entry"
            case "all":
                return "one value for the whole model"
            case "block":
                return f"one value for each block of {self.size}"
            case name:
                return f"one value for each {name}"


ALL = Scope("all", frozenset())
GROUP = Scope("group", frozenset("G"))
TENSOR = Scope("tensor", frozenset("GT"))
ROW = Scope("row", frozenset("GTi"))
COLUMN = Scope("column", frozenset("GTj"))
ELEMENT = Scope("element", frozenset("GTij"))
NAMED = {s.name: s for s in (ELEMENT, ROW, COLUMN, TENSOR, GROUP, ALL)}


def block(k: int) -> Scope:
    """Runs of k consecutive entries in row-major order, k ≥ 1."""
    return Scope("block", frozenset(("G", "T", f"b{k}")), k)
