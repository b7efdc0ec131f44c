"""Random draws: a pure function of (seed, step of the run, tensor name, place in the text, entry), the same on every backend and sharding.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
one block of four 32-bit words x0..x3 for each entry:

    key     = the first 8 bytes of SHA-256 of the JSON text [seed, tensor, place]; k0 the low word of the little-endian number, k1 the high one
    counter = (entry mod 2^32, entry div 2^32, step mod 2^32, step div 2^32)

`entry` is the row-major index on the draw's grid; 0 for a draw of one number; `tensor` is "" for one number for all tensors. From the words of an entry:

    u       = (x0·2^21 + floor(x1 / 2^11)) · 2^-53      in [0, 1)
    v       = (x2·2^21 + floor(x3 / 2^11)) · 2^-53      in [0, 1)
    uniform = u
    normal  = sqrt(-2·log(1 - u)) · cos(2·pi·v)         (Box and Muller 1958; 1 - u is never 0)
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

Array = np.ndarray
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(counter: Array, key: tuple[int, int]) -> Array:
    """Philox4x32-10: counters (n, 4) of 32-bit words ↦ random words (n, 4), a bijection for each key."""
    x0, x1, x2, x3 = (np.asarray(counter[:, i], np.uint64) for i in range(4))
    k0, k1 = key
    low, high = np.uint64(MASK), np.uint64(32)
    for _ in range(ROUNDS):
        p, q = x0 * np.uint64(MULTIPLIERS[0]), x2 * np.uint64(MULTIPLIERS[1])
        x0, x1, x2, x3 = (q >> high) ^ x1 ^ np.uint64(k0), q & low, (p >> high) ^ x3 ^ np.uint64(k1), p & low
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def stream_key(seed: int, owner: str | int, place: str) -> tuple[int, int]:
    """The key of a draw's stream: 64 bits of a hash, so that no two streams of a model meet. owner: the tensor's name, the group's index, "" for the model."""
    digest = hashlib.sha256(json.dumps([seed, owner, place]).encode("ascii")).digest()
    number = int.from_bytes(digest[:8], "little")
    return number & MASK, number >> 32


def words(seed: int, step: int, owner: str | int, place: str, entries: Array) -> Array:
    """The random words (n, 4) of the given entries."""
    entries = np.asarray(entries, np.uint64)
    low, high = entries & np.uint64(MASK), entries >> np.uint64(32)
    counter = np.stack([low, high, np.full_like(low, step & MASK), np.full_like(low, step >> 32)], axis=1)
    return philox(counter, stream_key(seed, owner, place))


def _unit(high: Array, low: Array) -> Array:
    """53 bits of two words as a number of [0, 1)."""
    return (high.astype(np.float64) * 2.0**21 + (low >> np.uint32(11)).astype(np.float64)) * 2.0**-53


def uniform01(words: Array) -> Array:
    """words (n, 4) ↦ u (n,), uniform on [0, 1)."""
    return _unit(words[:, 0], words[:, 1])


def normal(words: Array) -> Array:
    """words (n, 4) ↦ (n,), normal of mean 0 and variance 1."""
    u, v = _unit(words[:, 0], words[:, 1]), _unit(words[:, 2], words[:, 3])
    return np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)


def gaussian(words: Array, std: Array) -> Array:
    return std * normal(words)


def uniform(words: Array, lo: Array, hi: Array) -> Array:
    return lo + (hi - lo) * uniform01(words)


def bernoulli(words: Array, p: Array) -> Array:
    """1 with probability p, else 0: a condition, so that like a comparison it is false where p is NaN."""
    return np.where(uniform01(words) < p, 1.0, 0.0)
