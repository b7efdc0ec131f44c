"""Every optimizer of torch, in every configuration that torch tests itself, in its for-loop, foreach, fused and differentiable forms, in float32 and bfloat16:
the identity rule before it changes no bit, a run that is resumed goes on bit for bit, and a step with non-finite gradients moves nothing.

SparseAdam is refused by name, since it takes sparse gradients. No other optimizer refuses one of the types. torch steps `capturable` optimizers on devices
only, so that flag is not here.
"""

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
table = import_module("torch.testing._internal.common_optimizers")
optim_db, with_global_flags = table.optim_db, table._get_optim_inputs_including_global_cliquey_kwargs
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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CELLS = [pytest.param(*p.values, dtype, id=f"{p.id}-{name}") for p in CONFIGURATIONS for name, dtype in DTYPES.items()]
CAST = {"ASGD", "NAdam", "LBFGS"}
"""Optimizers of whose own state torch casts a float32 part to the parameters' type when it is loaded: bare, they do not resume bit for bit in bfloat16."""
SUM = updsl.parse("rule summed:\n    state m = 0, n = 0 per all\n    m ← 0.75*m + g\n    n ← n + 1\n    return m + n/64\n")


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

    def resumed(self, info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype, rule: updsl.Rule | None = None, uncast: bool = False) -> Run:
        """Another run that goes on from here. uncast: put back what torch casts of the optimizer's own state."""
        other = Run(info, kwargs, dtype)
        if rule is not None:
            updsl.attach(other.optimizer, rule)
        saved = deepcopy(self.optimizer.state_dict())
        for p, mine in zip(other.params, self.params, strict=True):
            p.data.copy_(mine.data)
        other.optimizer.load_state_dict(saved)
        for i, own in saved["state"].items() if uncast else ():
            other.optimizer.state[other.params[i]].update({k: x for k, x in own.items() if not k.startswith("updsl.")})
        return other

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


def test_no_configuration_is_lost() -> None:
    """Neither one of torch's inputs, nor one of those that torch's own tests make of them with global flags."""
    infos = [info for info in optim_db if not info.only_supports_sparse_grads]
    forms = {i.optim_cls: 1 + len([f for f in i.supported_impls if f != "fused" or "cpu" in i.supports_fused_on]) for i in infos}
    count = sum(len(i.optim_inputs_func(device="cpu")) * forms[i.optim_cls] for i in infos)
    assert len(CONFIGURATIONS) == count >= 113
    assert len(CELLS) == len({p.id for p in CELLS}) == 2 * count
    known = [(p.values[0], {k: str(v) for k, v in p.values[1].items() if v is not False}) for p in CONFIGURATIONS]
    for info in infos:
        for given in with_global_flags(device="cpu", dtype=torch.float32, optim_info=info):
            assert (info, {k: str(v) for k, v in given.kwargs.items() if v is not False}) in known, given


def test_capturable_optimizers_step_on_devices_only() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    with pytest.raises(AssertionError, match="capturable"):
        torch.optim.Adam([p], capturable=True).step()


@pytest.mark.parametrize("info, kwargs, dtype", CELLS)
def test_the_identity_rule_changes_no_bit(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    bare, attached = Run(info, kwargs, dtype), Run(info, kwargs, dtype)
    updsl.attach(attached.optimizer, IDENTITY)
    for step in range(STEPS):
        bare.step(step)
        attached.step(step)
        assert_same(attached.everything(), bare.everything())


@pytest.mark.parametrize("info, kwargs, dtype", CELLS)
def test_a_resumed_run_goes_on_bit_for_bit(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    whole = Run(info, kwargs, dtype)
    handle = updsl.attach(whole.optimizer, SUM)
    for step in range(2):
        whole.step(step)
    other = whole.resumed(info, kwargs, dtype, SUM, uncast=dtype == torch.bfloat16 and info.optim_cls.__name__ in CAST)
    for step in range(2, STEPS):
        assert_same(other.everything(), whole.everything())
        assert_same(*[{k: x for p in run.params for k, x in run.optimizer.state[p].items() if k.startswith("updsl.")} for run in (other, whole)])
        for run in (whole, other):
            run.step(step)
        assert_same([p.grad for p in other.params], [p.grad for p in whole.params])
    assert_same(other.everything(), whole.everything())
    assert handle.driver.state.run >= STEPS


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_torch_itself_resumes_all_but_a_few_bit_for_bit(dtype: torch.dtype) -> None:
    """Of the first configurations: where it does not, a rule cannot either."""
    found = set()
    for info, kwargs in {p.values[0].optim_cls: p.values for p in reversed(CONFIGURATIONS)}.values():
        whole = Run(info, kwargs, dtype)
        whole.step(0)
        other = whole.resumed(info, kwargs, dtype)
        try:
            assert_same(other.everything(), whole.everything())
        except AssertionError:
            found.add(info.optim_cls.__name__)
    assert found == (CAST - {"LBFGS"} if dtype == torch.bfloat16 else set())


@pytest.mark.parametrize("info, kwargs, dtype", CELLS)
def test_a_skipped_step_moves_nothing(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    bare, attached = Run(info, kwargs, dtype), Run(info, kwargs, dtype)
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
