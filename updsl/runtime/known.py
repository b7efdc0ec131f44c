"""What is known of a step from the one before it: tensors that are the same, in the same memory, or alike, need no checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter, call, is_
from weakref import ref

import numpy as np
import torch

from updsl.core.frame import Places
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


class Known:
    """The tensors of a step that was checked. written: the gradients, which nobody keeps here. read: the weights, as far as they matter; whole: they are all
    that the step has. places: of both. The same object with the same memory is the same tensor."""

    def __init__(self, written: Sequence[torch.Tensor], read: Sequence[torch.Tensor], whole: bool):
        self.written, self.read = list(map(ref, written)), list(read)
        self.form = form(written)
        self.weights = addresses(self.read)
        self.places = Places(addresses(written), self.weights if whole else None, object())
        self.sizes = np.array([x.nbytes for x in (*written, *self.read)])

    def again(self, written: list[torch.Tensor]) -> Places | None:
        """Where these gradients lie, and the weights; None where something must be checked."""
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
        if not same:
            self.written = list(map(ref, written))
        return self.places

    def are_apart(self, now: list[int]) -> bool:
        """Whether gradients at these addresses share no memory with each other or the weights."""
        return are_apart(np.array([*now, *self.weights]), self.sizes)
