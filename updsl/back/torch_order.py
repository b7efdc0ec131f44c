"""Reductions and selections by order in torch: quantiles, and the entries of largest magnitude. `dims` and `valid` as in torch_reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from updsl.back.torch_reduce import Dims, Number, count_of, wide


def _last(x: Tensor, dims: Dims) -> Tensor:
    """The reduced dimensions as the last one, in row-major order. What has no dimensions stays."""
    if x.ndim == 0 or dims == (-1,):
        return x
    return x.movedim(-2, -1) if dims == (-2,) else x.flatten(-2)


def _back(x: Tensor, dims: Dims, shape: Sequence[int]) -> Tensor:
    """Undoes `_last`."""
    if dims == (-1,):
        return x
    return x.movedim(-1, -2) if dims == (-2,) else x.reshape(shape)


def quantile(x: Tensor, q: Number, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The order statistic at q·(n - 1), interpolated linearly; NaN if an entry or q is NaN, or q is outside [0, 1]."""
    cells = _last(x, dims)
    q = torch.as_tensor(q, dtype=torch.float64, device=x.device)
    q = _last(q, dims)
    s = torch.sort(cells if valid is None else torch.where(valid, cells, math.inf), dim=-1).values
    n = count_of(cells, (-1,), valid)
    usable = (q >= 0) & (q <= 1) & (n > 0)  # type: ignore[operator]
    at = torch.where(usable, q, 0.0) * (n - 1)
    low = torch.floor(at)
    part = at - low

    def pick(i: Tensor) -> Tensor:
        i = i.clamp(0, cells.shape[-1] - 1).to(torch.int64)
        return wide(torch.gather(s, -1, i.expand(*s.shape[:-1], 1)))

    a, b = pick(low), pick(torch.minimum(low + 1, torch.as_tensor(n - 1, dtype=torch.float64, device=x.device)))
    value = torch.where((part == 0) | (a == b), a, (1 - part) * a + part * b)
    value = torch.where(torch.isnan(s[..., -1:]) | ~usable, math.nan, value).to(x.dtype)
    return _back(value, dims, (*x.shape[:-2], 1, 1))


def median(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The 50 % quantile."""
    return quantile(x, 0.5, dims, valid)


def largest(x: Tensor, k: Number, dims: Dims, valid: Tensor | None = None, percent: bool = False) -> Tensor:
    """True on the entries of largest magnitude: k of them, or the fraction k (rounded up) below 1; NaN is largest, ties go to the lower index."""
    cells = torch.abs(_last(x, dims))
    if valid is not None:
        cells = torch.where(valid, cells, -1.0)
    n = count_of(cells, (-1,), valid)
    k = _last(torch.as_tensor(k, dtype=torch.float64, device=x.device), dims)
    share = torch.ceil(k * n - 1e-12 * n)
    wanted = share if percent else torch.where(k < 1, share, torch.floor(k))
    wanted = torch.where(torch.isnan(wanted), 0.0, wanted)
    order = torch.sort(cells, dim=-1, descending=True, stable=True).indices
    taken = torch.arange(cells.shape[-1], device=x.device) < torch.minimum(wanted, torch.as_tensor(n, dtype=torch.float64, device=x.device))
    chosen = torch.zeros(cells.shape, dtype=torch.bool, device=x.device).scatter(-1, order, taken.expand(cells.shape))
    return _back(chosen, dims, x.shape)
