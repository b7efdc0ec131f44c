"""torch's GradScaler: which of the gradients are multiples of a scale still, and which steps it leaves out because it found infinite ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from updsl.core.diagnostic import Diagnostic, UpdslError

STEP = GradScaler.step.__code__


def scale_of(optimizer: Optimizer, optimizers: Sequence[Optimizer], rule: str) -> torch.Tensor | None:
    """What a step's gradients are multiples of: fused optimizers unscale them themselves. Raises UpdslError where the rule needs the gradients of several
    optimizers, and some of them are scaled."""
    scale = getattr(optimizer, "grad_scale", None)
    if len(optimizers) == 1:
        return scale
    stages = stepping(optimizers)
    scaled = optimizer if scale is not None else next((o for o in optimizers if stages and o not in stages and has_gradients(o)), None)
    if scaled is not None:
        message = f"GradScaler hands over scaled gradients of {type(scaled).__name__}, and `{rule}` needs those of all its optimizers"
        raise UpdslError(Diagnostic("scaled-gradients", message, help="call `scaler.unscale_(optimizer)` for each of them before the first steps"))
    return None


def found_inf(optimizer: Optimizer, optimizers: Sequence[Optimizer]) -> list[torch.Tensor]:
    """Flags of the optimizers, above 0 where a GradScaler that is now in a step found gradients of theirs that are not finite."""
    own = getattr(optimizer, "found_inf", None)
    others = [flag for found in stepping(optimizers).values() for flag in found] if len(optimizers) > 1 else []
    return others if own is None else [own, *others]


def stepping(optimizers: Sequence[Optimizer]) -> dict[Optimizer, list[torch.Tensor]]:
    """Of the GradScaler whose `step` called us: the optimizers whose gradients it has unscaled, each with what it found. An optimizer does not know its scaler,
    but the scaler is among the callers."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not STEP:
        frame = frame.f_back
    if frame is None:
        return {}
    states = frame.f_locals["self"]._per_optimizer_states
    known = {o: states[id(o)] for o in optimizers if id(o) in states}
    return {o: list(own["found_inf_per_device"].values()) for o, own in known.items() if own["stage"] is not OptState.READY}


def has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
