"""`updsl.Optimizer`: a rule as a torch optimizer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import updsl

BACKENDS = ["torch", "interpret"]
WRITES = "rule r(decay = 0.5):\n    w ← w - lr*(g + decay*w)\n"
COUNTER = "rule r(beta = 0.5):\n    state n = 0 per all\n    state m = 0\n    n ← n + 1\n    m ← beta*m + g\n    watch n = n\n    return m\n"


def parameters(*values: float, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for _ in values]
    refill(made, *values)
    return made


def refill(params: list[torch.nn.Parameter], *values: float) -> None:
    for p, v in zip(params, values, strict=True):
        p.grad = torch.full_like(p, v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_moves_by_lr_times_out_and_leaves_the_gradient(backend) -> None:
    (p,) = parameters(2.0)
    held = p.grad
    o = updsl.Optimizer([p], updsl.parse("it*2"), 0.25, backend=backend)
    assert isinstance(o, torch.optim.Optimizer)
    assert o.step() is None
    assert p.tolist() == [0.0, 0.0]
    assert p.grad is held
    assert held.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rule_that_writes_w_is_the_whole_update(backend) -> None:
    (p,) = parameters(2.0)
    o = updsl.Optimizer([p], updsl.parse(WRITES), lr=0.25, backend=backend, decay=2.0)
    o.step()
    assert p.tolist() == [0.0, 0.0]
    assert p.grad.tolist() == [2.0, 2.0]


def test_weight_decay_that_a_rule_lacks() -> None:
    """A rule that writes w is no stage before another one: it is mended in its text."""
    mended = WRITES.replace("decay = 0.5", "decay = 0.5, weight_decay = 0.1") + "    w ← w - lr*weight_decay*w\n"
    for given in ({"weight_decay": 0.1}, {}):
        params = parameters(2.0) if given else [{"params": parameters(2.0), "weight_decay": 0.1}]
        with pytest.raises(updsl.UpdslError, match="give it the parameter `weight_decay`, and write `w ← w - lr\\*weight_decay\\*w`"):
            updsl.Optimizer(params, updsl.parse(WRITES), **given)
        updsl.Optimizer(params, updsl.parse(mended), **given)
        with pytest.raises(updsl.UpdslError, match=r"append `→ weight_decay\(0.01\)`"):
            updsl.Optimizer(params, "adam", **given)


def test_it_equals_torchs_adamw() -> None:
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    two = copy.deepcopy(one)
    a = torch.optim.AdamW(one.parameters(), lr=0.01, weight_decay=0.1)
    b = updsl.Optimizer(two.parameters(), "adamw", lr=0.01, weight_decay=0.1)
    x = torch.randn(16, 4, dtype=torch.float64)
    for _ in range(20):
        for model, o in ((one, a), (two, b)):
            o.zero_grad()
            model(x).pow(2).mean().backward()
            o.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


def test_sixteen_bit_weights_are_rounded_once() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    p.grad = torch.tensor([1.0], dtype=torch.bfloat16)
    updsl.Optimizer([p], updsl.parse("it"), lr=0.3).step()
    assert p.item() == torch.tensor(1.0 - 0.3).bfloat16().item()


def test_l5_closures_of_an_optimizer_of_a_rule() -> None:
    (p,) = parameters(0.0)
    o = updsl.Optimizer([p], updsl.parse("it"), lr=1.0)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        o.zero_grad()
        loss = (3 * p).sum()
        loss.backward()
        return loss

    assert o.step(closure).item() == 6.0
    assert p.tolist() == [-2.0, -2.0]

    def broken() -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        o.step(broken)
    assert o.driver.state.run == 1


def test_groups_set_parameters_by_their_own_names() -> None:
    p, q = parameters(1.0, 1.0)
    o = updsl.Optimizer([{"params": [p], "c": 3.0}, {"params": [q], "lr": 0.5, "name": "second"}], updsl.parse("rule r(c = 2 in [0, 9]) = g*c"), lr=1.0)
    o.step()
    assert (p[0].item(), q[0].item()) == (-2.0, 0.0)
    o.set(c=4.0)
    o.param_groups[0]["c"] = 1.0
    o.step()
    assert (p[0].item(), q[0].item()) == (-3.0, -2.0)
    (r,) = parameters(1.0)
    o.add_param_group({"params": [r], "c": 9.0})
    o.step()
    assert r[0].item() == -8.0
    o.param_groups[0]["c"] = 10.0
    with pytest.raises(updsl.UpdslError, match="bounds"):
        o.step()


def test_unknown_entries_and_keywords_are_refused() -> None:
    (p,) = parameters(1.0)
    rule = updsl.parse("rule r(beta = 0.5) = g*beta")
    with pytest.raises(updsl.UpdslError, match="did you mean `beta`"):
        updsl.Optimizer([{"params": [p], "bata": 3.0}], rule)
    with pytest.raises(updsl.UpdslError, match="append `→ weight_decay"):
        updsl.Optimizer([{"params": [p], "weight_decay": 3.0}], rule)
    with pytest.raises(updsl.UpdslError, match="append `→ weight_decay"):
        updsl.Optimizer([p], rule, weight_decay=3.0)
    with pytest.raises(updsl.UpdslError, match="complex64"):
        updsl.Optimizer([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))], rule)


def test_schedulers_move_lr_and_parameters() -> None:
    (p,) = parameters(1.0)
    o = updsl.Optimizer([p], updsl.parse("it"), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5)
    o.step()
    scheduler.step()
    o.step()
    assert p[0].item() == -0.5


def test_lr_may_be_a_tensor() -> None:
    (p,) = parameters(1.0)
    updsl.Optimizer([p], updsl.parse(WRITES), lr=torch.tensor(0.5)).step()
    assert p[0].item() == 0.25


def test_names_of_parameters_are_the_rules() -> None:
    rule = updsl.parse('rule r:\n    match:\n        name ~ "bias": g*2\n        else: g\n')
    module = torch.nn.Linear(2, 2, bias=True)
    for given in ("pairs", "names"):
        o = updsl.Optimizer(module.named_parameters(), rule, 1.0) if given == "pairs" else updsl.Optimizer(module.parameters(), rule, 1.0, names=module)
        before = module.bias.detach().clone()
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        o.step()
        assert torch.equal(module.bias.detach(), before - 2)


@pytest.mark.parametrize("text", [COUNTER, WRITES])
@pytest.mark.parametrize("policy", ["skip", "mask", "raise"])
def test_bad_gradients_move_nothing(text, policy) -> None:
    p, q = parameters(1.0, 1.0)
    o = updsl.Optimizer([p, q], updsl.parse(text), lr=1.0, nonfinite=policy)
    o.step()
    before, kept = [p.detach().clone(), q.detach().clone()], copy.deepcopy(o.driver.state.values)
    refill([p, q], 1.0, float("nan"))
    if policy == "raise":
        with pytest.raises(updsl.UpdslError, match="nothing was changed"):
            o.step()
    else:
        o.step()
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])
    assert torch.isnan(q.grad).all()
    for name, cells in kept.items():
        assert all(torch.equal(o.driver.state.values[name][key], x) for key, x in cells.items())


def test_inputs_and_samples() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    o = updsl.Optimizer([p], updsl.parse("rule r:\n    input samples\n    return g + sample_mean(samples)\n"), lr=1.0)
    o.inputs(samples={"0.0": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    o.step()
    assert p.tolist() == [-4.0, -6.0]
    assert p.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("text", [COUNTER, "adamw", "stable_spam", "autoclip"])
def test_a_state_dict_goes_on_bit_for_bit(dtype, text, tmp_path) -> None:
    rule = updsl.parse(text) if "rule" in text else updsl.load(text)

    def made() -> tuple[list[torch.nn.Parameter], updsl.Optimizer]:
        params = parameters(1.0, 2.0, dtype=dtype)
        return params, updsl.Optimizer(params, rule, lr=0.1)

    params, o = made()
    for i in range(3):
        refill(params, 1.0 + i, 0.5)
        o.step()
    torch.save(o.state_dict(), tmp_path / "o.pt")
    again, other = made()
    for p, q in zip(params, again, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    assert_same_state(o, other)
    for i in range(3):
        for ps, opt in ((params, o), (again, other)):
            refill(ps, 2.0 + i, -0.5)
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
    assert_same_state(o, other)


@pytest.mark.parametrize("backend", ["torch", "interpret", "cpp"])
@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_a_state_dict_holds_what_is_of_all_tensors_whichever_had_a_gradient(backend, nonfinite) -> None:
    """The tensor that holds the count of steps, and the values of a group and of the model, has no gradient at the last steps."""
    text = (
        "rule r:\n    state n = 0 per all, k = 0 per group, m = 0\n    n ← n + (max(norm(g) per group) per all)\n    k ← k + (sum(g) per group)\n"
        "    every 4:\n        m ← m + 1\n    return (g + m)*n + k\n"
    )

    def made(seed: int) -> tuple[list[torch.nn.Parameter], updsl.Optimizer]:
        params = [torch.nn.Parameter(torch.full((2,), float(seed))) for _ in range(3)]
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        return params, updsl.Optimizer(groups, updsl.parse(text), lr=0.1, backend=backend, nonfinite=nonfinite)

    def steps(params: list[torch.nn.Parameter], o: updsl.Optimizer, ts: range) -> None:
        for t in ts:
            for i, p in enumerate(params):
                p.grad = None if t % 3 == i else torch.tensor([1.0 + t, -0.5 * i])
            o.step()

    (whole, one), (first, other), (second, third) = made(1), made(1), made(2)
    steps(whole, one, range(9))
    for a, b, ts in ((first, other, range(4)), (second, third, range(4, 6)), (first, other, range(6, 9))):
        if ts.start:
            before, saved = (first, other) if a is second else (second, third)
            b.load_state_dict(copy.deepcopy(saved.state_dict()))
            for p, q in zip(a, before, strict=True):
                p.data.copy_(q.data)
        steps(a, b, ts)
    for p, q in zip(whole, first, strict=True):
        assert torch.equal(p, q)


def test_a_state_dict_of_another_rule_is_refused() -> None:
    params = parameters(1.0)
    o, other = updsl.Optimizer(params, "momentum"), updsl.Optimizer(params, "ema")
    o.step()
    with pytest.raises(updsl.UpdslError, match=f"{o.rule.text_hash:015x}, and that of `ema` has {other.rule.text_hash:015x}"):
        other.load_state_dict(o.state_dict())
    assert not other.state


def assert_same_state(a: updsl.Optimizer, b: updsl.Optimizer) -> None:
    one, two = a.driver.state, b.driver.state
    assert (one.run, one.t, one.values.keys()) == (two.run, two.t, two.values.keys())
    for name, cells in one.values.items():
        for key, x in cells.items():
            for u, v in zip(x if isinstance(x, tuple) else (x,), two.values[name][key] if isinstance(x, tuple) else (two.values[name][key],), strict=True):
                assert u.dtype == v.dtype
                assert torch.equal(u, v)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(copier) -> None:
    (p,) = parameters(1.0)
    o = updsl.Optimizer([("weight", p)], updsl.parse(COUNTER), lr=1.0)
    o.set(beta=1.0)
    o.step()
    again = copier(o)
    (q,) = again.param_groups[0]["params"]
    for opt, mine in ((o, p), (again, q)):
        refill([mine], 1.0)
        opt.step()
        assert mine.tolist() == [-2.0, -2.0]
        assert float(opt.watch()["n"]) == 2.0
    assert set(again.driver.state.t) == {"weight"}
    again.load_state_dict(again.state_dict())
    assert again.driver.state.run == 2


def test_a_rule_may_stand_before_it() -> None:
    (p,) = parameters(1.0)
    o = updsl.Optimizer([p], updsl.parse("it*2"), lr=1.0)
    updsl.attach(o, updsl.parse("it*3", name="three"))
    o.step()
    assert p.tolist() == [-5.0, -5.0]
