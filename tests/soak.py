"""A long run in which everything happens that happens to optimizers: bad, missing and enormous gradients, groups that are added, tensors that are frozen,
checkpoints, rules that are taken away and put back. What a backend makes of it is compared with a replay in NumPy by the interpreter, and so is memory.

Gradients are drawn, not computed from the weights: a difference of the last bit stays one, where a model in the loop might make much of it. Everything is
float64, so that what may differ is rounding alone: a weight is a sum of at most 100,000 moves, each rounded a few times, so that it is off by
100,000 · 2⁻⁵³ · (its largest value) · a few ≈ 1e-10 of that value, states forget and are off by less; and a single event taken wrongly by 1e-3 or more.

    python tests/soak.py --steps 100000 --backends torch,cpp [SCENARIO …]
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import updsl

SHAPES = {"a": (3, 4), "b": (4,), "c": (2, 3, 2), "s": (), "none": (0, 3), "d": (5,), "e": (2, 2)}
GROUPS = (("a", "b"), ("c", "s", "none"), ("d",), ("e",))
"""The last two are added while training runs."""
FIRST = 2
TOLERANCE = 1e-9
SEED = 20261

KINDS = """
rule kinds(c = 1, beta = 0.9):
    state n = 0 per all, k = 0 per group, r = 0 per row, q = 0 per column, m = w
    n ← beta*n + (norm(g) per all)
    k ← max(beta*k, (norm(g) per group))
    r ← beta*r + (norm(g) per row)
    q ← 0.99*q + (absmax(g) per column)
    every 7 from 3:
        m ← 0.5*m + g
    reset r when mod(t, 50) == 0
    watch n = n
    watch k = k
    watch rows = sum(r)
    return c*g*(1 + k/(1 + n)) + 0.1*m + 0.01*r + 0.01*q/(1 + q) + gaussian(0.1)
"""
MEDIANS = """
rule calm:
    state m = 0
    skip when absmax(g) > 50
    m ← 0.9*m + 0.1*g
    return m
rule medians(z = 3):
    state skipped = 0
    n = norm(g) per tensor
    usual = median(n → history(31))
    spike = n > z*usual
    skipped ← skipped + (if spike then 1 else 0)
    watch skipped = skipped
    return (if spike then g*(z*usual/n) else g) → calm
"""


@dataclass(frozen=True)
class Scenario:
    """A rule, how it is run, what of it is set while it runs and what the first group sets."""

    rule: Callable[[], Any]
    route: str = "attach"
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    of_first: Mapping[str, float] = field(default_factory=dict)
    nonfinite: str = "skip"

    def entries(self, group: int) -> dict[str, float]:
        """What a group sets, as a parameter group has it."""
        prefix = "updsl." if self.route == "attach" else ""
        return {prefix + name: value for name, value in self.of_first.items()} if group == 0 else {}


SCENARIOS = {
    "zclip": Scenario(lambda: updsl.load("zclip"), settings={"z_thresh": (2.0, 2.5, 3.5), "max_norm": (0.5, 1.0)}),
    "adagc": Scenario(lambda: updsl.load("adagc", warmup=20), settings={"ratio": (1.04, 1.2)}),
    "kinds": Scenario(lambda: updsl.parse(KINDS), settings={"beta": (0.8, 0.9)}, of_first={"c": 0.5}),
    "kinds, zeroed": Scenario(lambda: updsl.parse(KINDS), "optimizer", {"beta": (0.8, 0.9)}, {"c": 0.5}, "zero"),
    "medians": Scenario(lambda: updsl.parse(MEDIANS), settings={"z": (2.0, 3.0)}),
    "adamw": Scenario(lambda: updsl.load("adamw"), "optimizer", {"weight_decay": (0.01, 0.1)}, {"beta1": 0.8}),
    "spam": Scenario(lambda: updsl.load("spam", gap=60, warmup=15, accumulate=5, threshold=20), "optimizer", {"threshold": (20.0, 50.0)}),
}


RULES = {name: scenario.rule() for name, scenario in SCENARIOS.items()}


# --- what happens ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A step: what is done before it, and its gradients; a tensor without one is not there."""

    before: tuple[tuple, ...]
    grads: dict[str, np.ndarray]


def events(seed: int, steps: int, names: Sequence[str]) -> Iterator[Event]:
    """The same for the same arguments. names: of the scenarios, each of which lasts until it is the next one's turn."""
    draw, normal = random.Random(seed), np.random.default_rng(seed)
    groups, frozen, attached, turn = FIRST, set[str](), True, 0
    for step in range(steps):
        scenario = SCENARIOS[names[turn]]
        before: list[tuple] = []

        def happens(share: float) -> bool:
            return draw.random() < share

        if happens(0.005):
            before.append(("lr", draw.randrange(groups), draw.choice((0.1, 0.03, 0.01))))
        if scenario.settings and happens(0.005):
            name = draw.choice(sorted(scenario.settings))
            before.append(("set", name, draw.choice(scenario.settings[name])))
        if happens(0.01):
            name = draw.choice(sorted(frozen) if frozen and happens(0.5) else [n for members in GROUPS[:groups] for n in members])
            frozen ^= {name}
            before.append(("freeze" if name in frozen else "thaw", name))
        if groups < len(GROUPS) and happens(0.01):
            before.append(("add", groups))
            groups += 1
        if happens(0.003):
            before.append(("resume", happens(0.5)))
        if scenario.route == "attach" and happens(0.002 if attached else 0.1):
            attached = not attached
            before.append(("attach",) if attached else ("detach",))
        if happens(max(0.0003, min(0.01, len(names) / steps))):
            groups, attached, frozen, turn = FIRST, True, set(), (turn + 1) % len(names)
            before.append(("restart", names[turn]))
        here = [n for members in GROUPS[:groups] for n in members if n not in frozen]
        yield Event(tuple(before), gradients(draw, normal, here, attached, step))


def gradients(draw: random.Random, normal: np.random.Generator, names: list[str], attached: bool, step: int) -> dict[str, np.ndarray]:
    """Of these tensors, or of some of them; while no rule is there none that would spoil the weights."""
    found = {n: np.array(normal.standard_normal(SHAPES[n]) * math.exp(0.3 * draw.gauss(0, 1))) for n in names}
    kind = draw.random()
    hit = draw.choice([n for n in names if n != "none"] or [""])
    if kind < 0.01:
        found = {}
    elif kind < 0.05 or step % 97 == 0:
        found = {n: x for n, x in found.items() if draw.random() < 0.5}
    elif kind < 0.06:
        found = {n: np.zeros(SHAPES[n]) for n in found}
    elif hit and attached:
        x = found[hit].reshape(-1)
        if kind < 0.08:
            x[draw.randrange(x.size)] = draw.choice((math.nan, math.inf, -math.inf))
        elif kind < 0.10:
            x *= 10 ** draw.uniform(1, 5)
        elif kind < 0.11:
            x *= 0
        found[hit] = x.reshape(SHAPES[hit])
    return found


def start(name: str) -> np.ndarray:
    """The weights of a tensor before the first step."""
    return np.array(np.linspace(-1, 1, math.prod(SHAPES[name])).reshape(SHAPES[name]))


# --- with torch ------------------------------------------------------------------------------------------------------


class Trainer:
    """The weights under a torch optimizer with the rule."""

    def __init__(self, backend: str):
        self.backend = backend

    def restart(self, name: str) -> None:
        self.scenario, self.rule = SCENARIOS[name], RULES[name]
        self.w = {n: torch.nn.Parameter(torch.from_numpy(start(n))) for n in SHAPES}
        self.values: dict[str, float] = {}
        self.optimizer, self.handle = self.made(FIRST, [0.1] * FIRST), None
        self.attach()

    def made(self, groups: int, lrs: list[float]) -> torch.optim.Optimizer:
        of = [{"params": [(n, self.w[n]) for n in GROUPS[i]], "lr": lrs[i], **self.scenario.entries(i)} for i in range(groups)]
        if self.scenario.route == "attach":
            return torch.optim.SGD(of, lr=0.1)
        return updsl.Optimizer(of, self.rule, lr=0.1, backend=self.backend, nonfinite=self.scenario.nonfinite)

    def attach(self) -> None:
        if self.scenario.route == "attach":
            self.handle = updsl.attach(self.optimizer, self.rule, backend=self.backend, nonfinite=self.scenario.nonfinite)
        else:
            self.handle = self.optimizer
        self.handle.set(**self.values)

    def resume(self, late: bool) -> None:
        """Save everything, and load it in new tensors and a new optimizer; late: the rule is attached when the state is there already."""
        file = io.BytesIO()
        torch.save({"model": {n: p.detach() for n, p in self.w.items()}, "optimizer": self.optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        frozen, attached = [n for n, p in self.w.items() if not p.requires_grad], self.handle is not None
        self.w = {n: torch.nn.Parameter(x, requires_grad=n not in frozen) for n, x in saved["model"].items()}
        self.optimizer, self.handle = self.made(len(self.optimizer.param_groups), [g["lr"] for g in self.optimizer.param_groups]), None
        if attached and not late:
            self.attach()
        self.optimizer.load_state_dict(saved["optimizer"])
        if attached and late:
            self.attach()

    def do(self, what: tuple) -> None:
        match what:
            case "lr", group, value:
                self.optimizer.param_groups[group]["lr"] = value
            case "set", name, value:
                self.values[name] = value
                if self.handle is not None:
                    self.handle.set(**{name: value})
            case ("freeze" | "thaw") as verb, name:
                self.w[name].requires_grad_(verb == "thaw")
            case "add", group:
                self.optimizer.add_param_group({"params": [(n, self.w[n]) for n in GROUPS[group]]})
            case "resume", late:
                self.resume(late)
            case ("detach",):
                self.handle.remove()
                self.handle = None
            case ("attach",):
                self.attach()
            case "restart", name:
                self.restart(name)

    def step(self, event: Event) -> None:
        for what in event.before:
            self.do(what)
        for name, p in self.w.items():
            p.grad = torch.tensor(event.grads[name]) if name in event.grads else None
        self.optimizer.step()

    def result(self) -> dict[str, Any]:
        """All that can be seen of it. Parts of a window are 0 and 1."""
        found: dict[str, Any] = {("w", n): p.detach().numpy() for n, p in self.w.items()}
        if self.handle is None:
            return found
        return found | seen(self.handle.driver.state, self.handle.watch(), self.handle.counts)


def seen(state: Any, watches: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[Any, Any]:
    """States, counts and watches as one flat dict of arrays."""
    found: dict[Any, Any] = {("run",): state.run} | {("t", name): n for name, n in state.t.items()} | {("counts", name): n for name, n in counts.items()}
    for name, cells in state.values.items():
        for key, x in cells.items():
            parts = x if isinstance(x, tuple) else (x,)
            found |= {("state", name, key, i): part for i, part in enumerate(parts)}
    for label, x in watches.items():
        found |= {("watch", label, key): number for key, number in x.items()} if isinstance(x, Mapping) else {("watch", label): x}
    return {key: np.asarray(x, np.float64) for key, x in found.items()}


# --- again, in NumPy -------------------------------------------------------------------------------------------------


class Replay:
    """What ought to come of it, written down anew: plain gradient descent, and the interpreter of the rule as a pure function."""

    def restart(self, name: str) -> None:
        self.scenario, self.rule = SCENARIOS[name], RULES[name]
        self.w = {n: start(n) for n in SHAPES}
        self.values: dict[str, float] = {}
        self.lr = [0.1] * FIRST
        self.begin()

    def begin(self) -> None:
        self.state: Any = self.rule.interpret.init({n: np.zeros(s) for n, s in SHAPES.items()})
        self.watch: dict[str, Any] = {}
        self.counts = {"bad": 0, "in_a_row": 0, "overflowed": 0}

    def do(self, what: tuple) -> None:
        match what:
            case "lr", group, value:
                self.lr[group] = value
            case "set", name, value:
                self.values[name] = value
            case ("add", _):
                self.lr.append(0.1)
            case ("detach",):
                self.state = None
            case ("attach",):
                self.begin()
            case "restart", name:
                self.restart(name)
            case ("resume", _):  # changes nothing but the counts, which are not of the training's state
                self.counts = {"bad": 0, "in_a_row": 0, "overflowed": 0}
                self.watch = {}

    def step(self, event: Event) -> None:
        for what in event.before:
            self.do(what)
        grads = {n: g for n, g in event.grads.items() if g.size}  # tensors without entries take no part
        if self.state is not None and grads:
            bad = not all(np.isfinite(g).all() for g in grads.values())
            self.counts["bad"] += bad
            self.counts["in_a_row"] = self.counts["in_a_row"] + 1 if bad else 0
            if bad and self.scenario.nonfinite == "skip":
                return
            grads = {n: np.where(np.isfinite(g), g, 0) for n, g in grads.items()}
        new: dict[str, np.ndarray] = {}
        if self.state is not None:
            own = [{"params": list(GROUPS[i]), "lr": lr, **(self.scenario.of_first if i == 0 else {})} for i, lr in enumerate(self.lr)]
            grads, self.state, weights, self.watch = self.rule.interpret.update(grads, self.state, self.w, lr=0.1, groups=own, set=self.values)
            new = weights or {}
        for i, lr in enumerate(self.lr):
            for n in GROUPS[i]:
                if n in grads:
                    self.w[n] = new[n] if n in new else self.w[n] - lr * grads[n]

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {("w", n): x for n, x in self.w.items()}
        return found if self.state is None else found | seen(self.state, self.watch, self.counts)


# --- both ------------------------------------------------------------------------------------------------------------


def assert_alike(mine: Mapping[Any, np.ndarray], right: Mapping[Any, np.ndarray], scale: float, where: str) -> float:
    """The largest difference, relative to `scale`, or to what is compared where that is more. Raises AssertionError where it is too large."""
    assert mine.keys() == right.keys(), f"{where}: {sorted(map(str, mine.keys() ^ right.keys()))}"
    worst = 0.0
    for key, x in right.items():
        assert np.shape(mine[key]) == np.shape(x), f"{where}: {key} has shape {np.shape(mine[key])}, not {np.shape(x)}"
        if not np.size(x):
            continue
        same = mine[key] == x
        with np.errstate(invalid="ignore"):
            off = np.max(np.where(same, 0, np.abs(mine[key] - x) / np.maximum(scale, np.abs(x))))
        assert off <= TOLERANCE, f"{where}: {key} is {mine[key]}, and the replay's is {x}"
        worst = max(worst, float(off))
    return worst


@dataclass(frozen=True)
class Memory:
    """Tensors, objects that Python's collector knows, blocks of Python's allocator, and megabytes that the process holds."""

    tensors: int
    objects: int
    blocks: int
    megabytes: float

    @staticmethod
    def now() -> Memory:
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(x), torch.Tensor) for x in objects)
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return Memory(tensors, len(objects), sys.getallocatedblocks(), pages * resource.getpagesize() / 2**20)


ROOM = {"tensors": 500, "objects": 3000, "blocks": 10_000, "megabytes": 16.0}
"""What may be more at the end than after the first tenth, since caches are full then, or not yet: less than a tensor, an object, a block every fortieth step of
100,000, and less than 200 bytes a step."""


def assert_flat(memory: Sequence[Memory]) -> None:
    """Raises AssertionError where there is more of something at the end than there was after a tenth of the run."""
    first, last = memory[0], memory[-1]
    for what, room in ROOM.items():
        assert getattr(last, what) <= getattr(first, what) + room, f"{what}: {[getattr(m, what) for m in memory]}"


@dataclass
class Report:
    """What came of a run: events by kind, the largest difference from the replay, and memory at each tenth of it."""

    happened: dict[str, int] = field(default_factory=dict)
    worst: float = 0.0
    memory: list[Memory] = field(default_factory=list)
    seconds: float = 0.0


def run(names: Sequence[str], backends: Sequence[str], steps: int, seed: int, each: int = 25) -> Report:
    """Scenarios in turn, in all of these backends at once, compared after every event and every `each` steps. Raises AssertionError where a backend and the
    replay part; every warning is an error."""
    report, began = Report(), time.perf_counter()
    trainers, replay = [Trainer(backend) for backend in backends], Replay()
    for one in (*trainers, replay):
        one.restart(names[0])
    largest, compare = 1.0, False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, event in enumerate(events(seed, steps, names)):
            bad = not all(np.isfinite(g).all() for g in event.grads.values())
            for what in [*(w[0] for w in event.before), *["bad"] * bad, *["nothing"] * (not event.grads)]:
                report.happened[what] = report.happened.get(what, 0) + 1
            for one in (*trainers, replay):
                one.step(event)
            largest = max(1.0 if ("restart",) in [w[:1] for w in event.before] else largest, *(np.abs(x).max(initial=0) for x in replay.w.values()))
            if compare or event.before or bad or i % each == 0 or i == steps - 1:
                right = replay.result()
                assert all(np.isfinite(x).all() for x in replay.w.values())
                for one in trainers:
                    where = f"step {i} of {one.backend}, {event.before}"
                    report.worst = max(report.worst, assert_alike(one.result(), right, largest, where))
            compare = bool(event.before) or bad
            if (i + 1) % (steps // 10) == 0:
                report.memory.append(Memory.now())
    report.seconds = time.perf_counter() - began
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--backends", default="torch,cpp")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    report = run(given.scenarios, given.backends.split(","), given.steps, given.seed)
    print(f"{given.scenarios}, {given.backends}: {given.steps} steps in {report.seconds:.0f} s, furthest {report.worst:.1e}, {report.happened}")
    print(*report.memory, sep="\n")


if __name__ == "__main__":
    main()
