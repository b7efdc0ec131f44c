"""What a rule takes of several ranks at each step, told before training starts: reductions that they complete together, and tensors that are gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from updsl.core.frame import Tensor
from updsl.core.ir import Type
from updsl.core.ranks import axes_of, is_on_grid
from updsl.front.module import Module
from updsl.pipeline import to_sharded_engine

if TYPE_CHECKING:
    from updsl.runtime.places import Place

LONG = 1000
"""So many steps are looked at for blocks `every` that run on some of them."""


@dataclass(frozen=True)
class Collectives:
    """Of a step. first: the first of this kind. reductions: all-reduces that complete reductions; another says what takes part. gathered: tensor, value, and
    shape of what every rank is given whole; gathers: all-gathers for them, one for each dimension of the mesh along which a tensor is cut."""

    first: int
    reductions: int
    gathered: tuple[tuple[str, str, tuple[int, ...]], ...]
    gathers: int

    @property
    def number(self) -> int:
        return 1 + self.reductions + self.gathers


class Lying:
    """Tensors that lie in this way, seen from the first rank: what `Shards` is, without ranks."""

    def __init__(self, places: Mapping[str, Place], ranks: int):
        self.places, self.ranks = dict(places), ranks
        self.cuts = {name: place.cut(ranks) for name, place in places.items()}
        self.kept: dict[str, Place] = {}

    def keep_whole(self, names: Sequence[str]) -> None:
        from updsl.runtime.places import Place

        self.kept = {name: self.places[name] for name in names}
        self.places |= {name: Place(self.places[name].shape, self.places[name].shape) for name in names}
        self.cuts = {name: place.cut(self.ranks) for name, place in self.places.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].taken

    def is_cut(self, name: str, t: Type) -> bool:
        return is_on_grid(t) and bool(axes_of(t) & self.places[name].axes)


def collectives(module: Module, places: Mapping[str, Place], ranks: int, values: Mapping[str, Any]) -> list[Collectives]:
    """Of each kind of step, by the first of it. places: how each tensor lies, on the first rank."""
    lying = Lying(places, ranks)
    tensors = [Tensor(name, place.shape) for name, place in places.items() if 0 not in place.shape]
    engine = to_sharded_engine(module, tensors, values, frozenset(), True, lying)
    run: Any = engine.run
    names = [t.name for t in tensors]
    found: dict[tuple, Collectives] = {}
    for step in run.kinds(names, LONG):
        reductions, gathered = run.collectives(names, step)
        whole = [(name, stream) for name in lying.kept for stream in ("g", "w") if lying.kept[name].axes and (stream == "g" or engine.reads_weights(name))]
        what = (*((name, stream, places[name].shape) for name, stream in whole), *((n, label, size_of(places[n].grid, t)) for n, label, t in gathered))
        gathers = sum(sum(1 for n, p in zip(places[n].sizes, places[n].placements, strict=True) if n > 1 and p.is_shard()) for n, *_ in what)
        found.setdefault((reductions, what), Collectives(step, reductions, what, gathers))
    return list(found.values())


def size_of(grid: tuple[int, int], t: Type) -> tuple[int, ...]:
    """Of a value of this type on a grid."""
    return {"row": grid[:1], "column": grid[1:]}.get(t.scope.name, grid)


def lines(found: Sequence[Collectives], ranks: int) -> list[str]:
    """In words, a line for each kind of step and each thing that is gathered."""
    said = [f"on {ranks} rank{'' if ranks == 1 else 's'}"]
    for c in found:
        when = "a step" if len(found) == 1 else f"a step such as the {ordinal(c.first)}"
        parts = ["1 all-reduce of what takes part"]
        parts += [f"{c.reductions} of reductions"] if c.reductions else []
        parts += [f"{c.gathers} all-gather{'' if c.gathers == 1 else 's'}"] if c.gathers else []
        said.append(f"{when}: {c.number} collectives: {', '.join(parts)}")
        said += [f"  gathers `{label}` of {name}, {' × '.join(map(str, shape))}" for name, label, shape in c.gathered]
    return said


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
