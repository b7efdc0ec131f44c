"""Reductions in torch: over `dims` (negative, kept with size 1), in float64 inside, in the operand's dtype outside.

`valid` marks the entries of the last dimension that exist (windows that are not full, blocks that are shorter); reductions with it run over that
dimension alone. Eager code sums long tensors in pieces, so that no wide copy of a whole tensor is ever made; compiled code fuses it instead.
A reduction is VALUE[op] of its PARTS[op]; over several tensors (scope group or all) of what COMBINE[op] makes of the parts of each.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor

PIECE = {"cpu": 1 << 16}
PIECE_ELSEWHERE = 1 << 22
EXPONENT = 0x7FF0000000000000
"""The bits of float64 that hold the exponent."""
SMALLEST, GREATEST = 2.0**-1022, 2.0**1023
DIRECT_POWERS = (1.0, 8.0)
"""Powers p for which |x|^p of a float32 number neither overflows nor underflows float64."""
STEEP = 64.0
"""From this power on even what is scaled by a power of two may overflow: the entry itself is the scale."""

Dims = tuple[int, ...]
Number = Tensor | float
Parts = tuple[Number, ...]


def wide(x: Tensor) -> Tensor:
    """x in float64."""
    return x.to(torch.float64)


def count_of(x: Tensor, dims: Dims, valid: Tensor | None) -> Number:
    """How many entries are reduced."""
    return float(math.prod([x.shape[d] for d in dims])) if valid is None else wide(valid.sum(-1, keepdim=True))


def _is_small(total: int, x: Tensor) -> bool:
    return total <= PIECE["cpu"] or torch.compiler.is_compiling() or total <= PIECE.get(x.device.type, PIECE_ELSEWHERE)


def _in_pieces(reduce: Callable[..., Tensor], dims: Dims, *xs: Tensor) -> Tensor:
    """reduce(*xs), where reduce sums over `dims`: by pieces of the longest dimension in eager code."""
    if torch.compiler.is_compiling():
        return reduce(*xs)
    rank = builtins.max(x.dim() for x in xs)
    shape = [0 if 0 in sizes else builtins.max(sizes) for sizes in zip(*((1,) * (rank - x.dim()) + tuple(x.shape) for x in xs), strict=True)]
    total = math.prod(shape)
    if _is_small(total, xs[0]):
        return reduce(*xs)
    axis = builtins.max(range(-len(shape), 0), key=lambda d: shape[d])
    count = math.ceil(total / PIECE.get(xs[0].device.type, PIECE_ELSEWHERE))
    pieces = zip(*(x.expand(shape).chunk(count, axis) for x in xs), strict=True)
    parts = [reduce(*piece) for piece in pieces]
    return torch.stack(parts).sum(0) if axis in dims else torch.cat(parts, axis)


def by_cells(reduce: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """reduce(*xs), where reduce runs over the last dimension alone, which it keeps: in eager code by pieces of the longest of the others."""
    shape = torch.broadcast_shapes(*(x.shape for x in xs))
    axis = builtins.max(range(-len(shape), -1), key=lambda d: shape[d], default=-1)
    total = math.prod(shape)
    if axis == -1 or shape[axis] == 1 or _is_small(total, xs[0]):
        return reduce(*xs)
    count = math.ceil(total / PIECE.get(xs[0].device.type, PIECE_ELSEWHERE))
    varies = [x.dim() >= -axis and x.shape[axis] > 1 for x in xs]
    pieces = zip(*(x.chunk(count, axis) if v else repeat(x) for x, v in zip(xs, varies, strict=True)), strict=False)
    return torch.cat([reduce(*piece) for piece in pieces], axis)


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
    """max |x|, 0 of nothing; of a long tensor without an array of magnitudes."""
    if valid is not None:
        return torch.where(valid, torch.abs(x), 0.0).amax(dims, keepdim=True)
    if _is_small(x.numel(), x):
        return torch.abs(x).amax(dims, keepdim=True)
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


def _scale(top: Tensor) -> Tensor:
    """A power of two at or below a magnitude in float64, as far as normal numbers go; the greatest at inf and NaN."""
    return (top.view(torch.int64) & EXPONENT).view(torch.float64).clamp(SMALLEST, GREATEST)


# --- parts: what one tensor contributes, in float64 ------------------------------------------------------------------


def sum_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """Σx."""
    return (_total(lambda v: v, dims, valid, x),)


def mean_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> tuple[Number, Tensor]:
    """n, mean. In float64 the mean of what is left corrects the rounding of the sum, so that the mean of equal cells is their value."""
    n = count_of(x, dims, valid)
    mean = _total(lambda v: v, dims, valid, x) / n
    if x.dtype == torch.float64:
        left = _total(torch.sub, dims, valid, x, mean) / n
        mean = torch.where(torch.isfinite(left), mean + left, mean)
    return n, mean


def power_parts(x: Tensor, dims: Dims, valid: Tensor | None = None, p: float = 2.0) -> Parts:
    """scale, Σ(|x| / scale)^p, n; for p = ±inf and 0 the result stands in the place of the sum."""
    n = count_of(x, dims, valid)
    if p == math.inf:
        return 1.0, wide(_largest_magnitude(x, dims, valid)), n
    if p == -math.inf:
        low = wide(_lowest(torch.abs(x), dims, valid))
        return 1.0, low if valid is None else torch.where(n == 0, 0.0, low), n  # type: ignore[arg-type]
    if p == 0:
        return 1.0, _total(lambda v: torch.where(torch.isnan(v), v, (v != 0).to(v.dtype)), dims, valid, x), n
    power = (lambda v: v * v) if p == 2 else (lambda v: torch.pow(torch.abs(v), p))
    if x.dtype != torch.float64 and DIRECT_POWERS[0] <= p <= DIRECT_POWERS[1]:
        return 1.0, _total(power, dims, valid, x), n
    scale = _dominant(x, dims, valid, p)
    return scale, _total(lambda v, s: power(v / s), dims, valid, x, scale), n


def _dominant(x: Tensor, dims: Dims, valid: Tensor | None, p: float) -> Tensor:
    """The scale of the entry that dominates a sum of p-th powers: the largest, for p < 0 the smallest."""
    most = wide(_largest_magnitude(x, dims, valid) if p > 0 else _lowest(torch.abs(x), dims, valid))
    if abs(p) <= STEEP and p > 0:
        return _scale(most)
    usable = torch.isfinite(most) & (most > 0)
    return torch.where(usable, _scale(most) if abs(p) <= STEEP else most, 1.0)


def moment_parts(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Parts:
    """n, mean, scale, Σ((x - mean) / scale)²: two passes, so that nothing cancels."""
    n, mean = mean_parts(x, dims, valid)
    if x.dtype != torch.float64:
        return n, mean, 1.0, _total(lambda v, m: (v - m) ** 2, dims, valid, x, mean)
    if valid is None and not _is_small(x.numel(), x):
        far = torch.maximum(_highest(x, dims, valid) - mean, mean - _lowest(x, dims, valid))
    else:
        far = _largest_magnitude(x - mean, dims, valid)
    scale = _scale(far)
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


# --- combine: the parts of several tensors, stacked in front, as those of all of them together -----------------------


def _combine_powers(scale: Tensor, total: Tensor, n: Tensor, p: float = 2.0) -> Parts:
    if math.isinf(p):
        return 1.0, total.amax(0) if p > 0 else total.amin(0), n.sum(0)
    common = scale.amax(0) if p >= 0 else scale.amin(0)
    return common, (total * torch.pow(scale / common, p)).sum(0), n.sum(0)


def _combine_means(n: Tensor, mean: Tensor) -> Parts:
    """The mean of all as the first part's mean and what the others differ from it: equal means give that mean."""
    whole = mean[0] + (n * (mean - mean[:1])).sum(0) / n.sum(0)
    return n.sum(0), torch.where(torch.isfinite(whole), whole, (n * mean).sum(0) / n.sum(0))


def _combine_moments(n: Tensor, mean: Tensor, scale: Tensor, square: Tensor) -> Parts:
    """Squares about the mean of all: those about the parts' own means, and the squares of the distances of these."""
    _, whole = _combine_means(n, mean)
    apart = mean - whole
    top = torch.maximum(scale, _scale(torch.abs(apart))).amax(0)
    return n.sum(0), whole, top, (square * (scale / top) ** 2 + n * (apart / top) ** 2).sum(0)


def _combine_cosines(a: Tensor, b: Tensor, xy: Tensor, xx: Tensor, yy: Tensor) -> Parts:
    u, v = a.amax(0), b.amax(0)
    return u, v, (xy * (a / u) * (b / v)).sum(0), (xx * (a / u) ** 2).sum(0), (yy * (b / v) ** 2).sum(0)


# --- value: of parts -------------------------------------------------------------------------------------------------


def _scaled(x: Tensor, scale: Number) -> Tensor:
    return x * scale if isinstance(scale, Tensor) else x


def _root(n: Number) -> Number:
    return torch.sqrt(n) if isinstance(n, Tensor) else math.sqrt(n)


def _norm_of(scale: Number, total: Tensor, n: Number, p: float = 2.0) -> Tensor:
    if math.isinf(p) or p == 0:
        return total
    return _scaled(torch.sqrt(total) if p == 2 else torch.pow(total, 1 / p), scale)


def _std_of(n: Number, mean: Tensor, scale: Number, square: Tensor) -> Tensor:
    return _scaled(torch.sqrt(square / n), scale)


def _cosine_of(a: Tensor, b: Tensor, xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """0 if one of the vectors is 0 and the other has no NaN."""
    zero = ((xx == 0) & ~torch.isnan(yy)) | ((yy == 0) & ~torch.isnan(xx))
    return torch.where(zero, 0.0, xy / (torch.sqrt(xx) * torch.sqrt(yy)))


PARTS: dict[str, Callable[..., Parts]] = {
    "sum": sum_parts,
    "mean": mean_parts,
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
COMBINE: dict[str, Callable[..., Parts]] = {
    "sum": lambda total: (total.sum(0),),
    "mean": _combine_means,
    "norm": _combine_powers,
    "rms": _combine_powers,
    "var": _combine_moments,
    "std": _combine_moments,
    "min": lambda low, high: (low.amin(0), high.amax(0)),
    "max": lambda low, high: (low.amin(0), high.amax(0)),
    "absmax": lambda low, high: (low.amin(0), high.amax(0)),
    "dot": lambda total: (total.sum(0),),
    "cosine": _combine_cosines,
    "count": lambda n: (n.sum(0),),
    "any": lambda n: (n.sum(0),),
}
VALUE: dict[str, Callable[..., Tensor]] = {
    "sum": lambda total: total,
    "mean": lambda n, mean: mean,
    "norm": _norm_of,
    "rms": lambda scale, total, n: _norm_of(scale, total, n) / _root(n),
    "var": lambda *parts: _std_of(*parts) ** 2,
    "std": _std_of,
    "min": lambda low, high: low,
    "max": lambda low, high: high,
    "absmax": lambda low, high: torch.maximum(high, -low),
    "dot": lambda total: total,
    "cosine": _cosine_of,
    "count": lambda n: n,
    "any": lambda n: n > 0,
}


# --- over the cells of one tensor ------------------------------------------------------------------------------------


def _alone(op: str, *xs: Tensor, dims: Dims, valid: Tensor | None = None, **static: float) -> Tensor:
    """The reduction of one tensor, in its dtype."""
    value = VALUE[op](*PARTS[op](*xs, dims=dims, valid=valid, **static), **static)
    return value if op in ("count", "any") else value.to(xs[0].dtype)


def _unless_empty(value: Tensor, valid: Tensor | None) -> Tensor:
    return value if valid is None else torch.where(valid.any(-1, keepdim=True), value, math.nan)


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
    """The smallest entry; NaN if one is, and of none."""
    return _unless_empty(_lowest(x, dims, valid), valid)


def max(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The largest entry; NaN if one is, and of none."""
    return _unless_empty(_highest(x, dims, valid), valid)


def absmax(x: Tensor, dims: Dims, valid: Tensor | None = None) -> Tensor:
    """The largest magnitude; NaN if an entry is, and of none."""
    return _unless_empty(_largest_magnitude(x, dims, valid), valid)


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
