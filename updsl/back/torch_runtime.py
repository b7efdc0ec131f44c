"""What generated torch code calls beside torch itself: numbers, spreading, blocks, windows, rounding, draws.

Inside generated code a value of a class of tensors has the dimensions (tensor, [sample,] [time,] row, column), those that its scope lacks with size 1;
a value per block (tensor, [sample,] block, 1). What is one for a group or the model has ([sample,] [time]).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from updsl.back import torch_order as order
from updsl.back import torch_reduce as reduce


def number(value: float | bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a 0-d tensor."""
    return torch.full((), value, dtype=dtype, device=device)


def pow(x: Tensor, y: Tensor) -> Tensor:
    """x^y; NaN if an operand is, also NaN^0 and 1^NaN."""
    return torch.where(torch.isnan(x) | torch.isnan(y), math.nan, torch.pow(x, y))


def average(b: Tensor, m: Tensor, c: Tensor, x: Tensor) -> Tensor:
    """b·m + c·x, where b + c = 1; in less than float64 m + c·(x - m), from the nearer end, if that is finite and not 0 (whose sign would be lost)."""
    plain = b * m + c * x
    if plain.dtype == torch.float64:
        return plain
    near = torch.where(c < 0.5, m + c * (x - m), x + (c - 1) * (x - m))
    return torch.where(torch.isfinite(near) & (near != 0), near, plain)


def mod(x: Tensor, y: Tensor) -> Tensor:
    """The remainder of x / y with the sign of y; by steps, since torch's own is NaN where x / y overflows."""
    dtype = x.dtype if x.ndim else y.dtype
    r, y = x.to(torch.float64), y.to(torch.float64)
    for multiple in (y * 2.0**700 * 2.0**700, y * 2.0**700):
        r = torch.where(torch.isfinite(multiple), torch.fmod(r, multiple), r)
    r = torch.fmod(r, y)
    return torch.where((r != 0) & ((r < 0) != (y < 0)), r + y, r).to(dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, rounded once: from float64 to 16 bits by way of float32 rounded to odd, since two roundings to nearest are not one."""
    if x.dtype != torch.float64 or dtype.itemsize != 2:
        return x.to(dtype)
    near = x.to(torch.float32)
    outward = torch.abs(near).to(torch.float64) > torch.abs(x)
    inexact = near.to(torch.float64) != x
    odd = (near.view(torch.int32) - outward.to(torch.int32)) | inexact.to(torch.int32)
    return odd.view(torch.float32).to(dtype)


# --- blocks: runs of k consecutive entries in row-major order --------------------------------------------------------


def blocks(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """(…, rows, cols) as (…, blocks, k), and which of the entries exist: None if all do, and then no copy is made of a contiguous x."""
    flat = x.flatten(-2)
    n = flat.shape[-1]
    missing = -n % k
    if not missing:
        return flat.unflatten(-1, (n // k, k)), None
    padded = torch.nn.functional.pad(flat, (0, missing))
    return padded.unflatten(-1, (-1, k)), (torch.arange(n + missing, device=x.device) < n).unflatten(0, (-1, k))


def from_blocks(b: Tensor, k: int, rows: int, cols: int) -> Tensor:
    """A value per block (…, blocks, 1) as one per entry (…, rows, cols)."""
    flat = b.expand(*b.shape[:-1], k).flatten(-2)
    return flat[..., : rows * cols].unflatten(-1, (rows, cols))


def per_block(f: Callable[..., Tensor], k: int, *xs: Tensor, **numbers: Tensor | float) -> Tensor:
    """A reduction in each block: (…, blocks, 1)."""
    views = [blocks(x, k) for x in torch.broadcast_tensors(*xs)]
    valid = views[0][1]
    if valid is None:
        return f(*(v for v, _ in views), dims=(-1,), **numbers)
    return _over_valid(f, lambda v: v, valid, [v for v, _ in views], numbers)


def _over_valid(
    f: Callable[..., Tensor], to_valid: Callable[[Tensor], Tensor], given: Tensor, xs: Sequence[Tensor], numbers: dict[str, Tensor | float]
) -> Tensor:
    """f over the entries of the last dimension that exist, `to_valid(given)`; some cells at a time, so that no wide copy of all is ever made."""
    varying = {name: q for name, q in numbers.items() if isinstance(q, Tensor)}
    fixed = {name: q for name, q in numbers.items() if name not in varying}

    def run(given: Tensor, *parts: Tensor) -> Tensor:
        named = dict(zip(varying, parts[len(xs) :], strict=True))
        return f(*parts[: len(xs)], dims=(-1,), valid=to_valid(given), **named, **fixed)

    return reduce.by_cells(run, given, *xs, *varying.values())


def largest_per_block(x: Tensor, k: int, count: Tensor | float, percent: bool) -> Tensor:
    """`largest` in each block, shaped as x."""
    view, valid = blocks(x, k)
    chosen = order.largest(view, count, (-1,), valid, percent).flatten(-2)
    return chosen[..., : x.shape[-2] * x.shape[-1]].unflatten(-1, x.shape[-2:])


# --- windows in time: slots, newest last, and for each cell how many of the last slots are filled --------------------


def newest(slots: Tensor, n: int, axis: int) -> Tensor:
    """The last n slots, with zeros before the oldest if there are fewer."""
    have = slots.shape[axis]
    if have >= n:
        return slots.narrow(axis, have - n, n)
    shape = list(slots.shape)
    shape[axis] = n - have
    return torch.cat([slots.new_zeros(shape), slots], axis)


def push(slots: Tensor, x: Tensor, axis: int) -> Tensor:
    """x as the newest slot, the oldest dropped."""
    older = slots.narrow(axis, 1, slots.shape[axis] - 1)
    return torch.cat([older, x.to(slots.dtype).expand(slots.narrow(axis, 0, 1).shape)], axis)


def over_time(f: Callable[..., Tensor], axis: int, count: Tensor, *xs: Tensor, **numbers: Tensor | float) -> Tensor:
    """A reduction over the filled slots of each cell."""
    aligned = [x.movedim(axis, -1) for x in torch.broadcast_tensors(*xs)]
    n = aligned[0].shape[-1]
    if count.ndim:
        count = count.movedim(axis, -1)
    numbers = {name: q.unsqueeze(-1) if isinstance(q, Tensor) and q.ndim else q for name, q in numbers.items()}
    filled = lambda count: torch.arange(n, device=count.device) >= n - count
    return _over_valid(f, filled, count, aligned, numbers).squeeze(-1)


# --- samples ---------------------------------------------------------------------------------------------------------


def sample_sum(x: Tensor, axis: int) -> Tensor:
    """Σ over the samples; 0 over none."""
    return reduce.sum(x, (axis - x.ndim,)).squeeze(axis)


def sample_mean(x: Tensor, axis: int) -> Tensor:
    """Mean over the samples; NaN of none."""
    return reduce.mean(x, (axis - x.ndim,)).squeeze(axis)


# --- reductions over several tensors: joint steps --------------------------------------------------------------------


def cells(x: Tensor, samples: bool) -> Tensor:
    """The cells of a stack of tensors in order, one after the other: ([sample,] cell)."""
    return x.transpose(0, 1).flatten(1) if samples else x.flatten()


def joined(op: str, parts: Sequence[reduce.Parts], samples: bool, static: dict[str, float]) -> Tensor:
    """The reduction over all tensors, from what each stack of them contributed: a 0-d tensor, or one number for each sample; in float64."""
    like = next(p for p in parts[0] if isinstance(p, Tensor))
    stacked = [torch.stack([torch.as_tensor(p, dtype=torch.float64, device=like.device).broadcast_to(like.shape) for p in c]) for c in zip(*parts, strict=True)]
    value = reduce.VALUE[op](*reduce.COMBINE[op](*stacked, **static), **static)
    return value.reshape(-1) if samples else value.reshape(())


def joined_quantile(operands: Sequence[Tensor], q: Tensor | float) -> Tensor:
    """The quantile of all cells together."""
    q = q.unsqueeze(-1) if isinstance(q, Tensor) and q.ndim else q
    return order.quantile(torch.cat(list(operands), -1), q, (-1,)).squeeze(-1)


def joined_largest(operands: Sequence[Tensor], k: Tensor | float, percent: bool) -> list[Tensor]:
    """`largest` among the cells of all tensors, for each its mask; ties go to the lower index, then to the earlier tensor."""
    sizes = [x.shape[-1] for x in operands]
    device = operands[0].device
    by_index = torch.argsort(torch.cat([torch.arange(n, device=device) for n in sizes]), stable=True)
    k = k.unsqueeze(-1) if isinstance(k, Tensor) and k.ndim else k
    chosen = order.largest(torch.cat(list(operands), -1)[..., by_index], k, (-1,), None, percent)
    mask = torch.empty_like(chosen)
    mask[..., by_index] = chosen
    return list(mask.split(sizes, -1))
