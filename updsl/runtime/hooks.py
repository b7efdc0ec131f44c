"""Step hooks of an optimizer, taken out at any time: torch walks through them during a step, and fails if one is deleted then."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

WALKER = torch.optim.Optimizer.profile_hook_step.__code__.co_filename, "wrapper"
"""File and name of the function of torch's that walks through an optimizer's hooks, before its step and after."""


def gone(*_: Any) -> None:
    """What stands in a hook's place until hooks may be deleted."""


def take_out(optimizer: Optimizer, hook: RemovableHandle) -> None:
    """The hook is not called from here on."""
    hooks = hook.hooks_dict_ref()
    if hooks is not None and hook.id in hooks and is_stepping(optimizer):
        hooks[hook.id] = gone
    else:
        hook.remove()


def sweep(optimizer: Optimizer) -> None:
    """Delete what was taken out during steps."""
    if not is_stepping(optimizer):
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            for number in [number for number, hook in hooks.items() if hook is gone]:
                del hooks[number]


def is_stepping(optimizer: Optimizer) -> bool:
    """Whether the optimizer is in the middle of a step, in this thread."""
    frame = sys._getframe()
    while frame is not None:
        if (frame.f_code.co_filename, frame.f_code.co_name) == WALKER and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False
