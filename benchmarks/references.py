"""What the jobs compute, in float64, a tensor at a time: an independent statement that every contender is compared with.

A reference is a function of no arguments that takes a step: it reads the gradients that `Tensors.fill` makes, and yields (name, what is expected).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from updsl.bench.tensors import Tensors

Reference = Callable[[], Iterator[tuple[str, torch.Tensor]]]


def headline(tensors: Tensors) -> Reference:
    """J1: columns over their norms, entries within 2.5 standard deviations of their mean, averaged with 0.9."""
    m = {name: torch.zeros(shape, dtype=torch.float64, device=tensors.device) for name, shape in tensors.shapes.items()}
    steps = 0

    def step() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal steps
        steps += 1
        for name, average in m.items():
            g = tensors.exact(name)
            x = g / g.square().sum(0, keepdim=True).sqrt()
            mean, std = x.mean(), x.var(correction=0).sqrt()
            average.lerp_(x.clamp(mean - 2.5 * std, mean + 2.5 * std), 0.1)
            yield name, average / (1 - 0.9**steps)

    return step


def spikes(z_max: float, max_norm: float, eps: float, alpha: float = 0.97) -> Callable[[Tensors], Reference]:
    """J2: ZClip's adaptive scaling (arXiv:2504.02507) after a warm-up of one step."""

    def of(tensors: Tensors) -> Reference:
        mean, var, steps = 0.0, 0.0, 0

        def step() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal mean, var, steps
            norm = global_norm(tensors)
            if steps == 0:
                mean, limit = norm, max_norm
            else:
                std = math.sqrt(var)
                z = (norm - mean) / (std + eps)
                bound = mean + z_max**2 * std / z if z > z_max else norm
                mean = alpha * mean + (1 - alpha) * bound
                var = alpha * var + (1 - alpha) * (bound - mean) ** 2
                limit = min(bound, max_norm)
            steps += 1
            factor = min(1.0, limit / (norm + 1e-6)) if norm > limit else 1.0
            yield from ((name, factor * tensors.exact(name)) for name in tensors.shapes)

        return step

    return of


def clipped_adamw(lr: float, max_norm: float = 1.0, eps: float = 1e-8, weight_decay: float = 0.01) -> Callable[[Tensors], Reference]:
    """J3: gradients scaled to a norm of at most max_norm over all of them, then AdamW (arXiv:1711.05101) with 0.9 and 0.999."""

    def of(tensors: Tensors) -> Reference:
        w = {name: x.detach().double() for name, x in tensors.weights.items()}
        m, v = ({name: torch.zeros_like(x) for name, x in w.items()} for _ in range(2))
        steps = 0

        def step() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal steps
            steps += 1
            factor = min(1.0, max_norm / (global_norm(tensors) + 1e-6))
            for name, x in w.items():
                g = factor * tensors.exact(name)
                m[name].lerp_(g, 0.1)
                v[name].lerp_(g.square(), 0.001)
                update = m[name] / (1 - 0.9**steps) / ((v[name] / (1 - 0.999**steps)).sqrt() + eps)
                x.sub_(lr * (update + weight_decay * x))
                yield name, x

        return step

    return of


def global_norm(tensors: Tensors) -> float:
    """Of all gradients together."""
    return math.sqrt(sum(float(tensors.exact(name).square().sum()) for name in tensors.shapes))
