"""What is known of a step from the one before it: tensors that are the same, in the same memory, or alike, need no checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter, call, is_
from typing import Any, Protocol
from weakref import ref

import numpy as np
import torch

from updsl.core.frame import Frame, Places
from updsl.runtime.commit import are_apart

Form = tuple[list[torch.dtype], list[torch.Size], list[torch.device]]


def addresses(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Of tensors: a tensor may be given other memory."""
    return list(map(torch.Tensor.data_ptr, tensors))


def form(tensors: Sequence[torch.Tensor]) -> Form | None:
    """Types, shapes and devices of tensors; None unless they are plain and dense, and no graph hangs on them."""
    if set(map(type, tensors)) != {torch.Tensor}:
        return None
    if not all(map(torch.Tensor.is_contiguous, tensors)) or any(map(torch.Tensor.is_inference, tensors)) or any(map(attrgetter("requires_grad"), tensors)):
        return None
    return list(map(attrgetter("dtype"), tensors)), list(map(attrgetter("shape"), tensors)), list(map(attrgetter("device"), tensors))


def like(frame: Frame, g: dict[str, Any], params: dict[int, dict[str, Any]], lr: dict[int, Any], places: Places | None) -> Frame:
    """The frame with these gradients and numbers."""
    return Frame(g, frame.w, frame.group_of, lr, params, frame.inputs, frame.batch, frame.seed, frame.consumed, places)


class Stays(Protocol):
    """Tells whether tensors are the same as before, dense, in the same memory."""

    def stay(self, tensors: list[torch.Tensor]) -> bool: ...


Where = Callable[[Sequence[torch.Tensor]], Stays | None]


class Known:
    """The tensors of a step that was checked. written: the gradients, which nobody keeps here. read: the weights, as far as they matter; whole: they are all
    that the step has. places: of both. The same object with the same memory is the same tensor. where: tensors → what tells, faster, whether they stay."""

    def __init__(self, written: Sequence[torch.Tensor], read: Sequence[torch.Tensor], whole: bool, where: Where | None = None):
        self.where, self.stays = where, list[Stays]()
        self.written, self.read = self.watched(written), list(read)
        self.form = form(written)
        self.weights = addresses(self.read)
        self.places = Places(addresses(written), self.weights if whole else None, object())
        self.sizes = np.array([x.nbytes for x in (*written, *self.read)])

    def again(self, written: list[torch.Tensor]) -> Places | None:
        """Where these gradients lie, and the weights; None where something must be checked."""
        if self.stays and all(s.stay(xs) for s, xs in zip(self.stays, (written, self.read), strict=True)):
            return self.places
        self.stays.clear()
        if addresses(self.read) != self.weights:
            return None
        same = len(written) == len(self.written) and all(map(is_, written, map(call, self.written)))
        if not same and (self.form is None or form(written) != self.form):
            return None
        now = addresses(written)
        if now != self.places.g:
            if not self.are_apart(now):
                return None
            self.places = replace(self.places, g=now)
        elif same and self.where is not None:
            self.stays += [s for xs in (written, self.read) if (s := self.where(xs)) is not None]
        if not same:
            self.written = self.watched(written)
        return self.places

    def watched(self, tensors: Sequence[torch.Tensor]) -> list[ref[torch.Tensor]]:
        """References; where a tensor is gone, its identity is another's soon."""
        stays = self.stays
        return [ref(x, lambda _: stays.clear()) for x in tensors]

    def are_apart(self, now: list[int]) -> bool:
        """Whether gradients at these addresses share no memory with each other or the weights."""
        return are_apart(np.array([*now, *self.weights]), self.sizes)
