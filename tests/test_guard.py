"""guard: one NaN, one inf, or one zero gradient leaves no trace: the next spike is clipped as if nothing had happened, and no tensor stays frozen.
Without guard the rules do what the official codes do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

import updsl

SHAPES = {"a": (4, 3), "b": (3, 5), "c": (5,)}
STEPS, SPIKE, LR = 17, 14, 0.01
SETTINGS: Mapping[str, dict[str, Any]] = {
    "autoclip": {"p": 0.5},
    "zclip": {"warmup": 5, "max_norm": float("inf")},
    "adagc": {"warmup": 5, "max_norm": 5},
    "adagc_global": {"warmup": 5, "max_norm": 5},
    "spam_clip": {"threshold": 20, "accumulate": 3},
    "spam": {"threshold": 20, "accumulate": 3},
}
GUARDED = sorted(name for name in updsl.library() if "guard" in updsl.load(name).params)
KINDS = ("nan", "inf", "zero")


def stream(steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{n: rng.normal(size=s) * (25 if t == SPIKE else 1) for n, s in SHAPES.items()} for t in range(steps)]


def bad(kind: str) -> dict[str, np.ndarray]:
    """A gradient with one bad entry in each tensor, or all zero."""
    g = {n: np.full(s, 0.5) if kind != "zero" else np.zeros(s) for n, s in SHAPES.items()}
    for x in g.values():
        if kind != "zero":
            x.flat[1] = {"nan": np.nan, "inf": np.inf}[kind]
    return g


@cache
def usual(name: str) -> list[dict[str, np.ndarray]]:
    """The moves on the stream without a bad step."""
    return moves(name, stream())


@cache
def rule_of(name: str, **given: Any) -> updsl.Rule:
    return updsl.load(name, **SETTINGS.get(name, {}), **given)


def moves(name: str, gradients: list[dict[str, np.ndarray]], **given: Any) -> list[dict[str, np.ndarray]]:
    """What the rule returns on each step, or for a rule that writes w how far it moves."""
    rule = rule_of(name, **given)
    w = {n: np.ones(s) for n, s in SHAPES.items()}
    projections = {n: np.random.default_rng(6).normal(size=(2, s[1]) if s[0] >= s[1] else (s[0], 2)) for n, s in SHAPES.items() if len(s) == 2}
    inputs = {"P": projections} if "P" in rule.inputs else {}
    state, found = rule.interpret.init(w), []
    for g in gradients:
        out, state, new, _ = rule.interpret.update(g, state, w, lr=LR, **inputs)
        found.append({n: w[n] - new[n] for n in w} if new is not None else out)
        w = new if new is not None else w
    return found


def test_all_are_here():
    assert len(GUARDED) == 15


@pytest.mark.parametrize("at", [0, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GUARDED)
def test_leaves_no_trace(name, kind, at):
    clean = stream()
    dirty = moves(name, [*clean[:at], bad(kind), *clean[at:]])[at + 1 :]
    for t, (got, expected) in list(enumerate(zip(dirty, usual(name)[at:], strict=True), at))[SPIKE - 2 - at :]:
        for n in SHAPES:
            assert np.all(np.isfinite(got[n]))
            size, healthy = np.linalg.norm(got[n]), np.linalg.norm(expected[n])
            assert 0.4 * healthy <= size <= 2.5 * healthy, f"step {t}, tensor {n}: {size:.3g}, without the bad step {healthy:.3g}"


@pytest.mark.parametrize(
    "name", ["autoclip", "zclip", "spam_clip", "spam", "stable_spam_paper", "adaclip", "adagn", "growth_limit", "apollo_with", "fira_with"]
)
def test_a_nan_changes_nothing_at_all(name):
    """After it, the run is the run without it, to the last digits."""
    clean = stream()
    dirty = moves(name, [*clean[:7], bad("nan"), *clean[7:]])[8:]
    for got, expected in zip(dirty, usual(name)[7:], strict=True):
        for n in SHAPES:
            np.testing.assert_allclose(got[n], expected[n], rtol=1e-9, atol=1e-12)


OFFICIAL = [
    ("autoclip", "nan", 3, "nan"),
    ("zclip", "nan", 9, "unclipped"),
    ("zclip", "nan", 3, "unclipped"),
    ("adagc", "nan", 9, "unclipped"),
    ("adagc", "zero", 3, "frozen"),
    ("adagc_global", "zero", 3, "frozen"),
    ("spam", "nan", 3, "nan"),
    ("stable_spam", "nan", 3, "nan"),
    ("stable_spam", "inf", 3, "nan"),
    ("growth_limit", "zero", 3, "frozen"),
    ("growth_limit", "nan", 3, "nan"),
    ("fira_with", "nan", 3, "nan"),
    ("apollo_with", "zero", 3, "frozen"),
    ("apollo_with", "nan", 3, "nan"),
]


@pytest.mark.parametrize("name, kind, at, fate", OFFICIAL)
def test_without_guard_as_the_official_code(name, kind, at, fate):
    clean = stream()
    found = moves(name, [*clean[:at], bad(kind), *clean[at:]], guard=False)
    x, g = found[SPIKE + 1]["a"], clean[SPIKE]["a"]
    match fate:
        case "nan":
            assert np.isnan(x).any()
        case "frozen":
            assert np.linalg.norm(x) < 1e-5
        case "unclipped":
            np.testing.assert_array_equal(x, g)


@pytest.mark.parametrize("name", [n for n in GUARDED if n not in ("growth_limit", "fira", "fira_with", "apollo", "apollo_with")])
def test_agrees_with_the_official_code_in_health(name):
    """guard changes nothing on healthy gradients, spikes and a zero tensor after the warm-up included."""
    healthy = stream()
    healthy[9]["b"] = np.zeros(SHAPES["b"])
    for got, expected in zip(moves(name, healthy, guard=True), moves(name, healthy, guard=False), strict=True):
        for n in SHAPES:
            np.testing.assert_array_equal(got[n], expected[n])
