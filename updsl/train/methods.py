"""What may stand between the gradient and the optimizer: nothing, torch's clipping, a rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Update:
    """What one step did: the gradient's norm as it came, whether the method clipped (None: it does not say), seconds of the method and of the optimizer."""

    norm: float
    clipped: bool | None
    rule_seconds: float
    optimizer_seconds: float


Stepper = Callable[[nn.Module, float, float], Update]
"""(model with its gradients, learning rate, loss) → what the step did."""


@dataclass(frozen=True)
class Method:
    """`start` makes the stepper of one run, given the model and a first learning rate. `text` is the rule's, if there is one."""

    name: str
    start: Callable[[nn.Module, float], Stepper]
    text: str | None = None


def gradient_norm(model: nn.Module) -> torch.Tensor:
    return torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)


def base_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def no_clipping() -> Method:
    def start(model: nn.Module, lr: float) -> Stepper:
        optimizer = base_optimizer(model, lr)

        def step(model: nn.Module, lr: float, loss: float) -> Update:
            set_lr(optimizer, lr)
            norm = gradient_norm(model).item()
            begin = time.perf_counter()
            optimizer.step()
            return Update(norm, False, 0.0, time.perf_counter() - begin)

        return step

    return Method("no clipping", start)


def clip_grad_norm(max_norm: float = 1.0) -> Method:
    def start(model: nn.Module, lr: float) -> Stepper:
        optimizer = base_optimizer(model, lr)

        def step(model: nn.Module, lr: float, loss: float) -> Update:
            set_lr(optimizer, lr)
            begin = time.perf_counter()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            return Update(norm.item(), norm.item() > max_norm, middle - begin, end - middle)

        return step

    return Method(f"clip_grad_norm_({max_norm})", start)


def ruled(rule: Any) -> Method:
    """A rule in front of the same optimizer, or in its place if it writes the weights. Raises ValueError for inputs that this training does not have."""
    missing = sorted(name for name, kind in rule.inputs.items() if (name, kind) != ("loss", "all"))
    if missing:
        raise ValueError(f"rule {rule.name} needs inputs that this training does not have: {', '.join(missing)}")
    start = _as_optimizer if rule.writes_weights else _before_optimizer
    return Method(f"rule {rule.name}", lambda model, lr: start(rule, model, lr), rule.text)


def _before_optimizer(rule: Any, model: nn.Module, lr: float) -> Stepper:
    import updsl

    optimizer = base_optimizer(model, lr)
    times: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: times.append(time.perf_counter()))
    optimizer.register_step_post_hook(lambda *_: times.append(time.perf_counter()))
    handle = updsl.attach(optimizer, rule, names=model)
    optimizer.register_step_pre_hook(lambda *_: times.append(time.perf_counter()))

    def step(model: nn.Module, lr: float, loss: float) -> Update:
        set_lr(optimizer, lr)
        norm = gradient_norm(model).item()
        if "loss" in rule.inputs:
            handle.inputs(loss=loss)
        times.clear()
        optimizer.step()
        begin, ruled, moved, end = *times, time.perf_counter()  # hooks run in the order of their registration, the rule's own between ours
        return Update(norm, is_clipped(handle.watch()), ruled - begin + end - moved, moved - ruled)

    return step


def _as_optimizer(rule: Any, model: nn.Module, lr: float) -> Stepper:
    import updsl

    optimizer = updsl.Optimizer(model.named_parameters(), rule, lr=lr)

    def step(model: nn.Module, lr: float, loss: float) -> Update:
        set_lr(optimizer, lr)
        norm = gradient_norm(model).item()
        if "loss" in rule.inputs:
            optimizer.inputs(loss=loss)
        begin = time.perf_counter()
        optimizer.step()
        return Update(norm, is_clipped(optimizer.watch()), time.perf_counter() - begin, 0.0)

    return step


def is_clipped(watches: dict[str, Any]) -> bool | None:
    """Whether any `clip` of the rule changed a cell, going by its watches named `clipped`; None if the rule has none."""
    shares = [w for label, w in watches.items() if label.rsplit(".", 1)[-1].startswith("clipped")]
    if not shares:
        return None
    return any(float(x) > 0 for w in shares for x in (w.values() if isinstance(w, dict) else (w,)))
