"""All or nothing: an error at any operation of a step, or Ctrl-C, leaves gradients, weights and states as they were."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import updsl
from updsl.back.triton_exec import DeviceTables

INPUTS = "rule r:\n    input h, loss per all\n    state m = 0\n    m ← 0.9*m + g*loss + h\n    return m → clip norm > 1 per all\n"
SHARED = "rule r:\n    state n = 0 per all, k = 0 per group\n    n ← n + 1\n    k ← max(k, norm(g) per group)\n    watch n = n\n    return g*n/k\n"
BLOCKS = "rule r:\n    state m = 0\n    every 2:\n        m ← g → ema(0.5)\n    return m + median(g → history(3))\n"
MATRIX = "rule r:\n    match:\n        ndim < 2: g + gaussian(1)\n        else:     polar(g) → momentum\n"
WRITES = "rule r:\n    state m = w\n    m ← 0.9*m + g\n    w ← w - lr*m\n    return m\n"
TEXTS = {"inputs": INPUTS, "shared": SHARED, "blocks": BLOCKS, "matrix": MATRIX, "writes": WRITES}


class Broken(Exception):
    """What is injected."""


class At(TorchDispatchMode):
    """Does something just before the operation of this number."""

    def __init__(self, number: int, what: Callable[[], None]):
        super().__init__()
        self.number, self.what, self.seen = number, what, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not LAUNCHED:  # torch's own profiling marks are none of the rule's operations
            self.seen += 1
            if self.seen == self.number:
                self.what()
        return func(*args, **(kwargs or {}))


LAUNCHED: list[bool] = []
"""Not empty while Triton's interpreter runs kernels, which moves tensors about with torch: on a device that is no operation of torch's."""


@pytest.fixture(autouse=True)
def kernels_are_no_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("UPDSL_BACKEND") == "triton":
        launch = DeviceTables.launch

        def launched(tables: DeviceTables) -> None:
            LAUNCHED.append(True)
            try:
                launch(tables)
            finally:
                LAUNCHED.pop()

        monkeypatch.setattr(DeviceTables, "launch", launched)


def break_() -> None:
    raise Broken


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class Still(torch.optim.Optimizer):
    """An optimizer that does nothing, so that every operation of its step is the rule's."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        return closure() if closure is not None else None


SHAPES = {"a": (2, 3), "b": (2, 3), "c": (2,)}


class Case:
    """A rule at work on a few tensors, three steps old. `tensors` are the gradients and weights that a step may write, `step` takes one."""

    def __init__(self, how: str, text: str, nonfinite: str = "skip"):
        self.rule = updsl.parse(text)
        self.made = torch.Generator().manual_seed(3)
        self.w = {name: torch.nn.Parameter(torch.randn(s, generator=self.made)) for name, s in SHAPES.items()}
        self.how, self.steps = how, 0
        groups = [{"params": [(n, self.w[n]) for n in "ab"]}, {"params": [("c", self.w["c"])]}]
        match how:
            case "attach":
                self.owner: Any = Still(groups)
                self.handle = updsl.attach(self.owner, self.rule, nonfinite=nonfinite)
            case "optimizer":
                self.owner = self.handle = updsl.Optimizer(groups, self.rule, lr=0.1, nonfinite=nonfinite)
            case "compile":
                self.owner = updsl.compile(self.rule, self.w, lr=0.1, groups=[{"params": ["a", "b"]}])
        for _ in range(3):
            self.fill()
            self.step()
        self.fill()

    def fill(self) -> None:
        self.steps += 1
        self.made.manual_seed(self.steps)
        for p in self.w.values():
            p.grad = torch.randn(p.shape, generator=self.made)
        h = {name: torch.randn(s, generator=self.made) for name, s in SHAPES.items()}
        self.inputs = {"h": h, "loss": torch.tensor(0.5)} if self.rule.inputs else {}
        if self.how != "compile":
            self.handle.inputs(**self.inputs)

    def step(self) -> None:
        if self.how == "compile":
            self.owner.step({name: p.grad for name, p in self.w.items()}, **self.inputs)
        else:
            self.owner.step()

    def state(self) -> Any:
        return self.owner.state.kept if self.how == "compile" else self.handle.driver.state

    def everything(self) -> list[Any]:
        own = [] if self.how == "compile" else [self.owner.state_dict(), dict(self.handle.driver.watches)]
        kept = self.state()
        return copy.deepcopy([[p.detach() for p in self.w.values()], [p.grad for p in self.w.values()], kept.values, kept.run, kept.t, own])


def same(a: Any, b: Any) -> bool:
    """Bit for bit, at any depth."""
    match a:
        case torch.Tensor():
            return a.dtype == b.dtype and torch.equal(a, b)
        case dict():
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        case list() | tuple():
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        case _:
            return a == b


KERNELS = os.environ.get("UPDSL_BACKEND") in ("cpp", "triton")
"""A step in kernels has few operations of torch, or none."""
CASES = [(how, name) for how in ("attach", "optimizer", "compile") for name in TEXTS if (how, name) != ("attach", "writes")]


@pytest.mark.parametrize("how, name", CASES)
def test_l6_an_error_at_any_operation_leaves_everything(how: str, name: str) -> None:
    case = Case(how, TEXTS[name])
    with At(0, break_) as counter:
        Case(how, TEXTS[name]).step()
    fresh = Case(how, TEXTS[name])
    fresh.step()
    before, after, held = case.everything(), fresh.everything(), [p.grad for p in case.w.values()]
    assert not same(before, after)
    number = 0
    while number < counter.seen:
        number += 1
        try:
            with At(number, break_):
                case.step()
            break
        except Broken:
            assert same(case.everything(), before), number
            assert all(p.grad is g for p, g in zip(case.w.values(), held, strict=True))
    assert number > (0 if KERNELS else 10)
    assert same(case.everything(), after)


@pytest.mark.parametrize("how, name", CASES)
def test_l6_ctrl_c_stops_before_or_after_a_step(how: str, name: str) -> None:
    fresh = Case(how, TEXTS[name])
    with At(0, break_) as counter:
        before = fresh.everything()
        seen = counter.seen
        fresh.step()
    operations, after = counter.seen - seen, fresh.everything()
    outcomes = set()
    for number in (n for n in [*range(1, operations, max(1, operations // 5)), operations - 1, operations] if n > 0):
        case = Case(how, TEXTS[name])
        with pytest.raises(KeyboardInterrupt), At(number, interrupt):
            case.step()
        now = case.everything()
        done = case.state().run == 4
        assert same(now[:5], (after if done else before)[:5]), number
        outcomes.add(done)
    assert KERNELS or False in outcomes


@pytest.mark.parametrize("nonfinite", ["skip", "mask", "zero", "raise", "propagate"])
def test_c9_every_policy_is_all_or_nothing(nonfinite: str) -> None:
    case = Case("attach", INPUTS, nonfinite)
    case.w["b"].grad[0, 0] = float("inf")
    before = case.everything()
    for number in range(1, 2000):
        try:
            with At(number, break_):
                case.step()
            break
        except Broken:
            assert same(case.everything(), before), number
        except updsl.UpdslError:
            assert nonfinite == "raise"
            assert same(case.everything(), before)
            break
    assert number > 5


@pytest.mark.parametrize("name", TEXTS)
def test_update_changes_nothing_that_it_is_given(name: str) -> None:
    rule = updsl.parse(TEXTS[name])
    made = torch.Generator().manual_seed(1)
    w = {n: torch.randn(s, generator=made) for n, s in SHAPES.items()}
    state = rule.init(w)
    for _ in range(3):
        g = {n: torch.randn(s, generator=made) for n, s in SHAPES.items()}
        inputs = {"h": dict(g), "loss": 2.0} if rule.inputs else {}
        held = copy.deepcopy([w, g, state.values, state.run, dict(state.t), inputs])
        _, after, *_ = rule.update(g, state, params=w, lr=0.1, **inputs)
        assert same([w, g, state.values, state.run, dict(state.t), inputs], held)
        state = after


def test_errors_of_the_caller_come_before_anything_changes() -> None:
    case = Case("attach", INPUTS)
    before = case.everything()
    held = case.w["a"].grad
    case.w["a"].grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(updsl.UpdslError, match="sparse"):
        case.step()
    case.w["a"].grad = held
    case.handle.driver.inputs = {"loss": 0.5}
    with pytest.raises(updsl.UpdslError, match="`h`"):
        case.step()
    assert same(case.everything(), before)
