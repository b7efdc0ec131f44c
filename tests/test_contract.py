"""What a rule may rely on in a training loop, and its user: closures, accumulated gradients, graphs, and what the optimizer does after the rule. Rows L5, L12,
L13, lines C1, C11, C15."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

import updsl
from updsl.core.resources import folder
from updsl.runtime.transform import attached

PAGE = (folder("docs") / "training.md").read_text(encoding="utf-8")
COUNTER = "rule r:\n    state n = 0 per all, m = 0\n    n ← n + 1\n    m ← m + g\n    watch n = n\n    return m\n"


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


def section(title: str) -> str:
    """The text of a section of the page, on one line."""
    return " ".join(PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0].split())


# --- closures --------------------------------------------------------------------------------------------------------


def test_c11_the_hook_gives_nothing_or_arguments() -> None:
    p = parameter(0.0)
    o = torch.optim.SGD([p], lr=1.0)
    handle = updsl.attach(o, updsl.parse("it*2"))
    p.grad = torch.ones(1)
    assert handle._before(o, (o,), {}) is None
    assert handle._before(o, (o, None), {"closure": None}) is None
    assert float(p.grad) == 4.0
    for args, kwargs in (((o, lambda: 7.0, "more"), {"other": 1}), ((o,), {"closure": lambda: 7.0, "other": 1})):
        given = handle._before(o, args, kwargs)
        assert isinstance(given, tuple)
        new_args, new_kwargs = given
        assert isinstance(new_args, tuple)
        assert len(new_args) == len(args)
        assert new_args[0] is o
        assert new_args[2:] == args[2:]
        assert new_kwargs.keys() == kwargs.keys()
        assert new_kwargs["other"] == 1
        assert (new_args[1] if len(args) > 1 else new_kwargs["closure"])() == 7.0


@pytest.mark.parametrize("how", ["positional", "keyword"])
@pytest.mark.parametrize("route", ["attach", "optimizer", "class"])
def test_c1_rules_see_the_gradients_that_the_closure_makes(route, how) -> None:
    p = parameter(0.0, 0.0)
    rule = updsl.parse("rule r:\n    watch s = sum(g) per all\n    return 2*g\n")
    if route == "optimizer":
        o: Any = updsl.Optimizer([p], rule, lr=1.0)
        handle = o
    elif route == "class":
        o = updsl.optimizer(torch.optim.SGD, rule)([p], lr=1.0)
        handle = o.handle
    else:
        o = torch.optim.SGD([p], lr=1.0)
        handle = updsl.attach(o, rule)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        o.zero_grad()
        loss = (p * torch.tensor([3.0, 4.0])).sum()
        loss.backward()
        return loss

    p.grad = torch.full((2,), 100.0)
    for n in (1, 2):
        loss = o.step(closure) if how == "positional" else o.step(closure=closure)
        assert loss.item() == -50.0 * (n - 1)
        assert float(handle.watch()["s"]) == 7.0
        assert p.tolist() == [-6.0 * n, -8.0 * n]


@pytest.mark.parametrize("how", ["positional", "keyword"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_l5_a_closure_that_raises_in_any_optimizer_leaves_everything(optimizer, how) -> None:
    p = parameter(1.0)
    o = optimizer([p], lr=0.5)
    handle = updsl.attach(o, updsl.parse(COUNTER))

    def closure() -> torch.Tensor:
        o.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    def broken() -> None:
        raise RuntimeError("no data")

    o.step(closure)
    before = copy.deepcopy((p.detach(), p.grad, handle.driver.state.values, handle.driver.state.run))
    with pytest.raises(RuntimeError, match="no data"):
        o.step(broken) if how == "positional" else o.step(closure=broken)
    assert torch.equal(p, before[0])
    assert torch.equal(p.grad, before[1])
    assert torch.equal(handle.driver.state.values["m"]["0.0"], before[2]["m"]["0.0"])
    assert handle.driver.state.run == before[3]
    o.step(closure)
    assert handle.driver.state.run > before[3]


# --- accumulated gradients -------------------------------------------------------------------------------------------

BATCH = torch.arange(28 * 2, dtype=torch.float32).reshape(28, 2).sub(30).div(32)
"""28 samples whose sums are exact in float32 in any order."""


@pytest.mark.parametrize("parts", [1, 4, 7])
@pytest.mark.parametrize("rule", ["ema", "momentum", "clip_norm", "zclip"])
@pytest.mark.parametrize("fused", [False, True])
def test_l12_accumulated_gradients_are_those_of_one_big_batch(rule, parts, fused) -> None:
    """A rule runs at the step: what it sees is the sum of the parts, whatever it makes of it."""

    def trained(parts: int) -> tuple[list[float], int]:
        p = parameter(0.0, 0.0)
        o = torch.optim.SGD([p], lr=0.25, fused=fused)
        handle = updsl.attach(o, rule)
        for step in range(3):
            o.zero_grad()
            for x in (BATCH + step).chunk(parts):
                (x @ p).sum().backward()
            o.step()
        return p.tolist(), handle.driver.state.run

    assert trained(parts) == trained(1)
    assert trained(parts)[1] == 3


@pytest.mark.parametrize("parts", [4, 7])
def test_l12_a_rule_run_on_each_part_agrees_with_one_run_only_if_it_is_linear(parts) -> None:
    def out(rule: updsl.Rule, g: torch.Tensor) -> torch.Tensor:
        return rule.update({"w": g}, rule.init({"w": g}))[0]["w"]

    for text, is_linear in (("it*3", True), ("ema(0.75)", True), ("clip norm > 1", False), ("norm per tensor", False)):
        rule = updsl.parse(text)
        summed = sum(out(rule, x.sum(0)) for x in BATCH.chunk(parts))
        assert torch.allclose(summed, out(rule, BATCH.sum(0)), rtol=1e-5) == is_linear, text
    assert "linear" in section("Gradient accumulation")


# --- graphs ----------------------------------------------------------------------------------------------------------


def graphs() -> int:
    """How many tensors there are that hold a graph."""
    gc.collect()
    return sum(isinstance(x, torch.Tensor) and x.grad_fn is not None for x in gc.get_objects())


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_l13_graphs_do_not_grow_over_100_steps(route, backend) -> None:
    p = parameter(3.0, 4.0)
    rule = updsl.parse("rule r:\n    input h, loss per all\n    state m = 0\n    m ← 0.75*m + g + 0*loss\n    watch s = norm(m)\n    return m + h\n")
    o = torch.optim.SGD([p], lr=0.01) if route == "attach" else updsl.Optimizer([p], rule, lr=0.01, backend=backend)
    handle = updsl.attach(o, rule, backend=backend) if route == "attach" else o
    held = []
    for step in range(100):
        o.zero_grad()
        loss = (p**2).sum()
        loss.backward(create_graph=True)
        assert p.grad.requires_grad
        handle.inputs(h={"0.0": 0.0 * p}, loss=loss)
        with torch.enable_grad():
            o.step()
        if step in (9, 99):
            held.append(graphs())
    assert held[0] == held[1]
    kept = [x for cells in handle.driver.state.values.values() for x in cells.values()]
    assert not any(x.requires_grad for x in [*kept, *handle.watch()["s"].values()])
    assert p.is_leaf
    assert p.requires_grad


@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_l13_steps_in_inference_mode(route, backend) -> None:
    """Of parameters that are made outside of it, and of its own."""
    for inside in (False, True):
        with torch.inference_mode(inside):
            p = parameter(1.0, 2.0)
        o = torch.optim.SGD([p], lr=1.0) if route == "attach" else updsl.Optimizer([p], updsl.parse(COUNTER), lr=1.0, backend=backend)
        handle = updsl.attach(o, updsl.parse(COUNTER), backend=backend) if route == "attach" else o
        for _ in range(2):
            with torch.inference_mode():
                p.grad = torch.ones(2)
                o.step()
        assert p.tolist() == [-2.0, -1.0]
        assert handle.driver.state.run == 2


# --- what comes after the rule ---------------------------------------------------------------------------------------


def test_c15_the_page_says_that_coupled_weight_decay_is_not_clipped() -> None:
    moved = {}
    for name, o in {"coupled": torch.optim.SGD, "decoupled": torch.optim.AdamW}.items():
        p = parameter(100.0)
        optimizer = o([p], lr=1.0, weight_decay=0.5)
        updsl.attach(optimizer, "clip_norm", max_norm=1.0)
        p.grad = torch.tensor([30.0])
        optimizer.step()
        moved[name] = (100.0 - p.item(), p.grad.item())
    assert moved["coupled"] == pytest.approx((51.0, 1.0))
    assert "weight decay" in section("After the rule")
    assert "not clipped" in section("After the rule")


def test_c15_the_page_says_that_adam_undoes_a_scale() -> None:
    def trained(text: str) -> list[float]:
        p = parameter(1.0, 2.0)
        o = torch.optim.Adam([p], lr=0.1, eps=0.0)
        updsl.attach(o, updsl.parse(text))
        for step in range(5):
            p.grad = torch.tensor([1.0 + step, -2.0])
            o.step()
        return p.tolist()

    assert trained("it*1024") == trained("it/1024") == trained("it")
    assert trained("clip abs > 1.5") != trained("it")
    assert "Adam" in section("After the rule")
    assert "scale" in section("After the rule")


def test_c15_the_text_of_attach_says_so_too() -> None:
    text = " ".join((updsl.attach.__doc__ or "").split())
    assert "coupled weight decay is not clipped" in text
    assert "Adam undoes a common scale" in text


@pytest.mark.parametrize("policy", ["skip", "mask", "zero", "raise", "propagate"])
def test_the_page_tells_of_every_policy(policy) -> None:
    assert f"`{policy}`" in section("Skipped steps")
    o = torch.optim.SGD([parameter(1.0)], lr=1.0)
    updsl.attach(o, "ema", nonfinite=policy)
    assert attached(o)[0].driver.guard.policy == policy
