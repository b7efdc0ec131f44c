"""Parameters of all shapes, with and without gradients, tied, added, frozen, replaced, gone: rows L1–L4 and L8 of the fault tables."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref
from typing import Any

import pytest
import torch

import updsl

BACKENDS = ["torch", "cpp", "interpret"]
SUM = "rule r(beta = 1):\n    state n = 0 per all, k = 0 per group, m = 0\n    n ← n + 1\n    k ← k + (sum(g) per group)\n    m ← beta*m + g\n"
SUM += "    watch n = n\n    watch k = k\n    return m\n"
ROUTES = ["attach", "optimizer"]


def parameter(*values: float) -> torch.nn.Parameter:
    """Zeros, with this gradient."""
    p = torch.nn.Parameter(torch.zeros(len(values)))
    p.grad = torch.tensor(values)
    return p


def with_rule(route: str, params: Any, text: str, backend: str = "torch", lr: float = 1.0) -> tuple[torch.optim.Optimizer, Any]:
    """An optimizer that moves by lr·out, and what runs the rule in it."""
    if route == "optimizer":
        o = updsl.Optimizer(params, updsl.parse(text), lr=lr, backend=backend)
        return o, o
    o = torch.optim.SGD(params, lr=lr)
    return o, updsl.attach(o, updsl.parse(text), backend=backend)


def refill(*pairs: tuple[torch.nn.Parameter, float | None]) -> None:
    for p, value in pairs:
        p.grad = None if value is None else torch.full_like(p, value)


# --- L2: gradients that are not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
def test_l2_tensors_without_a_gradient_rest(route, backend) -> None:
    """On some, on alternate steps; `t` counts a tensor's own steps, what belongs to the group or all goes on with the others."""
    p, q = parameter(1.0), parameter(1.0)
    text = SUM.replace("return m", "return m*t")
    o, handle = with_rule(route, [p, q], text, backend)
    moves = []
    for i in range(4):
        before = q.item()
        refill((p, 1.0), (q, 1.0 if i % 2 == 0 else None))
        held = handle.driver.state.values.get("m", {}).get("0.1")
        held = None if held is None else held.clone()
        o.step()
        moves.append(before - q.item())
        if i % 2:
            assert q.grad is None
            assert torch.equal(handle.driver.state.values["m"]["0.1"], held)
    assert moves == [1.0, 0.0, 4.0, 0.0]
    assert p.item() == -30.0
    assert dict(handle.driver.state.t) == {"0.0": 4, "0.1": 2}
    assert (float(handle.watch()["n"]), float(handle.watch()["k"][0])) == (4.0, 6.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
def test_l2_a_step_without_any_gradient_moves_nothing_and_counts_as_a_step_of_the_run(route, backend) -> None:
    """The run's step counts calls, whoever takes part: `every`, and draws, go by it."""
    text = "rule r:\n    state n = 0 per all, m = 0\n    n ← n + 1\n    every 3:\n        m ← g\n    watch n = n\n    return m\n"
    p, q = parameter(1.0), parameter(1.0)
    o, handle = with_rule(route, [p, q], text, backend)
    o.step()
    while handle.driver.state.run < 2:
        refill((p, None), (q, None))
        o.step()
    assert p.tolist() == q.tolist() == [0.0]
    assert dict(handle.driver.state.t) == {"0.0": 1, "0.1": 1}
    saved = copy.deepcopy(o.state_dict())  # states are shared else, as torch's own are
    other, again = with_rule(route, [parameter(5.0), parameter(5.0)], text, backend)
    other.load_state_dict(saved)
    for each, run in ((o, handle), (other, again)):
        x, y = each.param_groups[0]["params"]
        refill((x, 5.0), (y, 5.0))
        each.step()
        assert (x.item(), y.item()) == (-5.0, -5.0)
        assert float(run.watch()["n"]) == 2.0


# --- L3: a tensor is one parameter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_l3_tied_parameters_are_one(route) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(3, 2)
            self.head = torch.nn.Linear(2, 3, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    before = model.embed.weight.detach().clone()
    o, handle = with_rule(route, model.named_parameters(), SUM)
    for _ in range(2):
        refill((model.embed.weight, 1.0))
        o.step()
    assert dict(handle.driver.state.t) == {"embed.weight": 2}
    assert torch.allclose(model.head.weight, before - 3)


@pytest.mark.parametrize("route", ROUTES)
def test_l3_a_parameter_given_twice_is_refused(route) -> None:
    p = parameter(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of duplicate parameters
        with pytest.raises(updsl.UpdslError, match="duplicate-tensor"):
            with_rule(route, [p, p], SUM)
    with pytest.raises(ValueError, match="more than one parameter group"):
        with_rule(route, [{"params": [p]}, {"params": [p]}], SUM)


def test_l3_a_second_optimizer_of_the_same_parameters_is_refused() -> None:
    p, q = parameter(1.0), parameter(1.0)
    one, two = torch.optim.SGD([p], lr=1.0), torch.optim.SGD([q, p], lr=1.0)
    double = updsl.parse("it*2")
    first = updsl.attach(one, double)
    with pytest.raises(updsl.UpdslError, match="attached to another SGD, of the same parameters"):
        updsl.attach(two, double)
    assert not two._optimizer_step_pre_hooks
    first.remove()
    updsl.attach(two, double)
    updsl.attach(one, double, chain=True)
    one.step()
    two.step()
    assert p.grad.item() == 4.0


def test_l3_an_optimizer_that_is_gone_is_in_nobodys_way() -> None:
    p = parameter(1.0)
    for _ in range(3):
        o = torch.optim.SGD([p], lr=1.0)
        updsl.attach(o, "ema")
        o.step()


@pytest.mark.parametrize("route", ROUTES)
def test_l15_optimizers_are_freed(route) -> None:
    made = []
    for _ in range(3):
        o = with_rule(route, [parameter(1.0)], SUM)[0]
        o.step()
        made.append(weakref.ref(o))
    del o
    gc.collect()
    assert [r() for r in made] == [None, None, None]


# --- L4: parameters that come, rest, go, and are replaced -------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
def test_l4_a_group_that_is_added_gets_its_state_at_its_first_step(route, backend) -> None:
    p, q = parameter(1.0), parameter(1.0)
    o, handle = with_rule(route, [p], SUM, backend)
    o.step()
    o.add_param_group({"params": [q]})
    assert set(handle.driver.state.t) == {"0.0"}
    refill((p, 1.0), (q, None))
    o.step()
    assert set(handle.driver.state.t) == {"0.0"}
    assert q not in o.state
    refill((p, 1.0), (q, 5.0))
    o.step()
    assert dict(handle.driver.state.t) == {"0.0": 3, "1.0": 1}
    assert (p.item(), q.item()) == (-6.0, -5.0)
    assert (float(handle.watch()["k"][0]), float(handle.watch()["k"][1]), float(handle.watch()["n"])) == (3.0, 5.0, 3.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
def test_l4_a_frozen_parameter_rests_with_its_state(route, backend) -> None:
    p, q = parameter(1.0), parameter(1.0)
    o, handle = with_rule(route, [p, q], SUM, backend)
    o.step()
    q.requires_grad_(False)
    for _ in range(2):
        refill((p, 1.0), (q, None))
        o.step()
    q.requires_grad_(True)
    refill((p, 1.0), (q, 1.0))
    o.step()
    assert dict(handle.driver.state.t) == {"0.0": 4, "0.1": 2}
    assert (p.item(), q.item()) == (-10.0, -3.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("size", [2, 3])
def test_l4_a_parameter_that_is_replaced_starts_afresh_with_a_warning(route, backend, size) -> None:
    """As `_switch_parameters` of accelerate's optimizers does it. The new tensor has the old one's name and place, and maybe its shape."""
    p, q = parameter(1.0, 1.0), parameter(1.0)
    o, handle = with_rule(route, [p, q], SUM, backend)
    o.step()
    new = parameter(*[7.0] * size)
    for group in o.param_groups:
        group["params"] = [{p: new}.get(x, x) for x in group["params"]]
    refill((q, 1.0))
    with pytest.warns(UserWarning, match="`0.0` left the groups, or was replaced by another tensor: its state of the rule `r` is dropped"):
        o.step()
    assert p not in o.state
    assert new.tolist() == [-7.0] * size
    assert q.item() == -3.0
    assert dict(handle.driver.state.t) == {"0.0": 1, "0.1": 2}
    assert float(handle.watch()["n"]) == 2.0
    assert float(o.state[new]["updsl.n"] if "updsl.n" in o.state[new] else o.state[q]["updsl.n"]) == 2.0
    o.state_dict()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
def test_l4_a_parameter_keeps_its_state_where_others_go(route, backend) -> None:
    """Its name, which is its place, changes: it takes over neither the state of the tensor that was there, nor the group's."""
    p, q, r, s = parameter(1.0), parameter(10.0), parameter(100.0), parameter(1000.0)
    o, handle = with_rule(route, [{"params": [p, q]}, {"params": [r]}, {"params": [s]}], SUM, backend)
    o.step()
    o.param_groups[0]["params"].remove(p)
    del o.param_groups[1]
    refill((q, 10.0), (s, 1000.0))
    with pytest.warns(UserWarning, match=r"`0.0`, `1.0` left the groups"):
        o.step()
    assert (q.item(), s.item()) == (-30.0, -3000.0)
    assert dict(handle.driver.state.t) == {"0.0": 2, "1.0": 2}
    assert [float(handle.watch()["k"][i]) for i in (0, 1)] == [21.0, 2000.0]
    saved = o.state_dict()
    fresh_q, fresh_s = parameter(10.0), parameter(1000.0)
    other, again = with_rule(route, [{"params": [fresh_q]}, {"params": [fresh_s]}], SUM, backend)
    other.load_state_dict(saved)
    other.step()
    assert [float(again.watch()["k"][i]) for i in (0, 1)] == [31.0, 3000.0]
    assert float(again.watch()["n"]) == 3.0
    assert (fresh_q.item(), fresh_s.item()) == (-30.0, -3000.0)


@pytest.mark.parametrize("route", ROUTES)
def test_l4_a_parameter_that_is_given_other_memory_goes_on(route) -> None:
    for backend in BACKENDS:
        p = parameter(1.0, 1.0)
        o, handle = with_rule(route, [p], SUM, backend)
        o.step()
        p.data = torch.zeros(2)
        refill((p, 1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            o.step()
        assert p.tolist() == [-2.0, -2.0]
        assert dict(handle.driver.state.t) == {"0.0": 2}


@pytest.mark.parametrize("route", ROUTES)
def test_l4_nothing_is_said_of_parameters_that_had_no_state(route) -> None:
    p, q = parameter(1.0), parameter(1.0)
    o, _ = with_rule(route, [p, q], SUM)
    o.param_groups[0]["params"] = [q]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        o.step()
    assert q.item() == -1.0


# --- L8: a rule attached twice, and taken away ------------------------------------------------------------------------


def test_l8_attached_twice_is_refused_and_the_first_stays_as_it_is() -> None:
    p = parameter(1.0)
    o, handle = with_rule("attach", [p], SUM)
    o.step()
    with pytest.raises(updsl.UpdslError, match="is attached to this SGD already"):
        updsl.attach(o, updsl.parse(SUM))
    refill((p, 1.0))
    o.step()
    assert p.item() == -3.0
    assert handle.driver.state.run == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_l8_detached_in_the_middle(backend) -> None:
    """From then on it is the bare optimizer, whose own state stays; attached again the rule starts afresh."""
    p = parameter(1.0)
    o = torch.optim.SGD([p], lr=1.0, momentum=0.5)
    handle = updsl.attach(o, updsl.parse(SUM), backend=backend)
    for _ in range(2):
        refill((p, 1.0))
        o.step()
    handle.remove()
    assert handle.is_removed
    assert not o._optimizer_step_pre_hooks
    assert not o._optimizer_step_post_hooks
    assert set(o.state[p]) == {"momentum_buffer"}
    refill((p, 1.0))
    o.step()
    assert p.grad.item() == 1.0
    assert p.item() == -(1.0 + 2.5 + 2.25)
    again = updsl.attach(o, updsl.parse(SUM), backend=backend)
    refill((p, 1.0))
    o.step()
    assert p.item() == -(1.0 + 2.5 + 2.25 + 2.125)
    assert again.driver.state.run == 1


@pytest.mark.parametrize("value", [1.0, float("nan")])
@pytest.mark.parametrize("place", ["pre hook before", "pre hook after", "closure", "post hook before", "post hook after"])
def test_l8_detached_inside_a_step(place, value) -> None:
    """From any hook, whatever comes before or after it; the step ends as it began, or is a bare one where its gradients were not transformed yet."""
    p = parameter(value)
    o = torch.optim.SGD([p], lr=1.0)
    made: list[Any] = []

    def remove(*_: Any) -> None:
        made[0].remove()

    def closure() -> None:
        remove()

    hooked = {"pre": o.register_step_pre_hook, "post": o.register_step_post_hook}.get(place.split()[0])
    if hooked and place.endswith("before"):
        hooked(remove)
    made.append(updsl.attach(o, updsl.parse(SUM)))
    chained = updsl.attach(o, updsl.parse("it*3"))
    if hooked and place.endswith("after"):
        hooked(remove)
    seen: list[Any] = []
    o.register_step_pre_hook(lambda *_: None)
    o.register_step_post_hook(lambda *_: seen.append(p.item()))
    o.step(*([closure] if place == "closure" else []))
    assert seen == [0.0 if math.isnan(value) else -3.0]
    assert p.grad.item() == 3.0 or math.isnan(value)
    assert not any(key.startswith("updsl.") for key in o.state.get(p, {}))
    refill((p, 1.0))
    before = p.item()
    o.step()
    assert p.item() == before - 3.0
    assert chained.driver.state.run == (1 if math.isnan(value) else 2)
    again = updsl.attach(o, updsl.parse(SUM))
    assert len(o._optimizer_step_pre_hooks) == 3 + (place.startswith("pre"))
    refill((p, 1.0))
    before = p.item()
    o.step()
    assert p.item() == before - 3.0
    assert again.driver.state.run == 1


def test_l8_the_gradients_of_a_step_that_was_skipped_come_back_though_the_rule_is_gone() -> None:
    p = parameter(float("nan"))
    o = torch.optim.Adam([p], lr=1.0)
    handle = updsl.attach(o, updsl.parse(SUM))
    held = p.grad
    o.register_step_pre_hook(lambda *_: handle.remove())
    o.step()
    assert p.grad is held
    assert (p.item(), dict(o.state)) == (0.0, {})
