"""First values of states that are literals, as nearly all are: known without generated code."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from updsl.back.kernel_tables import DTYPE, keys_of
from updsl.back.torch_layout import Call, compute_dtype, sizes_of
from updsl.back.torch_runtime import rounded
from updsl.core import frame
from updsl.core.frame import Frame, Key, RuleState
from updsl.core.ir import Apply, Const, Expr, Program, State, is_shared
from updsl.core.scope import ELEMENT, TENSOR


def literal_of(e: Expr | None) -> float | bool | None:
    """The number that a first value is everywhere; None if it depends on something."""
    match e:
        case Const(value=value):
            return value
        case Apply("spread", (x,)):
            return literal_of(x)
        case _:
            return None


def missing(programs: Sequence[Program], class_of: Mapping[str, int], state: RuleState, frame: Frame) -> Iterator[tuple[State, list[tuple[str, Key]]]]:
    """The states that have no value yet where this step needs one: each with the tensors that it is missing for, and its key for them."""
    owners: dict[int, list[str]] = {}
    for name in frame.g:
        owners.setdefault(class_of[name], []).append(name)
    for c, names in owners.items():
        for s in programs[c].states:
            if s.init is not None:
                have = state.values.get(s.name, {})
                lacking = [(n, key) for n, key in zip(names, keys_of(s, names, frame.group_of), strict=True) if key not in have]
                if lacking:
                    yield s, lacking


def with_literals(
    lacking: Sequence[tuple[State, Sequence[tuple[str, Key]]]], tensors: Mapping[str, frame.Tensor], state: RuleState, frame: Frame
) -> RuleState | None:
    """The state before the step, with these first values; None where one of them is no literal, or lies on the grid of a matrix input."""
    literals = {id(s): literal_of(s.init) for s, _ in lacking}
    if None in literals.values() or any(isinstance(d, str) and "." in d for s, _ in lacking for d in (s.type.rows, s.type.cols)):
        return None
    values = {name: dict(cells) for name, cells in state.values.items()}
    widest = functools.reduce(torch.promote_types, map(compute_dtype, set(map(DTYPE, frame.g.values()))))
    device = next(iter(frame.g.values())).device
    for s, keys in lacking:
        cells = values.setdefault(s.name, {})
        for name, key in keys:
            if key not in cells:
                g = frame.g[name]
                real, where = (widest, device) if is_shared(s.type) else (compute_dtype(g.dtype), g.device)
                cells[key] = filled(own_shape(s, tensors[name]), literals[id(s)], s, real, where)
    return RuleState(values, state.run, dict(state.t))


def own_shape(s: State, tensor: frame.Tensor) -> tuple[int, ...]:
    """Of a state's array."""
    if s.type.scope <= TENSOR:
        return ()
    if (s.type.scope, s.type.rows, s.type.cols) == (ELEMENT, "rows", "cols"):
        return tensor.shape
    return Call(0, 0, (tensor.name,), tensor.shape, torch.float32, None, torch.device("cpu"), sizes_of(tensor, {})).own_shape(s.type)


def filled(shape: tuple[int, ...], value: float | bool | None, s: State, real: torch.dtype, device: torch.device) -> Tensor:
    """An array of one number, in the state's type. real: of the arithmetic."""
    assert value is not None
    if s.type.boolean:
        return torch.full(shape, bool(value), dtype=torch.bool, device=device)
    if s.dtype is None:
        return torch.full(shape, value, dtype=real, device=device)
    dtype = getattr(torch, s.dtype)
    return torch.full(shape, rounded(torch.tensor(value, dtype=real), dtype).item(), dtype=dtype, device=device)
