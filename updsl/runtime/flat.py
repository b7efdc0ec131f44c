"""Tensors side by side in one buffer for each type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.runtime import arrays
from updsl.runtime.bind import named
from updsl.runtime.commit import apart

ALIGNED = 64
"""Every tensor begins at a multiple of so many bytes."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is. buffer: the name of its type. room: entries up to the next tensor. axes: its axes, the one whose entries are furthest apart first."""

    buffer: str
    room: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, part: Tensor) -> Tensor:
        """This tensor's part of the buffer, as a tensor of the shape."""
        entries = part[: prod(self.shape)]
        if self.axes == tuple(range(len(self.shape))):
            return entries.view(self.shape)
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return entries.view([self.shape[axis] for axis in self.axes]).permute(back)


def flatten(params: Any) -> Flat:
    """Moves tensors, and their gradients, into one buffer for each type; they stay the same objects.

    params: a module, a dict, or pairs of (name, tensor). Parameters that require no gradient are left where they are, a tensor that comes twice is moved once,
    under its first name. Optimizers, compiled rules and references go on. Raises UpdslError, and moves nothing, for tensors on several devices, tensors that
    share memory without being the same, results of a computation, tensors of a class of their own, and those that rules do not run on.
    """
    given = {}
    seen: set[int] = set()
    for name, x in named(params).items():
        if id(x) not in seen and not (isinstance(x, torch.nn.Parameter) and not x.requires_grad):
            given[name] = x
        seen.add(id(x))
    for name, x in given.items():
        _movable(name, x)
    apart(given, "the memory")
    devices = {x.device: name for name, x in given.items()}
    if len(devices) > 1:
        (one, a), (other, b) = list(devices.items())[:2]
        raise UpdslError(Diagnostic("not-flat", f"`{a}` is on {one} and `{b}` on {other}", help="flatten the tensors of each device on their own"))
    return Flat(given)


class Flat:
    """Tensors in one buffer for each type, such as "float32"; made by `updsl.flatten`.

    params: name → tensor, the one that was given. buffers, grad_buffers: type → buffer of the tensors, and of their gradients; what is between tensors is 0.
    """

    def __init__(self, params: Mapping[str, Tensor]):
        self.places, sizes = _places(params)
        self.params = dict(params)
        like = {arrays.dtype_name(x): x for x in params.values()}
        self.buffers = {kind: torch.zeros(n, dtype=like[kind].dtype, device=like[kind].device) for kind, n in sizes.items()}
        self.grad_buffers = {kind: torch.zeros_like(x) for kind, x in self.buffers.items()}
        self._grads = self.split(self.grad_buffers)
        with torch.no_grad():
            for name, view in self.split(self.buffers).items():
                x, g = self.params[name], self.params[name].grad
                view.copy_(x)
                if g is not None:
                    self._grads[name].copy_(g)
                x.data = view
                if x.requires_grad:
                    x.grad = self._grads[name]

    @property
    def grads(self) -> dict[str, Tensor]:
        """name → gradient, a view of its buffer. Raises UpdslError if a parameter's gradient is elsewhere."""
        for name, x in self.params.items():
            if x.requires_grad and (x.grad is None or x.grad.data_ptr() != self._grads[name].data_ptr()):
                where = "None" if x.grad is None else "no longer in its buffer"
                message = f"the gradient of `{name}` is {where}"
                raise UpdslError(Diagnostic("not-flat", message, help="use `flat.zero_grad()` in the place of `optimizer.zero_grad()`"))
        return self._grads

    def zero_grad(self) -> None:
        """Sets the gradients to 0, and where they were set to None or replaced, back to views of their buffers."""
        for buffer in self.grad_buffers.values():
            buffer.zero_()
        for name, x in self.params.items():
            if x.requires_grad and (x.grad is None or x.grad.data_ptr() != self._grads[name].data_ptr()):
                x.grad = self._grads[name]

    def split(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name → view, of buffers that are laid out as these; those of types that are not given are left out. Gradients go through it."""
        for kind, buffer in buffers.items():
            if kind not in self.buffers or buffer.shape != self.buffers[kind].shape:
                have = ", ".join(f"`{k}` of {len(x)} entries" for k, x in self.buffers.items())
                raise UpdslError(Diagnostic("not-flat", f"a buffer `{kind}` of the shape {tuple(buffer.shape)} is none of these tensors': they are {have}"))
        return split(self.places, buffers)

    def names_of(self, kinds: Iterable[str]) -> list[str]:
        """The tensors in these buffers."""
        kinds = set(kinds)
        return [name for name, place in self.places.items() if place.buffer in kinds]

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """As of a module: what takes one takes this."""
        return iter(self.params.items())

    def __repr__(self) -> str:
        return f"<{len(self.params)} tensors in {', '.join(f'{len(x)} entries of {kind}' for kind, x in self.buffers.items()) or 'no buffer'}>"


def split(places: Mapping[str, Place], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """name → view. The buffers are split as wholes: then the gradient of one is put together in one go too."""
    parts = {kind: iter(x.split([place.room for place in places.values() if place.buffer == kind])) for kind, x in buffers.items()}
    return {name: place.of(next(parts[place.buffer])) for name, place in places.items() if place.buffer in buffers}


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, as views of one buffer for each type."""
    given = {str(i): x for i, x in enumerate(tensors)}
    places, sizes = _places(given)
    like = {arrays.dtype_name(x): x for x in tensors}
    buffers = {kind: torch.zeros(n, dtype=like[kind].dtype, device=like[kind].device) for kind, n in sizes.items()}
    views = split(places, buffers)
    return [views[name].copy_(x) for name, x in given.items()]


def _places(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Place], dict[str, int]]:
    """Where each tensor is put, and the sizes of the buffers."""
    sizes: dict[str, int] = {}
    places = {}
    for name, x in tensors.items():
        kind, unit = arrays.dtype_name(x), max(ALIGNED // x.element_size(), 1)
        room = -(-x.numel() // unit) * unit
        strides = torch.empty_like(x, device="meta").stride()
        axes = tuple(sorted(range(x.ndim), key=lambda axis: (-strides[axis], axis)))
        places[name] = Place(kind, room, tuple(x.shape), axes)
        sizes[kind] = sizes.get(kind, 0) + room
    return places, sizes


def _movable(name: str, x: Any) -> None:
    """Raises UpdslError for a tensor that cannot be put elsewhere."""
    arrays.supported(x, f"`{name}`")
    if type(x) not in (Tensor, torch.nn.Parameter):
        raise UpdslError(Diagnostic("not-flat", f"`{name}` is of the type {type(x).__name__}", help="flatten tensors of torch's own class"))
    if x.grad_fn is not None or x._is_view():
        what = "the result of a computation" if x.grad_fn is not None else "a view of another tensor"
        raise UpdslError(Diagnostic("not-flat", f"`{name}` is {what}, and moving it would cut the two apart", help="pass parameters, or a `.detach().clone()`"))
    if x.is_inference():
        raise UpdslError(Diagnostic("not-flat", f"`{name}` was made in inference mode, and cannot be moved", help="make it outside of it, or `.clone()` it"))
