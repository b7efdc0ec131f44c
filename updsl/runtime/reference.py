"""The interpreter in a backend's place: torch tensors in, NumPy float64 inside, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from updsl.core.frame import Frame, Result, RuleState
from updsl.pipeline import Backend, Engine
from updsl.runtime.arrays import is_tensor, to_numpy


def over_tensors(engine: Engine) -> Engine:
    """The engine as one that runs on torch tensors."""
    return replace(engine, run=Reference(engine.run)) if engine.name == "interpret" else engine


class Reference:
    """The interpreter on torch tensors. Gradients and weights come back in their own types, states and watches as float64."""

    def __init__(self, interpreter: Backend):
        self.interpreter = interpreter

    def step(self, state: RuleState, frame: Frame) -> Result:
        """(state, inputs) ↦ (state', out, new weights, watches)."""
        result = self.interpreter.step(_state(state, to_numpy), _frame(frame))
        out = {name: _like(x, frame.g[name]) for name, x in result.out.items()}
        weights = None if result.weights is None else {name: _like(x, frame.w[name]) for name, x in result.weights.items()}
        return Result(out, weights, _each(result.watches, _tensor), _state(result.state, _tensor))


def _like(x: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(x).to(like)


def _tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def _state(state: RuleState, convert: Callable[[Any], Any]) -> RuleState:
    return RuleState(_each(state.values, convert), state.run, {name: int(n) for name, n in state.t.items()})


def _each(x: Any, convert: Callable[[Any], Any]) -> Any:
    """Every array in dicts and pairs of arrays, converted."""
    match x:
        case dict():
            return {key: _each(value, convert) for key, value in x.items()}
        case tuple():
            return tuple(convert(part) for part in x)
        case _:
            return convert(x)


def _frame(frame: Frame) -> Frame:
    def number(x: Any) -> Any:
        return to_numpy(x) if is_tensor(x) else x

    return replace(
        frame,
        g=_each(frame.g, to_numpy),
        w=_each(frame.w, to_numpy),
        inputs=_each(frame.inputs, to_numpy),
        lr=_each(frame.lr, number),
        params=_each(frame.params, number),
    )
