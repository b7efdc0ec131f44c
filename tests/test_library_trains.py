"""Every rule of the library trains a small model for 200 steps: before SGD or as the optimizer, in float32 and bfloat16, in both torch backends."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

import updsl

RULES = sorted(updsl.library())
STEPS, BATCH, LR = 200, 12, 0.01
DTYPES = ("float32", "bfloat16")
RATES = {"diff2": LR / 10, "diff2_with": LR / 10}
"""Learning rates other than LR: the noise of DIFF2 is of size 1 in each entry, and stays for `gap` steps."""
COMPILED = (("adamw", "bfloat16"), ("dp_sgd", "float32"), ("whiten", "float32"))
"""What trains under torch.compile in every run; all rules do so nightly."""

Tensors = dict[str, torch.Tensor]


class Model(torch.nn.Module):
    """Two layers, whose names the routing rules know."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lm_head = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False)


@cache
def problem() -> tuple[Tensors, torch.Tensor, torch.Tensor]:
    """The weights to start from; inputs; and what a model with other, larger weights makes of them."""
    torch.manual_seed(1)
    start, teacher = Model(), Model()
    x = torch.randn(BATCH, 6)
    y = 4 * teacher.lm_head(torch.tanh(2 * teacher.body(x))).detach() + 1
    return {n: p.detach().clone() for n, p in start.named_parameters()}, x, y


def layers(w: Tensors, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first layer, the second layer's inputs, and the model's outputs."""
    hidden = x @ w["body.weight"].T + w["body.bias"]
    inner = torch.tanh(hidden)
    return hidden, inner, inner @ w["lm_head.weight"].T


def loss(w: Tensors, x: torch.Tensor, y: torch.Tensor) -> float:
    w = {n: p.detach().float() for n, p in w.items()}
    return float((layers(w, x.float())[2] - y.float()).square().mean())


def by_sample(w: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
    """The gradients of each sample's mean squared error."""
    _, inner, outputs = layers(w, x)
    d2 = 2 * (outputs - y) / y.shape[1]
    d1 = d2 @ w["lm_head.weight"] * (1 - inner**2)
    outer = lambda d, a: d[:, :, None] * a[:, None, :]
    return {"body.weight": outer(d1, x), "body.bias": d1, "lm_head.weight": outer(d2, inner)}


def inputs_of(rule: updsl.Rule, w: Tensors, before: Tensors, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """A step's inputs: gradients of parts of the data, and the like."""
    found: dict[str, Any] = {}
    for i, (name, kind) in enumerate(sorted(rule.inputs.items())):
        part = torch.arange(BATCH) % 3 == i % 3
        match name, kind:
            case "samples", _:
                found[name] = by_sample(w, x, y)
            case "samples_before", _:
                found[name] = by_sample(before, x, y)
            case "draw", _:
                found[name] = {n: torch.randn_like(p) for n, p in w.items()}
            case "count_draw", _:
                found[name] = float(torch.randn(()))
            case "P", _:
                shapes = {n: tuple(p.shape) for n, p in w.items() if p.ndim == 2}
                found[name] = {n: torch.eye(2, c, dtype=x.dtype) if r >= c else torch.eye(r, 2, dtype=x.dtype) for n, (r, c) in shapes.items()}
            case "gram", _:
                a = {"body.weight": x, "lm_head.weight": layers(w, x)[1]}
                found[name] = {n: v.T @ v / BATCH for n, v in a.items()}
            case _, "all":
                found[name] = loss(w, x[part], y[part])
            case _:
                found[name] = {n: s.mean(0) for n, s in by_sample(w, x[part], y[part]).items()}
    return found


def trained(name: str, backend: str, dtype: str) -> tuple[float, float]:
    """The loss before and after; each step's gradients and weights are finite."""
    torch.manual_seed(0)
    start, x, y = problem()
    model = Model()
    model.load_state_dict(start)
    kind = getattr(torch, dtype)
    model, x, y = model.to(kind), x.to(kind), y.to(kind)
    rule, lr = updsl.load(name), RATES.get(name, LR)
    if rule.writes_weights:
        optimizer = stepper = updsl.Optimizer(model.named_parameters(), rule, lr=lr, backend=backend)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        stepper = updsl.attach(optimizer, rule, names=model, backend=backend)
    w = {n: p.detach() for n, p in model.named_parameters()}
    first, before = loss(w, x, y), {n: p.clone() for n, p in w.items()}
    for _ in range(STEPS):
        for n, s in by_sample(w, x, y).items():
            model.get_parameter(n).grad = s.mean(0)
        if rule.inputs:
            stepper.inputs(**inputs_of(rule, w, before, x, y))
            before = {n: p.clone() for n, p in w.items()}
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in w.values())
    return first, loss(w, x, y)


def check(name: str, backend: str, dtype: str) -> None:
    first, last = trained(name, backend, dtype)
    assert math.isfinite(last)
    assert last <= first


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains(name, dtype):
    check(name, "torch", dtype)


def compiled():
    for name in RULES:
        for dtype in DTYPES:
            yield pytest.param(name, dtype, marks=pytest.mark.slow if (name, dtype) in COMPILED else pytest.mark.nightly)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name, dtype", list(compiled()))
def test_every_rule_trains_under_torch_compile(name, dtype):
    check(name, "inductor", dtype)
