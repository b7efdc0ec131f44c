"""Models whose parameters lie in parts on several ranks: DTensors (FSDP2, tensor parallelism), and stages of a pipeline.

A rule runs on what each rank has; what it reduces is completed by one all-reduce for the whole model between its sweeps. All ranks step together, on the same
tensors. A rank that has no entry of a tensor takes part with a row of zeros that is not counted anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
from updsl.core.ranks import PATTERNS, Cut, axes_of, is_on_grid
from updsl.runtime.places import Place

DIRECT = (1.0, 8.0)
"""Powers p for which |x|^p of a float32 number neither overflows nor underflows float64."""
NOTHING = {"max": -inf, "min": inf}
"""What changes nothing, where it is not 0."""


def mine(x: Tensor) -> Tensor:
    """What this rank has of a tensor, in its own memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def cut(x: Tensor, like: DTensor) -> Tensor:
    """What this rank has of a whole tensor that is to lie as another does."""
    mesh = like.device_mesh
    return mine(DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(placements=like.placements))


def ranks_of(mesh: DeviceMesh) -> tuple[int, ...]:
    """All ranks of a mesh."""
    return tuple(mesh.mesh.flatten().tolist())


def group_of_all(meshes: Mapping[str, DeviceMesh], mesh: DeviceMesh | dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Of all ranks that have a part of the model: those of `mesh`, else of the largest mesh of a parameter. Raises UpdslError if a parameter lies on others."""
    if isinstance(mesh, dist.ProcessGroup):
        return mesh
    if mesh is None:
        mesh = max(meshes.values(), key=lambda m: m.size())
        other = next((name for name, m in meshes.items() if not set(ranks_of(m)) <= set(ranks_of(mesh))), None)
        if other is not None:
            raise refused(f"`{other}` lies on the ranks {ranks_of(meshes[other])}, and others on {ranks_of(mesh)}", "pass `mesh=`, of all ranks")
    if not isinstance(mesh, DeviceMesh):
        raise refused(f"`mesh` is a {type(mesh).__name__}, and neither a DeviceMesh nor a ProcessGroup", "pass the mesh of all ranks")
    return mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()


@dataclass(frozen=True)
class Held:
    """What a rank says of a parameter that it has: shape and type of the whole, its group, how it lies, and the ranks that have a part of it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    group: int
    cut: Cut
    ranks: tuple[int, ...]


class Shards:
    """The tensors of a model by name, on the ranks that have a part of them.

    parameters: those of this rank; group_of: their groups. rule: its name, for messages. mesh: of all ranks that have a part of the model, if they are more
    than those that its parameters' own meshes name: the stages of a pipeline. Made by all of them together.
    """

    def __init__(self, parameters: Mapping[str, Tensor], group_of: Mapping[str, int], rule: str, mesh: DeviceMesh | dist.ProcessGroup | None = None):
        self.rule = rule
        self.meshes = {name: x.device_mesh for name, x in parameters.items() if isinstance(x, DTensor)}
        self.group = group_of_all(self.meshes, mesh)
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.device = next((mine(x).device for x in parameters.values()), torch.device("cpu"))
        own = [self.held(name, x, group_of[name]) for name, x in parameters.items()]
        said = self.said(own) if mesh is not None else [self.agreed_on(own)]
        first: dict[str, Held] = {}
        for held in said:
            for h in held:
                self.refuse_unlike(first.setdefault(h.name, h), h)
        self.absent = {name for name in first if any(name not in {h.name for h in held} for held in said)}
        self.held_by = first
        self.places = {name: self.place(h, parameters.get(name)) for name, h in first.items()}
        self.cuts = {name: replace(h.cut, away=name in self.absent) for name, h in first.items()}
        self._cells: dict[tuple[str, str], Tensor] = {}

    def held(self, name: str, x: Tensor, group: int) -> Held:
        """Raises UpdslError for a sum that is not done."""
        if not isinstance(x, DTensor):
            return Held(name, tuple(x.shape), x.dtype, group, Place(tuple(x.shape), tuple(x.shape)).cut(self.size), (dist.get_rank(),))
        if any(p.is_partial() for p in x.placements):
            raise refused(f"`{name}` is {x.placements}: a sum of what the ranks have", "redistribute it: `p.redistribute(placements=[Replicate()])`")
        return Held(name, tuple(x.shape), x.dtype, group, self.own_place(x, True).cut(self.size), ranks_of(x.device_mesh))

    def own_place(self, x: DTensor, is_first: bool) -> Place:
        mesh = x.device_mesh
        sizes = tuple(mesh.size(d) for d in range(mesh.ndim))
        return Place(tuple(x.shape), tuple(x.to_local().shape), sizes, tuple(x.placements), tuple(mesh.get_coordinate() or ()), is_first=is_first)

    def place(self, h: Held, x: Tensor | None) -> Place:
        """How a tensor of the model lies; one of another stage is without rows here."""
        if x is None:
            return Place(h.shape, (0, *h.shape[1:]), is_here=False)
        if isinstance(x, DTensor):
            return self.own_place(x, h.ranks[0] in ranks_of(x.device_mesh))
        return Place(h.shape, h.shape, is_first=dist.get_rank() == h.ranks[0])

    def said(self, own: list[Held]) -> list[list[Held]]:
        """What each rank has."""
        found: list[Any] = [None] * self.size
        self.together("the exchange of what each rank has", lambda: dist.all_gather_object(found, own, group=self.group))
        return found

    def agreed_on(self, own: list[Held]) -> list[Held]:
        """What the first rank has: the same. Raises UpdslError on all ranks unless all have the same tensors."""
        number = int(hashlib.sha256(repr([(h.name, h.shape, h.group) for h in own]).encode()).hexdigest()[:12], 16)
        each = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        each[self.rank] = number
        if len(set(self.added(each, "the all-reduce that compares the ranks' parameters").tolist())) > 1:
            message = f"the ranks do not have the same parameters, in the same order, for `{self.rule}`"
            raise refused(message, "build the model and its groups alike on all ranks; for stages of a pipeline pass `mesh=`, of all ranks")
        return [replace(h, ranks=tuple(dist.get_process_group_ranks(self.group))) for h in own]

    def refuse_unlike(self, h: Held, other: Held) -> None:
        if (h.shape, h.group, h.cut) != (other.shape, other.group, other.cut):
            message = (
                f"`{h.name}` is of shape {h.shape} in group {h.group} on one rank, and of {other.shape} in group {other.group} on another, or lies otherwise"
            )
            raise refused(message, "give tensors of different stages different names, and all stages the same groups")

    def keep_whole(self, names: Collection[str]) -> None:
        """Tensors of which every rank takes all: blocks of entries go across parts."""
        for name in names:
            place = self.places[name]
            self.places[name] = Place(place.shape, place.shape, is_here=place.is_here, is_first=place.is_first and not any(place.coordinate))
            self.cuts[name] = Cut(frozenset(), self.cuts[name].shared | frozenset(PATTERNS), name in self.absent)
            self.meshes.pop(name, None)

    # --- parts of tensors --------------------------------------------------------------------------------------------

    def nothing(self, name: str) -> Tensor:
        """What a rank takes part with that has no entry of a tensor."""
        return torch.zeros(self.places[name].taken, dtype=self.held_by[name].dtype, device=self.device)

    def local(self, name: str, x: Tensor, what: str) -> Tensor:
        """What this rank takes part with of a parameter, or of its gradient. Raises UpdslError if it lies otherwise than the parameter."""
        place, mesh = self.places[name], self.meshes.get(name)
        if isinstance(x, DTensor):
            if mesh is None:
                return self.together(f"the all-gather of `{name}`", x.full_tensor)
            if (x.device_mesh, tuple(x.placements)) != (mesh, place.placements):
                message = f"{what} `{name}` lies otherwise than the parameter: {lying(x.device_mesh, x.placements)}, not {lying(mesh, place.placements)}"
                raise refused(message, "`redistribute` it to the parameter's placements before the step")
            x = x.to_local()
        elif mesh is not None:
            raise refused(f"{what} `{name}` is no DTensor, and the parameter is one", "let autograd make it, or `distribute_tensor`")
        return self.nothing(name).to(x.dtype) if place.is_empty else x

    def shape(self, name: str) -> tuple[int, ...]:
        """Of what this rank takes part with."""
        return self.places[name].taken

    def is_cut(self, name: str, t: Type) -> bool:
        """Whether this rank has a part, if any, of a value of this type."""
        place = self.places[name]
        axes = place.axes if place.is_here else frozenset("i") if place.is_empty else frozenset()
        return is_on_grid(t) and bool(axes_of(t) & axes)

    def numbers(self, name: str) -> dict[str, float]:
        """What the tensor's Program is given of how it lies."""
        return self.places[name].numbers()

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
        if not self.is_cut(name, t):
            return x
        shape, placements = self.view(name, t)
        lead = tuple(x.shape[: 1 if t.window else 0])
        first, last = {"row": (0, 1), "column": (1, len(place.shape))}.get(t.scope.name, (0, len(place.shape)))
        part = x.reshape(*lead, *place.taken[first:last])[(slice(None),) * len(lead) + tuple(slice(0, n) for n in place.local[first:last])]
        whole = (*lead, *shape)
        stride = tuple(prod(whole[i + 1 :]) for i in range(len(whole)))
        return DTensor.from_local(part.contiguous(), self.meshes[name], placements, run_check=False, shape=torch.Size(whole), stride=stride)

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
        if not self.places[name].is_here:
            lead, whole = x.shape[: 1 if t.window else 0], self.view(name, t)[0]
            return x.new_zeros(*lead, *(whole if t.scope.name == "element" else (prod(whole),)))
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
        if not self.places[name].is_here:
            return x.narrow(1 if t.window else 0, 0, 1)
        mesh = self.meshes[name]
        shape, placements = self.view(name, t)
        whole = DTensor.from_local(x.reshape(*x.shape[: 1 if t.window else 0], *shape), mesh, [Replicate()] * mesh.ndim, run_check=False)
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
