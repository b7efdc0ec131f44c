"""All or nothing: what a step has computed is written in one go, or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError


def writable(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises UpdslError for a tensor that cannot be written in place: entries that share memory, with each other or with another tensor's, and
    inference tensors outside inference mode."""
    seen: dict[int, str] = {}
    for name, x in tensors.items():
        if any(stride == 0 and n > 1 for n, stride in zip(x.shape, x.stride(), strict=True)):
            raise _refused(f"{what} of `{name}` is expanded: its entries share memory", "make it dense first: `.clone()`")
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise _refused(f"{what} of `{name}` was made in inference mode, and cannot be written outside of it", "step in inference mode too")
        other = seen.setdefault(x.data_ptr(), name) if x.numel() else name
        if other != name:
            raise _refused(f"{what} of `{name}` and of `{other}` are the same memory", "give each tensor its own: `.clone()`")


def write(targets: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """targets ← values, in place, by a single operation: it is done as a whole or fails before it begins."""
    pairs = [(t, v) for t, v in zip(targets, values, strict=True) if t is not v]
    if pairs:
        torch._foreach_copy_([t for t, _ in pairs], [v for _, v in pairs])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done. (Only the main thread is interrupted.)"""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    late: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, place: late.append((number, place)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if late and callable(before):
            before(*late[0])


def _refused(message: str, help_: str) -> UpdslError:
    return UpdslError(Diagnostic("not-writable", message, help=help_))
