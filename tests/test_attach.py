"""`attach`: a rule before an optimizer, through hooks, closures, groups, wrappers and bad gradients."""

from __future__ import annotations

import copy
import os
import pickle
import re
import threading
import warnings

import pytest
import torch

import updsl
from updsl.runtime.transform import attached

BACKENDS = ["torch", "interpret"]


def refused(code: str, match: str | None = None):
    """A block that must raise an UpdslError of this code."""

    class Refused:
        def __enter__(self):
            self.inner = pytest.raises(updsl.UpdslError, match=match)
            self.found = self.inner.__enter__()
            return self.found

        def __exit__(self, *args):
            done = self.inner.__exit__(*args)
            assert self.found.value.diagnostics[0].code == code
            return done

    return Refused()


def parameters(*values: list[float], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(len(v), dtype=dtype)) for v in values]
    for p, v in zip(made, values, strict=True):
        p.grad = torch.tensor(v, dtype=dtype)
    return made


def sgd(*values: list[float], **kwargs) -> tuple[list[torch.nn.Parameter], torch.optim.SGD]:
    made = parameters(*values)
    return made, torch.optim.SGD(made, lr=1.0, **kwargs)


def refill(params: list[torch.nn.Parameter], *values: list[float]) -> None:
    for p, v in zip(params, values, strict=True):
        p.grad = torch.tensor(v, dtype=p.dtype)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_c2_gradients_are_written_in_place(backend) -> None:
    (p, q), o = sgd([3.0, 0.0], [4.0])
    held = p.grad
    updsl.attach(o, "clip_norm", max_norm=1.0, backend=backend)
    o.step()
    assert p.grad is held
    assert p.tolist() == pytest.approx([-0.6, 0.0])
    assert q.tolist() == pytest.approx([-0.8])


@pytest.mark.parametrize("how", ["positional", "keyword", "none", "keyword none"])
def test_c1_closures_are_evaluated_first(how) -> None:
    (p,), o = sgd([0.0, 0.0])
    updsl.attach(o, "clip_norm", max_norm=1.0)
    calls = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        o.zero_grad()
        loss = (p * torch.tensor([3.0, 4.0])).sum()
        loss.backward()
        return loss

    match how:
        case "positional":
            loss = o.step(closure)
        case "keyword":
            loss = o.step(closure=closure)
        case "none":
            closure()
            loss = o.step(None)
        case _:
            closure()
            loss = o.step(closure=None)
    assert calls == [1]
    assert (loss is None) == ("none" in how)
    assert p.tolist() == pytest.approx([-0.6, -0.8])


def test_l5_under_lbfgs_each_evaluation_is_a_step() -> None:
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    o = torch.optim.LBFGS([p], lr=0.1, max_iter=3)
    handle = updsl.attach(o, updsl.parse("rule r:\n    state n = 0 per all\n    n ← n + 1\n    watch n = n\n    return g\n"))
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        o.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    o.step(closure)
    assert len(calls) > 1
    assert float(handle.watch()["n"]) == len(calls)


def test_l5_a_closure_that_raises_leaves_everything() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, "ema")

    def closure() -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        o.step(closure)
    assert handle.driver.state.run == 0
    assert p.grad.tolist() == [1.0]
    o.step()
    assert handle.driver.state.run == 1


def test_c3_parameters_are_found_at_each_step() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse("rule r:\n    state m = 0\n    m ← m + g\n    return m*tensors\n"))
    o.step()
    (q,) = parameters([1.0])
    o.add_param_group({"params": [q], "lr": 1.0})
    refill([p], [1.0])
    o.step()
    assert p.grad.tolist() == [4.0]
    assert q.grad.tolist() == [2.0]
    assert dict(handle.driver.state.t) == {"0.0": 2, "1.0": 1}
    q.requires_grad_(False)
    q.grad = None
    refill([p], [1.0])
    o.step()
    assert p.grad.tolist() == [3.0]
    assert dict(handle.driver.state.t) == {"0.0": 3, "1.0": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_do_not_share_memory_with_gradients(backend) -> None:
    (p,), o = sgd([1.0])
    updsl.attach(o, "prev", backend=backend)
    o.step()
    p.grad.fill_(7.0)
    o.step()
    assert p.grad.tolist() == [1.0]


def test_gradients_that_cannot_be_written_are_refused() -> None:
    (p,), o = sgd([1.0, 1.0])
    updsl.attach(o, updsl.parse("it*2"))
    p.grad = torch.ones(1).expand(2)
    with refused("not-writable", "expanded"):
        o.step()
    p.grad = torch.ones(2).to_sparse()
    with refused("tensor-type", "sparse"):
        o.step()


@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (0, 4), (2, 3, 4, 2, 2)])
def test_l1_shapes(shape) -> None:
    p = torch.nn.Parameter(torch.ones(shape))
    q = torch.nn.Parameter(torch.ones(4, 6).t())
    o = torch.optim.SGD([p, q], lr=1.0)
    updsl.attach(o, updsl.parse("it*2"))
    (p.sum() + q.sum()).backward()
    o.step()
    assert torch.equal(p.detach(), torch.full(shape, -1.0))
    assert torch.equal(q.detach(), torch.full((6, 4), -1.0))


def test_gradients_that_a_rule_leaves_as_they_are_stay_where_they_are() -> None:
    params = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))]
    o = torch.optim.SGD(params, lr=1.0)
    rule = updsl.parse("rule r:\n    state m = 0\n    m ← g\n    match:\n        ndim < 2: 2*g\n        else:     g\n")
    handle = updsl.attach(o, rule)
    given = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    params[0].grad, params[1].grad = given, torch.ones(2)
    o.step()
    assert params[0].grad is given
    assert given.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert params[1].grad.tolist() == [2.0, 2.0]
    given.zero_()
    assert handle.driver.state.values["m"]["0.0"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("text", ["it", "rule r = g.T"])
def test_l1_gradients_that_are_views_are_not_taken_for_what_they_view(text) -> None:
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    want = (p.grad if text == "it" else p.grad.T).tolist()
    o = torch.optim.SGD([p], lr=1.0)
    updsl.attach(o, updsl.parse(text))
    o.step()
    assert p.grad.tolist() == want


def test_large_gradients_are_finite() -> None:
    (p,), o = sgd([3e38, -3e38])
    handle = updsl.attach(o, "ema", beta=0.0)
    o.step()
    assert handle.counts == {"bad": 0, "in_a_row": 0, "overflowed": 0}
    assert p.grad.tolist() == torch.tensor([3e38, -3e38]).tolist()


def test_l1_channels_last_gradients_keep_their_layout() -> None:
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    o = torch.optim.SGD([p], lr=1.0)
    updsl.attach(o, updsl.parse("norm per row"))
    p.grad = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    want = p.grad / p.grad.reshape(2, -1).norm(dim=1).reshape(2, 1, 1, 1)
    o.step()
    assert p.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(p.grad, want)


# --- groups, parameters, inputs, watches -----------------------------------------------------------------------------


def test_groups_set_parameters_and_lr() -> None:
    p, q = parameters([1.0], [1.0])
    o = torch.optim.SGD([{"params": [p], "updsl.c": 3.0}, {"params": [q], "lr": 10.0, "c": 100.0}], lr=1.0)
    handle = updsl.attach(o, updsl.parse("rule r(c = 2 in [0, 9]) = g*c*lr"))
    o.step()
    assert (p.grad.item(), q.grad.item()) == (3.0, 20.0)
    o.param_groups[0]["updsl.c"] = 4.0
    o.param_groups[1]["lr"] = 5.0
    handle.set(c=1.0)
    refill([p, q], [1.0], [1.0])
    o.step()
    assert (p.grad.item(), q.grad.item()) == (4.0, 5.0)
    o.param_groups[1]["updsl.c"] = torch.tensor(6.0)
    refill([p, q], [1.0], [1.0])
    o.step()
    assert (p.grad.item(), q.grad.item()) == (4.0, 30.0)
    for value, code in ((10.0, "parameter-out-of-bounds"), ("a", "parameter-type")):
        o.param_groups[0]["updsl.c"] = value
        with refused(code):
            o.step()


def test_groups_are_checked() -> None:
    p, q = parameters([1.0], [1.0])
    with refused("unknown-parameter", "did you mean `max_norm`"):
        updsl.attach(torch.optim.SGD([{"params": [p], "updsl.max_nrm": 3.0}], lr=1.0), "clip_norm")
    with refused("constant-parameter", "in a group"):
        updsl.attach(torch.optim.SGD([{"params": [q], "updsl.rounds": 3.0}], lr=1.0), "sinkgd")


def test_parameters_are_checked() -> None:
    (_,), o = sgd([1.0])
    with refused("unknown-parameter", "did you mean `max_norm`"):
        updsl.attach(o, "clip_norm", max_norn=1.0)
    with refused("unknown-parameter", r"append `→ weight_decay\(0.01\)`"):
        updsl.attach(o, "clip_norm", weight_decay=0.1)
    with refused("unknown-backend"):
        updsl.attach(o, "clip_norm", backend="cuda")
    with refused("unknown-policy", "did you mean `skip`"):
        updsl.attach(o, "clip_norm", nonfinite="skpi")
    assert not attached(o)
    handle = updsl.attach(o, "sinkgd")
    with refused("constant-parameter"):
        handle.set(rounds=3)


def test_names_come_from_a_module_pairs_or_the_groups() -> None:
    rule = updsl.parse('rule r:\n    match:\n        name ~ "bias": g*2\n        else: g*3\n')
    for given in ("module", "pairs", "dict", "groups"):
        module = torch.nn.Linear(2, 2)
        named = list(module.named_parameters())
        o = torch.optim.SGD(named if given == "groups" else module.parameters(), lr=1.0)
        names = {"module": module, "pairs": iter(named), "dict": dict(named), "groups": None}[given]
        updsl.attach(o, rule, names=names)
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        o.step()
        assert module.bias.grad.tolist() == [2.0, 2.0]
        assert module.weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    module = torch.nn.Linear(2, 2)
    with refused("no-names", "names=model"):
        updsl.attach(torch.optim.SGD(module.parameters(), lr=1.0), rule)
    with refused("unnamed-tensor"):
        updsl.attach(torch.optim.SGD(module.parameters(), lr=1.0), rule, names=[("bias", module.bias)])


def test_a_local_that_is_called_like_a_rule_of_names_reads_none() -> None:
    (p,), o = sgd([3.0, 4.0])
    updsl.attach(o, updsl.parse("rule r:\n    scale = 1 / norm(g)\n    return scale*g\n"))
    o.step()
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])


def test_inputs_are_of_the_next_step() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse("rule r:\n    input loss per all, h\n    return g*loss + h\n"))
    handle.inputs(loss=torch.tensor(2.0, requires_grad=True))
    handle.inputs(h={"0.0": torch.tensor([10.0])})
    o.step()
    assert p.grad.tolist() == [12.0]
    with refused("missing-input"):
        o.step()
    with refused("unknown-input", "did you mean `loss`"):
        handle.inputs(los=1.0)
    assert p.grad.tolist() == [12.0]


def test_watches_are_of_the_last_step() -> None:
    (p,), o = sgd([3.0, 4.0])
    handle = updsl.attach(o, updsl.parse("rule r:\n    watch n = norm(g)\n    watch a = norm(g) per all\n    watch q = norm(g) per group\n    return g\n"))
    assert handle.watch() == {}
    o.step()
    watch = handle.watch()
    assert (float(watch["n"]["0.0"]), float(watch["a"]), float(watch["q"][0])) == (5.0, 5.0, 5.0)
    refill([p], [float("nan"), 0.0])
    o.step()
    assert float(handle.watch()["a"]) == 5.0


# --- non-finite gradients --------------------------------------------------------------------------------------------

COUNTER = "rule r:\n    state n = 0 per all\n    state m = 0\n    n ← n + 1\n    m ← m + g\n    watch n = n\n    return m\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_n2_skip_moves_nothing(backend, bad) -> None:
    params = parameters([1.0], [1.0])
    o = torch.optim.Adam(params, lr=1.0)
    handle = updsl.attach(o, updsl.parse(COUNTER), backend=backend)
    o.step()
    before = copy.deepcopy((params, o.state_dict()))
    refill(params, [1.0], [bad])
    held = [p.grad for p in params]
    o.step()
    assert [p.grad is h for p, h in zip(params, held, strict=True)] == [True, True]
    assert not torch.isfinite(params[1].grad).all()
    assert [torch.equal(a, b) for a, b in zip(params, before[0], strict=True)] == [True, True]
    assert o.state_dict()["state"][0]["step"] == before[1]["state"][0]["step"]
    assert handle.counts["bad"] == 1
    assert handle.driver.state.run == 1
    refill(params, [1.0], [1.0])
    o.step()
    assert handle.driver.state.run == 2
    assert handle.counts == {"bad": 1, "in_a_row": 0, "overflowed": 0}
    assert float(handle.watch()["n"]) == 2.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_n2_mask_gives_zero_gradients_and_keeps_states(backend) -> None:
    (p, q), o = sgd([1.0], [1.0])
    handle = updsl.attach(o, updsl.parse(COUNTER), nonfinite="mask", backend=backend)
    refill([p, q], [float("nan")], [1.0])
    o.step()
    for n in (1.0, 2.0):
        refill([p, q], [1.0], [1.0])
        o.step()
        assert (p.grad.item(), q.grad.item()) == (n, n)
    refill([p, q], [float("nan")], [1.0])
    o.step()
    assert (p.grad.item(), q.grad.item()) == (0.0, 0.0)
    refill([p, q], [1.0], [1.0])
    o.step()
    assert (p.grad.item(), q.grad.item()) == (3.0, 3.0)
    assert float(handle.watch()["n"]) == 3.0
    assert int(handle.counts["bad"]) == 2


def test_n2_zero_drops_the_entries() -> None:
    (p, q), o = sgd([float("nan"), 1.0], [float("inf")])
    handle = updsl.attach(o, updsl.parse("rule r:\n    input h\n    return g + h\n"), nonfinite="zero")
    handle.inputs(h={"0.0": torch.tensor([2.0, float("nan")]), "0.1": torch.tensor([3.0])})
    o.step()
    assert p.grad.tolist() == [2.0, 1.0]
    assert q.grad.tolist() == [3.0]
    assert int(handle.counts["bad"]) == 1


def test_n2_raise_is_an_error_and_moves_nothing() -> None:
    (p,), o = sgd([float("nan")])
    handle = updsl.attach(o, updsl.parse(COUNTER), nonfinite="raise")
    with refused("nonfinite-gradients", "nothing was changed"):
        o.step()
    assert p.tolist() == [0.0]
    assert handle.driver.state.run == 0
    refill([p], [1.0])
    o.step()
    assert p.tolist() == [-1.0]


def test_n2_propagate_lets_them_through() -> None:
    (p,), o = sgd([float("nan")])
    handle = updsl.attach(o, updsl.parse(COUNTER), nonfinite="propagate")
    o.step()
    assert torch.isnan(p).all()
    assert handle.driver.state.run == 1


def test_inputs_count_too() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse("rule r:\n    input loss per all\n    return g*loss\n"))
    handle.inputs(loss=float("inf"))
    o.step()
    assert p.tolist() == [0.0]
    with refused("missing-input"):
        o.step()


@pytest.mark.parametrize("policy", ["skip", "mask", "zero"])
def test_n2_a_hundred_bad_steps_in_a_row_are_an_error(policy) -> None:
    (p,), o = sgd([1.0])
    updsl.attach(o, updsl.parse(COUNTER), nonfinite=policy)
    o.step()
    for _ in range(99):
        refill([p], [float("nan")])
        o.step()
    refill([p], [1.0])
    o.step()
    for _ in range(99):
        refill([p], [float("nan")])
        o.step()
    refill([p], [float("nan")])
    with refused("nonfinite-gradients", "100 steps in a row"):
        o.step()


def test_what_a_rule_overflows_is_counted_and_not_undone() -> None:
    (p,), o = sgd([1e38])
    handle = updsl.attach(o, updsl.parse("it*100"))
    o.step()
    assert torch.isinf(p).all()
    assert int(handle.counts["overflowed"]) == 1
    assert handle.counts["bad"] == 0


def test_closures_are_skipped_too() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse(COUNTER))

    def closure() -> float:
        p.grad = torch.tensor([float("nan")])
        return 7.0

    assert o.step(closure) == 7.0
    assert p.tolist() == [0.0]
    assert torch.isnan(p.grad).all()
    assert handle.driver.state.run == 0


# --- attaching, removing, chaining, wrappers -------------------------------------------------------------------------


def test_c13_a_second_attach_of_the_same_rule_is_an_error_unless_chained() -> None:
    (p,), o = sgd([1.0])
    double = updsl.parse("it*2")
    first = updsl.attach(o, double)
    with refused("already-attached", "chain=True"):
        updsl.attach(o, updsl.parse("it*2"))
    second = updsl.attach(o, double, chain=True)
    updsl.attach(o, updsl.parse("it + 1"))
    o.step()
    assert p.grad.tolist() == [5.0]
    first.remove()
    second.remove()
    refill([p], [1.0])
    o.step()
    assert p.grad.tolist() == [2.0]
    updsl.attach(o, double)
    refill([p], [1.0])
    o.step()
    assert p.grad.tolist() == [4.0]


def test_chained_rules_skip_together_and_keep_apart() -> None:
    (p,), o = sgd([1.0])
    first, second = updsl.attach(o, updsl.parse(COUNTER)), updsl.attach(o, updsl.parse(COUNTER), chain=True)
    for value in (1.0, float("nan"), 1.0):
        refill([p], [value])
        o.step()
    assert (first.driver.state.run, second.driver.state.run) == (2, 2)
    assert p.grad.tolist() == [3.0]
    assert p.tolist() == [-4.0]
    own = o.state[p]
    assert (float(own["updsl.m"]), float(own["updsl2.m"])) == (2.0, 3.0)


def test_l8_removing_takes_the_rule_and_its_state_away() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse(COUNTER))
    o.step()
    assert any(k.startswith("updsl.") for k in o.state[p])
    handle.remove()
    handle.remove()
    assert not any(k.startswith("updsl.") for k in o.state[p])
    refill([p], [7.0])
    o.step()
    assert p.grad.tolist() == [7.0]


def test_l8_removing_inside_a_step_waits_for_its_end() -> None:
    (p,), o = sgd([1.0])
    handle = updsl.attach(o, updsl.parse("it*2"))

    def closure() -> None:
        p.grad = torch.tensor([1.0])
        handle.remove()

    o.step(closure)
    assert p.grad.tolist() == [1.0]
    refill([p], [float("nan")])
    handle = updsl.attach(o, updsl.parse("it*2"))
    remover = o.register_step_pre_hook(lambda *_: handle.remove())
    o.step()
    remover.remove()
    assert torch.isnan(p.grad).all()
    assert p.tolist() == [-1.0]
    refill([p], [1.0])
    o.step()
    assert p.tolist() == [-2.0]


def test_a_rule_that_writes_w_is_named_as_a_call_has_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "rule mine = adamw(0.8)\n"
    (tmp_path / "mine.upd").write_text(text)
    (tmp_path / "adamw").write_text(text)
    for rule, written in [("adamw", '"adamw"'), (updsl.load("adamw", weight_decay=0), '"adamw"'), ("./mine.upd", '"mine.upd"')]:
        with refused("writes-weights", rf"Optimizer\(params, {written}\)"):
            updsl.attach(sgd([1.0])[1], rule)
    for rule, written in [(tmp_path / "mine.upd", f'"{tmp_path / "mine.upd"}"'), ("./adamw", '"./adamw"'), (updsl.parse(text), "rule")]:
        with refused("writes-weights", re.escape(f"Optimizer(params, {written})")):
            updsl.attach(sgd([1.0])[1], rule)


def test_rules_that_write_w_are_refused() -> None:
    (_,), o = sgd([1.0])
    with refused("writes-weights", "updsl.Optimizer"):
        updsl.attach(o, "adamw")
    with refused("writes-weights", "updsl.Optimizer"):
        updsl.optimizer(torch.optim.SGD, "adamw")


def test_c10_wrappers_are_opened() -> None:
    class Wrapper:
        param_groups = ()

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self) -> None: ...

    class Private(Wrapper):
        def __init__(self, optimizer):
            self.original_optimizer = optimizer

    (p,), o = sgd([1.0])
    updsl.attach(Wrapper(Private(o)), updsl.parse("it*2"))
    o.step()
    assert p.grad.tolist() == [2.0]

    class Foreign:
        param_groups = ()

        def step(self) -> None: ...

    with refused("not-an-optimizer", "Foreign has no step hooks"):
        updsl.attach(Wrapper(Foreign()), "ema")
    with refused("not-an-optimizer", "int"):
        updsl.attach(3, "ema")


def test_c10_lightnings_wrapper_is_opened_though_it_has_hooks() -> None:
    (p,), o = sgd([1.0])

    class LightningOptimizer:
        __module__ = "lightning.pytorch.core.optimizer"

        def __init__(self, optimizer):
            vars(self).update(vars(optimizer))
            self._optimizer = optimizer

        optimizer = property(lambda self: self._optimizer)

    wrapped = LightningOptimizer(o)
    wrapped.__class__ = type("LightningSGD", (LightningOptimizer, torch.optim.SGD), {})
    assert updsl.attach(wrapped, updsl.parse("it*2")).optimizers == [o]
    o.step()
    assert p.grad.tolist() == [2.0]


@pytest.mark.parametrize("made", [lambda o: torch.optim.lr_scheduler.StepLR(o, 1), torch.optim.lr_scheduler.ReduceLROnPlateau])
def test_schedules_are_refused(made) -> None:
    (_,), o = sgd([1.0])
    with refused("not-an-optimizer", "is a schedule of learning rates(.|\n)*the optimizer that it was made for"):
        updsl.attach(made(o), "ema")
    assert not attached(o)


def test_c10_what_merely_holds_an_optimizer_is_refused() -> None:
    class Trainer:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    with refused("not-an-optimizer", "Trainer has no step hooks"):
        updsl.attach(Trainer(sgd([1.0])[1]), "ema")


def test_complex_parameters_are_refused_by_name() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with refused("tensor-type", "`0.0` is complex64"):
        updsl.attach(torch.optim.SGD([p], lr=1.0), "ema")


@pytest.mark.skipif(os.environ.get("UPDSL_BACKEND") == "triton", reason="Triton's interpreter changes its language for all threads while it runs a kernel")
def test_l14_threads_step_optimizers_of_one_rule_by_themselves() -> None:
    rule = updsl.parse(COUNTER)
    made = [sgd([1.0]) for _ in range(4)]
    handles = [updsl.attach(o, rule) for _, o in made]

    def train(params: list[torch.nn.Parameter], o: torch.optim.Optimizer) -> None:
        for _ in range(20):
            refill(params, [1.0])
            o.step()

    threads = [threading.Thread(target=train, args=pair) for pair in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [h.driver.state.run for h in handles] == [20] * 4
    assert [p.tolist() for (p,), _ in made] == [[-210.0]] * 4


# --- several optimizers ----------------------------------------------------------------------------------------------


def test_c14_all_spans_several_optimizers() -> None:
    (p,), o1 = sgd([3.0])
    (q,), o2 = sgd([4.0])
    handle = updsl.attach([o1, o2], "clip_norm", max_norm=1.0)
    for _ in range(2):
        refill([p], [3.0])
        refill([q], [4.0])
        p.data.zero_()
        q.data.zero_()
        o1.step()
        o2.step()
        assert p.tolist() == pytest.approx([-0.6])
        assert q.tolist() == pytest.approx([-0.8])
    assert handle.driver.state.run == 2
    o2.step()
    with refused("stepped-twice", "before SGD"):
        o2.step()


def test_several_optimizers_skip_together() -> None:
    (p,), o1 = sgd([3.0])
    (q,), o2 = sgd([float("nan")])
    updsl.attach([o1, o2], "clip_norm", max_norm=1.0)
    o1.step()
    o2.step()
    assert (p.tolist(), q.tolist()) == ([0.0], [0.0])
    assert p.grad.tolist() == [3.0]
    refill([q], [4.0])
    o2.step()
    o1.step()
    assert p.tolist() == pytest.approx([-0.6])


def test_c14_several_optimizers_are_checked() -> None:
    (p,), o1 = sgd([3.0])
    with refused("duplicate-tensor"):
        updsl.attach([o1, torch.optim.SGD([p], lr=1.0)], "ema")
    with refused("duplicate-tensor"):
        updsl.attach([], "ema")
    with refused("not-an-optimizer", "LBFGS"):
        updsl.attach([o1, torch.optim.LBFGS(parameters([1.0]))], "ema")


# --- state in the optimizer's ----------------------------------------------------------------------------------------


def test_c4_state_is_mirrored_after_the_optimizers_own() -> None:
    params = parameters([1.0], [1.0], dtype=torch.bfloat16)
    params[0].grad = None
    o = torch.optim.AdamW(params, lr=0.1)
    updsl.attach(
        o, updsl.parse("rule r:\n    state n = 0 per all\n    state m = 0\n    n ← n + 1\n    m ← m + g\n    return m + 0*median((norm(g) → history(3)))\n")
    )
    assert not o.state
    o.step()
    assert params[0] not in o.state
    own = {k: v for k, v in o.state[params[1]].items() if k.startswith("updsl.")}
    assert own["updsl.(t)"] == own["updsl.(run)"] == 1
    assert own["updsl.m"].dtype == torch.float32
    assert float(own["updsl.n"]) == 1.0
    assert all(isinstance(v, (torch.Tensor, int, float)) for v in own.values())
    refill(params, [1.0], [1.0])
    o.step()
    assert "exp_avg" in o.state[params[0]]
    assert "updsl.n" not in o.state[params[0]]
    assert float(o.state[params[1]]["updsl.n"]) == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_bit_for_bit(dtype, tmp_path) -> None:
    rule = updsl.parse(
        "rule r:\n    state n = 1000 per all\n    state m = 0\n    n ← n + 1\n    m ← 0.9*m + 0.1*g\n"
        "    return m*n + 0*median((norm(g) → history(3)))*t + gaussian(1)\n"
    )

    def made() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        params = parameters([1.0, 2.0], [3.0], dtype=dtype)
        return params, torch.optim.AdamW(params, lr=0.1)

    def steps(params, o, which) -> None:
        for i in which:
            refill(params, [1.0 + i, 2.0], [3.0 * i])
            o.step()

    params, o = made()
    updsl.attach(o, rule)
    steps(params, o, range(3))
    torch.save(o.state_dict(), tmp_path / "o.pt")
    again, o2 = made()
    handle = updsl.attach(o2, rule)
    for p, q in zip(params, again, strict=True):
        q.data.copy_(p.data)
    o2.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    assert handle.driver.state.run == 3
    steps(params, o, range(3, 6))
    steps(again, o2, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
    _, late = made()
    late.load_state_dict(o2.state_dict())
    adopted = updsl.attach(late, rule)
    if dtype == torch.float32:
        assert adopted.driver.state.run == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late.load_state_dict({"state": {}, "param_groups": o2.state_dict()["param_groups"]})
    assert adopted.driver.state.run == 0


def test_c7_a_checkpoint_without_the_rule_warns() -> None:
    (_,), o = sgd([1.0], momentum=0.9)
    o.step()
    saved = o.state_dict()
    (_,), o2 = sgd([1.0], momentum=0.9)
    updsl.attach(o2, "ema")
    with pytest.warns(UserWarning, match="`ema`: it starts afresh"):
        o2.load_state_dict(saved)


def test_c7_a_checkpoint_of_another_rule_is_refused_before_anything_is_loaded() -> None:
    (_,), o = sgd([1.0], momentum=0.9)
    handle = updsl.attach(o, "momentum")
    o.step()
    saved = o.state_dict()
    (_,), o2 = sgd([1.0])
    o2.param_groups[0]["lr"] = 0.5
    other = updsl.attach(o2, "ema")
    both = f"{handle.rule.text_hash:015x}, and that of `ema` has {other.rule.text_hash:015x}"
    with refused("another-rule", both):
        o2.load_state_dict(saved)
    assert o2.param_groups[0]["lr"] == 0.5
    assert not o2.state
    assert other.driver.state.run == 0
    other.remove()
    o2.load_state_dict(saved)
    with refused("another-rule", both):
        updsl.attach(o2, "ema")
    assert not o2._optimizer_step_pre_hooks
    assert not attached(o2)
    assert updsl.attach(o2, "momentum", beta=0.5).driver.state.run == 1


def test_c12_l7_hooks_do_not_survive_pickling() -> None:
    (_,), o = sgd([1.0])
    updsl.attach(o, updsl.parse("it*2"))
    o.step()
    again = pickle.loads(pickle.dumps(o))
    again.param_groups[0]["params"][0].grad = torch.tensor([1.0])
    again.step()
    assert again.param_groups[0]["params"][0].grad.tolist() == [1.0]
    assert not attached(again)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_c8_attaching_to_a_copy_goes_on(copier) -> None:
    (_,), o = sgd([1.0])
    updsl.attach(o, updsl.parse(COUNTER))
    o.step()
    again = copier(o)
    handle = updsl.attach(again, updsl.parse(COUNTER))
    again.param_groups[0]["params"][0].grad = torch.tensor([1.0])
    again.step()
    assert float(handle.watch()["n"]) == 2.0


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_c12_l7_the_class_route_survives_pickling(copier) -> None:
    SGD = updsl.optimizer(torch.optim.SGD, updsl.parse(COUNTER))
    (p,) = parameters([1.0])
    o = SGD([p], lr=1.0)
    assert isinstance(o, torch.optim.SGD)
    o.step()
    again = copier(o)
    assert isinstance(again, torch.optim.SGD)
    (q,) = again.param_groups[0]["params"]
    again.load_state_dict(again.state_dict())
    for made, mine in ((o, p), (again, q)):
        mine.grad = torch.tensor([1.0])
        made.step()
        assert mine.tolist() == [-3.0]
        assert float(made.handle.watch()["n"]) == 2.0


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_what_is_set_survives_pickling_of_the_class_route(copier) -> None:
    o = updsl.optimizer(torch.optim.SGD, updsl.parse("rule r(c = 1) = g*c"))(parameters([1.0]), lr=1.0)
    o.handle.set(c=5.0)
    again = copier(o)
    (p,) = again.param_groups[0]["params"]
    p.grad = torch.tensor([1.0])
    again.step()
    assert p.tolist() == [-5.0]
    o.handle.set(c=7.0)
    assert again.handle.driver.values == {"c": 5.0}


def test_the_class_route_takes_options_and_parameters() -> None:
    made = updsl.optimizer(torch.optim.AdamW, "clip_norm", max_norm=0.5, nonfinite="raise", backend="interpret")(parameters([1.0]), lr=0.1)
    assert made.handle.rule.params["max_norm"] == 0.5
    assert made.handle.driver.guard.policy == "raise"
    with refused("unknown-parameter"):
        updsl.optimizer(torch.optim.AdamW, "clip_norm", maxnorm=1.0)
    with refused("not-an-optimizer"):
        updsl.optimizer(torch.nn.Linear, "clip_norm")
    with refused("already-attached"):
        updsl.attach(made, "clip_norm")


@pytest.mark.parametrize("backend", ["cpp", "torch", "interpret"])
@pytest.mark.parametrize("shape", [(2, 2), (30, 20), (40, 60)])
def test_l4_a_parameter_of_another_shape_is_refused(shape, backend) -> None:
    p = torch.nn.Parameter(torch.ones(20, 30))
    before = torch.optim.SGD([p], lr=0.1)
    updsl.attach(before, "ema", backend=backend)
    own = updsl.Optimizer([p], "lion", lr=0.1, backend=backend)
    p.grad = torch.ones_like(p)
    before.step()
    own.step()
    p.data, p.grad = torch.ones(shape), torch.ones(shape)
    for optimizer in (before, own):
        with pytest.raises(updsl.UpdslError, match="when the state was made"):
            optimizer.step()
    assert torch.equal(p.detach(), torch.ones(shape))
