"""The library's maths in NumPy, written from the papers and the official codes, not from the rule files.

A reference is a generator: it is handed the streams of a run and its hyper-parameters, and yields {tensor: array} for each step: what the rule
returns, or, for a rule that writes the weights, the weights after the step. `single` makes one of a statement about one tensor alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A stream of gradients, the weights before the first step, the learning rate, and further inputs: name → one value for each step."""

    stream: list[Tensors]
    w: Tensors
    lr: float
    inputs: Mapping[str, list[Any]] = field(default_factory=dict)


def single(statement: Callable[..., Iterator[np.ndarray]]) -> Callable[..., Iterator[Tensors]]:
    """A statement about one tensor, (stream, w, lr, **hyper) ↦ stream, run for each tensor of a model."""

    @wraps(statement)
    def model(run: Run, **hyper: Any) -> Iterator[Tensors]:
        names = list(run.w)
        streams = [statement([g[n] for g in run.stream], run.w[n].copy(), run.lr, **hyper) for n in names]
        for step in zip(*streams, strict=True):
            yield dict(zip(names, step, strict=True))

    return model


def norm(x: np.ndarray, p: float = 2) -> float:
    return float(np.linalg.norm(np.ravel(x), p))


def norm_all(tensors: Mapping[str, np.ndarray], p: float = 2) -> float:
    """The norm of a model as one vector."""
    return norm(np.concatenate([np.ravel(x) for x in tensors.values()]), p)


def matrix(x: np.ndarray) -> np.ndarray:
    """A tensor as rows × everything else."""
    return x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)


def rows(x: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A statistic over each row, shaped to broadcast against x."""
    return np.array([statistic(r) for r in matrix(x)]).reshape((-1,) + (1,) * (x.ndim - 1)) if x.ndim else np.array(statistic(x.reshape(1)))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def ratio(x: np.ndarray, y: float | np.ndarray) -> np.ndarray:
    """x / y, 0 where y is 0."""
    return np.divide(x, y, out=np.zeros(np.broadcast(x, y).shape), where=np.asarray(y) != 0)
