"""The collectives of a step are as many as `updsl.explain` says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from trained import model

import updsl
from updsl.collectives import collectives
from updsl.runtime.places import lying_of

RULES = ("clip_grad_norm", "clip_z", "muon", "quantize", "sinkgd", "galore")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks(2)
    yield found
    found.close()


def counted(rules: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """For each rule: the collectives of a later step as counted, as told for the model that it runs on, and as told for the plain one before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    found = {}
    for rule in rules:
        plain, m = model(), model()
        fully_shard(m, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        named = list(m.named_parameters())
        made = updsl.load(rule)
        optimizer = updsl.Optimizer(named, made) if made.writes_weights else torch.optim.SGD(named)
        if not made.writes_weights:
            updsl.attach(optimizer, made)
        for _ in range(2):
            m(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
            with CommDebugMode() as mode:
                optimizer.step()
        told = [collectives(made.module, *lying_of(dict(x.named_parameters()), 2), made.params)[-1].number for x in (m, plain)]
        found[rule] = (mode.get_total_counts(), *told)
    return found


def test_x9_collectives_are_as_many_as_explain_says(ranks: Ranks) -> None:
    found = ranks.run(counted, RULES)
    assert found[0] == found[1]
    for rule, (number, told, before) in found[0].items():
        assert number == told == before, rule
    assert found[0]["clip_grad_norm"][0] == 2


def test_x9_explain_tells_what_is_gathered() -> None:
    params = {"w": torch.ones(6, 4), "b": torch.ones(6)}
    said = updsl.explain("muon", params, mesh=8)
    assert "on 8 ranks" in said
    assert "gathers `from x` of w, 6 × 4" in said
    assert "1 all-gather" in said
    assert "shards" not in updsl.explain("muon", params)
    once = updsl.explain(updsl.parse("rule r:\n    state n = 0\n    every 5:\n        n ← norm(g) per tensor\n    return g * (1 + n)\n"), params, mesh=2)
    assert "a step such as the 1st: 1 collectives" in once
    assert "a step such as the 5th: 2 collectives" in once


@pytest.mark.parametrize("mesh", [0, "fsdp", (2, -1)])
def test_a_mesh_that_is_none_is_refused(mesh) -> None:
    with pytest.raises(updsl.UpdslError, match="how many ranks"):
        updsl.explain("zclip", mesh=mesh)
