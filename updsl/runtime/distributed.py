"""Models whose parameters lie in parts on several ranks: DTensors (FSDP2, tensor parallelism), and stages of a pipeline.

A rule runs on what each rank has; what it reduces is completed by one all-reduce for the whole model between its sweeps. All ranks step together, on the same
tensors. A rank that has no entry of a tensor takes part with a row of zeros that is not counted anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from updsl.back.torch_sharded import Total
from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ir import Type
from updsl.core.ranks import AXES, PATTERNS, Cut, axes_of, cells, counted, is_on_grid, own, size

DIRECT = (1.0, 8.0)
"""Powers p for which |x|^p of a float32 number neither overflows nor underflows float64."""
NOTHING = {"max": -inf, "min": inf}
"""What changes nothing, where it is not 0."""


def is_sharded(x: Any) -> bool:
    """Whether a parameter lies in parts on several ranks."""
    return isinstance(x, DTensor)


def mine(x: Tensor) -> Tensor:
    """What this rank has of a tensor, in its own memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def cut(x: Tensor, like: DTensor) -> Tensor:
    """What this rank has of a whole tensor that is to lie as another does."""
    mesh = like.device_mesh
    return mine(DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(placements=like.placements))


def axis_of(p: Placement) -> str:
    """The axis of the matrix view that a placement cuts; "" for none."""
    return "" if not p.is_shard() else AXES[min(p.dim, 1)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Place:
    """How one tensor lies. shape: of the whole. mesh: None where this rank has all of it, or nothing. is_here: whether it is a parameter of this rank. counts:
    whether this rank is the first of those that have the tensor, but for the mesh."""

    shape: tuple[int, ...]
    mesh: DeviceMesh | None
    placements: tuple[Placement, ...]
    local: tuple[int, ...]
    is_here: bool = True
    counts: bool = True

    @cached_property
    def grid(self) -> tuple[int, int]:
        return (self.shape[0], prod(self.shape[1:])) if self.shape else (1, 1)

    @cached_property
    def local_grid(self) -> tuple[int, int]:
        return (self.local[0], prod(self.local[1:])) if self.local else (1, 1)

    @cached_property
    def axes(self) -> frozenset[str]:
        return frozenset(filter(None, map(axis_of, self.placements)))

    @property
    def is_empty(self) -> bool:
        return 0 in self.local

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of what this rank takes part with."""
        return tuple(max(1, n) for n in self.local)

    def is_counted(self, axes: str) -> bool:
        """Whether this rank counts the cells along these axes that it has: the first of those that have the same."""
        if not self.is_here or not self.counts or self.is_empty:
            return False
        coordinate = (0,) * len(self.placements) if self.mesh is None else self.mesh.get_coordinate() or ()
        return all(at == 0 or axis_of(p) in tuple(axes) for at, p in zip(coordinate, self.placements, strict=True))

    def is_shared(self, axes: str, ranks: int) -> bool:
        """Whether there is a rank that has cells along these axes and does not count them; the same on all ranks."""
        if self.mesh is None:
            return ranks > 1
        sizes = [self.mesh.size(d) for d in range(self.mesh.ndim)]
        repeated = any(n > 1 and axis_of(p) not in tuple(axes) for n, p in zip(sizes, self.placements, strict=True))
        return repeated or self.mesh.size() < ranks or any(self.leaves_some_empty(n, p) for n, p in zip(sizes, self.placements, strict=True) if p.is_shard())

    def leaves_some_empty(self, ranks: int, p: Placement) -> bool:
        """Whether a rank along a dimension of the mesh may have no entry."""
        n = self.shape[p.dim]  # type: ignore[attr-defined]
        alone = sum(1 for q in self.placements if q.is_shard() and q.dim == p.dim) == 1  # type: ignore[attr-defined]
        return -(-n // ranks) * (ranks - 1) >= n if alone else n % prod(self.mesh.size(d) for d in range(self.mesh.ndim)) != 0  # type: ignore[union-attr]


class Shards:
    """The tensors of a model by name, on the ranks that have a part of them. rule: its name, for messages. group: all ranks."""

    def __init__(self, parameters: Mapping[str, Tensor], rule: str):
        self.rule = rule
        meshes = {x.device_mesh: name for name, x in parameters.items() if isinstance(x, DTensor)}
        self.mesh = max(meshes, key=lambda m: m.size())
        self.ranks = set(self.mesh.mesh.flatten().tolist())
        for mesh, name in meshes.items():
            if not set(mesh.mesh.flatten().tolist()) <= self.ranks:
                raise refused(f"`{name}` lies on other ranks than `{meshes[self.mesh]}`", "attach to each model by itself")
        self.group = self.mesh.get_group() if self.mesh.ndim == 1 else self.mesh._flatten().get_group()
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.device = next(x for x in parameters.values() if isinstance(x, DTensor)).to_local().device
        self.places = {name: self.place(name, x) for name, x in parameters.items()}
        self.cuts = {name: self.cut_of(place) for name, place in self.places.items()}
        self._cells: dict[tuple[str, str], Tensor] = {}
        self.agree_on({name: place.shape for name, place in self.places.items()})

    def agree_on(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises UpdslError on all ranks unless all have the same tensors."""
        mine = int(hashlib.sha256(json.dumps(list(shapes.items())).encode()).hexdigest()[:12], 16)
        each = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        each[self.rank] = mine
        if len(set(self.added(each, "the all-reduce that compares the ranks' tensors").tolist())) > 1:
            message = f"the ranks do not have the same parameters, or not in the same order, for `{self.rule}`"
            raise refused(message, "build the model, and its parameter groups, alike on all ranks")

    def keep_whole(self, names: Collection[str]) -> None:
        """Tensors of which every rank takes all: blocks of entries go across parts."""
        for name in names:
            self.places[name] = replace(self.places[name], mesh=None, placements=(), local=self.places[name].shape, counts=self.rank == 0)
            self.cuts[name] = self.cut_of(self.places[name])

    def place(self, name: str, x: Tensor) -> Place:
        """How a parameter lies. Raises UpdslError for a sum that is not done."""
        if not isinstance(x, DTensor):
            return Place(tuple(x.shape), None, (), tuple(x.shape), counts=self.rank == 0)
        if any(p.is_partial() for p in x.placements):
            raise refused(f"`{name}` is {x.placements}: a sum of what the ranks have", "redistribute it: `p.redistribute(placements=[Replicate()])`")
        first = self.mesh.mesh.flatten()[0].item() in x.device_mesh.mesh.flatten().tolist()
        return Place(tuple(x.shape), x.device_mesh, tuple(x.placements), tuple(x.to_local().shape), counts=first)

    def cut_of(self, place: Place) -> Cut:
        shared = frozenset(axes for axes in PATTERNS if place.is_shared(axes, self.size))
        return Cut(place.axes, shared, away=not place.is_here)

    # --- parts of tensors --------------------------------------------------------------------------------------------

    def local(self, name: str, x: Tensor, what: str) -> Tensor:
        """What this rank takes part with of a parameter, or of its gradient. Raises UpdslError if it lies otherwise than the parameter."""
        place = self.places[name]
        if isinstance(x, DTensor):
            if place.mesh is None:
                return self.together(f"the all-gather of `{name}`", x.full_tensor)
            if (x.device_mesh, tuple(x.placements)) != (place.mesh, place.placements):
                message = f"{what} `{name}` lies otherwise than the parameter: {lying(x.device_mesh, x.placements)}, not {lying(place.mesh, place.placements)}"
                raise refused(message, "`redistribute` it to the parameter's placements before the step")
            x = x.to_local()
        elif place.mesh is not None:
            raise refused(f"{what} `{name}` is no DTensor, and the parameter is one", "let autograd make it, or `distribute_tensor`")
        return x.new_zeros(place.taken) if place.is_empty else x

    def shape(self, name: str) -> tuple[int, ...]:
        """Of what this rank takes part with."""
        return self.places[name].taken

    def is_cut(self, name: str, t: Type) -> bool:
        """Whether this rank has a part, if any, of a value of this type."""
        return is_on_grid(t) and bool(axes_of(t) & self.places[name].axes)

    def numbers(self, name: str) -> dict[str, float]:
        """What the tensor's Program is given of how it lies: core/ranks.py names them."""
        place = self.places[name]
        whole, here = (dict(zip(AXES, grid, strict=True)) for grid in (place.grid, place.local_grid))
        found: dict[str, float] = {size("rows"): whole["i"], size("cols"): whole["j"], size("numel"): prod(place.shape)}
        found |= {size(f"dim({i})"): n for i, n in enumerate(place.shape)}
        found |= {size(f"dim({i - len(place.shape)})"): n for i, n in enumerate(place.shape)}
        for axes in PATTERNS:
            found[counted(axes)] = float(place.is_counted(axes))
            found[cells(axes)] = prod(whole[a] for a in axes)
            found |= {own(axes, gone): place.is_counted(axes) * prod(here[a] for a in gone) for gone in PATTERNS if set(gone) <= set(axes)}
        return {label: float(x) for label, x in found.items()}

    def view(self, name: str, t: Type) -> tuple[tuple[int, ...], list[Placement]]:
        """The shape, without what leads, and the placements of a whole value of this type."""
        place = self.places[name]
        lead = 1 if t.window else 0
        first, last = {"row": (0, 1), "column": (1, len(place.shape))}.get(t.scope.name, (0, len(place.shape)))

        def moved(p: Placement) -> Placement:
            if not p.is_shard() or not first <= p.dim < last:  # type: ignore[attr-defined]
                return Replicate()
            more = {"split_factor": p.split_factor} if hasattr(p, "split_factor") else {}
            return type(p)(p.dim - first + lead, **more)  # type: ignore[attr-defined, call-arg]

        return place.shape[first:last], [moved(p) for p in place.placements]

    def wrap(self, name: str, x: Tensor, t: Type) -> Tensor:
        """A value of which this rank has a part, as a DTensor; one of rows or columns has the parameter's own dimensions there."""
        place = self.places[name]
        if not self.is_cut(name, t) or place.mesh is None:
            return x
        shape, placements = self.view(name, t)
        lead = tuple(x.shape[: 1 if t.window else 0])
        first, last = {"row": (0, 1), "column": (1, len(place.shape))}.get(t.scope.name, (0, len(place.shape)))
        part = x.reshape(*lead, *place.taken[first:last])[(slice(None),) * len(lead) + tuple(slice(0, n) for n in place.local[first:last])]
        whole = (*lead, *shape)
        stride = tuple(prod(whole[i + 1 :]) for i in range(len(whole)))
        return DTensor.from_local(part.contiguous(), place.mesh, placements, run_check=False, shape=torch.Size(whole), stride=stride)

    def unwrap(self, name: str, x: Tensor, t: Type) -> Tensor:
        """The inverse of `wrap`."""
        if not isinstance(x, DTensor):
            return x
        part = x.to_local()
        part = part.new_zeros([max(1, n) for n in part.shape]) if 0 in part.shape else part
        lead = part.shape[: 1 if t.window else 0]
        return part if t.scope.name == "element" else part.reshape(*lead, -1)

    def gather(self, name: str, x: Tensor, t: Type) -> Tensor:
        """The whole of a value of which every rank has a part."""
        if x.dtype == torch.bool:
            return self.gather(name, x.to(torch.uint8), t).to(torch.bool)
        wrapped = self.wrap(name, x, t)
        assert isinstance(wrapped, DTensor)
        whole = self.together(f"the all-gather of `{name}`", wrapped.full_tensor)
        return whole if t.scope.name == "element" else whole.reshape(*whole.shape[: 1 if t.window else 0], -1)

    def cut(self, name: str, x: Any, t: Type) -> Any:
        """What this rank takes part with of a whole value."""
        if isinstance(x, tuple):
            return tuple(self.cut(name, part, t) for part in x)
        place = self.places[name]
        assert place.mesh is not None
        shape, placements = self.view(name, t)
        whole = DTensor.from_local(x.reshape(*x.shape[: 1 if t.window else 0], *shape), place.mesh, [Replicate()] * place.mesh.ndim, run_check=False)
        return self.unwrap(name, whole.redistribute(placements=placements), t).contiguous()

    # --- collectives -------------------------------------------------------------------------------------------------

    def together(self, what: str, collective: Callable[[], Any]) -> Any:
        """The result of a collective. Raises UpdslError, naming the rule and what it was for, if a rank does not come."""
        try:
            return collective()
        except RuntimeError as error:
            message = f"`{self.rule}` waited for the other ranks in vain, in {what}: {error}"
            raise UpdslError(
                Diagnostic("rank-missing", message, help="see what became of the other ranks; start all of them again from a checkpoint")
            ) from error

    def added(self, x: Tensor, what: str) -> Tensor:
        """The sum over all ranks, in place."""
        self.together(what, lambda: dist.all_reduce(x, group=self.group))
        return x

    def agreed(self, flags: Sequence[bool]) -> list[int]:
        """How many ranks say so, for each flag. One all-reduce, which the host reads."""
        numbers = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return [int(n) for n in self.added(numbers, "the all-reduce of what takes part").tolist()]

    def totals(self, what: Sequence[Total]) -> list[Tensor]:
        """Reductions over what all ranks have, in float64: one all-reduce. Sums are added up; of what is none, each rank's own goes into a place of its
        own."""
        summed: list[Tensor] = []
        each: list[Tensor] = []
        for total in what:
            parts = [self.spread(total, x) for x in torch.broadcast_tensors(*(x.to(self.device, torch.float64) for x in total.here))]
            if total.how == "pooled":
                n, mean, var = parts
                summed.append(torch.cat([torch.where(n > 0, x, 0.0) for x in (n, n * mean, n * var + n * mean * mean)]))
            elif is_sum(total):
                summed.append(parts[0] ** power(total))
            else:
                each.append(parts[0])
        slots = torch.zeros(self.size, sum(x.numel() for x in each), dtype=torch.float64, device=self.device)
        if each:
            slots[self.rank] = torch.cat(each)
        buffer = self.added(torch.cat([*summed, slots.flatten()]), f"the all-reduce of {len(what)} reductions")
        sums, slots = buffer[: buffer.numel() - slots.numel()], buffer[buffer.numel() - slots.numel() :].reshape(slots.shape)
        done = iter(sums.split([x.numel() for x in summed]))
        by_rank = iter(slots.split([x.numel() for x in each], dim=1))
        return [self.here(total, finished(total, next(done if is_sum(total) else by_rank))) for total in what]

    def spread(self, total: Total, x: Tensor) -> Tensor:
        """What this rank has, as a vector of all cells: where ranks have different ones, each in its place, among what changes nothing."""
        if not self.is_cut(total.tensor, total.type):
            return x.flatten()
        place = self.places[total.tensor]
        whole = torch.full((place.grid[total.type.scope.name == "column"],), NOTHING.get(total.how, 0.0), dtype=x.dtype, device=x.device)
        return whole if place.is_empty else whole.index_copy(0, self.cells_of(total), x.flatten())

    def here(self, total: Total, x: Tensor) -> Tensor:
        """Of all cells those that this rank has, in their shape."""
        shape = total.here[-1].shape
        return (x[self.cells_of(total)] if self.is_cut(total.tensor, total.type) else x).reshape(shape)

    def cells_of(self, total: Total) -> Tensor:
        """Which of all rows, or columns, this rank has."""
        key = total.tensor, total.type.scope.name
        if key not in self._cells:
            n = self.places[total.tensor].grid[key[1] == "column"]
            self._cells[key] = self.cut(total.tensor, torch.arange(n, device=self.device), total.type)
        return self._cells[key]


def power(total: Total) -> float:
    """Of what is added up."""
    return float(total.how.removeprefix("norm ")) if total.how.startswith("norm") else 1.0


def is_sum(total: Total) -> bool:
    """Whether the ranks' own are added up, powers of norms among them. Of one number for each tensor, or fewer, norms are taken of all ranks' norms instead:
    nothing overflows."""
    if total.how.startswith("norm"):
        return DIRECT[0] <= power(total) <= DIRECT[1] and bool(axes_of(total.type))
    return total.how in ("sum", "pooled")


def finished(total: Total, x: Tensor) -> Tensor:
    """A reduction, of sums over all ranks or of what each of them has."""
    match total.how:
        case "sum":
            return x
        case "pooled":
            n, first, second = x.chunk(3)
            mean = first / n
            return torch.clamp(second / n - mean * mean, min=0.0)
        case "max":
            return x.amax(0)
        case "min":
            return x.amin(0)
        case _:
            return x ** (1 / power(total)) if is_sum(total) else torch.linalg.vector_norm(x, power(total), dim=0)


def lying(mesh: DeviceMesh, placements: Sequence[Placement]) -> str:
    """How a tensor lies, in words."""
    return f"{', '.join(map(str, placements))} on the ranks {mesh.mesh.tolist()}"


def refused(message: str, help_: str) -> UpdslError:
    return UpdslError(Diagnostic("placement", message, help=help_))
