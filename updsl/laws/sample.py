"""Laws tried on drawn streams of gradients, and the smallest stream that breaks one.

A stream is a few segments, each a gradient that stays, alternates or grows for some steps: zeros, ties, spikes, tiny and huge tensors, rows and columns that
are dead. All of it is drawn by Hypothesis, from one seed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from updsl.core import numeric
from updsl.core.frame import Key, Tensor
from updsl.core.ir import Const, Every, Input, Program, Statement, roots, walk
from updsl.front import syntax
from updsl.front.claim import Claim
from updsl.front.contents import nodes
from updsl.front.module import Module
from updsl.front.probes import by_tensor, tensors_of
from updsl.front.unit import Constant
from updsl.laws.smaller import Room, smaller
from updsl.laws.trial import Arrays, Outcome, OutOfTime, Setting, Trial

VALUES = (1.0, 0.0, -1.0, 2.0, -2.0, 3.0, 0.5, -0.25, 4.0, -3.0, 1.5, 0.1, 7.0, -10.0, 0.03, 100.0)
"""Entries; the first are tried first when a stream is made smaller."""
NONFINITE = (math.nan, math.inf, -math.inf)
SCALES = (1.0, 1.0, 1.0, 30.0, 1e-3, 1e3, 0.0, 1e-9, 1e12)
"""Of a tensor's gradient in a segment: 1, a spike, small, large, nothing."""
WEIGHTS = (0.0, 1.0, 0.02, 30.0)
"""Scales of a tensor's weights."""
LARGEST = {"float16": 30.0}
"""By type, the largest scale, where others would overflow."""
SEGMENTS = 4
"""Of a stream, at most."""
COURSES = ((1.0,), (1.0, -1.0), (1.0, 2.0, 0.5))
"""What a segment's gradient is multiplied by, step by step, over and over."""
PATTERN = 16
"""Entries of a tensor that are drawn; larger ones repeat them."""
SMALLER = 400
"""Streams that are tried to make the one that breaks a law smaller."""
PATIENCE = 20.0
"""Seconds for that."""
LONGEST = 128
"""Steps of the longest span of a rule (a warm-up, a gap) that streams outlast."""
SHORT = 24
"""Steps of a stream before and after its longest span, at most."""
HUGE = 1e30
"""The largest number of a range that has no end, as of literals."""
BATCHES = (2, 1, 3)
"""Samples of a step. Of none, a mean is 0/0."""


class Broken(Exception):
    """A trial in which the law does not hold."""


class Search:
    """Trials of one law with some values of the parameters, of a rule that runs in this type."""

    def __init__(self, module: Module, claim: Claim, parameters: Mapping[str, Constant], ground: Ground, dtype: str = "float64"):
        self.module, self.claim, self.parameters, self.dtype = module, claim, dict(parameters), dtype
        self.sets, self.fewest, self.spans = ground.sets, ground.fewest, ground.spans
        self.trials: dict[object, Trial] = {}
        self.constants: frozenset[str] = frozenset()
        self.compared = self.streams = self.steps = 0
        self.found: tuple[Setting, Outcome] | None = None
        self.until, self.timed_out = math.inf, False

    def run(self, examples: int, number: int, until: float = math.inf) -> None:
        """Tries this many streams, those of this seed, while time.perf_counter() is before `until`; `found` is then the smallest that breaks the law, if one
        does."""
        self.until = until
        test = given(st.data())(self.attempt)
        test = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
        )(test)
        try:
            with contextlib.suppress(Broken):
                seed(number)(test)()
        except OutOfTime:
            self.timed_out = True
        if self.found is not None:
            self.reduce()

    def reduce(self) -> None:
        """Makes the stream that breaks the law smaller, piece by piece."""
        tries, until = iter(range(SMALLER)), time.perf_counter() + PATIENCE

        def breaks(setting: Setting) -> Setting | None:
            if next(tries, None) is None or time.perf_counter() > until:
                return None
            with contextlib.suppress(OutOfTime):
                outcome = self.trial(setting).run(setting, until)
                if outcome.breach is not None:
                    self.found = cut(setting, outcome.breach.step), outcome
                    return self.found[0]
            return None

        assert self.found is not None
        ranges = {name: _marks(low, high) for name, (low, high) in self.claim.ranges_of(self.parameters).items()}
        smaller(self.found[0], breaks, Room((*self.sets, *self.fewest), self.module.inputs, self.squares, ranges, self.broken_at))

    def broken_at(self) -> tuple[int, ...]:
        """The index of the entry at which the law broke last."""
        assert self.found is not None
        breach = self.found[1].breach
        return () if breach is None else breach.index

    def attempt(self, data: st.DataObject) -> None:
        """One stream; the one that breaks the law is drawn once more at the end. What is drawn does not depend on the time."""
        setting = self.drawn(data.draw)
        if time.perf_counter() > self.until and self.found is None:
            raise OutOfTime
        if self.found is None:
            outcome = self.trial(setting).run(setting, self.until)
            self.streams, self.steps = self.streams + 1, self.steps + len(setting.steps)
            self.compared += outcome.compared
            if outcome.breach is not None:
                self.found = cut(setting, outcome.breach.step), outcome
        if self.found is not None:
            raise Broken

    def trial(self, setting: Setting) -> Trial:
        """What runs this setting: one for each set of tensors, and for each value of what is constant."""
        if self.key(setting) not in self.trials:
            made = Trial(self.module, self.claim, setting.tensors, setting.parameters, setting.numbers, self.dtype)
            self.constants |= made.constants
            self.trials[self.key(setting)] = made
        return self.trials[self.key(setting)]

    def key(self, setting: Setting) -> object:
        values = {**setting.parameters, **setting.numbers}
        return setting.tensors, tuple((n, values[n]) for n in self.claim.ranges if n in self.constants)

    # --- drawing -----------------------------------------------------------------------------------------------------

    def drawn(self, draw: Callable[[st.SearchStrategy], Any]) -> Setting:
        """A stream, and all that the law is tried with."""
        tensors = draw(st.sampled_from(self.sets))
        numbers = {name: draw(_numbers(low, high)) for name, (low, high) in self.claim.ranges_of(self.parameters).items()}
        parameters = self.parameters | {n: v for n, v in numbers.items() if n in self.parameters}
        free = {n: v for n, v in numbers.items() if n not in self.parameters}
        fresh = Setting(tensors, parameters, (), {}, numbers=free, dtype=self.dtype)
        trial = self.trial(fresh)
        scales = tuple([s for s in SCALES if s <= LARGEST.get(self.dtype, math.inf)])
        values = VALUES + NONFINITE * self.claim.any_gradients
        steps: list[Arrays] = []
        inputs: list[dict] = []
        for _ in range(draw(st.integers(1, SEGMENTS))):
            more = segment(draw, {t.name: t.shape for t in tensors}, values, scales, self.spans)[: self.longest - len(steps)]
            steps += [{n: self.rounded(x) for n, x in g.items()} for g in more]
            inputs += [{} if not self.module.inputs else self.handed(draw, trial)] * len(more)
        return replace(
            fresh,
            steps=tuple(steps),
            weights={t.name: self.rounded(draw(_arrays(t.shape, VALUES, WEIGHTS))) for t in tensors},
            lr=draw(st.sampled_from((1.0, 0.1, 1e-3))),
            inputs=tuple(inputs) if self.module.inputs else (),
            matrices={q.name: square(trial, q, lambda n, q=q: draw(_permutation(n) if q.kind == "permutation" else _orthogonal(n))) for q in self.quantified},
            seed=draw(st.integers(0, 7)),
        )

    def rounded(self, x: np.ndarray) -> np.ndarray:
        return numeric.rounded(x, self.dtype)

    def handed(self, draw: Callable[[st.SearchStrategy], Any], trial: Trial) -> dict[str, dict[Key, np.ndarray]]:
        """The inputs of a step, by the keys of their scope."""
        found: dict[str, dict[Key, np.ndarray]] = {}
        batch = draw(st.sampled_from(BATCHES)) if "samples" in self.module.inputs.values() else 0
        for c, p in enumerate(trial.programs):
            for item in p.inputs:
                for t in (t for t in trial.tensors if trial.class_of[t.name] == c):
                    key: Key = "" if item.type.scope.name == "all" else 0 if item.type.scope.name == "group" else t.name
                    if key not in found.setdefault(item.name, {}):
                        found[item.name][key] = self.rounded(draw(_input(item, t, batch)))
        return found

    def squares(self, setting: Setting) -> dict[str, Arrays]:
        """A plain matrix for each of the law's names: rows in reverse order, or a reflection."""
        trial = self.trial(setting)
        return {q.name: square(trial, q, lambda n, q=q: np.eye(n)[::-1] if q.kind == "permutation" else reflection([2.0, 1.0], n)) for q in self.quantified}

    @property
    def longest(self) -> int:
        """Steps that a stream has at most."""
        return self.spans[-1] + SHORT

    @property
    def quantified(self) -> list[syntax.Quantifier]:
        """The law's matrices."""
        return [q for q in self.claim.law.quantifiers if q.kind in ("orthogonal", "permutation")]


def square(trial: Trial, q: syntax.Quantifier, make: Callable[[int], np.ndarray]) -> Arrays:
    """A matrix for each tensor, of the size that its place in the law needs; the same for all of a size."""
    found: Arrays = {}
    of_size: dict[int, np.ndarray] = {}
    for t in trial.tensors:
        p = trial.said.programs[trial.said.class_of[t.name]]
        item = next((i for i in p.inputs if i.name == q.name), None)
        n = t.grid[1] if item is not None and "cols" in (item.type.rows, item.type.cols) else t.grid[0]
        if n not in of_size:
            of_size[n] = make(n)
        found[t.name] = of_size[n]
    return found


def segment(
    draw: Callable[[st.SearchStrategy], Any],
    shapes: Mapping[str, tuple[int, ...]],
    values: tuple[float, ...],
    scales: tuple[float, ...],
    spans: Sequence[int],
) -> list[Arrays]:
    """A gradient that stays, alternates or grows for one of these numbers of steps."""
    g = {name: draw(_arrays(shape, values, scales)) for name, shape in shapes.items()}
    course = draw(st.sampled_from(COURSES))
    return [{n: x * course[i % len(course)] for n, x in g.items()} for i in range(draw(st.sampled_from(spans)))]


@st.composite
def streams(draw: st.DrawFn, shapes: Mapping[str, tuple[int, ...]], spans: tuple[int, ...], any_: bool, dtype: str) -> list[Arrays]:
    """Gradients of several steps, rounded to this type; any_: infinite ones and NaN too."""
    scales, found = tuple([s for s in SCALES if s <= LARGEST.get(dtype, math.inf)]), []
    for _ in range(draw(st.integers(1, SEGMENTS))):
        found += segment(draw, shapes, VALUES + NONFINITE * any_, scales, spans)
    return [{n: numeric.rounded(x, dtype) for n, x in g.items()} for g in found[: spans[-1] + SHORT]]


def cut(setting: Setting, steps: int) -> Setting:
    """Its first steps."""
    return replace(setting, steps=setting.steps[:steps], inputs=setting.inputs[:steps])


@dataclass(frozen=True)
class Ground:
    """What a law can be tried on, with some values of the parameters. sets: of tensors; fewest: small ones, that what is found may become; spans: lengths of
    segments, as often as they are drawn."""

    sets: tuple[tuple[Tensor, ...], ...]
    fewest: tuple[tuple[Tensor, ...], ...]
    spans: tuple[int, ...]


def ground_of(module: Module, claim: Claim, parameters: Mapping[str, Constant]) -> Ground:
    usable = by_tensor(module, parameters, names_asked(claim, parameters))
    return Ground(tuple(_sets(list(usable))), _fewest(list(usable)), _spans(set(usable.values()), claim, parameters))


def names_asked(claim: Claim, parameters: Mapping[str, Constant]) -> list[str]:
    """A name that each of the law's own questions about names has for an answer, and one that it has not."""
    if not any(isinstance(n, syntax.Name) and n.id == "name" for n in nodes(claim.law)):
        return []
    numbers = {n: 1.0 for n in claim.module.parameters if n not in parameters}
    return list(dict.fromkeys(t.name for t in tensors_of(claim.module, {**parameters, **numbers})))[1:]


def _sets(usable: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Sets of tensors that the rule can be used for, the smallest first: one alone, several, and several of very different sizes."""
    small = [t for t in (Tensor("weight", s) for s in ((1,), (2,), (2, 2), (1, 2), (2, 1), ())) if _fits(t, usable)]
    names = list(dict.fromkeys(t.name for t in usable))
    of_name = [[t for t in usable if t.name == n] for n in names[1:7]]
    arms = [(t,) for same in zip_longest(*of_name) for t in same if t is not None][:9]
    many = [Tensor("weight", (4, 3)), Tensor("x", (3,)), Tensor("0", (1, 8)), *(t[0] for t in arms[:1])]
    sizes = [Tensor("weight", (37, 5)), Tensor("x", (1,)), Tensor("0", (2, 1, 3))]
    more = [tuple({t.name: t for t in ts if _fits(t, usable)}.values()) for ts in (many, sizes)]
    return [(t,) for t in small] + arms + [ts for ts in more if ts] or [(t,) for t in usable[:3]]


def _fewest(usable: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """The smallest sets of several tensors that the rule can be used for: what is found in a larger one is made smaller to these."""
    of_shape = [(Tensor("weight", a), Tensor("x", b)) for a, b in (((1,), (1,)), ((2,), (1,)), ((1, 1), (1, 1)), ((2, 1), (1,)), ((2, 2), (1,)))]
    return tuple(ts for ts in of_shape if all(_fits(t, usable) for t in ts))


def _fits(t: Tensor, usable: Sequence[Tensor]) -> bool:
    """Whether a tensor of as many dimensions is usable."""
    return any(len(u.shape) == len(t.shape) for u in usable)


def _spans(programs: Collection[Program], claim: Claim, parameters: Mapping[str, Constant]) -> tuple[int, ...]:
    """Lengths of segments: short ones, and some that outlast each count of steps that parameters, the rule's text or the law's may mean; 0.9 may be the factor
    of an average, which remembers 10 steps."""
    marks = {float(v) for v in parameters.values() if not isinstance(v, (bool, str))}
    marks |= {float(n.value) for n in nodes((claim.law.premise, claim.law.claim)) if isinstance(n, syntax.Number)}
    for p in programs:
        marks |= set(_counts(p))
    marks |= {float(round(1 / (1 - v))) for v in marks if 0.5 < v < 1}
    longer = sorted({int(v) + 1 for v in marks if 2 <= v <= LONGEST and v == int(v)})
    return (1, 1, 1, 2, 5, *longer[-3:])


def _counts(p: Program) -> Iterator[float]:
    """The literals of a Program, the lengths of its windows, and how often its blocks run."""

    def of(statements: tuple[Statement, ...]) -> Iterator[float]:
        for s in statements:
            if isinstance(s, Every):
                yield from (float(s.count), float(s.start), *of(s.body))

    yield from of(p.body)
    for e in roots(p):
        for n in walk(e):
            yield float(n.value) if isinstance(n, Const) else float(n.type.window)


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    marks, low, high = st.sampled_from(_marks(low, high)), max(low, -HUGE), min(high, HUGE)
    return marks | st.floats(low, high) if low <= high else marks


def _marks(low: float, high: float) -> tuple[float, ...]:
    """Numbers of a range, the plainest first."""
    return tuple([x for x in (1.0, 2.0, 0.5, -1.0, low, high, (low + high) / 2) if low <= x <= high and math.isfinite(x)])


@cache
def _arrays(shape: tuple[int, ...], values: tuple[float, ...], scales: tuple[float, ...]) -> st.SearchStrategy[np.ndarray]:
    """Entries from a few values, repeated where there are fewer than the array has, so that ties and zeros come up, times a scale."""
    n = math.prod(shape)
    pattern = st.lists(st.sampled_from(values), min_size=1, max_size=min(n, PATTERN))
    dead = st.sampled_from(("none", "none", "column", "row"))

    def made(xs: list[float], scale: float, zero: str) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            x = np.resize(np.array(xs), n).reshape(shape) * scale
        if len(shape) > 1:
            x[{"column": np.s_[:, 0], "row": 0}.get(zero, np.s_[:0])] = 0.0
        return x

    return st.builds(made, pattern, st.sampled_from(scales), dead)


def _input(item: Input, t: Tensor, batch: int) -> st.SearchStrategy[np.ndarray]:
    """What is handed over as this input, for this tensor. Numbers are above 0: they are losses, counts and the like."""
    sizes = {"rows": t.grid[0], "cols": t.grid[1]}
    if item.kind in ("stream", "samples"):
        return _arrays((batch, *t.shape) if item.kind == "samples" else t.shape, VALUES, (1.0, 1.0, 30.0, 1e-3))
    shape = tuple([d if isinstance(d, int) else sizes.get(d, 2) for d in (item.type.rows, item.type.cols) if d is not None])
    if item.kind == "matrix":
        return _arrays(shape, VALUES, (1.0,))
    if item.type.scope.size:
        shape = (-(-t.numel // item.type.scope.size),)
    return _arrays(shape, tuple([v for v in VALUES if v > 0]), (1.0,))


@cache
def _permutation(n: int) -> st.SearchStrategy[np.ndarray]:
    return st.permutations(range(n)).map(lambda order: np.eye(n)[list(order)])


def reflection(xs: list[float], n: int) -> np.ndarray:
    """At the plane that these entries, over and over, are at right angles to; of zeros, none."""
    v = np.resize(np.array(xs), n)
    return np.eye(n) - 2 * np.outer(v, v) / max(float(v @ v), 1e-300)


@cache
def _orthogonal(n: int) -> st.SearchStrategy[np.ndarray]:
    """A product of one or two reflections."""
    mirrors = st.lists(st.sampled_from(VALUES), min_size=1, max_size=min(n, PATTERN)).map(lambda xs: reflection(xs, n))
    return st.lists(mirrors, min_size=1, max_size=2).map(lambda qs: qs[0] if len(qs) == 1 else qs[0] @ qs[1])
