"""Matrix functions in torch, over the last two dimensions of a stack of matrices.

A matrix with a non-finite entry gives NaN, never an exception. Decompositions run in float64 on every input; singular values count as 0 by the
rounding of the input's own dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from updsl.core.numeric import TIE


def finite(x: Tensor) -> Tensor:
    """Whether all entries of each matrix are finite, shaped … × 1 × 1; makes no array of the matrix's size."""
    return torch.isfinite(x.amax((-2, -1), keepdim=True)) & torch.isfinite(x.amin((-2, -1), keepdim=True))


def _tame(x: Tensor) -> Tensor:
    """x in float64 with zeros where a matrix is not finite."""
    return torch.where(finite(x), x, 0.0).to(torch.float64)


def _guarded(value: Tensor, ok: Tensor, dtype: torch.dtype) -> Tensor:
    """value where ok, else NaN."""
    return torch.where(ok, value, math.nan).to(dtype)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x · y."""
    if x.shape[-2] == y.shape[-1] == 1 and torch.compiler.is_compiling():
        return product(x, y)
    return torch.matmul(x, y).masked_fill_(~(finite(x) & finite(y)), math.nan)


@torch.library.custom_op("updsl::product", mutates_args=())
def product(x: Tensor, y: Tensor) -> Tensor:
    """x · y, a number, in one piece for torch.compile: it would write it out as arithmetic, operands and all, once more for each use, and the rounds of
    an iteration on 1 × 1 matrices would take it time exponential in their number."""
    return matmul(x, y)


@product.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


def transpose(x: Tensor) -> Tensor:
    """xᵀ."""
    return x.transpose(-1, -2)


def _kept(x: Tensor, s: Tensor) -> Tensor:
    """1 for the singular values that count, 0 for those up to max(rows, cols)·ulp·σmax."""
    cutoff = max(x.shape[-2:]) * torch.finfo(x.dtype).eps * s[..., :1]
    return (s > cutoff).to(s.dtype).unsqueeze(-2)


def _signed(columns: Tensor) -> Tensor:
    """Each column with the first of its entries of largest magnitude positive."""
    a = torch.abs(columns)
    leads = a >= (1 - TIE) * a.amax(-2, keepdim=True)
    index = torch.arange(columns.shape[-2], device=columns.device).unsqueeze(-1)
    first = torch.where(leads, index, columns.shape[-2] - 1).amin(-2, keepdim=True)
    return columns * torch.where(torch.gather(columns, -2, first) < 0, -1.0, 1.0)


def left_basis(x: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors as columns."""
    u, s, _ = torch.linalg.svd(_tame(x), full_matrices=False)
    k = min(k, *x.shape[-2:])
    return _guarded(_signed(u[..., :k]) * _kept(x, s)[..., :k], finite(x), x.dtype)


def right_basis(x: Tensor, k: int) -> Tensor:
    """The k leading right singular vectors as columns."""
    return left_basis(transpose(x), k)


def polar(x: Tensor) -> Tensor:
    """U·Vᵀ of the thin SVD."""
    u, s, vt = torch.linalg.svd(_tame(x), full_matrices=False)
    return _guarded((u * _kept(x, s)) @ vt, finite(x), x.dtype)


def orthonormal(x: Tensor) -> Tensor:
    """Q of the thin QR with positive diagonal of R."""
    q, r = torch.linalg.qr(_tame(x))
    sign = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return _guarded(q * sign.unsqueeze(-2), finite(x), x.dtype)


def matrix_power(x: Tensor, a: Tensor | float) -> Tensor:
    """x^a of a symmetric positive semi-definite matrix, by eigenvalues; those below 0 count as 0."""
    tame = _tame(x)
    values, vectors = torch.linalg.eigh((tame + tame.mT) / 2)
    exponent = torch.as_tensor(a, dtype=torch.float64, device=x.device)
    powers = torch.pow(values.clamp(min=0.0), exponent.squeeze(-1) if exponent.ndim else exponent)
    return _guarded((vectors * powers.unsqueeze(-2)) @ vectors.mT, finite(x), x.dtype)


def solve(a: Tensor, b: Tensor) -> Tensor:
    """a⁻¹·b; NaN where a is singular."""
    ok = finite(a) & finite(b)
    value, info = torch.linalg.solve_ex(_tame(a), _tame(b))
    return _guarded(value, ok & (info == 0)[..., None, None], b.dtype)


def trace(x: Tensor) -> Tensor:
    """Σ of the diagonal, shaped … × 1 × 1."""
    total = torch.diagonal(x, dim1=-2, dim2=-1).to(torch.float64).sum(-1)
    return _guarded(total[..., None, None], finite(x), x.dtype)


def diag(x: Tensor) -> Tensor:
    """The diagonal as a value for each row, 0 for rows beyond it, shaped … × rows × 1."""
    d = torch.diagonal(x, dim1=-2, dim2=-1)
    full = torch.nn.functional.pad(d, (0, x.shape[-2] - d.shape[-1]))
    return _guarded(full.unsqueeze(-1), finite(x), x.dtype)


def eye(x: Tensor) -> Tensor:
    """The identity of x's grid."""
    one = torch.eye(x.shape[-2], x.shape[-1], dtype=x.dtype, device=x.device)
    return _guarded(one, finite(x), x.dtype)
