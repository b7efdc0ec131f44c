"""Stages of a pipeline, whose ranks have other parameters, and parameters that do not say how they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Failed, Ranks
from torch import Tensor, nn
from trained import model

import updsl

STEPS = 3
OFTEN = ("clip_grad_norm", "sum per group", "norm(g) → ema per all")
RULES = (*OFTEN, *(pytest.param(rule, marks=pytest.mark.nightly) for rule in ("zclip", "clip_z", "orthogonalize", "quantize")))
TEXTS = {
    "sum per group": "rule scaled:\n  n = norm(g) per tensor\n  s = sum(n) per group\n  return g / (1 + s)",
    "norm(g) → ema per all": "rule smoothed:\n  n = (norm(g) per tensor) → ema(0.5)\n  s = mean(n) per all\n  return g / (1 + s)",
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks(3)
    yield found
    found.close()


def rule_of(name: str) -> Any:
    return updsl.parse(TEXTS[name]) if name in TEXTS else updsl.load(name)


def groups_of(m: nn.Module, of: set[str]) -> list[dict[str, Any]]:
    """Weights, and what else there is, as far as it belongs to a stage: a group may be empty."""
    mine = [(name, p) for name, p in m.named_parameters() if name.split(".")[0] in of]
    return [{"params": [(n, p) for n, p in mine if p.ndim > 1]}, {"params": [(n, p) for n, p in mine if p.ndim < 2], "lr": 0.02}]


def trained(m: nn.Module, rule: str, groups: list[dict[str, Any]], **more: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of the groups' parameters after some steps, and the last watches. Every stage computes the whole model: the other stages' weights are theirs."""
    optimizer = torch.optim.SGD(groups, lr=0.05)
    handle = updsl.attach(optimizer, rule_of(rule), backend="torch", **more)
    torch.manual_seed(1)
    for step in range(STEPS):
        m.zero_grad()
        x, y = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
        (((m(x) - y) ** 2).mean() * (10 if step == 1 else 1)).backward()
        optimizer.step()
        if more:
            share(m, {id(p) for group in optimizer.param_groups for p in group["params"]})
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p.detach().clone() for name, p in m.named_parameters() if id(p) in mine}, handle.watch()


def share(m: nn.Module, mine: set[int]) -> None:
    """Each stage's weights to all."""
    for p in m.parameters():
        x = p.detach() if id(p) in mine else torch.zeros_like(p)
        n = torch.tensor(float(id(p) in mine))
        dist.all_reduce(x := x.clone())
        dist.all_reduce(n)
        p.data.copy_(x / n)


STAGES = ({"0"}, {"2", "3"}, {"4"})


def of_stage(rule: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    m = model()
    return trained(m, rule, groups_of(m, STAGES[dist.get_rank()]), mesh=dist.group.WORLD)


@pytest.mark.parametrize("rule", RULES)
def test_x10_stages_of_a_pipeline_are_one_model(ranks: Ranks, rule: str) -> None:
    """The second stage has no parameter of the first group: its weight is a bias of a layer norm."""
    m = model()
    expected, watches = trained(m, rule, groups_of(m, set.union(*STAGES)))
    found = ranks.run(of_stage, rule)
    assert {name for weights, _ in found for name in weights} == set(expected)
    for weights, shown in found:
        for name, x in weights.items():
            torch.testing.assert_close(x, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(shown, watches, rtol=1e-9, atol=1e-9, check_dtype=False)


def of_an_empty_stage() -> tuple[dict[str, Tensor], dict[str, Any]]:
    m = model()
    groups = groups_of(m, {"0", "2", "3", "4"} if dist.get_rank() == 0 else set())
    return trained(m, "clip_grad_norm", groups, mesh=dist.group.WORLD)


def test_x10_a_stage_without_any_parameter_takes_part(ranks: Ranks) -> None:
    m = model()
    expected, _ = trained(m, "clip_grad_norm", groups_of(m, set.union(*STAGES)))
    (weights, _), *others = ranks.run(of_an_empty_stage)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-9)
    assert all(not found for found, _ in others)


def with_other_shapes() -> None:
    w = nn.Parameter(torch.ones(2 + dist.get_rank(), 2))
    updsl.attach(torch.optim.SGD([("w", w)], lr=0.1), "zclip", mesh=dist.group.WORLD)


def test_stages_with_a_name_in_common_are_refused_on_all(ranks: Ranks) -> None:
    with pytest.raises(Failed, match="placement") as failed:
        ranks.run(with_other_shapes)
    assert str(failed.value).count("UpdslError") == 3
    assert "give tensors of different stages different names" in str(failed.value)


def with_a_median() -> None:
    m = model()
    rule = updsl.parse("rule r = g / (1 + (median(g) per all))")
    updsl.attach(torch.optim.SGD(groups_of(m, STAGES[dist.get_rank()]), lr=0.1), rule, mesh=dist.group.WORLD)


def test_an_order_statistic_of_several_stages_is_refused(ranks: Ranks) -> None:
    with pytest.raises(Failed, match="takes the median of several tensors") as failed:
        ranks.run(with_a_median)
    assert str(failed.value).count("error[placement]") == 3


@pytest.mark.parametrize("mark", ["_is_flat_param", "_fsdp_flattened", "ds_id"])
def test_x11_flat_parameters_are_refused(mark: str) -> None:
    p = nn.Parameter(torch.ones(6))
    setattr(p, mark, True)
    for rule in ("norm per column", "clip_grad_norm", "adam → norm"):
        with pytest.raises(updsl.UpdslError, match="FSDP2") as refused:
            updsl.attach(torch.optim.SGD([("w", p)], lr=0.1), updsl.parse(rule) if " " in rule else rule)
        assert refused.value.diagnostics[0].code == "placement"
    updsl.attach(torch.optim.SGD([("w", p)], lr=0.1), "clip_grad_value")


def with_fsdp1() -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = []
    for original in (False, True):
        m = FullyShardedDataParallel(nn.Linear(4, 3), device_id=torch.device("cpu"), use_orig_params=original)
        try:
            updsl.attach(torch.optim.SGD(m.parameters(), lr=0.1), "sinkgd")
        except updsl.UpdslError as error:
            found.append(error.diagnostics[0].code)
    return " ".join(found)


def test_x11_parameters_of_fsdp1_are_refused(ranks: Ranks) -> None:
    assert ranks.run(with_fsdp1) == ["placement placement"] * 3
