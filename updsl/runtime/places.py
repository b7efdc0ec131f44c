"""How tensors lie over ranks: which parts there are, and which of them a rank has and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ranks import AXES, PATTERNS, Cut, cells, counted, own, size

if TYPE_CHECKING:
    from torch.distributed.tensor.placement_types import Placement


def axis_of(p: Placement) -> str:
    """The axis of the matrix view that a placement cuts; "" for none."""
    return "" if not p.is_shard() else AXES[min(p.dim, 1)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Place:
    """How one tensor lies. shape: of the whole; local: of what this rank has. sizes, placements, coordinate: of the mesh that it lies on, a dimension each;
    none where every rank has all of it. is_here: whether this rank has a part, which may be empty. is_first: whether the ranks of the mesh count it, where
    others have the same."""

    shape: tuple[int, ...]
    local: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    placements: tuple[Placement, ...] = ()
    coordinate: tuple[int, ...] = ()
    is_here: bool = True
    is_first: bool = True

    @cached_property
    def grid(self) -> tuple[int, int]:
        return matrix_of(self.shape)

    @cached_property
    def axes(self) -> frozenset[str]:
        """The axes along which no rank need have all cells."""
        return frozenset(axis_of(p) for n, p in zip(self.sizes, self.placements, strict=True) if n > 1 and p.is_shard())

    @property
    def is_empty(self) -> bool:
        return 0 in self.local

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of what this rank takes part with."""
        return tuple(max(1, n) for n in self.local)

    def is_counted(self, axes: str) -> bool:
        """Whether this rank counts the cells along these axes that it has: the first of those that have the same."""
        if not self.is_here or not self.is_first or self.is_empty:
            return False
        return all(at == 0 or axis_of(p) in tuple(axes) for at, p in zip(self.coordinate, self.placements, strict=True))

    def cut(self, ranks: int) -> Cut:
        """The same on all of so many ranks."""
        return Cut(self.axes, frozenset(axes for axes in PATTERNS if self.is_shared(axes, ranks)), away=not self.is_here)

    def is_shared(self, axes: str, ranks: int) -> bool:
        """Whether there is a rank that has cells along these axes and does not count them."""
        cut = list(zip(self.sizes, self.placements, strict=True))
        repeated = any(n > 1 and axis_of(p) not in tuple(axes) for n, p in cut)
        return repeated or prod(self.sizes) < ranks or any(self.leaves_some_empty(n, p) for n, p in cut if p.is_shard())

    def leaves_some_empty(self, ranks: int, p: Placement) -> bool:
        """Whether a rank along a dimension of the mesh may have no entry."""
        n = self.shape[p.dim]  # type: ignore[attr-defined]
        alone = sum(1 for q in self.placements if q.is_shard() and q.dim == p.dim) == 1  # type: ignore[attr-defined]
        return -(-n // ranks) * (ranks - 1) >= n if alone else n % prod(self.sizes) != 0

    def numbers(self) -> dict[str, float]:
        """What the tensor's Program is given of how it lies: core/ranks.py names them."""
        whole, here = (dict(zip(AXES, matrix_of(shape), strict=True)) for shape in (self.shape, self.local))
        found: dict[str, float] = {size("rows"): whole["i"], size("cols"): whole["j"], size("numel"): prod(self.shape)}
        for i, n in enumerate(self.shape):
            found |= {size(f"dim({i})"): n, size(f"dim({i - len(self.shape)})"): n}
        for axes in PATTERNS:
            found[counted(axes)] = self.is_counted(axes)
            found[cells(axes)] = prod(whole[a] for a in axes)
            found |= {own(axes, gone): self.is_counted(axes) * prod(here[a] for a in gone) for gone in PATTERNS if set(gone) <= set(axes)}
        return {label: float(x) for label, x in found.items()}


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of this shape."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def lying_of(params: Mapping[str, Any], mesh: Any) -> tuple[dict[str, Place], int]:
    """How parameters lie, and on how many ranks: as DTensors say, or, of plain ones, as FSDP2 places them on a mesh: in parts of rows along its last
    dimension, alike along the others. mesh: a DeviceMesh, a number of ranks, or a tuple of them. Raises UpdslError for anything else."""
    from torch.distributed.tensor import Replicate, Shard

    sizes = tuple(mesh.size(d) for d in range(mesh.ndim)) if hasattr(mesh, "ndim") else (mesh,) if isinstance(mesh, int) else mesh
    sizes = sizes or next((tuple(x.device_mesh.size(d) for d in range(x.device_mesh.ndim)) for x in params.values() if hasattr(x, "device_mesh")), None)
    if not (isinstance(sizes, tuple) and sizes and all(isinstance(n, int) and n > 0 for n in sizes)):
        message = f"`mesh` is {mesh!r}: not a DeviceMesh, nor how many ranks there are"
        raise UpdslError(Diagnostic("placement", message, help="pass the mesh that the parameters are to lie on, or a number such as `mesh=8`"))
    ranks, found = 1, {}
    for n in sizes:
        ranks *= n
    for name, x in params.items():
        if hasattr(x, "device_mesh"):
            own = tuple(x.device_mesh.size(d) for d in range(x.device_mesh.ndim))
            found[name] = Place(tuple(x.shape), tuple(x.to_local().shape), own, tuple(x.placements), (0,) * len(own))
            continue
        shape = tuple(x.shape)
        placements = (*(Replicate() for _ in sizes[1:]), Shard(0)) if shape else tuple(Replicate() for _ in sizes)
        found[name] = Place(shape, (-(-shape[0] // sizes[-1]), *shape[1:]) if shape else (), sizes, placements, (0,) * len(sizes))
    return found, ranks
