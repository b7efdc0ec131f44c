"""A law tried on one stream of gradients, in the interpreter: in which cells, at which step, it holds.

The rule is run beside itself: once on the stream, and once on every other stream that the law names, each run with states and weights of its own. In a type
of its own, as torch runs it, the rule rounds as a user's does; the law is judged in float64 all the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol, TypeAlias

import numpy as np

from updsl.back.interpret import Interpreter
from updsl.core import numeric
from updsl.core.frame import Frame, Key, Result, RuleState, Tensor
from updsl.core.ir import Program, Watch
from updsl.front.claim import PREMISE, RESULT, STREAM, Claim, Elaborated, Leaf, Tree, elaborate_claim, leaves, meant_leaves
from updsl.front.elaborate import elaborate
from updsl.front.module import Module
from updsl.front.unit import Constant

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3}
"""By type: how far apart `==` and `<=` may be, relative to the largest entry, up to this step, of the stream and of what the rule gives (of the weights, where
it writes them, since its step is their difference), and of both sides: a hundred roundings or so, but for float64, where tests have so much room."""

SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

Arrays: TypeAlias = dict[Any, Any]
"""Tensor name → array."""


class OutOfTime(BaseException):
    """No time is left; no failure of what is run."""


class Engine(Protocol):
    """What runs a rule: the interpreter, or torch in one type."""

    def step(self, state: RuleState, frame: Frame) -> Result: ...


@dataclass(frozen=True)
class Setting:
    """Everything that a law is tried with. steps: the gradients of each; inputs: those of each step, name → key → array; numbers, matrices: what quantifiers
    give (matrices by name and tensor); dtype: that the rule runs in, to which gradients, weights and inputs are rounded."""

    tensors: tuple[Tensor, ...]
    parameters: Mapping[str, Constant]
    steps: tuple[Arrays, ...]
    weights: Arrays
    lr: float = 1.0
    inputs: tuple[Mapping[str, Mapping[Key, Any]], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    matrices: Mapping[str, Arrays] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float64"


@dataclass(frozen=True)
class Breach:
    """Where a law does not hold: the step (from 1), the cell (key of the value, index in it), both sides of the comparison that fails, and whether it should
    hold (not under `not`)."""

    step: int
    key: Key
    index: tuple[int, ...]
    op: str
    meant: bool
    sides: tuple[float, ...]

    def __str__(self) -> str:
        if not self.op:
            return "the claim does not hold"
        return f"`{'' if self.meant else 'not '}{SIGNS[self.op]}` fails: {' against '.join(f'{x:.17g}' for x in self.sides)}"


@dataclass(frozen=True)
class Outcome:
    """What a trial found. compared: cells in which the premise held, over all steps; breach: the first in which the claim did not."""

    compared: int
    breach: Breach | None


@dataclass(frozen=True)
class Took:
    """One step of a trial. streams: what each run of the rule was given, the law's own stream first; results: what each gave; w: the weights before it, of the
    first; states, watches: of the first, after it; law: the states of the law; inputs: what was handed over."""

    number: int
    streams: tuple[Arrays, ...]
    results: tuple[Arrays, ...]
    w: Arrays
    states: Mapping[str, Mapping[Key, Any]]
    watches: Mapping[str, Any]
    law: RuleState
    inputs: Mapping[str, Mapping[Key, Any]]


class Trial:
    """A law about a rule, for some tensors and values of the parameters, ready to run on streams. dtype: that the rule runs in; watched: what each step tells
    of a Program. constants: the parameters, and numbers of the law, whose values are fixed here; others may be others in a setting. Raises UpdslError where
    the rule cannot be used so."""

    def __init__(
        self,
        module: Module,
        claim: Claim,
        tensors: Sequence[Tensor],
        parameters: Mapping[str, Constant],
        numbers: Mapping[str, float],
        dtype: str = "float64",
        watched: Callable[[Program], tuple[Watch, ...]] = lambda program: (),
    ):
        self.claim, self.tensors, self.dtype = claim, tuple(tensors), dtype
        rule = elaborate(module, tensors, parameters)
        self.constants = rule.constants
        self.take(tuple([replace(p, watches=watched(p)) for p in rule.programs]), rule.class_of)
        more = {n: numbers.get(n, 1.0) for n in claim.module.parameters if n not in parameters}
        self.said: Elaborated = elaborate_claim(claim, tensors, {**parameters, **more})
        self.constants |= self.said.constants
        self.law = Interpreter(self.said.programs, self.said.class_of, tensors)

    def take(self, programs: tuple[Program, ...], class_of: Mapping[str, int]) -> None:
        """What is run."""
        self.programs, self.class_of = programs, class_of
        self.writes = any(p.weight is not None for p in programs)
        self.engine = engine(programs, class_of, self.tensors, self.dtype)

    def of(self, programs: tuple[Program, ...], class_of: Mapping[str, int]) -> Trial:
        """The same law, tried on other Programs in the place of the rule's."""
        other = copy.copy(self)
        other.take(programs, class_of)
        return other

    def run(self, setting: Setting, until: float = inf) -> Outcome:
        """Until the claim breaks, or the stream ends. Raises OutOfTime where time.perf_counter() passes `until` first."""
        compared, largest = 0, dict.fromkeys((t.name for t in self.tensors), 0.0)
        for took in self.steps(setting):
            if time.perf_counter() > until:
                raise OutOfTime
            seen = (took.streams[0], took.results[0], *((took.w,) if self.writes else ()))
            largest = {n: max(most, *(finite_max(x[n]) for x in seen)) for n, most in largest.items()}
            held = self.judge(took.law, largest)
            compared += sum(int(np.sum(premise)) for premise, *_ in held.values())
            breach = next(self.breaches(took.number, held, took.law), None)
            if breach is not None:
                return Outcome(compared, breach)
        return Outcome(compared, None)

    def steps(self, setting: Setting) -> Iterator[Took]:
        """Step by step; to the end of the stream, or to where rounding makes one of the streams infinite that the law means to be finite."""
        others = range(1, self.claim.streams + 1)
        copies = [Copy(self.engine, dict(setting.weights)) for _ in range(self.claim.streams + 1)]
        state = RuleState()
        for step, g in enumerate(setting.steps, 1):
            given = setting.inputs[step - 1] if setting.inputs else {}
            w = dict(copies[0].w)
            streams, results = [g], [copies[0].step(g, given, setting)]
            frame = frame_of(g, w, setting, {**given, **setting.matrices, "out": results[0]})
            frame.inputs.update({f"{RESULT} {k}": {n: np.zeros(x.shape) for n, x in g.items()} for k in others})
            for k in others:
                stream = self.law.step(state, frame).state.values[f"{STREAM} {k}"]
                streams.append({n: numeric.rounded(np.asarray(stream[n], np.float64).reshape(g[n].shape), self.dtype) for n in g})
                if not self.claim.any_gradients and any(not np.isfinite(x).all() and np.isfinite(stream[n]).all() for n, x in streams[k].items()):
                    return
                results.append(copies[k].step(streams[k], given, setting))
                frame.inputs[f"{RESULT} {k}"] = results[k]
            state = self.law.step(state, frame).state
            yield Took(step, tuple(streams), tuple(results), w, copies[0].state.values, copies[0].watches, state, given)

    # --- judging -----------------------------------------------------------------------------------------------------

    def judge(self, state: RuleState, largest: Mapping[str, float]) -> dict[Key, tuple[np.ndarray, np.ndarray, Tree, float]]:
        """For each key of the claim's cells: where the premise holds, where the claim does, its tree, and the size that rounding is relative to."""
        found: dict[Key, tuple] = {}
        for c, tree in enumerate(self.said.trees):
            for key in self.keys(c, tree, state):
                size = largest[str(key)] if key in largest else max(largest.values())
                holds = self.holds(tree, key, state, size)
                premise = np.asarray(state.values[PREMISE][key]) != 0 if self.said.premise else np.ones(np.shape(holds), bool)
                found[key] = premise, holds, tree, size
        return found

    def keys(self, c: int, tree: Tree, state: RuleState) -> list[Key]:
        name = next(leaf.states[0] for leaf in leaves(tree))
        return [k for k in state.values[name] if self.said.class_of.get(str(k), c) == c]

    def holds(self, tree: Tree, key: Key, state: RuleState, size: float) -> np.ndarray:
        match tree:
            case Leaf(op="", states=(name,)):
                return np.asarray(state.values[name][key]) != 0
            case Leaf(op=op, states=(a, b)):
                x, y = (np.asarray(state.values[s][key]) for s in (a, b))
                return compare(op, x, y, size, TOLERANCE[self.dtype], self.claim.any_gradients)
            case ("not", (part,)):
                return ~self.holds(part, key, state, size)
            case (op, (a, b)):
                x, y = (self.holds(part, key, state, size) for part in (a, b))
                return x & y if op == "and" else x | y
        raise AssertionError(tree)

    def breaches(self, step: int, held: Mapping[Key, tuple], state: RuleState) -> Iterator[Breach]:
        """For each key the first cell in which the claim fails, and its last comparison that does: of `t > 1 or out == g` the one that says something."""
        for key, (premise, holds, tree, size) in held.items():
            for at in np.argwhere(premise & ~holds)[:1]:
                index = tuple(int(i) for i in at)
                leaf, meant = [x for x in meant_leaves(tree) if self.holds(x[0], key, state, size)[index] != x[1]][-1]
                yield Breach(step, key, index, leaf.op, meant, tuple([float(np.asarray(state.values[n][key])[index]) for n in leaf.states]))


class Copy:
    """The rule on one stream, with states and weights of its own."""

    def __init__(self, engine: Engine, w: Arrays):
        self.engine, self.state, self.w = engine, RuleState(), w
        self.watches: Mapping[str, Any] = {}

    def step(self, g: Arrays, inputs: Mapping[str, Any], setting: Setting) -> Arrays:
        result = self.engine.step(self.state, frame_of(g, dict(self.w), setting, dict(inputs)))
        self.state, self.watches = result.state, result.watches
        self.w = self.w if result.weights is None else {n: np.asarray(x) for n, x in result.weights.items()}
        return {n: np.broadcast_to(x, g[n].shape) for n, x in result.out.items()}


def engine(programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor], dtype: str) -> Engine:
    """What runs Programs in this type."""
    if dtype == "float64":
        return Interpreter(programs, class_of, tensors)
    from updsl.back.torch_typed import InType  # loads torch

    return InType(programs, class_of, tensors, dtype)


def frame_of(g: Arrays, w: Arrays, setting: Setting, inputs: dict[str, Any]) -> Frame:
    """One step of a setting, all tensors in one group."""
    numbers = {n: float(v) for n, v in {**setting.parameters, **setting.numbers}.items() if not isinstance(v, str)}
    batch = next((len(x) for x in inputs.get("samples", {}).values()), None)
    return Frame(dict(g), w, dict.fromkeys(g, 0), {0: setting.lr}, {0: numbers}, inputs, batch, setting.seed)


def finite_max(x: Any) -> float:
    """The largest magnitude of the finite entries."""
    return float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))


def compare(op: str, a: np.ndarray, b: np.ndarray, size: float, tolerance: float, alike: bool) -> np.ndarray:
    """Whether a op b, cell by cell; `==` and `<=` up to rounding, all else exactly. alike: NaN equals NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b) & alike)
        equal = same | (np.abs(a - b) <= tolerance * max(size, finite_max(a), finite_max(b)))
        match op:
            case "eq":
                return equal
            case "ne":
                return ~same
            case "le" | "ge":
                return (a <= b if op == "le" else a >= b) | equal
            case "lt":
                return a < b
            case _:
                return a > b
