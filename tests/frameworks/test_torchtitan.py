"""Containers shaped like torchtitan's: a list of optimizers, one for each part of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import updsl


class OptimizersContainer:
    """Optimizers of the parts of a model, stepped together."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self.parts = parts
        self.optimizers = [torch.optim.AdamW(part.parameters(), lr=0.01) for part in parts]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def parts_of() -> list[nn.Module]:
    """Two parts whose parameters have different names, as the parts of a pipeline have."""
    torch.manual_seed(0)
    return [nn.ModuleDict({"first": nn.Linear(3, 4)}), nn.ModuleDict({"last": nn.Linear(4, 1)})]


def train(container: OptimizersContainer, steps: range) -> None:
    for step in steps:
        container.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        container.parts[1]["last"](container.parts[0]["first"](x).relu()).square().mean().backward()
        container.step()


def test_c10_a_container_is_refused_by_name_and_its_optimizers_are_not() -> None:
    container = OptimizersContainer(parts_of())
    with pytest.raises(updsl.UpdslError, match="OptimizersContainer"):
        updsl.attach(container, "zclip")
    updsl.attach(container.optimizers, "zclip")
    train(container, range(2))


def test_c10_a_clip_is_over_all_parts_as_by_hand() -> None:
    ours, hand = OptimizersContainer(parts_of()), OptimizersContainer(parts_of())
    updsl.attach(ours.optimizers, "clip_grad_norm", max_norm=0.01)
    train(ours, range(1))
    train(hand, range(1))
    by_hand = [p for part in hand.parts for p in part.parameters()]
    assert nn.utils.clip_grad_norm_(by_hand, 0.01) > 0.01
    for p, q in zip([p for part in ours.parts for p in part.parameters()], by_hand, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-8)
