"""C5: a step with all learning rates 0 and all gradients 0 makes places for the rule's state, and is no step of it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import updsl

RULE = """rule r(c = 2):
    input loss per all, h, samples
    state n = 1000 per all, k = 5 per group, m = 7
    n ← n + loss
    k ← k + c*(sum(g) per group)
    m ← m + g + h + sample_mean(samples)
    return m*n + 0*median((norm(g) → history(3))) + 1
"""
KEYS = {"updsl.(rule)", "updsl.(t)", "updsl.(run)", "updsl.n", "updsl.k", "updsl.m", "updsl.history", "updsl.history:count"}
RATES = [0.0, torch.tensor(0.0)]


def made(route: str, lr: Any, text: str = RULE, backend: str = "auto") -> tuple[torch.nn.Parameter, torch.optim.Optimizer, Any]:
    """A parameter with a gradient of zeros, its optimizer, and what runs the rule in it."""
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.zeros(2)
    if route == "optimizer":
        o = updsl.Optimizer([p], updsl.parse(text), lr=lr, backend=backend)
        return p, o, o
    o = torch.optim.AdamW([p], lr=lr, weight_decay=0.1, foreach=False)
    return p, o, updsl.attach(o, updsl.parse(text), backend=backend)


def step(p: torch.nn.Parameter, o: torch.optim.Optimizer, rule: Any, lr: float = 0.25, value: float = 1.0) -> None:
    """A real one."""
    o.param_groups[0]["lr"] = lr
    p.grad = torch.full((2,), value)
    rule.inputs(loss=1.0, h={"0.0": torch.ones(2)}, samples={"0.0": torch.ones(3, 2)})
    o.step()


@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
@pytest.mark.parametrize("lr", RATES, ids=["number", "tensor"])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_c5_a_step_of_zeros_makes_places_and_is_no_step(route, lr, backend) -> None:
    p, o, rule = made(route, lr, backend=backend)
    o.step()
    assert {k for k in o.state[p] if k.startswith("updsl.")} == KEYS
    assert (o.state[p]["updsl.(t)"], o.state[p]["updsl.(run)"]) == (0, 0)
    assert (rule.driver.state.run, rule.driver.state.values, dict(rule.driver.state.t)) == (0, {}, {})
    assert (p.tolist(), p.grad.tolist()) == ([1.0, 1.0], [0.0, 0.0])
    fresh_p, fresh_o, fresh = made(route, 0.25, backend=backend)
    for given in ((p, o, rule), (fresh_p, fresh_o, fresh)):
        step(*given)
    sizes = {k: (x.shape, x.dtype) for k, x in o.state[p].items() if isinstance(x, torch.Tensor)}
    assert (float(o.state[p]["updsl.n"]), float(o.state[p]["updsl.k"]), o.state[p]["updsl.m"].tolist()) == (1001.0, 9.0, [10.0, 10.0])
    assert torch.equal(p.grad, fresh_p.grad)
    assert route == "attach" or torch.equal(p, fresh_p)
    again_p, again, _ = made(route, lr, backend=backend)
    again.step()
    assert {k: (x.shape, x.dtype) for k, x in again.state[again_p].items() if isinstance(x, torch.Tensor)} == sizes


@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_c5_places_are_filled_by_a_checkpoint_and_start_afresh_without_one(route) -> None:
    p, o, rule = made(route, 0.25)
    for _ in range(3):
        step(p, o, rule)
    other_p, other, other_rule = made(route, 0.0)
    other.step()
    empty = copy.deepcopy(other.state_dict())
    other.load_state_dict(copy.deepcopy(o.state_dict()))
    other_p.data.copy_(p.data)
    third_p, third, third_rule = made(route, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third.load_state_dict(empty)
    assert (third_rule.driver.state.run, third_rule.driver.state.values) == (0, {})
    for given in ((p, o, rule), (other_p, other, other_rule), (third_p, third, third_rule)):
        step(*given)
    assert torch.equal(p, other_p)
    assert float(o.state[p]["updsl.n"]) == float(other.state[other_p]["updsl.n"]) == 1004.0
    assert float(third.state[third_p]["updsl.n"]) == 1001.0


@pytest.mark.parametrize("lr", RATES, ids=["number", "tensor"])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_c5_nor_does_a_state_advance_that_is_there(route, lr) -> None:
    p, o, rule = made(route, 0.25)
    step(p, o, rule)
    before = copy.deepcopy(rule.driver.state.values)
    o.param_groups[0]["lr"], p.grad = lr, torch.zeros(2)
    o.step()
    assert rule.driver.state.run == 1
    now = rule.driver.state.values
    for name, cells in before.items():
        for key, x in cells.items():
            parts = zip(x, now[name][key], strict=True) if isinstance(x, tuple) else [(x, now[name][key])]
            assert all(torch.equal(a, b) for a, b in parts)
    assert o.state[p]["updsl.(t)"] == 1


@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_c5_a_step_with_a_rate_or_a_gradient_is_one(route) -> None:
    text = "rule r:\n    state n = 0 per all\n    n ← n + 1\n    return g\n"
    p, o, rule = made(route, 0.0, text)
    p.grad = torch.tensor([0.0, 1.0])
    o.step()
    o.param_groups[0]["lr"] = 0.25
    p.grad = torch.zeros(2)
    o.step()
    assert rule.driver.state.run == 2


def test_c5_each_of_several_optimizers_may_be_made_ready() -> None:
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    both = [torch.optim.SGD([p], lr=0.0, momentum=0.5) for p in params]
    handle = updsl.attach(both, "clip_norm", max_norm=1.0)
    for p, o in zip(params, both, strict=True):
        p.grad = torch.zeros(1)
        o.step()
        p.grad = None
        o.param_groups[0]["lr"] = 1.0
    assert handle.driver.state.run == 0
    for p, g in zip(params, (3.0, 4.0), strict=True):
        p.grad = torch.tensor([g])
    for o in both:
        o.step()
    assert [p.item() for p in params] == pytest.approx([-0.6, -0.8])
