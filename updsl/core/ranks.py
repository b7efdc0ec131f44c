"""Tensors of which every rank has a part: how they lie, what a rank is given for each, and which nodes of a Program take more than its part."""

from __future__ import annotations

from dataclasses import dataclass

from updsl.core.ir import Apply, Expr, Reduce, Type
from updsl.core.ops import OPS

AXES = "ij"
"""Rows and columns, as scopes name them."""
SIZES = ("rows", "cols", "numel")
PATTERNS = ("", "i", "j", "ij")
"""Along which axes the cells of a value vary."""


def counted(axes: str) -> str:
    """Name of the input: 1 where this rank counts the cells that vary along these axes, else 0."""
    return f"[counted {axes}]"


def own(axes: str, gone: str) -> str:
    """Name of the input: how many of the cells that vary along `axes` this rank has, and counts, for each of those that differ in the axes `gone` alone."""
    return f"[own {axes} {gone}]"


def cells(axes: str) -> str:
    """Name of the input: how many cells the whole tensor has along these axes."""
    return f"[cells {axes}]"


def size(name: str) -> str:
    """Name of the input for a size of the whole tensor: `rows`, `cols`, `numel`, `dim(0)`."""
    return f"[{name}]"


@dataclass(frozen=True, slots=True)
class Cut:
    """How the tensors of a class lie over the ranks. axes: those along which no rank need have all cells. shared: "", "i", "j" and "ij", if there is a rank
    that does not count the cells along these axes that it has. away: whether there are ranks without the tensor."""

    axes: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    away: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every rank has all of the tensor."""
        return not self.axes and not self.away


def axes_of(t: Type) -> frozenset[str]:
    """The axes along which a value on the parameter's grid varies."""
    return frozenset(AXES) if t.scope.size else t.scope.indices & frozenset(AXES)


def is_on_grid(t: Type) -> bool:
    """Whether a value lies on the parameter's own grid, so that a rank may have a part of it."""
    match t.scope.name:
        case "element":
            return (t.rows, t.cols) in (("rows", "cols"), (None, None))
        case "row":
            return t.rows in (None, "rows")
        case "column":
            return t.cols in (None, "cols")
        case _:
            return True


def is_of_ranks(n: Expr) -> bool:
    """Whether a node takes a collective, or whole tensors: what no sweep of one rank's part computes."""
    if not is_on_grid(n.type):
        return True
    match n:
        case Apply(op="total" | "pooled" | "gathered"):
            return True
        case Apply(op=op, args=args):
            return OPS[op].kind == "matrix" or (OPS[op].kind == "random" and bool(axes_of(n.type))) or any(map(is_gathered, args))
        case Reduce(args=args):
            return any(is_gathered(a) or not is_on_grid(a.type) for a in args)
        case _:
            return False


def is_gathered(e: Expr) -> bool:
    return isinstance(e, Apply) and e.op == "gathered"


def along(t: Type) -> str:
    """The axes that cells of this type vary along, as a text."""
    have = axes_of(t)
    return "".join(a for a in AXES if a in have)
