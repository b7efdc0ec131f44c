"""A law tried on one stream of gradients, in the interpreter: in which cells, at which step, it holds.

The rule is run beside itself: once on the stream, and once on every other stream that the law names, each run with states and weights of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from updsl.back.interpret import Interpreter
from updsl.core.frame import Frame, Key, RuleState, Tensor
from updsl.front.claim import PREMISE, RESULT, STREAM, Claim, Elaborated, Leaf, Tree, elaborate_claim, leaves
from updsl.front.elaborate import elaborate
from updsl.front.module import Module
from updsl.front.unit import Constant

RTOL = 1e-9
"""In float64: how far apart `==` and `<=` may be, relative to the largest entry of `g`, `out` and both sides."""

Arrays: TypeAlias = dict[Any, Any]
"""Tensor name → array."""


@dataclass(frozen=True)
class Setting:
    """Everything that a law is tried with. steps: the gradients of each; inputs: those of each step, name → key → array; numbers, matrices: what quantifiers
    give (matrices by name and tensor)."""

    tensors: tuple[Tensor, ...]
    parameters: Mapping[str, Constant]
    steps: tuple[Arrays, ...]
    weights: Arrays
    lr: float = 1.0
    inputs: tuple[Mapping[str, Mapping[Key, Any]], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    matrices: Mapping[str, Arrays] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Breach:
    """Where a law does not hold: the step (from 1), the cell (key of the value, index in it), and both sides of the comparison that fails."""

    step: int
    key: Key
    index: tuple[int, ...]
    op: str
    sides: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """What a trial found. compared: cells in which the premise held, over all steps; breach: the first in which the claim did not."""

    compared: int
    breach: Breach | None


class Trial:
    """A law about a rule, for some tensors and values of the parameters, ready to run on streams. constants: the parameters, and numbers of the law, whose
    values are fixed here; others may be others in a setting. Raises UpdslError where the rule cannot be used so."""

    def __init__(self, module: Module, claim: Claim, tensors: Sequence[Tensor], parameters: Mapping[str, Constant], numbers: Mapping[str, float]):
        self.claim, self.tensors = claim, tuple(tensors)
        rule = elaborate(module, tensors, parameters)
        self.constants = rule.constants
        self.rule = Interpreter([replace(p, watches=()) for p in rule.programs], rule.class_of, tensors)
        more = {n: numbers.get(n, 1.0) for n in claim.module.parameters if n not in parameters}
        self.said: Elaborated = elaborate_claim(claim, tensors, {**parameters, **more})
        self.constants |= self.said.constants
        self.law = Interpreter(self.said.programs, self.said.class_of, tensors)

    def run(self, setting: Setting) -> Outcome:
        """Until the claim breaks, or the stream ends."""
        copies = [Copy(self.rule, dict(setting.weights)) for _ in range(self.claim.streams + 1)]
        state, compared = RuleState(), 0
        for step, g in enumerate(setting.steps, 1):
            given = setting.inputs[step - 1] if setting.inputs else {}
            w = dict(copies[0].w)
            results: dict[str, Arrays] = {"out": copies[0].step(g, given, setting)}
            results |= {f"{RESULT} {k}": {n: np.zeros(x.shape) for n, x in g.items()} for k in range(1, self.claim.streams + 1)}
            frame = frame_of(g, w, setting, {**given, **setting.matrices, **results})
            for k in range(1, self.claim.streams + 1):
                stream = self.law.step(state, frame).state.values[f"{STREAM} {k}"]
                frame.inputs[f"{RESULT} {k}"] = copies[k].step({n: np.asarray(stream[n]).reshape(g[n].shape) for n in g}, given, setting)
            state = self.law.step(state, frame).state
            held = self.judge(state, g, results["out"])
            compared += sum(int(np.sum(premise)) for premise, *_ in held.values())
            breach = next(self.breaches(step, held), None)
            if breach is not None:
                return Outcome(compared, breach)
        return Outcome(compared, None)

    # --- judging -----------------------------------------------------------------------------------------------------

    def judge(self, state: RuleState, g: Arrays, out: Arrays) -> dict[Key, tuple]:
        """For each key of the claim's cells: where the premise holds, where the claim does, and the tree with its class."""
        found: dict[Key, tuple] = {}
        for c, tree in enumerate(self.said.trees):
            for key in self.keys(c, tree, state):
                scale = self.scale(key, g, out)
                holds = self.holds(tree, key, state, scale)
                premise = np.asarray(state.values[PREMISE][key]) != 0 if self.said.premise else np.ones(np.shape(holds), bool)
                found[key] = premise, holds, tree, state, scale
        return found

    def keys(self, c: int, tree: Tree, state: RuleState) -> list[Key]:
        name = next(leaf.states[0] for leaf in leaves(tree))
        return [k for k in state.values[name] if self.said.class_of.get(str(k), c) == c]

    def scale(self, key: Key, g: Arrays, out: Arrays) -> float:
        """The largest entry of gradient and output, of the tensor, or of all."""
        names = [str(key)] if key in g else list(g)
        return max((float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0)) for n in names for x in (g[n], np.asarray(out[n]))), default=0.0)

    def holds(self, tree: Tree, key: Key, state: RuleState, scale: float) -> np.ndarray:
        match tree:
            case Leaf(op="", states=(name,)):
                return np.asarray(state.values[name][key]) != 0
            case Leaf(op=op, states=(a, b)):
                return compare(op, np.asarray(state.values[a][key]), np.asarray(state.values[b][key]), scale, self.claim.any_gradients)
            case ("not", (part,)):
                return ~self.holds(part, key, state, scale)
            case (op, (a, b)):
                x, y = (self.holds(part, key, state, scale) for part in (a, b))
                return x & y if op == "and" else x | y
        raise AssertionError(tree)

    def breaches(self, step: int, held: Mapping[Key, tuple]) -> Iterator[Breach]:
        for key, (premise, holds, tree, state, scale) in held.items():
            broken = np.argwhere(premise & ~holds)
            if len(broken):
                index = tuple(int(i) for i in broken[0])
                for leaf in leaves(tree):
                    if not self.holds(leaf, key, state, scale)[index]:
                        yield Breach(step, key, index, leaf.op, tuple(float(np.asarray(state.values[n][key])[index]) for n in leaf.states))
                        return
                leaf = next(leaves(tree))
                yield Breach(step, key, index, leaf.op, tuple(float(np.asarray(state.values[n][key])[index]) for n in leaf.states))


class Copy:
    """The rule on one stream, with states and weights of its own."""

    def __init__(self, interpreter: Interpreter, w: Arrays):
        self.interpreter, self.state, self.w = interpreter, RuleState(), w

    def step(self, g: Arrays, inputs: Mapping[str, Any], setting: Setting) -> Arrays:
        result = self.interpreter.step(self.state, frame_of(g, dict(self.w), setting, dict(inputs)))
        self.state = result.state
        self.w = self.w if result.weights is None else {n: np.asarray(x) for n, x in result.weights.items()}
        return {n: np.broadcast_to(x, g[n].shape) for n, x in result.out.items()}


def frame_of(g: Arrays, w: Arrays, setting: Setting, inputs: dict[str, Any]) -> Frame:
    """One step of a setting, all tensors in one group."""
    numbers = {n: float(v) for n, v in {**setting.parameters, **setting.numbers}.items() if not isinstance(v, str)}
    batch = next((len(x) for x in inputs.get("samples", {}).values()), None)
    return Frame(dict(g), w, dict.fromkeys(g, 0), {0: setting.lr}, {0: numbers}, inputs, batch, setting.seed)


def compare(op: str, a: np.ndarray, b: np.ndarray, scale: float, alike: bool) -> np.ndarray:
    """Whether a op b, cell by cell; `==` and `<=` up to rounding. alike: NaN equals NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.maximum(scale, np.maximum(*(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)) for x in (a, b))))
        near = np.abs(a - b) <= RTOL * size
        match op:
            case "eq":
                return (a == b) | near | (np.isnan(a) & np.isnan(b) if alike else False)
            case "ne":
                return ~((a == b) | near)
            case "le" | "ge":
                return (a <= b if op == "le" else a >= b) | near
            case "lt":
                return a < b
            case _:
                return a > b
