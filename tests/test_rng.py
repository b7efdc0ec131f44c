"""Random draws: Philox4x32-10 as published, and what is made of its words."""

import hashlib
import math

import numpy as np
import pytest

from updsl.core import rng

PUBLISHED = {
    "zeros": ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
}
"""The known answers that come with the generator's paper: counter, key, words."""

MANY = 200_000


@pytest.mark.parametrize("case", PUBLISHED)
def test_known_answers(case):
    counter, key, expected = PUBLISHED[case]
    assert rng.philox(np.array([counter], np.uint64), key).tolist() == [expected]


def philox_of_one(counter, key):
    """The generator in integers, one block."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def test_layout_of_key_and_counter():
    digest = hashlib.sha256(b'[7, "layers.0.w", "noise#1"]').digest()
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
    entry, step = 2**33 + 5, 2**32 + 3
    found = rng.words(7, step, "layers.0.w", "noise#1", np.array([entry], np.uint64))
    assert found.tolist() == [philox_of_one([5, 2, 3, 1], key)]


def test_a_word_is_a_function_of_its_entry_alone():
    entries = np.arange(1000)
    order = np.random.default_rng(0).permutation(1000)
    inorder, shuffled = rng.words(1, 2, "w", "here", entries), rng.words(1, 2, "w", "here", order)
    assert (shuffled == inorder[order]).all()
    assert (rng.words(1, 2, "w", "here", np.array([], int)).shape) == (0, 4)


@pytest.mark.parametrize("other", [(2, 2, "w", "here"), (1, 3, "w", "here"), (1, 2, "v", "here"), (1, 2, "w", "there"), (1, 2, "wh", "ere")])
def test_every_part_of_the_address_counts(other):
    a, b = (rng.normal(rng.words(*address, np.arange(10_000))) for address in [(1, 2, "w", "here"), other])
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(10_000)


def test_seeds_and_names_of_any_kind():
    for seed in (0, -1, 2**64, 10**30):
        assert rng.words(seed, 1, "ε\ud800", 'a"b', np.arange(3)).shape == (3, 4)


def test_uniform_has_53_bits():
    top = np.full((1, 4), 0xFFFFFFFF, np.uint32)
    assert rng.uniform01(top)[0] == 1 - 2.0**-53
    assert rng.uniform01(0 * top)[0] == 0
    assert rng.uniform01(np.array([[0, 1 << 11, 0, 0]], np.uint32))[0] == 2.0**-53


def test_normal_is_finite_at_the_ends():
    ends = np.array([[a, a, b, b] for a in (0, 0xFFFFFFFF) for b in (0, 0xFFFFFFFF)], np.uint32)
    assert np.isfinite(rng.normal(ends)).all()
    assert rng.normal(ends)[2] == pytest.approx(math.sqrt(2 * 53 * math.log(2)))


def test_uniform_statistics():
    u = rng.uniform(rng.words(3, 1, "w", "u", np.arange(MANY)), -1.0, 3.0)
    assert u.min() >= -1
    assert u.max() < 3
    assert abs(u.mean() - 1) < 5 * math.sqrt(16 / 12 / MANY)
    counts = np.histogram(u, bins=100, range=(-1, 3))[0]
    assert ((counts - MANY / 100) ** 2 / (MANY / 100)).sum() < 99 + 5 * math.sqrt(2 * 99)


def test_gaussian_statistics():
    z = rng.gaussian(rng.words(4, 1, "w", "n", np.arange(MANY)), 2.0) / 2
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = math.sqrt(math.prod(range(2 * power - 1, 0, -2)) - moment**2)
        assert abs((z**power).mean() - moment) < 5 * spread / math.sqrt(MANY)
    below = (z[:, None] < np.array([-2.0, -1.0, 0.0, 1.0, 2.0])).mean(axis=0)
    expected = [0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (-2, -1, 0, 1, 2)]
    assert np.abs(below - expected).max() < 5 * 0.5 / math.sqrt(MANY)
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 5 / math.sqrt(MANY)


def test_bernoulli():
    words = rng.words(5, 1, "w", "b", np.arange(MANY))
    drawn = rng.bernoulli(words, 0.3)
    assert set(drawn) == {0.0, 1.0}
    assert abs(drawn.mean() - 0.3) < 5 * math.sqrt(0.21 / MANY)
    assert not rng.bernoulli(words, 0.0).any()
    assert rng.bernoulli(words, 1.0).all()
    assert rng.bernoulli(words[:3], np.array([np.nan, 1.0, np.nan])).tolist() == [0, 1, 0]
