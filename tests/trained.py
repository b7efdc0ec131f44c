"""A small model trained with a rule, whole or in parts on several ranks. Ranks import it, so that it is to load little."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import updsl


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """With uneven parts on two ranks and on three, and parts without an entry: 5 rows, 3, and 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 1)).to(dtype)


def losses(m: nn.Module, rule: str, steps: int = 4) -> list[float]:
    """Of some steps of training with a rule, as an optimizer or before SGD; one step has gradients ten times as large."""
    names = list(m.named_parameters())
    if updsl.load(rule).writes_weights:
        optimizer: Any = updsl.Optimizer(names, rule, lr=0.05, backend="torch")
    else:
        optimizer = torch.optim.SGD(names, lr=0.05)
        updsl.attach(optimizer, rule, backend="torch")
    torch.manual_seed(1)
    dtype = next(m.parameters()).dtype
    x, y = torch.randn(8, 6, dtype=dtype), torch.randn(8, 1, dtype=dtype)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((m(x) - y) ** 2).mean() * (10 if step == 2 else 1)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def trained(m: nn.Module, rules: list[str]) -> dict[str, tuple[list[float], list[Tensor]]]:
    """Losses and weights for each rule."""
    start = {name: x.detach().clone() for name, x in m.state_dict().items()}
    found = {}
    for rule in rules:
        m.load_state_dict(start)
        m.zero_grad()
        found[rule] = losses(m, rule), [whole(p.detach()) for p in m.parameters()]
    return found


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x.clone()


def with_fsdp(rules: list[str]) -> dict[str, tuple[list[float], list[Tensor]]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    m = model()
    fully_shard(m, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return trained(m, rules)
