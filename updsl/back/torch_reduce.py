"""Reductions in torch: over `dims` (negative, kept with size 1), in float64 inside, in the operand's dtype outside.

`valid` marks the entries of the last dimension that exist (windows that are not full, blocks that are shorter); reductions with it run over that
dimension alone. Eager code sums long tensors in pieces, so that no wide copy of a whole tensor is ever made; compiled code fuses it instead.
A reduction over several tensors (scope group or all) is `finish[op]` of the `parts` of each: sums, counts, extremes and their scales.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PIECE = {"cpu": 1 << 16}
PIECE_ELSEWHERE = 1 << 22
EXPONENT = 0x7FF0000000000000
"""The bits of float64 that hold the exponent."""
DIRECT_POWERS = (1.0, 8.0)
"""Powers p for which |x|^p of a float32 number neither overflows nor underflows float64."""

Dims = tuple[int, ...]


def wide(x: Tensor) -> Tensor:
    """x in float64."""
    return x.to(torch.float64)


def _count(x: Tensor, dims: Dims, valid: Tensor | None) -> Tensor | float:
    """How many entries are reduced."""
    return float(math.prod(x.shape[d] for d in dims)) if valid is None else wide(valid.sum(-1, keepdim=True))


def _in_pieces(reduce: Callable[..., Tensor], dims: Dims, *xs: Tensor) -> Tensor:
    """reduce(*xs), where reduce sums over `dims`: by pieces of the longest dimension in eager code."""
    shape = torch.broadcast_shapes(*(x.shape for x in xs))
    total = math.prod(shape)
    size = PIECE.get(xs[0].device.type, PIECE_ELSEWHERE)
    if torch.compiler.is_compiling() or total <= size:
        return reduce(*xs)
    axis = builtins.max(range(-len(shape), 0), key=lambda d: shape[d])
    pieces = zip(*(x.expand(shape).chunk(math.ceil(total / size), axis) for x in xs), strict=True)
    parts = [reduce(*piece) for piece in pieces]
    return torch.stack(parts).sum(0) if axis in dims else torch.cat(parts, axis)


def _total(term: Callable[..., Tensor], dims: Dims, valid: Tensor | None, *xs: Tensor) -> Tensor:
    """Σ term(*xs) in float64."""
    if valid is None:
        return _in_pieces(lambda *part: term(*map(wide, part)).sum(dims, keepdim=True), dims, *xs)
    return torch.where(valid, term(*map(wide, xs)), 0.0).sum(dims, keepdim=True)


def _lowest(x: Tensor, dims: Dims, valid: Tensor | None) -> Tensor:
    return (x if valid is None else torch.where(valid, x, math.inf)).amin(dims, keepdim=True)


def _highest(x: Tensor, dims: Dims, valid: Tensor | None) -> Tensor:
    return (x if valid is None else torch.where(valid, x, -math.inf)).amax(dims, keepdim=True)


def _largest_magnitude(x: Tensor, dims: Dims, valid: Tensor | None) -> Tensor:
    """max |x|, with no array of magnitudes; at least 0."""
    return torch.maximum(_highest(x, dims, valid), -_lowest(x, dims, valid)).clamp(min=0.0)


def _scale(top: Tensor) -> Tensor:
    """The power of two at or below a magnitude in float64, at least the smallest normal one; 1 at 0, inf and NaN."""
    power = (top.view(torch.int64) & EXPONENT).view(torch.float64).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(torch.isfinite(top) & (top > 0), power, 1.0)


# --- parts: what each tensor contributes; a tuple of float64 tensors -------------------------------------------------

Parts = tuple[Tensor, ...]


def _full(like: Tensor, value: Tensor | float) -> Tensor:
    return value.expand_as(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def sum_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """Σx, n."""
    total = _total(lambda v: v, dims, valid, x)
    return total, _full(total, _count(x, dims, valid))


def power_parts(x: Tensor, dims: Dims, valid: Tensor | None = None, p: float = 2.0) -> Parts:
    """scale, Σ(|x| / scale)^p, n; for p = ±inf and 0 the result stands in the place of the sum."""
    if p == math.inf:
        top = wide(_largest_magnitude(x, dims, valid))
        return torch.ones_like(top), top, _full(top, _count(x, dims, valid))
    if p == -math.inf:
        low = wide(_lowest(torch.abs(x), dims, valid))
        return torch.ones_like(low), low, _full(low, _count(x, dims, valid))
    if p == 0:
        total = _total(lambda v: torch.where(torch.isnan(v), v, (v != 0).to(v.dtype)), dims, valid, x)
        return torch.ones_like(total), total, _full(total, _count(x, dims, valid))
    direct = x.dtype != torch.float64 and DIRECT_POWERS[0] <= p <= DIRECT_POWERS[1]
    power = (lambda v: v * v) if p == 2 else (lambda v: torch.pow(torch.abs(v), p))
    if direct:
        total = _total(power, dims, valid, x)
        return torch.ones_like(total), total, _full(total, _count(x, dims, valid))
    scale = _scale(wide(_largest_magnitude(x, dims, valid)))
    total = _total(lambda v, s: power(v / s), dims, valid, x, scale)
    return scale, total, _full(total, _count(x, dims, valid))


def moment_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """n, mean, scale, Σ((x - mean) / scale)²: two passes, so that nothing cancels."""
    total, n = sum_parts(x, dims, valid)
    mean = total / n
    if x.dtype != torch.float64:
        scale = torch.ones_like(mean)
    else:
        spread = torch.maximum(_highest(x, dims, valid) - mean, mean - _lowest(x, dims, valid))
        scale = _scale(spread)
    return n, mean, scale, _total(lambda v, m, s: ((v - m) / s) ** 2, dims, valid, x, mean, scale)


def extreme_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """min, max."""
    return wide(_lowest(x, dims, valid)), wide(_highest(x, dims, valid))


def dot_parts(x: Tensor, y: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """Σxy."""
    return (_total(torch.mul, dims, valid, x, y),)


def cosine_parts(x: Tensor, y: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """a, b, Σ(x/a)(y/b), Σ(x/a)², Σ(y/b)² for powers of two a, b near the largest entries."""
    x, y = torch.broadcast_tensors(x, y)
    a = _scale(wide(_largest_magnitude(x, dims, valid)))
    b = _scale(wide(_largest_magnitude(y, dims, valid)))
    xy = _total(lambda v, u, s, t: (v / s) * (u / t), dims, valid, x, y, a, b)
    xx = _total(lambda v, s: (v / s) ** 2, dims, valid, x, a)
    yy = _total(lambda v, s: (v / s) ** 2, dims, valid, y, b)
    return a, b, xy, xx, yy


def count_parts(c: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """How many hold."""
    return (wide((c if valid is None else c & valid).sum(dims, keepdim=True)),)


# --- finish: from the parts of several tensors, stacked in front, to the value ---------------------------------------


def _rescaled(scale: Tensor, total: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Sums of p-th powers with scales of their own, as one sum with one scale."""
    common = scale.amax(0)
    return common, (total * torch.pow(scale / common, p)).sum(0)


def _finish_norm(scale: Tensor, total: Tensor, n: Tensor, p: float = 2.0) -> Tensor:
    if math.isinf(p):
        return total.amax(0) if p > 0 else total.amin(0)
    if p == 0:
        return total.sum(0)
    common, total = _rescaled(scale, total, p)
    return (torch.sqrt(total) if p == 2 else torch.pow(total, 1 / p)) * common


def _finish_std(n: Tensor, mean: Tensor, scale: Tensor, square: Tensor) -> Tensor:
    """Root of the population variance, from those of the parts and the distances of their means."""
    whole = mean[:1] + (n * (mean - mean[:1])).sum(0) / n.sum(0)
    apart = mean - whole
    top = torch.maximum(scale, _scale(torch.abs(apart))).amax(0)
    square = (square * (scale / top) ** 2 + n * (apart / top) ** 2).sum(0)
    return torch.sqrt(square / n.sum(0)) * top


def _finish_cosine(a: Tensor, b: Tensor, xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """Σxy / (|x|·|y|); 0 if one of the vectors is 0 and the other has no NaN."""
    top_a, top_b = a.amax(0), b.amax(0)
    xy = (xy * (a / top_a) * (b / top_b)).sum(0)
    nx, ny = torch.sqrt((xx * (a / top_a) ** 2).sum(0)), torch.sqrt((yy * (b / top_b) ** 2).sum(0))
    zero = ((nx == 0) & ~torch.isnan(ny)) | ((ny == 0) & ~torch.isnan(nx))
    return torch.where(zero, 0.0, xy / (nx * ny))


PARTS: dict[str, Callable[..., Parts]] = {
    "sum": sum_parts,
    "mean": sum_parts,
    "norm": power_parts,
    "rms": power_parts,
    "var": moment_parts,
    "std": moment_parts,
    "min": extreme_parts,
    "max": extreme_parts,
    "absmax": extreme_parts,
    "dot": dot_parts,
    "cosine": cosine_parts,
    "count": count_parts,
    "any": count_parts,
}
FINISH: dict[str, Callable[..., Tensor]] = {
    "sum": lambda total, n: total.sum(0),
    "mean": lambda total, n: total.sum(0) / n.sum(0),
    "norm": _finish_norm,
    "rms": lambda scale, total, n: _finish_norm(scale, total, n) / torch.sqrt(n.sum(0)),
    "var": lambda *parts: _finish_std(*parts) ** 2,
    "std": _finish_std,
    "min": lambda low, high: low.amin(0),
    "max": lambda low, high: high.amax(0),
    "absmax": lambda low, high: torch.maximum(high.amax(0), -low.amin(0)),
    "dot": lambda total: total.sum(0),
    "cosine": _finish_cosine,
    "count": lambda n: n.sum(0),
    "any": lambda n: n.sum(0) > 0,
}


# --- over the cells of one tensor ------------------------------------------------------------------------------------


def _alone(op: str, *xs: Tensor, dims: Dims, valid: Tensor | None = None, **static: float) -> Tensor:
    """The reduction of one tensor, in its dtype."""
    value = FINISH[op](*(p.unsqueeze(0) for p in PARTS[op](*xs, dims=dims, valid=valid, **static)), **static)
    return value if op in ("count", "any") else value.to(torch.result_type(xs[0], xs[-1]))


def sum(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Σx."""
    return _alone("sum", x, dims=dims, valid=valid)


def mean(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Σx / n."""
    return _alone("mean", x, dims=dims, valid=valid)


def norm(x: Tensor, dims: Dims, valid: Tensor | None = None, p: float = 2.0) -> Tensor:
    """(Σ|x|^p)^(1/p); overflows or underflows only if it does."""
    return _alone("norm", x, dims=dims, valid=valid, p=p)


def rms(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """√(Σx² / n)."""
    return _alone("rms", x, dims=dims, valid=valid)


def var(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Σ(x - mean)² / n."""
    return _alone("var", x, dims=dims, valid=valid)


def std(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """√var."""
    return _alone("std", x, dims=dims, valid=valid)


def min(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The smallest entry; NaN if one is."""
    return _lowest(x, dims, valid)


def max(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The largest entry; NaN if one is."""
    return _highest(x, dims, valid)


def absmax(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The largest magnitude; NaN if an entry is."""
    return _largest_magnitude(x, dims, valid)


def dot(x: Tensor, y: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Σxy."""
    return _alone("dot", x, y, dims=dims, valid=valid)


def cosine(x: Tensor, y: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Σxy / (|x|·|y|); 0 with a zero vector."""
    return _alone("cosine", x, y, dims=dims, valid=valid)


def count(c: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """How many hold, in float64."""
    return _alone("count", c, dims=dims, valid=valid)


def any(c: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """Whether one holds."""
    return _alone("any", c, dims=dims, valid=valid)


# --- by order --------------------------------------------------------------------------------------------------------


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


def quantile(x: Tensor, q: Tensor | float, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The order statistic at q·(n - 1), interpolated linearly; NaN if an entry or q is NaN, or q is outside [0, 1]."""
    cells = _last(x, dims)
    q = torch.as_tensor(q, dtype=torch.float64, device=x.device)
    q = _last(q, dims)
    s = torch.sort(cells if valid is None else torch.where(valid, cells, math.inf), dim=-1).values
    n = _count(cells, (-1,), valid)
    usable = (q >= 0) & (q <= 1)
    at = torch.where(usable, q, 0.0) * (n - 1)
    low = torch.floor(at)
    part = at - low

    def pick(i: Tensor) -> Tensor:
        i = i.clamp(0, cells.shape[-1] - 1).to(torch.int64)
        return wide(torch.gather(s, -1, i.expand(*s.shape[:-1], 1)))

    a, b = pick(low), pick(torch.minimum(low + 1, torch.as_tensor(n - 1, dtype=torch.float64, device=x.device)))
    value = torch.where((part == 0) | (a == b), a, a + part * (b - a))
    value = torch.where(torch.isnan(s[..., -1:]) | ~usable, math.nan, value).to(x.dtype)
    return _back(value, dims, (*x.shape[:-2], 1, 1))


def median(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The 50 % quantile."""
    return quantile(x, 0.5, dims, valid)


def largest(x: Tensor, k: Tensor | float, dims: Dims, valid: Tensor | None = None, percent: bool = False) -> Tensor:
    """True on the entries of largest magnitude: k of them, or the fraction k (rounded up) below 1; NaN is largest, ties go to the lower index."""
    cells = torch.abs(_last(x, dims))
    if valid is not None:
        cells = torch.where(valid, cells, -1.0)
    n = _count(cells, (-1,), valid)
    k = _last(torch.as_tensor(k, dtype=torch.float64, device=x.device), dims)
    share = torch.ceil(k * n - 1e-12 * n)
    wanted = share if percent else torch.where(k < 1, share, torch.floor(k))
    wanted = torch.where(torch.isnan(wanted), 0.0, wanted)
    order = torch.sort(cells, dim=-1, descending=True, stable=True).indices
    taken = torch.arange(cells.shape[-1], device=x.device) < torch.minimum(wanted, torch.as_tensor(n, dtype=torch.float64, device=x.device))
    chosen = torch.zeros(cells.shape, dtype=torch.bool, device=x.device).scatter(-1, order, taken.expand(cells.shape))
    return _back(chosen, dims, x.shape)
