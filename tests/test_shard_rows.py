"""What may go wrong on several ranks, and on one of them alone: gradients given by hand, over parameters cut in several ways."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Failed, Ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import updsl

SHAPES = {"w": (5, 3), "k": (3, 2, 3, 2), "b": (1,), "v": (4,)}
"""Uneven on two ranks and on three; of `b` all ranks but one have nothing."""
REDUCTIONS = [f"{name}(g)" for name in "sum mean norm rms var std min max absmax median".split()] + [
    *(f"norm(g, p={p})" for p in ("1", "3", "inf")),
    "quantile(g, 30%)",
    "dot(g, w)",
    "cosine(g, w)",
    "count(g > 0)",
    "any(g > 1)",
    "norm(g, p=0)",
    "norm(g, p=0.5)",
    "sum(largest(g, 3) * g)",
]
SCOPES = ("row", "column", "tensor", "group", "all")


@pytest.fixture(scope="module", params=(2, 3), ids=["2-ranks", "3-ranks"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    found = Ranks(request.param)
    yield found
    found.close()


def whole(x: Tensor) -> Tensor:
    return x.detach().full_tensor() if isinstance(x, DTensor) else x.detach().clone()  # type: ignore[no-any-return]


def lies(x: Tensor, dim: int | None) -> Tensor:
    """On all ranks, in parts along a dimension, or whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(x, mesh, [Replicate() if dim is None or dim >= x.ndim else Shard(dim)])


def stepped(rule: str, how: Any, steps: int = 3, bad: tuple[int, int] | None = None, absent: str = "", **more: Any) -> Any:
    """Weights, counts and watches after some steps. how: a dimension, None, or "plain". bad: a rank and a step with a NaN. absent: of this name the last rank
    has no gradient in odd steps, and the others have zeros."""
    torch.manual_seed(0)
    place = (lambda x: x) if how == "plain" else (lambda x: lies(x, how))
    named = [(name, nn.Parameter(place(torch.randn(shape, dtype=torch.float64)))) for name, shape in SHAPES.items()]
    optimizer = torch.optim.SGD(named, lr=0.1)
    handle = updsl.attach(optimizer, updsl.parse(rule) if " " in rule else rule, backend="torch", **more)
    for step in range(steps):
        for name, p in named:
            g = torch.randn(p.shape, dtype=torch.float64)
            if name == absent and step % 2:
                g.zero_()
            p.grad = place(g)
            is_mine = how == "plain" or dist.get_rank() == bad[0] if bad else False
            if bad and step == bad[1] and is_mine and name == "w":
                (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad)[0, 0] = math.nan
            if name == absent and step % 2 and how != "plain" and dist.get_rank() == dist.get_world_size() - 1:
                p.grad = None
        optimizer.step()
    counts = {key: int(n) for key, n in handle.counts.items()}
    return {name: whole(p) for name, p in named}, counts, {key: torch.as_tensor(x) if not isinstance(x, dict) else x for key, x in handle.watch().items()}


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("how", [0, 1, None], ids=["rows", "columns", "replicas"])
@pytest.mark.parametrize("scope", SCOPES)
def test_x1_reductions_of_every_scope(ranks: Ranks, scope: str, how: int | None) -> None:
    """Of matrices, convolutions, vectors and one number."""
    body = " + ".join(f"{i + 1}*({x} per {scope})" for i, x in enumerate(REDUCTIONS))
    rule = f"rule r:\n    return 0.01*g + 0.001*({body})\n"
    expected = stepped(rule, "plain", 1)
    for found in ranks.run(stepped, rule, how, 1):
        same(found, expected)


@pytest.mark.parametrize("policy", ["skip", "propagate"])
def test_x2_all_ranks_skip_together(ranks: Ranks, policy: str) -> None:
    """The NaN is in the first rank's part alone."""
    rule = "rule r:\n    state m = 0\n    m ← m + g\n    return m / (1 + (norm(g) per all))\n"
    expected = stepped(rule, "plain", 3, (0, 1), "", nonfinite=policy)
    for found in ranks.run(apart, rule, policy):
        same(found, expected)


def apart(rule: str, policy: str) -> Any:
    return stepped(rule, 0, 3, (0, 1), "", nonfinite=policy)


@pytest.mark.parametrize("rule", ["zclip", "ema", "agc"])
def test_x3_a_rank_without_a_gradient_joins(ranks: Ranks, rule: str) -> None:
    expected = stepped(rule, "plain", 4, None, "w")
    for found in ranks.run(stepped, rule, 0, 4, None, "w"):
        same(found[0], expected[0])


def test_x5_noise_is_that_of_whole_tensors(ranks: Ranks) -> None:
    """The same for two ranks and three, to the last bit."""
    expected = stepped("add_noise", "plain")
    for found in ranks.run(stepped, "add_noise", 0):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)


def refusing() -> tuple[str, bool]:
    w = nn.Parameter(lies(torch.ones(4, 2), 0))
    optimizer = torch.optim.SGD([("w", w)], lr=0.1)
    handle = updsl.attach(optimizer, updsl.parse("rule r:\n    input loss per all\n    return loss*g\n"), backend="torch")
    w.grad = lies(torch.ones(4, 2), 0)
    handle.inputs(loss=torch.ones(3) if dist.get_rank() == 1 else 0.5)
    try:
        optimizer.step()
    except updsl.UpdslError as error:
        return str(error), bool((whole(w) == 1).all())
    return "", False


def test_x6_a_mistake_on_one_rank_stops_all(ranks: Ranks) -> None:
    found = ranks.run(refusing)
    assert all(unchanged for _, unchanged in found)
    assert ["rank-refuses" in message for message, _ in found] == [rank != 1 for rank in range(len(found))]


def dying() -> str:
    w = nn.Parameter(lies(torch.ones(4, 2), 0))
    optimizer = torch.optim.SGD([("w", w)], lr=0.1)
    updsl.attach(optimizer, "zclip", backend="torch")
    for step in range(2):
        w.grad = lies(torch.ones(4, 2), 0)
        if step and dist.get_rank() == 1:
            os._exit(1)
        optimizer.step()
    return ""


def test_x6_a_rank_that_dies_is_named_by_an_error() -> None:
    ranks = Ranks(2, timeout=5)
    try:
        with pytest.raises(Failed, match="rank-missing") as failed:
            ranks.run(dying)
        assert "`zclip`" in str(failed.value)
        assert "the all-reduce" in str(failed.value)
    finally:
        ranks.close()


def test_x8_watches_are_whole_on_all_ranks(ranks: Ranks) -> None:
    rule = "rule r:\n    watch n = norm(g) per tensor\n    watch a = norm(g) per all\n    watch h = max(g) per group\n    return g\n"
    expected = stepped(rule, "plain")
    for found in ranks.run(stepped, rule, 0):
        same(found[1:], expected[1:])


def counted(rule: str) -> list[int]:
    """All-reduces of each step."""
    w = nn.Parameter(lies(torch.ones(4, 2), 0))
    optimizer = torch.optim.SGD([("w", w)], lr=0.1)
    updsl.attach(optimizer, rule, backend="torch")
    real, found = dist.all_reduce, []
    for _ in range(3):
        w.grad = lies(torch.ones(4, 2), 0)
        calls: list[Any] = []
        dist.all_reduce = lambda *args, calls=calls, **more: (calls.append(1), real(*args, **more))[1]
        try:
            optimizer.step()
        finally:
            dist.all_reduce = real
        found.append(len(calls))
    return found


def test_x9_a_clipped_step_takes_two_collectives(ranks: Ranks) -> None:
    """What takes part, and the norm; the first step compares the parameters too."""
    for found in ranks.run(counted, "clip_grad_norm"):
        assert found[1:] == [2, 2]
