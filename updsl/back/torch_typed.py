"""Programs run as torch runs them for gradients of one type, for those who hand over and read NumPy arrays: what a user sees who trains in that type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from updsl.back.torch_exec import TorchBackend
from updsl.core.frame import Frame, Result, RuleState, Tensor
from updsl.core.ir import Program

STREAMS = frozenset(("stream", "samples", "matrix"))
"""Kinds of inputs that have the gradient's type; numbers have that of the arithmetic."""


class InType:
    """The Programs of a rule's tensor classes, in eager torch. dtype: "float32", "bfloat16", "float16" or "float64", of gradients, weights and inputs. What is
    handed over is rounded to it; results are given as NumPy float64; states stay torch's."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor], dtype: str):
        self.backend = TorchBackend(programs, class_of, tensors)
        self.dtype = getattr(torch, dtype)
        self.arithmetic = self.dtype if self.dtype.itemsize > 2 else torch.float32
        self.kinds = {i.name: i.kind for p in programs for i in p.inputs}

    def step(self, state: RuleState, frame: Frame) -> Result:
        inputs = {
            name: {key: self.array(x, self.dtype if self.kinds.get(name, "stream") in STREAMS else self.arithmetic) for key, x in cells.items()}
            for name, cells in frame.inputs.items()
        }
        here = replace(frame, g=self.arrays(frame.g), w=self.arrays(frame.w), inputs=inputs)
        found = self.backend.step(state, here)
        weights = None if found.weights is None else {n: to_numpy(x) for n, x in found.weights.items()}
        return replace(found, out={n: to_numpy(x) for n, x in found.out.items()}, weights=weights)

    def arrays(self, xs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {name: self.array(x, self.dtype) for name, x in xs.items()}

    @staticmethod
    def array(x: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.array(x, np.float64)).to(dtype)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().to(torch.float64).numpy()
