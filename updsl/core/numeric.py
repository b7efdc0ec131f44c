"""What the ops mean, in NumPy float64: reductions over the last axis, matrix functions of one matrix. Plain, and quiet about IEEE exceptions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps

import numpy as np

Array = np.ndarray
TIE = 1e-9
"""Entries whose magnitude is within this fraction of the largest count as largest when a basis vector's sign is fixed."""


def quiet(f: Callable) -> Callable:
    """f with IEEE exceptions giving their values silently."""

    @wraps(f)
    def silent(*args, **kwargs):
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return silent


divide = quiet(np.divide)
mod = quiet(np.mod)
sqrt, exp, log, sin, cos = map(quiet, (np.sqrt, np.exp, np.log, np.sin, np.cos))


@quiet
def average(b: Array, m: Array, c: Array, x: Array) -> Array:
    """b·m + c·x."""
    return b * m + c * x


@quiet
def power(x: Array, y: Array) -> Array:
    """NaN if an operand is, also NaN^0 and 1^NaN."""
    return np.where(np.isnan(x) | np.isnan(y), np.nan, np.power(np.asarray(x, np.float64), y))


@quiet
def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# --- reductions over the last axis -----------------------------------------------------------------------------------


@quiet
def sum(x: Array) -> Array:
    return np.sum(x, axis=-1)


@quiet
def mean(x: Array) -> Array:
    """NaN of no cells. The mean of what is left corrects the rounding of the sum, so that the mean of equal cells is their value, and their std 0."""
    rough = np.sum(x, axis=-1) / np.float64(x.shape[-1])
    left = np.sum(x - rough[..., None], axis=-1) / np.float64(x.shape[-1])
    return np.where(np.isfinite(left), rough + left, rough)


@quiet
def norm(x: Array, p: float = 2) -> Array:
    """(sum |x|^p)^(1/p); p = inf, -inf and 0 are its limits: largest, smallest, how many are not 0. Powers are of entries scaled by the entry that dominates
    (by a power of two near it, which rounds nothing), so that none overflows or underflows unless the result does."""
    a = np.abs(x)
    if x.shape[-1] == 0:
        return np.zeros(x.shape[:-1])
    if p == np.inf:
        return np.max(a, axis=-1)
    if p == -np.inf:
        return np.min(a, axis=-1)
    if p == 0:
        return np.where(np.isnan(a).any(axis=-1), np.nan, np.sum(a != 0, axis=-1))
    most = np.max(a, axis=-1, keepdims=True) if p > 0 else np.min(a, axis=-1, keepdims=True)
    scale = _magnitude(most) if abs(p) <= 64 else np.where(np.isfinite(most) & (most > 0), most, 1.0)
    return np.sum((a / scale) ** p, axis=-1) ** (1 / p) * scale[..., 0]


def _magnitude(a: Array) -> Array:
    """The power of two at or below a, so that dividing by it rounds nothing; 1 of what has none."""
    return np.where(np.isfinite(a) & (a > 0), np.ldexp(1.0, np.frexp(a)[1] - 1), 1.0)


@quiet
def rms(x: Array) -> Array:
    return norm(x) / np.sqrt(x.shape[-1])


@quiet
def std(x: Array) -> Array:
    return rms(x - mean(x)[..., None])


@quiet
def var(x: Array) -> Array:
    return mean((x - mean(x)[..., None]) ** 2)


def min(x: Array) -> Array:
    """NaN of no cells."""
    return np.min(x, axis=-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)


def max(x: Array) -> Array:
    return np.max(x, axis=-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)


def absmax(x: Array) -> Array:
    return max(np.abs(x))


@quiet
def quantile(x: Array, q: Array) -> Array:
    """By linear interpolation between the order statistics; NaN if an entry or q is NaN, or q is outside [0, 1]."""
    n = x.shape[-1]
    if n == 0:
        return np.full(x.shape[:-1], np.nan)
    s = np.sort(x, axis=-1)
    q = np.broadcast_to(np.asarray(q, np.float64), x.shape[:-1])
    at = np.where((q >= 0) & (q <= 1), q, 0) * (n - 1)
    low = np.floor(at).astype(int)
    pick = lambda i: np.take_along_axis(s, np.minimum(i, n - 1)[..., None], axis=-1)[..., 0]
    a, b, part = pick(low), pick(low + 1), at - low
    value = np.where((part == 0) | (a == b), a, (1 - part) * a + part * b)
    return np.where(np.isnan(x).any(axis=-1) | ~((q >= 0) & (q <= 1)), np.nan, value)


def median(x: Array) -> Array:
    return quantile(x, np.float64(0.5))


@quiet
def dot(x: Array, y: Array) -> Array:
    return np.sum(x * y, axis=-1)


@quiet
def cosine(x: Array, y: Array) -> Array:
    x, y = np.broadcast_arrays(x, y)
    x, y = (v / _magnitude(np.abs(v).max(axis=-1, keepdims=True, initial=0.0)) for v in (x, y))
    nx, ny = norm(x), norm(y)
    zero = (nx == 0) & ~np.isnan(ny) | (ny == 0) & ~np.isnan(nx)
    return np.where(zero, 0.0, dot(x, y) / (nx * ny))


def count(c: Array) -> Array:
    return np.sum(c != 0, axis=-1).astype(np.float64)


def any(c: Array) -> Array:
    return np.any(c != 0, axis=-1)


# --- selection: keeps the last axis ----------------------------------------------------------------------------------


def how_many(k: float, n: int, percent: bool) -> int:
    """How many of n entries `largest(x, k)` takes: k, or the fraction k rounded up below 1 and for a literal with %."""
    if np.isnan(k) or n == 0:
        return 0
    wanted = np.ceil(k * n - 1e-12 * n) if percent or k < 1 else np.floor(k)
    return int(np.clip(wanted, 0, n))


def largest(x: Array, k: Array, percent: bool = False) -> Array:
    """True on the entries of largest magnitude along the last axis; NaN counts as largest, ties go to the lower index."""
    a = np.where(np.isnan(x), np.inf, np.abs(x))
    first = np.isnan(x)  # a NaN before an infinity
    order = np.lexsort((np.broadcast_to(np.arange(x.shape[-1]), x.shape), ~first, -a), axis=-1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(x.shape[-1]), x.shape), axis=-1)
    k = np.broadcast_to(np.asarray(k, np.float64), x.shape[:-1])
    taken = np.array([how_many(v, x.shape[-1], percent) for v in k.ravel()], int).reshape(k.shape)
    return rank < taken[..., None]


# --- rounding ----------------------------------------------------------------------------------------------------------


@quiet
def rounded(x: Array, dtype: str | None) -> Array:
    """x rounded to nearest, ties to even, to a type of 32 or 16 bits; the default types of states and of the weight are float64 here."""
    match dtype:
        case _ if x.dtype == bool:
            return x
        case "float32" | "float16":
            return x.astype(dtype).astype(np.float64)
        case "bfloat16":
            exponent = np.frexp(x)[1] - 1
            ulp = np.exp2(np.maximum(exponent, -126) - 7.0)
            y = np.round(x / ulp) * ulp
            return np.where(np.isfinite(x), np.where(np.abs(y) < 2.0**128, y, np.copysign(np.inf, x)), x)
        case _:
            return x


# --- samples ---------------------------------------------------------------------------------------------------------


@quiet
def sample_mean(x: Array) -> Array:
    """NaN of no samples."""
    return np.sum(x, axis=0) / np.float64(len(x))


def sample_sum(x: Array) -> Array:
    return np.sum(x, axis=0)


# --- matrix functions ------------------------------------------------------------------------------------------------


def _finite(f: Callable) -> Callable:
    """f of a matrix; NaN of one with a non-finite entry, or that the factorisation cannot take."""

    @wraps(f)
    def guarded(x: Array, *rest, **static) -> Array:
        if np.isfinite(x).all():
            with suppress(np.linalg.LinAlgError):
                return f(x, *rest, **static)
        return np.full_like(f(np.zeros_like(x), *rest, **static), np.nan)

    return guarded


@quiet
def matmul(x: Array, y: Array) -> Array:
    """NaN everywhere if an operand has a non-finite entry."""
    z = np.matmul(np.where(np.isfinite(x), x, 0.0), np.where(np.isfinite(y), y, 0.0))
    fine = np.isfinite(x).all(axis=(-2, -1), keepdims=True) & np.isfinite(y).all(axis=(-2, -1), keepdims=True)
    return np.where(fine, z, np.nan)


def transpose(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def _cutoff(x: Array, s: Array) -> float:
    """Singular values up to this count as 0."""
    return np.max(x.shape) * np.finfo(np.float64).eps * (s[0] if s.size else 0.0)


def _signed(columns: Array) -> Array:
    """Each column with its first entry of largest magnitude positive."""
    a = np.abs(columns)
    first = np.argmax(a >= (1 - TIE) * a.max(axis=0, initial=0.0), axis=0)
    lead = columns[first, np.arange(columns.shape[1])]
    return columns * np.where(lead < 0, -1.0, 1.0)


@_finite
def left_basis(x: Array, k: int) -> Array:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    k = np.minimum(k, np.min(x.shape))
    return _signed(u[:, :k]) * (s[:k] > _cutoff(x, s))


def right_basis(x: Array, k: int) -> Array:
    return left_basis(transpose(x), k=k)


@_finite
def polar(x: Array) -> Array:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * (s > _cutoff(x, s))) @ vt


@_finite
def orthonormal(x: Array) -> Array:
    q, r = np.linalg.qr(x)
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


@_finite
def matrix_power(x: Array, a: Array) -> Array:
    """By eigenvalues; those below 0, rounding of 0 included, count as 0."""
    values, vectors = np.linalg.eigh(x / 2 + x.T / 2)
    with np.errstate(all="ignore"):
        powers = power(np.maximum(values, 0.0), np.asarray(a))
        return (vectors * powers) @ vectors.T


def solve(a: Array, b: Array) -> Array:
    if np.isfinite(a).all() and np.isfinite(b).all():
        with suppress(np.linalg.LinAlgError):
            return np.linalg.solve(a, b)
    return np.full(b.shape, np.nan)


@quiet
def trace(x: Array) -> Array:
    t = np.trace(x, axis1=-2, axis2=-1)
    return np.where(np.isfinite(x).all(axis=(-2, -1)), t, np.nan)


def diag(x: Array) -> Array:
    """One value for each row; rows beyond the square have 0."""
    d = np.diagonal(x, axis1=-2, axis2=-1)
    full = np.zeros(x.shape[:-1])
    full[..., : d.shape[-1]] = d
    return np.where(np.isfinite(x).all(axis=-1).all(axis=-1, keepdims=True), full, np.nan)


def eye(x: Array) -> Array:
    """The identity of x's grid; NaN where x has a non-finite entry."""
    one = np.broadcast_to(np.eye(x.shape[-2], x.shape[-1]), x.shape)
    return np.where(np.isfinite(x).all(axis=(-2, -1), keepdims=True), one, np.nan)


def rows(x: Array) -> float:
    return float(x.shape[-2])


def cols(x: Array) -> float:
    return float(x.shape[-1])
