"""Rules of every kind under torch.compile, over 100 steps with other numbers at each: whole graphs, compiled once; no more full-size memory than by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import updsl

SHAPE = (20_000, 15)
SIZE = 4 * 300_000
"""Bytes of a full-size array in float32."""
STEPS, COMPARED = 100, 4
A, LR, T, BETA, SLOTS = 0.3, 0.1, 3.0, 0.9, 3

RULES = {
    "every": """\
rule r(a = 0.3, beta = 0.9):
    state m = 0
    every 3:
        m ← beta*m + (1 - beta)*g
    return (a*g + lr*m) / t
""",
    "match": """\
rule r(a = 0.3, beta = 0.9):
    match:
        ndim < 2: ema(0.9) → a*beta*it
        name ~ "head": clip norm > a*lr
        else: a*g / (rms(g) + t*lr) per column
""",
    "matrices": """\
rule r(a = 0.3, beta = 0.9):
    c = beta*(g.T @ g) + lr*eye(g.T @ g)
    return (a / t) * g @ matrix_power(c, -0.5)
""",
    "history": """\
rule r(a = 0.3, beta = 0.9):
    m = mean(a*g → history(3))
    return m / (lr + beta*t*quantile(norm(g) → history(20), 50%) per all)
""",
    "draws": """\
rule r(a = 0.3, beta = 0.9):
    return g + gaussian(a*lr / t) * bernoulli(beta)
""",
}
KERNELS = {"every": 2, "match": 3, "matrices": 1, "history": 2, "draws": 1}
"""Graphs of each: of the steps with and without the block, of each arm, before and after what is joint."""


def weights(name: str) -> dict[str, torch.Tensor]:
    shapes = {"body.weight": SHAPE} | ({"body.bias": (7,), "head.weight": (5, 4)} if name == "match" else {})
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}


def compiled(name: str, backend: str) -> updsl.Compiled:
    return updsl.compile(updsl.parse(RULES[name]), weights(name), backend=backend, lr=LR)


def take(y: updsl.Compiled, name: str, k: int) -> dict[str, torch.Tensor]:
    """A step with numbers of its own; gives the gradients after it."""
    g = {n: x * (1 + 0.1 * k) for n, x in weights(name).items()}
    y.set(a=A + 0.001 * k, beta=BETA - 0.001 * k)
    y.step(g, lr=LR / (k + 1))
    return g


# --- memory ------------------------------------------------------------------------------------------------------------


def peak(f: Callable[[], object]) -> int:
    """How many bytes of arrays of full size are there at once, at most, beside those from before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        f()
    most = now = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]" and abs(e.nbytes()) >= SIZE]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def every_by_hand(g: torch.Tensor) -> object:
    m = BETA * torch.zeros_like(g) + (1 - BETA) * g
    return m, (A * g + LR * m) / T


def match_by_hand(g: torch.Tensor) -> object:
    return A * g / (g.square().mean(0).sqrt() + T * LR)


def matrices_by_hand(g: torch.Tensor) -> object:
    values, vectors = torch.linalg.eigh((BETA * g.T @ g + LR * torch.eye(g.shape[1])).double())
    return (A / T) * g @ ((vectors * values**-0.5) @ vectors.T).float()


def history_by_hand(g: torch.Tensor) -> object:
    """With a count for each entry, as entries may restart on their own."""
    window, count = torch.cat([g.expand(SLOTS - 1, *g.shape), (A * g)[None]]), torch.ones(g.shape, dtype=torch.int64)
    count = torch.clamp(count + 1, max=SLOTS)
    m = window.sum(0) / count
    return window, count, m / (LR + BETA * T * g.norm())


def draws_by_hand(g: torch.Tensor) -> object:
    return g + A * LR / T * torch.randn_like(g) * (torch.rand_like(g) < BETA)


BY_HAND = {"every": every_by_hand, "match": match_by_hand, "matrices": matrices_by_hand, "history": history_by_hand, "draws": draws_by_hand}


def most_memory(y: updsl.Compiled, name: str) -> int:
    """Of steps with and without the block."""
    g = weights(name)
    return max(peak(lambda: y.step(g)) for _ in range(3 if name == "every" else 1))


def memory_by_hand(name: str) -> int:
    g = weights(name)["body.weight"]
    return peak(lambda: BY_HAND[name](g))


@pytest.mark.parametrize("name", RULES)
def test_no_more_memory_than_by_hand(name: str) -> None:
    y = compiled(name, "torch")
    for k in range(2):
        take(y, name, k)
    assert most_memory(y, name) <= memory_by_hand(name)


# --- compiled ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RULES)
def test_one_graph_compiled_once_over_a_hundred_steps(name: str) -> None:
    """lr, t and both parameters change at every step."""
    torch.compiler.reset()
    y, eager = compiled(name, "inductor"), compiled(name, "torch")
    counters.clear()
    for k in range(STEPS):
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = take(y, name, k)
        if k < COMPARED:
            expected = take(eager, name, k)
            for n, x in found.items():
                np.testing.assert_allclose(x, expected[n], rtol=0, atol=2e-5 * expected[n].abs().max().item(), err_msg=f"step {k + 1}, {n}")
    assert counters["stats"]["unique_graphs"] == KERNELS[name]
    assert not counters["graph_break"]
    assert most_memory(y, name) <= memory_by_hand(name)
