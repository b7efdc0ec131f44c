"""Random draws of core/rng.py in torch: Philox4x32-10 in int64, whose products keep their lowest 64 bits; the same numbers on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from updsl.core.rng import MASK, MULTIPLIERS, ROUNDS, WEYL

PIECE = 1 << 16
Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
Number: TypeAlias = Tensor | float


def words(key: Tensor, step: Tensor, entry: Tensor) -> Words:
    """The four random 32-bit words of each entry. key: (2, tensor, 1), the words of each tensor's key; step: (2,); entry: its row-major indices."""
    x0, x1 = (entry & MASK).expand(torch.broadcast_shapes(entry.shape, key.shape[1:])), entry >> 32
    x2, x3 = step[0], step[1]
    k0, k1 = key[0], key[1]
    for _ in range(ROUNDS):
        p, q = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = ((q >> 32) & MASK) ^ x1 ^ k0, q & MASK, ((p >> 32) & MASK) ^ x3 ^ k1, p & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return x0, x1, x2, x3


def _unit(high: Tensor, low: Tensor) -> Tensor:
    """53 bits of two words as a number of [0, 1)."""
    return (high * 2**21 + (low >> 11)).to(torch.float64) * 2.0**-53


def _uniform(x: Words) -> Tensor:
    """Uniform on [0, 1)."""
    return _unit(x[0], x[1])


def _normal(x: Words) -> Tensor:
    """Normal of mean 0 and variance 1."""
    return torch.sqrt(-2 * torch.log(1 - _unit(x[0], x[1]))) * torch.cos(2 * math.pi * _unit(x[2], x[3]))


def _is_below(u: Tensor, p: Number) -> Tensor:
    """1 where u < p, else 0: where p is NaN."""
    p = torch.as_tensor(p, dtype=torch.float64, device=u.device)
    return (u < p).to(torch.float64)


def _drawn(
    draw: Callable[[Words], Tensor], scale: Callable[..., Tensor], key: Tensor, step: Tensor, cells: Sequence[int], dtype: torch.dtype, *numbers: Number
) -> Tensor:
    """scale(draw, *numbers) for the cells of each tensor, computed in float64, given in `dtype`. Where the numbers are the same for all cells of a
    tensor, eager code goes by pieces, so that no wide array of all is made."""
    alike = [q.reshape(-1, 1) if isinstance(q, Tensor) and q.shape[1:] == (1, 1) else q for q in numbers]
    vary = [q.dim() for q, a in zip(numbers, alike, strict=True) if isinstance(q, Tensor) and q.dim() and a is q]
    form = draw if vary else lambda x: scale(draw(x), *alike).to(dtype)
    n = math.prod(cells)
    key = key.reshape(2, -1, 1)
    at = lambda start, stop: form(words(key, step, torch.arange(start, stop, device=key.device)))
    if torch.compiler.is_compiling() or n <= PIECE:
        drawn = at(0, n)
    else:
        first = at(0, PIECE)
        drawn = first.new_empty((*first.shape[:-1], n))
        drawn[..., :PIECE] = first
        for start in range(PIECE, n, PIECE):
            drawn[..., start : start + PIECE] = at(start, min(start + PIECE, n))
    drawn = drawn.reshape(-1, *cells) if cells else drawn.reshape(())
    if not vary:
        return drawn
    spread = drawn.unsqueeze(1) if drawn.dim() and max(vary) > drawn.dim() else drawn
    return scale(spread, *numbers).to(dtype)


def gaussian(key: Tensor, step: Tensor, cells: Sequence[int], dtype: torch.dtype, std: Number) -> Tensor:
    """Normal of mean 0 and this deviation."""
    return _drawn(_normal, lambda z, std: std * z, key, step, cells, dtype, std)


def uniform(key: Tensor, step: Tensor, cells: Sequence[int], dtype: torch.dtype, lo: Number, hi: Number) -> Tensor:
    """Uniform on [lo, hi)."""
    return _drawn(_uniform, lambda u, lo, hi: lo + (hi - lo) * u, key, step, cells, dtype, lo, hi)


def bernoulli(key: Tensor, step: Tensor, cells: Sequence[int], dtype: torch.dtype, p: Number) -> Tensor:
    """1 with probability p, else 0."""
    return _drawn(_uniform, _is_below, key, step, cells, dtype, p)
