"""Laws tried on drawn streams of gradients, and the smallest stream that breaks one.

A stream is a few segments, each some gradients repeated: small whole numbers first, so that what is found shrinks to numbers that one can follow; zeros,
ties, spikes, tiny and huge tensors, columns that are dead, gradients that stay as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from updsl.core.frame import Key, Tensor
from updsl.core.ir import Input
from updsl.front import syntax
from updsl.front.claim import Claim
from updsl.front.module import Module
from updsl.front.probes import tensors_of
from updsl.front.unit import Constant
from updsl.laws.trial import Arrays, Outcome, Setting, Trial

VALUES = (1.0, 0.0, -1.0, 2.0, -2.0, 3.0, 0.5, -0.25, 4.0, -3.0, 1.5, 0.1, 7.0, -10.0, 0.03, 100.0)
"""Entries; the first are tried first when a stream is made smaller."""
NONFINITE = (math.nan, math.inf, -math.inf)
SCALES = (1.0, 1.0, 1.0, 30.0, 1e-3, 1e3, 0.0, 1e-9, 1e12)
"""Of a tensor's gradient in a segment: 1, a spike, small, large, nothing."""
SMALLER = 200
"""Streams that are tried to make the one that breaks a law smaller."""
LONGEST = 48
"""Steps of a stream, at most."""


class Broken(Exception):
    """A trial in which the law does not hold."""


class Search:
    """Trials of one law with some values of the parameters."""

    def __init__(self, module: Module, claim: Claim, parameters: Mapping[str, Constant]):
        self.module, self.claim, self.parameters = module, claim, dict(parameters)
        self.sets = _sets(module, self.parameters)
        self.horizon = _horizon(self.parameters)
        self.trials: dict[object, Trial] = {}
        self.constants: frozenset[str] = frozenset()
        self.compared = self.streams = self.steps = self.smaller = 0
        self.last = ""
        self.found: tuple[Setting, Outcome] | None = None

    def run(self, examples: int, number: int) -> None:
        """Tries this many streams, those of this seed; `found` is then the smallest that breaks the law, if one does."""
        test = given(st.data())(self.attempt)
        test = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
        )(test)
        with contextlib.suppress(Broken):
            seed(number)(test)()

    def attempt(self, data: st.DataObject) -> None:
        setting = data.draw(st.composite(lambda draw: self.drawn(draw))())
        if self.found is not None:
            self.smaller += 1
            if self.smaller > SMALLER and repr(setting) != self.last:
                return
        outcome = self.trial(setting).run(setting)
        if self.found is None:
            self.streams, self.steps = self.streams + 1, self.steps + len(setting.steps)
            self.compared += outcome.compared
        if outcome.breach is not None:
            self.found, self.last = (replace(setting, steps=setting.steps[: outcome.breach.step]), outcome), repr(setting)
            raise Broken

    def trial(self, setting: Setting) -> Trial:
        """What runs this setting: one for each set of tensors, and for each value of what is constant."""
        if self.key(setting) not in self.trials:
            made = Trial(self.module, self.claim, setting.tensors, setting.parameters, setting.numbers)
            self.constants |= made.constants
            self.trials[self.key(setting)] = made
        return self.trials[self.key(setting)]

    def key(self, setting: Setting) -> object:
        values = {**setting.parameters, **setting.numbers}
        return setting.tensors, tuple((n, values[n]) for n in self.claim.ranges if n in self.constants)

    # --- drawing -----------------------------------------------------------------------------------------------------

    def drawn(self, draw: st.DrawFn) -> Setting:
        """A stream, and all that the law is tried with."""
        tensors = draw(st.sampled_from(self.sets))
        numbers = {name: draw(_numbers(low, high)) for name, (low, high) in self.claim.ranges_of(self.parameters).items()}
        parameters = self.parameters | {n: v for n, v in numbers.items() if n in self.parameters}
        fresh = Setting(tensors, parameters, (), {}, 1.0, (), {n: v for n, v in numbers.items() if n not in self.parameters})
        trial = self.trial(fresh)
        steps: list[Arrays] = []
        for _ in range(draw(st.integers(1, 4))):
            g = {t.name: draw(_gradient(t.shape, self.claim.any_gradients)) for t in tensors}
            steps += [g] * min(draw(st.sampled_from((1, 1, 1, 2, 5, self.horizon))), LONGEST - len(steps))
        salt = draw(st.integers(0, 7))
        weights = {t.name: draw(st.just(np.zeros(t.shape)) | _gradient(t.shape, False)) for t in tensors}
        rng = np.random.default_rng(salt)
        inputs = tuple(_handed(trial, rng) for _ in steps) if self.module.inputs else ()
        return replace(
            fresh,
            steps=tuple(steps),
            weights=weights,
            lr=draw(st.sampled_from((1.0, 0.1, 1e-3))),
            inputs=inputs,
            matrices={q.name: _square(trial, q, rng) for q in self.claim.law.quantifiers if q.kind in ("orthogonal", "permutation")},
            seed=salt,
        )


def _sets(module: Module, parameters: Mapping[str, Constant]) -> list[tuple[Tensor, ...]]:
    """Sets of tensors that the rule can be used for, the smallest first: one alone, and several of very different sizes."""
    usable = tensors_of(module, parameters)
    small = [t for t in (Tensor("weight", s) for s in ((1,), (2,), (2, 2), (1, 2), (2, 1), ())) if _fits(t, usable)]
    names = list(dict.fromkeys(t.name for t in usable))
    arms = [(Tensor(n, t.shape),) for n in names[1:4] for t in usable if t.name == n][:6]
    many = [Tensor("weight", (4, 3)), Tensor("x", (3,)), Tensor("0", (1, 8)), *(t[0] for t in arms[:1])]
    several = tuple({t.name: t for t in many if _fits(t, usable)}.values())
    return [(t,) for t in small] + arms + ([several] if several else []) or [(t,) for t in usable[:3]]


def _fits(t: Tensor, usable: Sequence[Tensor]) -> bool:
    """Whether a tensor of as many dimensions is usable."""
    return any(len(u.shape) == len(t.shape) for u in usable)


def _horizon(parameters: Mapping[str, Constant]) -> int:
    """A few steps more than the longest of the rule's own spans: a warm-up, a gap."""
    spans = [int(v) for v in parameters.values() if isinstance(v, float) and v == int(min(abs(v), 1e6)) and 2 <= v < LONGEST - 4]
    return max(spans, default=3) + 2


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    marks = [x for x in (1.0, 2.0, 0.5, -1.0, low, high, (low + high) / 2) if low <= x <= high and math.isfinite(x)]
    return st.sampled_from(marks) | st.floats(low, high, allow_nan=False)


@cache
def _gradient(shape: tuple[int, ...], any_: bool) -> st.SearchStrategy[np.ndarray]:
    """One tensor's gradient: entries from a few values, so that ties and zeros come up, times a scale."""
    n = math.prod(shape)
    entries = st.sampled_from(VALUES + (NONFINITE if any_ else ()))
    rows = st.lists(entries, min_size=n, max_size=n)
    dead = st.integers(0, 3)

    def made(xs: list[float], scale: float, column: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            x = (np.array(xs, np.float64) * scale).reshape(shape)
        if column == 3 and len(shape) > 1:
            x[:, 0] = 0.0
        return x

    return st.builds(made, rows, st.sampled_from(SCALES), dead)


def _handed(trial: Trial, rng: np.random.Generator) -> dict[str, dict[Key, np.ndarray]]:
    """The inputs of a step, by the keys of their scope."""
    found: dict[str, dict[Key, np.ndarray]] = {}
    for c, p in enumerate(trial.rule.programs):
        for item in p.inputs:
            for t in trial.tensors:
                if trial.rule.class_of[t.name] == c:
                    key: Key = "" if item.type.scope.name == "all" else 0 if item.type.scope.name == "group" else t.name
                    found.setdefault(item.name, {}).setdefault(key, _value(item, t, rng))
    return found


def _value(item: Input, t: Tensor, rng: np.random.Generator) -> np.ndarray:
    sizes = {"rows": t.grid[0], "cols": t.grid[1]}
    if item.kind in ("stream", "samples"):
        return np.round(rng.standard_normal((2, *t.shape) if item.kind == "samples" else t.shape), 2)
    shape = [d if isinstance(d, int) else sizes.get(d, 2) for d in (item.type.rows, item.type.cols) if d is not None]
    if item.kind == "matrix":
        return np.round(rng.standard_normal(shape), 2)
    if item.type.scope.size:
        shape = [-(-t.numel // item.type.scope.size)]
    return np.abs(np.round(rng.standard_normal(shape), 2)) + 0.1


def _square(trial: Trial, q: syntax.Quantifier, rng: np.random.Generator) -> Arrays:
    """An orthogonal or a permutation matrix for each tensor, of the size that its place needs."""
    found: Arrays = {}
    for t in trial.tensors:
        p = trial.law.programs[trial.law.class_of[t.name]]
        item = next(i for i in p.inputs if i.name == q.name)
        n = t.grid[1] if "cols" in (item.type.rows, item.type.cols) else t.grid[0]
        found[t.name] = np.eye(n)[rng.permutation(n)] if q.kind == "permutation" else np.linalg.qr(rng.standard_normal((n, n)))[0]
    return found
