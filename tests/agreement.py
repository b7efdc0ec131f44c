"""How two runs of a rule are compared: step by step, each tensor relative to its largest entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from updsl import pipeline
from updsl.runtime import arrays
from updsl.runtime.reference import over_tensors
from updsl.runtime.rule import Rule, advance


@dataclass(frozen=True)
class Step:
    """What is handed over at one step; tensors without a gradient are left out of `g`."""

    g: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What one step gave: out and w by tensor name (w as it was where the rule writes none), watches as the rule gives them, states as (name, key) → value."""

    out: dict[str, np.ndarray]
    w: dict[str, np.ndarray]
    watch: dict[str, Any]
    states: dict[tuple[str, Any], np.ndarray]


def run(
    rule: Rule,
    backend: str,
    weights: Mapping[str, Any],
    steps: Sequence[Step],
    lr: float | None = None,
    groups: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[Given]:
    """The steps one after another through the public functions (`interpret.update`, `update`), or under torch.compile.

    Arrays are NumPy float64; the torch backends run in `dtype`.
    """
    start = rule.interpret.init if backend == "interpret" else rule.init
    state, w, given = start(weights, groups=groups, seed=seed), dict(weights), []
    convert = _array if backend == "interpret" else lambda x: torch.as_tensor(np.array(x), dtype=dtype)
    for step in steps:
        handed = {name: _each(x, convert) for name, x in step.inputs.items()}
        args = (_each(step.g, convert), state, _each(w, convert), lr, None)
        match backend:
            case "interpret":
                out, state, new, watch = rule.interpret.update(*args, set=step.set, **handed)
            case "torch":
                out, state, new, watch = rule.update(*args, set=step.set, **handed)
            case _:
                out, state, new, watch = advance(rule, backend, arrays.to_torch, *args, step.set, handed)
        w |= _each(new or {}, _array)
        given.append(Given(_each(out, _array), dict(w), _each(watch, _array), _states(state)))
    return given


def _states(state: Any) -> dict[tuple[str, Any], np.ndarray]:
    """Every value that is kept; of a window the slots that are filled."""
    found = {}
    for name, by_key in state.kept.values.items():
        for key, value in by_key.items():
            found[name, key] = _array(value) if not isinstance(value, tuple) else _filled(*map(_array, value))
    return found


def _filled(buffer: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The window with 0 in the slots that hold nothing yet."""
    slots = np.arange(len(buffer)).reshape(-1, *(1,) * (buffer.ndim - 1))
    return np.where(slots >= len(buffer) - count, buffer, 0.0)


def _array(x: Any) -> np.ndarray:
    return np.asarray(arrays.to_numpy(x) if arrays.is_tensor(x) else x, np.float64)


def _each(x: Any, convert: Any) -> Any:
    return {key: _each(value, convert) for key, value in x.items()} if isinstance(x, Mapping) else convert(x)


def distance(a: Any, b: Any) -> float:
    """The largest difference relative to the largest finite entry of `b`; NaN and infinities must stand in the same places, else it is inf."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    finite = np.isfinite(b)
    if not np.array_equal(np.where(finite, 0, a), np.where(finite, 0, b), equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    gap, size = np.abs(a[finite] - b[finite]).max(initial=0.0), np.abs(b[finite]).max(initial=0.0)
    return float(gap / size) if size > 0 else float("inf") if gap > 0 else 0.0


def furthest(one: Sequence[Given], other: Sequence[Given], states: bool = True) -> tuple[float, str]:
    """The largest distance between two runs, and where it is."""
    worst = (0.0, "nowhere")
    for t, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        for what in ("out", "w", "watch", *(("states",) if states else ())):
            worst = max(worst, _furthest(getattr(a, what), getattr(b, what), f"step {t}, {what}"))
    return worst


def _furthest(a: Any, b: Any, where: str) -> tuple[float, str]:
    if not isinstance(b, Mapping):
        return distance(a, b), where
    if set(a) != set(b):
        return float("inf"), f"{where}: {sorted(map(str, set(a) ^ set(b)))} are in one only"
    return max((_furthest(a[key], b[key], f"{where}, {key}") for key in b), default=(0.0, where))


def engine_of(rule: Rule, shapes: Mapping[str, tuple[int, ...]], groups: Any = None, backend: str = "interpret", lr: bool = True) -> pipeline.Engine:
    """The rule's Programs for tensors of these shapes, and what runs them on torch tensors."""
    state = rule.init({name: np.zeros(shape) for name, shape in shapes.items()}, groups=groups)
    return over_tensors(rule.engine(state.layout, lr, backend))
