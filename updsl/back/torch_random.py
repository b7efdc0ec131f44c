"""Random draws of core/rng.py in torch: Philox4x32-10 in int64, whose products keep their lowest 64 bits; the same numbers on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from updsl.core.rng import MASK, MULTIPLIERS, ROUNDS, WEYL

PIECE = 1 << 16
Words = tuple[Tensor, Tensor, Tensor, Tensor]


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


def _drawn(form: Callable[[Words], Tensor], key: Tensor, step: Tensor, cells: Sequence[int]) -> Tensor:
    """form of the words of the cells of each tensor, in float64; by pieces in eager code."""
    n = math.prod(cells)
    entry = torch.arange(n, device=key.device)
    key = key.reshape(2, -1, 1)
    if torch.compiler.is_compiling() or n <= PIECE:
        drawn = form(words(key, step, entry))
    else:
        drawn = torch.cat([form(words(key, step, piece)) for piece in entry.split(PIECE)], -1)
    return drawn.reshape(-1, *cells) if cells else drawn.reshape(())


def uniform(key: Tensor, step: Tensor, cells: Sequence[int]) -> Tensor:
    """Uniform on [0, 1)."""
    return _drawn(lambda x: _unit(x[0], x[1]), key, step, cells)


def normal(key: Tensor, step: Tensor, cells: Sequence[int]) -> Tensor:
    """Normal of mean 0 and variance 1."""
    return _drawn(lambda x: torch.sqrt(-2 * torch.log(1 - _unit(x[0], x[1]))) * torch.cos(2 * math.pi * _unit(x[2], x[3])), key, step, cells)


def bernoulli(u: Tensor, p: Tensor | float) -> Tensor:
    """1 where u < p; NaN where p is."""
    p = torch.as_tensor(p, dtype=torch.float64, device=u.device)
    return torch.where(torch.isnan(p), math.nan, (u < p).to(torch.float64))
