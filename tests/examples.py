"""A rule file's examples, run: the arrays that a text states, as NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from updsl.front import syntax
from updsl.front.statics import constant


def array(x: syntax.Array | syntax.Expr) -> np.ndarray:
    """The array that an example writes down."""
    if isinstance(x, syntax.Array):
        return np.array([array(i) for i in x.items], np.float64)
    return np.asarray(constant(x, {}), np.float64)


def examples(declarations: tuple[syntax.Declaration, ...], rule: str) -> Iterator[syntax.Example]:
    """The examples about a rule: those below it."""
    about = ""
    for d in declarations:
        match d:
            case syntax.Rule(name=name):
                about = name
            case syntax.Example() if about == rule:
                yield d


def run(rule: Any, example: syntax.Example) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a rule gives on an example's stream, and what the example says: `out`, or for a rule that writes w, w after each step; w starts at 0, lr is 1."""
    settings = {s.name: [array(x) if isinstance(x, syntax.Array) else constant(x, {}) for x in s.steps] for s in example.settings}
    rule = rule.given({name: steps[0] for name, steps in settings.items() if name not in rule.inputs})
    streams = {name: steps for name, steps in settings.items() if name in rule.inputs}
    given = [array(x) for x in example.given]
    w = {"x": np.zeros(given[0].shape)}
    state, found = rule.interpret.init(w), []
    for step, g in enumerate(given):
        inputs = {name: steps[step] if rule.inputs[name] == "all" else {"x": steps[step]} for name, steps in streams.items()}
        out, state, weights, _ = rule.interpret.update({"x": g}, state, w, lr=1.0, **inputs)
        w = weights if weights is not None else w
        found.append(w["x"] if weights is not None else out["x"])
    return found, [array(x) for x in example.expected]
