"""Parameters that change while training runs: by `set`, by entries of groups, by schedules, and by an agent at every step, without anything made anew."""

from __future__ import annotations

import math
import subprocess

import numpy as np
import pytest
import torch
from test_attach import refused
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import updsl
from updsl import pipeline
from updsl.back import cpp_build
from updsl.core.resources import folder

PAGE = (folder("docs") / "training.md").read_text(encoding="utf-8")
SCALE = "rule scale(c = 2 in [0, 9], d = 1 in [0, 9]) = g*c*d"
STEPS = 1000


def parameter(*values: float) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.zeros(len(values)))
    p.grad = torch.tensor(values)
    return p


def out_of(o: torch.optim.Optimizer, *params: torch.nn.Parameter) -> list[float]:
    """What a step of rate 1 makes of gradients of 1."""
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    o.step()
    return [float((b - p.detach())[0]) for b, p in zip(before, params, strict=True)]


def made(route: str, rule: updsl.Rule, *params: torch.nn.Parameter, **options):
    """What has `set`, the optimizer, and the name of the entry `c` in its groups; each parameter in a group."""
    groups = [{"params": [p]} for p in params]
    if route == "optimizer":
        o = updsl.Optimizer(groups, rule, lr=1.0, **options)
        return o, o, "c"
    o = torch.optim.SGD(groups, lr=1.0)
    return updsl.attach(o, rule, **options), o, "updsl.c"


# --- what is set, and where it is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.array(3.0), torch.tensor(3), torch.tensor(3.0, dtype=torch.bfloat16)])
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_numbers_of_any_type_are_set_from_the_next_step_on(route, value) -> None:
    p, q = parameter(1.0), parameter(1.0)
    handle, o, entry = made(route, updsl.parse(SCALE), p, q)
    assert out_of(o, p, q) == [2.0, 2.0]
    handle.set(c=value)
    assert out_of(o, p, q) == [3.0, 3.0]
    o.param_groups[1][entry] = torch.tensor(5.0)
    assert out_of(o, p, q) == [3.0, 5.0]
    del o.param_groups[1][entry]
    assert out_of(o, p, q) == [3.0, 3.0]


@pytest.mark.parametrize("route", ["attach", "optimizer", "compile"])
@pytest.mark.parametrize(
    "given, code, match",
    [
        ({"d": 3.0, "c": 10.0}, "parameter-out-of-bounds", "c"),
        ({"d": 3.0, "c": torch.tensor(-1.0)}, "parameter-out-of-bounds", "c"),
        ({"d": 3.0, "c": math.nan}, "parameter-type", "NaN"),
        ({"d": 3.0, "c": "much"}, "parameter-type", "a number"),
        ({"d": 3.0, "c": torch.ones(2)}, "parameter-type", "a number"),
        ({"d": 3.0, "cc": 1.0}, "unknown-parameter", "did you mean `c`"),
    ],
)
def test_none_is_set_where_one_is_wrong(route, given, code, match) -> None:
    p, rule = parameter(1.0), updsl.parse(SCALE)
    if route == "compile":
        y = updsl.compile(rule, {"p": p.detach()})
        with refused(code, match):
            y.set(**given)
        g = torch.ones(1)
        y.step({"p": g})
        assert float(g) == 2.0
        return
    handle, o, _ = made(route, rule, p)
    with refused(code, match):
        handle.set(**given)
    assert out_of(o, p) == [2.0]


@pytest.mark.parametrize("route", ["attach", "optimizer"])
@pytest.mark.parametrize("value", [10.0, torch.tensor(10.0), np.array(-1.0)])
def test_a_groups_entry_out_of_bounds_is_an_error_before_anything_changes(route, value) -> None:
    p, q = parameter(1.0), parameter(1.0)
    _, o, entry = made(route, updsl.parse(SCALE), p, q)
    o.param_groups[1][entry] = value
    with refused("parameter-out-of-bounds"):
        out_of(o, p, q)
    assert (p.item(), q.item(), p.grad.item()) == (0.0, 0.0, 1.0)
    o.param_groups[1][entry] = 9.0
    assert out_of(o, p, q) == [2.0, 9.0]


def test_entries_of_groups_are_saved_and_what_is_set_is_not() -> None:
    def saved(route: str) -> list[float]:
        p, q = parameter(1.0), parameter(1.0)
        handle, o, entry = made(route, updsl.parse(SCALE), p, q)
        handle.set(c=4.0)
        o.param_groups[1][entry] = 5.0
        assert out_of(o, p, q) == [4.0, 5.0]
        others = parameter(1.0), parameter(1.0)
        _, fresh, _ = made(route, updsl.parse(SCALE), *others)
        fresh.load_state_dict(o.state_dict())
        return out_of(fresh, *others)

    assert saved("attach") == saved("optimizer") == [2.0, 5.0]


# --- schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_schedulers_of_torch_set_the_rate_that_a_rule_reads(route) -> None:
    p = parameter(1.0)
    handle, o, _ = made(route, updsl.parse("rule r:\n    watch rate = lr + 0*(norm(g) per all)\n    return g\n"), p)
    schedule = LambdaLR(o, lambda k: 1 / (k + 1))
    seen = []
    for _ in range(4):
        out_of(o, p)
        schedule.step()
        seen.append(float(handle.watch()["rate"][0]))
    assert seen == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_a_scheduler_of_torch_sets_any_parameter(route) -> None:
    """By way of an optimizer that has nothing but a rate; with the states of both it goes on after a checkpoint."""
    p = parameter(1.0)
    handle, o, entry = made(route, updsl.parse(SCALE), p)

    def scheduled() -> CosineAnnealingLR:
        return CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=8.0), T_max=10, eta_min=2.0)

    schedule, seen, expected = scheduled(), [], [5 + 3 * math.cos(math.pi * k / 10) for k in range(10)]
    for k in range(10):
        if k == 5:
            saved, schedule = (schedule.state_dict(), schedule.optimizer.state_dict()), scheduled()
            schedule.load_state_dict(saved[0])
            schedule.optimizer.load_state_dict(saved[1])
        (c,) = schedule.get_last_lr()
        handle.set(c=c) if k % 2 else o.param_groups[0].__setitem__(entry, c)
        seen += out_of(o, p)
        o.param_groups[0].pop(entry, None)
        schedule.optimizer.step()
        schedule.step()
    assert seen == pytest.approx(expected, rel=1e-6)


# --- an agent ------------------------------------------------------------------------------------------------------------


class Made:
    """What was made anew since it was last asked: rules for tensors, libraries, processes, graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.counts = dict.fromkeys(["engines", "libraries", "processes"], 0)
        for where, name, what in ((pipeline, "to_engine", "engines"), (cpp_build, "build", "libraries"), (subprocess, "Popen", "processes")):
            monkeypatch.setattr(where, name, self.counted(getattr(where, name), what))
        self.before = self.graphs()

    def counted(self, f, what: str):
        def call(*args, **kwargs):
            self.counts[what] += 1
            return f(*args, **kwargs)

        return call

    @staticmethod
    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    def anew(self) -> dict[str, int]:
        found = self.counts | {"graphs": self.graphs() - self.before}
        self.counts, self.before = dict.fromkeys(self.counts, 0), self.graphs()
        return {what: n for what, n in found.items() if n}


class Agent:
    """RLDP's: it reads what each group shows, and sets a threshold for each and a noise for all, at every step. Its policy is a plain one."""

    def __init__(self) -> None:
        self.max_norm, self.noise = [1.0, 1.0], 0.5

    def act(self, watch) -> None:
        for i in range(2):
            clipped, norm = float(watch["clipped"][i]), float(watch["norms"][i])
            self.max_norm[i] *= 1.05 if clipped > 0.5 else 0.95
            self.max_norm[i] += 1e-3 * norm
        self.noise = 0.5 + 0.4 * math.sin(sum(self.max_norm))


def samples(step: int) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(step)
    return {"a": torch.randn(4, 3, 2, generator=numbers), "b": torch.randn(4, 5, generator=numbers)}


def agent_runs(route: str, backend: str, made_anew: Made, steps: int = STEPS) -> list[tuple[float, ...]]:
    """What the agent set at each step; nothing is made after the first two."""
    params = {"a": torch.nn.Parameter(torch.zeros(3, 2)), "b": torch.nn.Parameter(torch.zeros(5))}
    agent, rule, set_to = Agent(), updsl.load("rldp"), []
    if route == "compile":
        y = updsl.compile(rule, params, backend=backend, groups=[{"params": ["a"]}, {"params": ["b"], "max_norm": 1.0}])
        source = y.source
    else:
        given = [{"params": [params["a"]]}, {"params": [params["b"]], ("updsl." if route == "attach" else "") + "max_norm": 1.0}]
        if route == "attach":
            o = torch.optim.SGD(given, lr=0.01)
            handle = updsl.attach(o, rule, names=params, backend=backend)
        else:
            handle = o = updsl.Optimizer(given, rule, lr=0.01, names=params, backend=backend)
    for step in range(steps):
        if step == 2:
            made_anew.anew()
        if route == "compile":
            y.set(max_norm=agent.max_norm[0], noise=agent.noise)
            watch = y.step({name: torch.zeros_like(p) for name, p in params.items()}, samples=samples(step))
        else:
            handle.set(max_norm=agent.max_norm[0], noise=agent.noise)
            o.param_groups[1][("updsl." if route == "attach" else "") + "max_norm"] = agent.max_norm[1]
            for p in params.values():
                p.grad = torch.zeros_like(p)
            handle.inputs(samples=samples(step))
            o.step()
            watch = handle.watch()
        agent.act(watch)
        set_to.append((*agent.max_norm, agent.noise))
    assert made_anew.anew() == {}
    if route == "compile":
        assert y.source == source
    return set_to


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("route", ["attach", "optimizer", "compile"])
def test_an_agent_sets_thresholds_at_each_of_a_thousand_steps_and_nothing_is_made_anew(route, backend, monkeypatch) -> None:
    set_to = agent_runs(route, backend, Made(monkeypatch))
    assert len(set(set_to)) == STEPS
    few = agent_runs(route, "interpret", Made(monkeypatch), steps=20)
    np.testing.assert_allclose(np.array(set_to[:20]), few, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", ["attach", "optimizer", "compile"])
def test_an_agent_recompiles_nothing_under_inductor(route, monkeypatch) -> None:
    set_to = agent_runs(route, "inductor", Made(monkeypatch))
    assert len(set(set_to)) == STEPS


def test_what_is_made_anew_is_seen(monkeypatch) -> None:
    """An entry that a group has not had is another rule for these tensors, once."""
    made_anew = Made(monkeypatch)
    p, q = parameter(1.0), parameter(1.0)
    _, o, entry = made("attach", updsl.parse(SCALE + "*1"), p, q)
    out_of(o, p, q)
    assert made_anew.anew()["engines"] >= 1
    for c in (1.0, 2.0):
        o.param_groups[0][entry] = c
        out_of(o, p, q)
    assert made_anew.anew()["engines"] == 1
