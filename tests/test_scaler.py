"""Mixed precision: rules under torch's GradScaler, and on 16-bit weights. Rows L11, C6 of the contract."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import updsl

COUNTER = "rule r:\n    state n = 0 per all\n    state m = 0\n    n ← n + 1\n    m ← m + g\n    watch n = n\n    return m\n"
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
FINITE, INFINITE = (1.0, 2.0, 3.0), (1.0, float("inf"), 3.0)


class Training:
    """Two parameters and an optimizer, with or without a GradScaler. factors: of the loss, step by step; without a scaler infinite ones are left out."""

    def __init__(self, name: str, fused: bool, attach: Any = None, scaled: bool = True, policy: str = "skip"):
        self.params = [torch.nn.Parameter(torch.tensor(x)) for x in ([0.5, -0.25], [1.0])]
        self.optimizer = OPTIMIZERS[name](self.params, lr=0.125, fused=fused)
        self.handle = attach and updsl.attach(self.optimizer, updsl.parse(attach), nonfinite=policy)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2, enabled=scaled)
        self.scaled = scaled

    def step(self, factor: float, unscaled_before: bool) -> None:
        self.optimizer.zero_grad()
        p, q = self.params
        self.scaler.scale((p * torch.tensor([1.0, -2.0])).sum() * factor + q.sum()).backward()
        if unscaled_before:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def everything(self) -> list[Any]:
        own = [dict(self.optimizer.state[p]) if p in self.optimizer.state else {} for p in self.params]
        return copy.deepcopy([[p.detach() for p in self.params], own])


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    match a:
        case torch.Tensor():
            return a.dtype == b.dtype and torch.equal(a, b)
        case dict():
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        case list():
            return len(a) == len(b) and all(map(same, a, b))
        case _:
            return a == b


@pytest.mark.parametrize("factors", [FINITE, INFINITE], ids=["finite", "inf"])
@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_l11_a_step_under_a_grad_scaler_is_the_unscaled_one_or_none(name, fused, unscaled_before, factors) -> None:
    attached, bare, reference = Training(name, fused, COUNTER), Training(name, fused), Training(name, fused, COUNTER, scaled=False)
    for factor in factors:
        before, kept = attached.everything(), copy.deepcopy(attached.handle.driver.state)
        attached.step(factor, unscaled_before)
        bare.step(factor, unscaled_before)
        assert attached.scaler.get_scale() == bare.scaler.get_scale()
        if factor == float("inf"):
            assert same(attached.everything(), before)
            assert (attached.handle.driver.state.run, dict(attached.handle.driver.state.t)) == (kept.run, dict(kept.t))
            assert same(attached.handle.driver.state.values, kept.values)
        else:
            reference.step(factor, False)
            assert same(attached.everything(), reference.everything())
    assert attached.scaler.get_scale() == (512.0 if factors is INFINITE else 2048.0)
    assert attached.handle.counts == {"bad": 0, "in_a_row": 0, "overflowed": 0}


@pytest.mark.parametrize("policy", ["skip", "mask", "zero", "raise", "propagate"])
@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_c6_what_a_grad_scaler_skips_is_no_step_of_the_rule(name, fused, unscaled_before, policy) -> None:
    """Whatever the policy: a fused optimizer is called for such a step, others are not."""
    training = Training(name, fused, COUNTER, policy=policy)
    training.step(1.0, unscaled_before)
    before, kept = training.everything()[0], copy.deepcopy(training.handle.driver.state.values)
    training.step(float("inf"), unscaled_before)
    assert same(training.everything()[0], before)
    assert same(training.handle.driver.state.values, kept)
    training.step(1.0, unscaled_before)
    assert float(training.handle.watch()["n"]) == 2.0
    assert training.params[1].grad.item() == 2.0


def test_c6_fused_optimizers_get_no_scale_after_the_rule() -> None:
    training, seen = Training("adamw", True, COUNTER), []
    training.optimizer.register_step_pre_hook(lambda o, *_: seen.append((o.grad_scale, float(o.found_inf), training.params[1].grad.item())))
    training.step(1.0, False)
    assert seen == [(None, 0.0, 1.0)]


@pytest.mark.parametrize("policy", ["skip", "mask", "zero", "propagate"])
def test_c6_what_was_found_counts_though_the_gradients_were_mended(policy) -> None:
    training = Training("adamw", True, COUNTER, policy=policy)
    training.step(1.0, True)
    training.scaler.scale(training.params[1].sum() * float("inf")).backward()
    training.scaler.unscale_(training.optimizer)
    for p in training.params:
        p.grad.fill_(1.0)
    before, kept = training.everything()[0], copy.deepcopy(training.handle.driver.state.values)
    training.scaler.step(training.optimizer)
    assert same(training.everything()[0], before)
    assert same(training.handle.driver.state.values, kept)


@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_l11_chained_rules_under_a_grad_scaler(fused, unscaled_before, backend) -> None:
    """The first unscales for both."""
    attached, reference = Training("adamw", fused), Training("adamw", fused, scaled=False)
    handles = [[updsl.attach(t.optimizer, rule, backend=backend) for rule in ("ema", "clip_norm")] for t in (attached, reference)]
    for factor in (1.0, 2.0, 3.0, float("inf"), 1.0, 2.0, float("inf"), 3.0):
        attached.step(factor, unscaled_before)
        if factor != float("inf"):
            reference.step(factor, False)
        assert same(attached.everything(), reference.everything())
    assert [h.driver.state.run for pair in handles for h in pair] == [6] * 4
    assert [h.counts["bad"] for pair in handles for h in pair] == [0] * 4


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_l11_a_grad_scaler_costs_no_further_read(policy, monkeypatch) -> None:
    """Where `found_inf` is 0 nobody reads it: it is part of the one flag that the policy reads."""
    training, seen = Training("adamw", True, COUNTER, policy=policy), []

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, f, types, args=(), kwargs=None):
            if f in (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__):
                seen.append(args[0])
            return f(*args, **(kwargs or {}))

    as_on_a_device = lambda xs: torch.isfinite(torch.stack(torch._foreach_norm(xs, float("inf")))).all()
    monkeypatch.setattr("updsl.runtime.nonfinite.finite_on_host", as_on_a_device)
    training.step(1.0, False)
    training.optimizer.grad_scale, training.optimizer.found_inf = None, torch.tensor(0.0)
    with Counted():
        training.handle._before(training.optimizer, (training.optimizer,), {})
    assert len(seen) == 1


@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("text", [COUNTER, "rule r:\n    state m = 0\n    m ← m + g\n    w ← w - lr*m\n"])
@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
def test_l11_an_optimizer_of_a_rule_under_a_grad_scaler(text, unscaled_before, backend) -> None:
    """GradScaler unscales its gradients, and calls it only where they are finite."""

    def trained(scaled: bool) -> tuple[list[Any], int, float]:
        p = torch.nn.Parameter(torch.tensor([0.5, -0.25]))
        o = updsl.Optimizer([p], updsl.parse(text), lr=0.125, backend=backend)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for factor in INFINITE:
            o.zero_grad()
            scaler.scale((p * torch.tensor([1.0, -2.0])).sum() * factor).backward()
            if unscaled_before:
                scaler.unscale_(o)
            scaler.step(o)
            scaler.update()
        return [p.detach(), o.driver.state.values], o.driver.state.run, scaler.get_scale()

    (one, run, scale), (two, *again) = trained(True), trained(False)
    assert same(one, two)
    assert run == 2
    assert again == [2, 1.0]
    assert scale == 512.0


# --- several optimizers ----------------------------------------------------------------------------------------------


class Pair:
    """Two optimizers that share a clip of the norm of all."""

    def __init__(self, fused: bool, policy: str = "skip"):
        self.params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        self.optimizers = [torch.optim.SGD([p], lr=1.0, fused=fused) for p in self.params]
        self.handle = updsl.attach(self.optimizers, updsl.parse(CLIP), nonfinite=policy)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(self, a: float, b: float, unscaled_before: bool = True) -> None:
        for o in self.optimizers:
            o.zero_grad()
        p, q = self.params
        self.scaler.scale((a * p + b * q).sum()).backward()
        if unscaled_before:
            for o in self.optimizers:
                self.scaler.unscale_(o)
        for o in self.optimizers:
            self.scaler.step(o)
        self.scaler.update()


CLIP = "rule r:\n    n = norm(g) per all\n    state m = 0 per all\n    m ← m + 1\n    return g / n\n"


@pytest.mark.parametrize("policy", ["skip", "mask", "zero", "raise", "propagate"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [(float("inf"), 4.0), (3.0, float("inf")), (float("inf"), float("inf"))], ids=["first", "second", "both"])
def test_l11_several_optimizers_move_together_or_not_at_all(fused, bad, policy) -> None:
    pair = Pair(fused, policy)
    pair.step(3.0, 4.0)
    pair.step(*bad)
    assert [p.item() for p in pair.params] == pytest.approx([-0.6, -0.8])
    assert float(pair.handle.driver.state.values["m"][""]) == 1.0
    pair.step(4.0, 3.0)
    pair.step(*bad)
    pair.step(*reversed(bad))
    pair.step(3.0, 4.0)
    assert [p.item() for p in pair.params] == pytest.approx([-2.0, -2.2])
    assert float(pair.handle.driver.state.values["m"][""]) == 3.0


@pytest.mark.parametrize("fused", [False, True])
def test_l11_several_optimizers_are_to_be_unscaled_before(fused) -> None:
    """Else the first one's step would see scaled gradients of the second, which nothing tells from others."""
    pair = Pair(fused)
    with pytest.raises(updsl.UpdslError, match=r"scaled-gradients(.|\n)*unscale_"):
        pair.step(3.0, 4.0, unscaled_before=False)
    assert [p.item() for p in pair.params] == [0.0, 0.0]
    assert pair.handle.driver.state.run == 0


def test_l11_after_a_step_that_was_skipped_nobody_is_waited_for() -> None:
    """Neither moved, so the first may step again before the second has: with new gradients of its own, or of both."""
    pair = Pair(False)
    (p, q), (one, two) = pair.params, pair.optimizers
    p.grad, q.grad = torch.tensor([float("nan")]), torch.tensor([4.0])
    one.step()
    p.grad = torch.tensor([3.0])
    one.step()
    two.step()
    assert [p.item(), q.item()] == pytest.approx([-0.6, -0.8])
    p.grad, q.grad = torch.tensor([3.0]), torch.tensor([4.0])
    one.step()
    p.grad, q.grad = torch.tensor([3.0]), torch.tensor([4.0])
    with pytest.raises(updsl.UpdslError, match="stepped-twice"):
        one.step()


# --- 16-bit weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_sixteen_bit_weights_have_states_in_float32(route, backend, dtype) -> None:
    """An average of 300 gradients of 2⁻¹⁰ with 1: in 16 bits it would stop growing."""
    text = updsl.parse("rule r:\n    state m = 1\n    m ← m + g\n    return m\n")
    p = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    if route == "attach":
        o = torch.optim.SGD([p], lr=0.0625)
        driver = updsl.attach(o, text, backend=backend).driver
    else:
        o = updsl.Optimizer([p], text, lr=0.0625, backend=backend)
        driver = o.driver
    for _ in range(300):
        p.data.zero_()
        p.grad = torch.full_like(p, 2.0**-12)
        o.step()
    m = driver.state.values["m"]["0.0"]
    assert m.dtype == o.state[p]["updsl.m"].dtype == torch.float32
    assert m.tolist() == [1 + 300 * 2.0**-12] * 2
    assert p.grad.dtype == p.dtype == dtype
    saved = copy.deepcopy(o.state_dict())
    o.load_state_dict(saved)
    assert o.state[p]["updsl.m"].dtype == torch.float32
    assert torch.equal(driver.state.values["m"]["0.0"], m)


def test_l11_fused_float16_training_with_a_grad_scaler_is_the_unscaled_one() -> None:
    """Weights in float16, which GradScaler leaves to fused optimizers; scales are powers of 2, so nothing is rounded by them."""

    def trained(scaled: bool) -> list[torch.Tensor]:
        p = torch.nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float16))
        o = torch.optim.AdamW([p], lr=0.125, fused=True)
        updsl.attach(o, "ema")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for factor in FINITE:
            o.zero_grad()
            scaler.scale((p * torch.tensor([1.0, -2.0], dtype=torch.float16)).sum() * factor).backward()
            scaler.step(o)
            scaler.update()
        return [p.detach(), o.state[p]["updsl.m"]]

    assert same(trained(True), trained(False))
