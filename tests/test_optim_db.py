"""Every optimizer of torch, in every configuration that torch tests itself, in its for-loop, foreach, fused and differentiable forms: the identity rule before
it changes no bit, and a step with non-finite gradients moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

import updsl

if TYPE_CHECKING:
    from torch.testing._internal.common_optimizers import OptimizerInfo

PROFILE = settings.get_current_profile_name()
optim_db = import_module("torch.testing._internal.common_optimizers").optim_db
settings.load_profile(PROFILE)  # the import loads a Hypothesis profile of torch's own, for every test of the process
IDENTITY = updsl.parse("it", name="identity")
STEPS = 4


def configurations() -> Iterator[Any]:
    """Every entry of torch's own table of optimizers × its inputs × its forms."""
    for info in optim_db:
        if info.only_supports_sparse_grads:
            continue
        forms = [f for f in info.supported_impls if f != "fused" or "cpu" in info.supports_fused_on]
        for i, given in enumerate(info.optim_inputs_func(device="cpu")):
            for form in ("for-loop", *forms):
                flags = {f: f == form for f in info.supported_impls}
                name = f"{info.optim_cls.__name__}-{i}-{given.desc.replace(' ', '_')}-{form}"
                yield pytest.param(info, {**given.kwargs, **flags}, id=name)


CONFIGURATIONS = list(configurations())


class Run:
    """An optimizer over a few parameters, stepped with gradients that are given."""

    def __init__(self, info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype):
        shapes = [(4, 3), (3, 5)] if info.optim_cls.__name__ == "Muon" else [(4, 3), (6,), (1,)]
        made = torch.Generator().manual_seed(1)
        is_leaf_stepped_with_graph = kwargs.get("differentiable", False)  # torch then refuses leaves that require a gradient
        self.params = [torch.nn.Parameter(torch.randn(s, generator=made).to(dtype), requires_grad=not is_leaf_stepped_with_graph) for s in shapes]
        self.optimizer = info.optim_cls(self.params, **deepcopy(kwargs))
        self.closed = info.step_requires_closure

    def gradients(self, step: int) -> list[torch.Tensor]:
        made = torch.Generator().manual_seed(100 + step)
        return [torch.randn(p.shape, generator=made).to(p.dtype) for p in self.params]

    def step(self, step: int, bad: bool = False) -> None:
        """One step; with a closure the gradients are those of a bowl, so that line searches end."""
        if self.closed:

            def closure() -> float:
                for p in self.params:
                    p.grad = p.detach() * (float("inf") if bad else 1.0)
                return float(sum((p.detach() ** 2).sum() for p in self.params)) / 2

            self.optimizer.step(closure)
            return
        for p, g in zip(self.params, self.gradients(step), strict=True):
            p.grad = g
        if bad:
            self.params[0].grad.view(-1)[2] = float("nan")
        self.optimizer.step()

    def everything(self) -> list[Any]:
        """Parameters and the optimizer's own state, by place."""
        own = [{k: v for k, v in self.optimizer.state[p].items() if not k.startswith("updsl.")} if p in self.optimizer.state else {} for p in self.params]
        return [[p.detach().clone() for p in self.params], deepcopy(own)]


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    assert type(a) is type(b)
    match a:
        case torch.Tensor():
            assert a.dtype == b.dtype
            assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
        case dict():
            assert a.keys() == b.keys()
            for key in a:
                assert_same(a[key], b[key])
        case list() | tuple():
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                assert_same(x, y)
        case _:
            assert a == b


def test_the_table_holds_all_optimizers_of_torch() -> None:
    classes = {x for x in vars(torch.optim).values() if isinstance(x, type) and issubclass(x, torch.optim.Optimizer)} - {torch.optim.Optimizer}
    assert {info.optim_cls for info in optim_db} == classes
    assert len(classes) == 15
    forms = {p.id.rsplit("-", 1)[1] if not p.id.endswith("for-loop") else "for-loop" for p in CONFIGURATIONS}
    assert forms == {"for-loop", "foreach", "fused", "differentiable"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("info, kwargs", CONFIGURATIONS)
def test_the_identity_rule_changes_no_bit(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    bare, attached = Run(info, kwargs, dtype), Run(info, kwargs, dtype)
    updsl.attach(attached.optimizer, IDENTITY)
    for step in range(STEPS):
        bare.step(step)
        attached.step(step)
        assert_same(attached.everything(), bare.everything())


@pytest.mark.parametrize("info, kwargs", CONFIGURATIONS)
def test_a_skipped_step_moves_nothing(info: OptimizerInfo, kwargs: dict[str, Any]) -> None:
    bare, attached = Run(info, kwargs, torch.float32), Run(info, kwargs, torch.float32)
    handle = updsl.attach(attached.optimizer, IDENTITY)
    attached.step(9, bad=True)
    assert attached.everything()[1] == [{} for _ in attached.params] or not info.step_requires_closure
    assert_same(attached.everything(), bare.everything())
    for step in range(STEPS):
        bare.step(step)
        attached.step(step)
        attached.step(9, bad=True)
        assert not all(torch.isfinite(p.grad).all() for p in attached.params)
        assert_same(attached.everything(), bare.everything())
    assert handle.counts["bad"] == STEPS + 1


def test_sparse_adam_is_refused_by_name() -> None:
    with pytest.raises(updsl.UpdslError, match="SparseAdam"):
        updsl.attach(torch.optim.SparseAdam([torch.nn.Parameter(torch.zeros(2))]), IDENTITY)
