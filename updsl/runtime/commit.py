"""All or nothing: what a step has computed is written in one go, or not at all."""

from __future__ import annotations

import _signal  # type: ignore[missing-import]  # what `signal` is made of, without the enumerations that it makes at every call
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from updsl.core.diagnostic import Diagnostic, UpdslError

WORK = 10_000
"""How many cases are tried, at most, to tell whether interleaved tensors share an entry."""


def writable(tensors: Mapping[str, torch.Tensor], what: str, read: Mapping[str, torch.Tensor] | None = None, read_what: str = "") -> None:
    """Raises UpdslError for a tensor that cannot be written in place: entries that share memory, with each other, with another tensor's or with what is read,
    and inference tensors outside inference mode."""
    if not torch.is_inference_mode_enabled():
        for name in (name for name, x in tensors.items() if x.is_inference()):
            raise _refused(f"{what} of `{name}` was made in inference mode, and cannot be written outside of it", "step in inference mode too")
    apart(tensors, what, read, read_what)


def apart(written: Mapping[str, torch.Tensor], what: str, read: Mapping[str, torch.Tensor] | None = None, read_what: str = "") -> None:
    """Raises UpdslError if an entry that is written shares memory with another: of its own tensor, of another, or of one that is read."""
    for name, x in written.items():
        if not x.is_contiguous() and shares_with_itself(x):
            raise _refused(f"{what} of `{name}` is expanded: its entries share memory", "make it dense first: `.clone()`")
    read = read or {}
    found = overlapping(list(written.values()), list(read.values()))
    if found is None:
        return
    (i, x), (j, y) = found
    names = [*written, *read]
    other, mine = names[i], names[j]
    if j < len(written):
        who = f"{what} of `{mine}` and of `{other}`"
    else:
        who = f"{what} of `{other}` and {read_what} of `{mine}`"
    raise _refused(f"{who} {'are the same' if x.data_ptr() == y.data_ptr() else 'overlap in'} memory", "give each tensor its own: `.clone()`")


Place = tuple[int, torch.Tensor]


def overlapping(written: Sequence[torch.Tensor], read: Sequence[torch.Tensor] = ()) -> tuple[Place, Place] | None:
    """Two tensors that share an entry, one of them written, with their places among all, in order; None if there are none. Where the ranges of addresses do
    not meet, as is usual, it costs a sort."""
    tensors = [*written, *read]
    begins, sizes = (np.array(list(map(of, tensors)), np.int64) for of in (torch.Tensor.data_ptr, reach))
    places = np.flatnonzero(sizes)
    if are_apart(begins[places], sizes[places]):
        return None
    ranges = sorted((int(begins[i]), int(begins[i] + sizes[i]), int(i)) for i in places)
    open_: list[tuple[int, int]] = []
    for begin, end, i in ranges:
        open_ = [(stop, j) for stop, j in open_ if stop > begin]
        for _, j in open_:
            first, last = sorted((i, j))
            if first < len(written) and share(tensors[first], tensors[last]):
                return (first, tensors[first]), (last, tensors[last])
        open_.append((end, i))
    return None


def are_apart(begins: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether ranges of addresses, none of them empty, do not meet."""
    order = begins.argsort()
    return bool(((begins + sizes)[order][:-1] <= begins[order][1:]).all())


def reach(x: torch.Tensor) -> int:
    """How many bytes there are from the first entry to the end of the last."""
    if x.is_contiguous() or not x.numel():
        return x.nbytes
    return (sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1) * x.element_size()


def share(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors whose ranges meet share an entry: they need not, if they are interleaved, as columns of a matrix are. No memory is read."""
    if x.is_contiguous() and y.is_contiguous():
        return True
    try:
        return np.shares_memory(np.asarray(_Entries(x)), np.asarray(_Entries(y)), max_work=WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Entries:
    """Where a tensor's entries are, as NumPy asks for it."""

    def __init__(self, x: torch.Tensor):
        size = x.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (x.data_ptr(), False),
            "shape": tuple(x.shape),
            "strides": tuple(n * size for n in x.stride()),
            "typestr": f"|V{size}",
        }


def shares_with_itself(x: torch.Tensor) -> bool:
    """Whether two entries of a tensor are one."""
    axes = sorted((stride, n) for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1)
    room = 1
    for stride, n in axes:
        if stride < room:
            break
        room += stride * (n - 1)
    else:
        return False
    offsets = torch.zeros((), dtype=torch.int64)
    for stride, n in axes:
        offsets = offsets[..., None] + stride * torch.arange(n)
    return axes[0][0] == 0 or offsets.unique().numel() < x.numel()


def write(targets: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """targets ← values, in place, by a single operation: it is done as a whole or fails before it begins."""
    pairs = [(t, v) for t, v in zip(targets, values, strict=True) if t is not v]
    if pairs:
        torch._foreach_copy_([t for t, _ in pairs], [v for _, v in pairs])


class uninterrupted:
    """Ctrl-C waits until the block is done. (Only the main thread is interrupted.)"""

    def __enter__(self) -> None:
        self.before: Any = None
        self.late: list[tuple[Any, Any]] = []
        if threading.current_thread() is threading.main_thread() and callable(_signal.getsignal(_signal.SIGINT)):
            self.before = _signal.signal(_signal.SIGINT, lambda number, place: self.late.append((number, place)))

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            _signal.signal(_signal.SIGINT, self.before)
            if self.late:
                self.before(*self.late[0])


def _refused(message: str, help_: str) -> UpdslError:
    return UpdslError(Diagnostic("not-writable", message, help=help_))
