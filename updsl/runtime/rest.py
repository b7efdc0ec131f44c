"""Steps of an optimizer that are none of its rule: those that a GradScaler leaves out, and those with all learning rates 0 and all gradients 0, as distributed
checkpoints take one to make the optimizer's state before they fill it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from updsl.core.frame import RuleState
from updsl.runtime.inputs import zero_inputs

if TYPE_CHECKING:
    from updsl.runtime.driver import Driver


def is_left_out(driver: Driver, found_inf: list[torch.Tensor]) -> bool:
    """Whether a GradScaler leaves out this step, by what it found: it is no step of the rule then, and not counted. For an optimizer by
    itself the policy finds out where it reads a flag anyway; under "mask" the device decides, and the step is a bad one."""
    if driver.guard.policy in ("mask", "skip", "raise") and len(driver.optimizers) == 1 and not driver.is_sharded:
        driver.guard.flags = found_inf
        return False
    return bool(found_inf) and driver.anywhere([any(bool(flag) for flag in found_inf)])[0]


def rests(driver: Driver, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of this optimizer has all learning rates 0 and all gradients 0. If the rule has no state yet, places for it are made."""
    if driver.inputs or not has_no_rate(optimizer, waits=not driver.has_begun):
        return False
    gradients = [m.parameter.grad for m in driver.members().values() if m.parameter.grad is not None]
    given, moves = driver.anywhere([bool(gradients), any(map(has_entries, gradients))])
    if moves or not given:
        return False
    if not driver.has_begun:
        here = driver.layout()
        engine = driver.engine(here)
        driver.inputs = zero_inputs(engine, here, driver.gradients(here))
        try:
            now = driver.given(here, engine, in_place=False, scale=None)
        finally:
            driver.inputs = {}
        driver.places = places(engine.run.step(driver.state, now).state, now.g)
    return True


def has_no_rate(optimizer: torch.optim.Optimizer, waits: bool) -> bool:
    """Whether all groups have the learning rate 0. waits: whether it may wait for a device that holds one."""
    return all(is_zero(group.get("lr"), waits) for group in optimizer.param_groups)


def is_zero(lr: Any, waits: bool) -> bool:
    if isinstance(lr, torch.Tensor) and lr.device.type != "cpu" and not waits:
        return False
    return lr is not None and bool(lr == 0)


def has_entries(g: torch.Tensor) -> bool:
    """Whether an entry of a gradient is not 0; of one that rules do not take, True."""
    if g.layout is not torch.strided or g.is_meta:
        return True
    mine = getattr(g, "_local_tensor", g).detach()  # a DTensor's, of this rank
    return bool(mine.any())


def places(state: RuleState, names: Iterable[str]) -> RuleState:
    """Zeros of the sizes and types of a state, before any step."""

    def zeros(x: Any) -> Any:
        return tuple(map(zeros, x)) if isinstance(x, tuple) else torch.zeros_like(x)

    values = {name: {key: zeros(x) for key, x in cells.items()} for name, cells in state.values.items()}
    return RuleState(values, 0, dict.fromkeys(names, 0))
