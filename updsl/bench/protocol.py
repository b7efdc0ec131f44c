"""How times are taken: all contenders in turn in one process, in the opposite order every other round, compared round by round.

A figure is the median of the ratios of single rounds: what slows the whole machine for a while slows both sides of a ratio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

ROUNDS, WARM_UPS = 9, 2
LEAST = 0.02
"""Seconds that the fastest contender's sample of a round should take: shorter ones take as many steps as that needs."""
MOST = 50
"""Steps of a sample, at most."""

Clock = Callable[[], tuple[float, float]]
"""() ↦ (wall, CPU): seconds on the wall, and seconds of all threads of the process."""


def now() -> tuple[float, float]:
    """The clock of this process."""
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Contender:
    """One way to do the work. before: what comes first and is not timed, such as fresh gradients; step: what is timed; outputs: what the last step gave."""

    name: str
    step: Callable[[], Any]
    before: Callable[[], Any]
    outputs: Callable[[], Mapping[str, Any]] = dict


@dataclass(frozen=True)
class Samples:
    """Seconds of one step, of each round: on the wall, and of the CPU."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def measure(contenders: Sequence[Contender], rounds: int = ROUNDS, warm_ups: int = WARM_UPS, clock: Clock = now) -> dict[str, Samples]:
    """Name → samples. All contenders take the same number of steps a round."""
    fastest = math.inf
    for round in range(warm_ups):
        for c in ordered(contenders, round):
            fastest = min(fastest, sample(c, 1, clock)[0])
    steps = steps_of_a_sample(fastest)
    found: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contenders}
    for round in range(rounds):
        for c in ordered(contenders, round):
            found[c.name].append(sample(c, steps, clock))
    return {name: Samples(*map(tuple, zip(*pairs, strict=True))) for name, pairs in found.items()}


def ordered(contenders: Sequence[Contender], round: int) -> Sequence[Contender]:
    """As they stand in even rounds, reversed in odd ones."""
    return contenders if round % 2 == 0 else contenders[::-1]


def steps_of_a_sample(fastest: float) -> int:
    """So many that the fastest takes LEAST seconds, and MOST at most."""
    return math.ceil(LEAST / min(max(fastest, LEAST / MOST), LEAST))


def sample(contender: Contender, steps: int, clock: Clock) -> tuple[float, float]:
    """Seconds of a step on the wall and of the CPU, the mean over these steps; what comes before each is left out."""
    wall = cpu = 0.0
    for _ in range(steps):
        contender.before()
        wall_before, cpu_before = clock()
        contender.step()
        wall_after, cpu_after = clock()
        wall += wall_after - wall_before
        cpu += cpu_after - cpu_before
    return wall / steps, cpu / steps


def ratio(slow: Samples, fast: Samples) -> float:
    """How many times as fast: the median over rounds of slow / fast, on the wall."""
    return median(a / b for a, b in zip(slow.wall, fast.wall, strict=True))


def summary(samples: Samples) -> dict[str, float]:
    """Milliseconds of a step: medians on the wall and of the CPU, and the least on the wall."""
    return {"wall_ms": 1e3 * median(samples.wall), "cpu_ms": 1e3 * median(samples.cpu), "minimum_ms": 1e3 * min(samples.wall)}


def to_json(found: Mapping[str, Samples]) -> dict[str, dict[str, list[float]]]:
    """Samples as plain data: everything that figures are made of."""
    return {name: {"wall": list(s.wall), "cpu": list(s.cpu)} for name, s in found.items()}


def from_json(data: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Samples]:
    """The inverse of `to_json`."""
    return {name: Samples(tuple(s["wall"]), tuple(s["cpu"])) for name, s in data.items()}
