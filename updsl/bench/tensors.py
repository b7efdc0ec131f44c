"""The tensors of a set: weights, and gradients that are made anew before every step, as a backward pass makes them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from updsl.bench.protocol import Clock, Contender, now
from updsl.bench.sets import Shapes

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Tensors:
    """Random weights and gradients of these shapes. Tensors of equal shape lie side by side in `stacks`, so that code which needs them stacked has them.

    A gradient is normal, of a standard deviation that differs from column to column. scale: what the gradients are multiplied by when they are made next.
    """

    def __init__(self, shapes: Shapes, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0):
        draw = torch.Generator(device).manual_seed(seed)
        self.shapes, self.device, self.dtype, self.scale = shapes, device, dtype, 1.0
        self.made: dict[tuple[int, ...], torch.Tensor] = {}
        self.stacks: dict[tuple[int, ...], torch.Tensor] = {}
        weights: dict[str, torch.Tensor] = {}
        self.grads: dict[str, torch.Tensor] = {}
        self._places: dict[str, tuple[tuple[int, ...], int]] = {}
        for shape in dict.fromkeys(shapes.values()):
            names = [n for n, s in shapes.items() if s == shape]
            self._places |= {n: (shape, i) for i, n in enumerate(names)}
            made = torch.empty((len(names), *shape), device=device, dtype=dtype).normal_(generator=draw)
            spread = torch.empty((len(names), 1, *shape[1:]), device=device, dtype=dtype).normal_(generator=draw).exp_()
            self.made[shape] = made.mul_(spread.mul_(1e-3))
            self.stacks[shape] = made.clone()
            w = torch.empty_like(made).normal_(0, 0.02, generator=draw)
            self.grads |= dict(zip(names, self.stacks[shape].unbind(), strict=True))
            weights |= dict(zip(names, w.unbind(), strict=True))
        self.grads = {n: self.grads[n] for n in shapes}
        self.weights = {n: weights[n] for n in shapes}

    @property
    def numel(self) -> int:
        return sum(x.numel() for x in self.made.values())

    def fill(self) -> None:
        """Gradients as they were, times `scale`."""
        for shape, made in self.made.items():
            torch.mul(made, self.scale, out=self.stacks[shape])

    def exact(self, name: str) -> torch.Tensor:
        """What `fill` makes of a gradient, as float64."""
        shape, place = self._places[name]
        return (self.made[shape][place] * self.scale).double()


def clock_of(device: str) -> Clock:
    """The clock of the process; one that waits for the card, where the work is done on a card."""
    if not device.startswith("cuda"):
        return now

    def after_the_card() -> tuple[float, float]:
        torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    return after_the_card


def distance(found: Any, expected: Any) -> float:
    """‖found − expected‖ / ‖expected‖ in float64; the absolute one where `expected` is 0. NaN and infinities of equal sign are equal; else they are
    infinitely far away."""
    a, b = (torch.as_tensor(x).detach().double().cpu() for x in (found, expected))
    far, norm = (float(torch.linalg.vector_norm(x)) for x in (a - b, b))
    if not math.isfinite(far):
        same = (a == b) | (a.isnan() & b.isnan())
        far, norm = (float(torch.linalg.vector_norm(torch.where(cells, 0, x))) for cells, x in ((same, a - b), (~b.isfinite(), b)))
    return far / (norm or 1.0) if math.isfinite(far) else math.inf


def farthest(contender: Contender, expected: Iterable[tuple[str, Any]], start: Mapping[str, torch.Tensor]) -> float:
    """One step of a contender: the largest distance of its outputs from what is expected, over tensors. Where it starts from weights, changes are compared."""
    contender.before()
    contender.step()
    outputs = contender.outputs()
    return max(distance(_change(outputs[name], start.get(name)), _change(x, start.get(name))) for name, x in expected)


def _change(x: Any, start: torch.Tensor | None) -> torch.Tensor:
    x = (x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))).detach().double()
    return x if start is None else x - start.double()
