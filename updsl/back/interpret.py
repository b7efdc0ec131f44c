"""The meaning of the language: Programs run in NumPy float64, plainly.

One step of a rule is a pure function (state, inputs) ↦ (state', out, new weights, watches). Tensors that do not take part in the step are as if absent, and
so are groups and routes of which no tensor does: their values are not evaluated, their states stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from updsl.back.evaluate import Moment, Place
from updsl.back.values import Array, Value, Window, empty, typed
from updsl.core import numeric
from updsl.core.frame import Frame, Key, Result, RuleState, Tensor
from updsl.core.ir import GRID, Apply, Binding, Every, Expr, Program, Reduce, Type, returned
from updsl.core.schedule import Guarded, Local, Shared, Step, merge
from updsl.core.scope import TENSOR

"""One number for each entry of the parameter."""


class Interpreter:
    """The Programs of a rule's tensor classes, run in lock-step."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor]):
        self.programs = tuple(programs)
        self.class_of = dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.orders: dict[tuple[int, ...], tuple[Step, ...]] = {}

    def step(self, state: RuleState, frame: Frame) -> Result:
        with np.errstate(all="ignore"):
            programs = {c: self.programs[c] for c in sorted({self.class_of[name] for name in frame.g})}
            now = Moment(programs, self.class_of, self.tensors, state, frame)
            recall(now, state)
            execute(now, self.order(programs))
            out, weights = emit(now)
            writes = any(p.weight is not None for p in self.programs)
            return Result(out, weights if writes else None, watches(now), remember(now, state))

    def order(self, programs: Mapping[int, Program]) -> tuple[Step, ...]:
        """The steps of these classes, put in one order the first time."""
        if (key := tuple(programs)) not in self.orders:
            self.orders[key] = merge({c: p.body for c, p in programs.items()})
        return self.orders[key]


# --- states ----------------------------------------------------------------------------------------------------------


def recall(now: Moment, state: RuleState) -> None:
    """The states before the step; in cells that take their first step, their `init`."""
    owners: dict[str, tuple[int, ...]] = {}
    for c, program in now.programs.items():
        for s in program.states:
            owners[s.name] = (*owners.get(s.name, ()), c)
    for c, program in now.programs.items():
        for s in program.states:
            cells, kept = now.before.setdefault(s.name, {}), state.values.get(s.name, {})
            for at in now.places((c,), s.type.scope):
                key = at.key(s.type.scope)
                if key in kept:
                    cells[key] = now.window_on_grid(kept[key], s.type, at) if s.type.window else now.on_grid(kept[key], s.type, at)
                elif s.init is None:
                    cells[key] = empty(s.type, now.sizes_at(at))
                else:
                    cells[key] = numeric.rounded(now.array(s.init, s.type, replace(at, classes=owners[s.name])), s.dtype)


def remember(now: Moment, state: RuleState) -> RuleState:
    """The states after the step."""
    values = {name: dict(cells) for name, cells in state.values.items()}
    for c, program in now.programs.items():
        commits = dict(program.commits)
        for s in program.states:
            for at in now.places((c,), s.type.scope):
                key = at.key(s.type.scope)
                after = now.evaluated(commits[s.name], s.type, at) if s.name in commits else now.before[s.name][key]
                values.setdefault(s.name, {})[key] = keep(now, after, s.type, at)
    return RuleState(values, now.run, now.t)


def keep(now: Moment, x: Value, type_: Type, at: Place) -> object:
    """A value as RuleState holds it."""
    if isinstance(x, Window):
        return now.off_grid(x.slots, type_, at), now.off_grid(x.count, type_, at)
    return now.off_grid(x, type_, at)


# --- statements ------------------------------------------------------------------------------------------------------


def execute(now: Moment, steps: Sequence[Step]) -> None:
    for step in steps:
        match step:
            case Local(c, Binding(name, expr)):
                now.values.setdefault(name, {}).update({at.name: now.evaluate(expr, at) for at in now.places((c,), TENSOR)})
            case Shared(name, bindings):
                now.values.setdefault(name, {}).update(together(now, {c: b.expr for c, b in bindings.items()}))
            case Guarded(_, blocks, body):
                guarded(now, blocks, body)


def together(now: Moment, exprs: Mapping[int, Expr]) -> dict[Key, Value]:
    """The cells of a value that several classes have together, each with an expression of its own."""
    classes, expr = tuple(exprs), next(iter(exprs.values()))
    match expr:
        case Apply("largest", static=(scope, *_)):
            masks = [now.largest_of_all({c: e for c, e in exprs.items() if isinstance(e, Apply)}, at) for at in now.places(classes, scope)]
            return {key: mask for found in masks for key, mask in found.items()}
        case Reduce() if not any(a.type.window for a in expr.args):
            own = {c: e for c, e in exprs.items() if isinstance(e, Reduce)}
            return {at.key(expr.scope): typed(now.reduce_all(own, at), expr.type) for at in now.places(classes, expr.scope)}
        case _:
            return {at.key(expr.type.scope): now.evaluate(expr, at) for at in now.places(classes, expr.type.scope)}


def guarded(now: Moment, blocks: Mapping[int, Every], body: Sequence[Step]) -> None:
    """The body, in the classes in which it is due; then what the rest of the step sees of it."""
    due = {c: block for c, block in blocks.items() if block.is_due(now.run)}
    execute(now, body if len(due) == len(blocks) else merge({c: block.body for c, block in due.items()}))
    for c, block in blocks.items():
        for y in block.yields:
            for at in now.places((c,), y.type.scope):
                now.values.setdefault(y.name, {})[at.key(y.type.scope)] = now.evaluated(y.inner if c in due else y.outer, y.type, at)


# --- results ---------------------------------------------------------------------------------------------------------


def emit(now: Moment) -> tuple[dict[str, Array], dict[str, Array]]:
    """out and the new weight of each tensor."""
    out, weights = {}, {}
    for c, program in now.programs.items():
        for at in now.places((c,), TENSOR):
            name = at.name
            if program.weight is not None:
                weights[name] = now.off_grid(now.array(program.weight, GRID, at), GRID, at)
            for e in returned(program):
                out[name] = now.off_grid(now.array(e, GRID, at), GRID, at)
            if name not in out:
                out[name] = np.asarray(now.frame.w[name], np.float64) - weights[name]
    return {name: out[name] for name in now.frame.g}, {name: weights[name] for name in now.frame.g if name in weights}


def watches(now: Moment) -> dict[str, Any]:
    """label → number (scope all), or key → number."""
    shown: dict[str, Any] = {}
    for c, program in now.programs.items():
        for watch in program.watches:
            scope = watch.expr.type.scope
            found = {at.key(scope): np.array(now.evaluate(watch.expr, at), np.float64) for at in now.places((c,), scope)}
            if scope.indices:
                shown.setdefault(watch.label, {}).update(found)
            else:
                shown[watch.label] = found[""]
    return shown
