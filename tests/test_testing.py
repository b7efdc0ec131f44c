"""Strategies and assertions for tests of rules in Python."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

import updsl
from updsl.testing import assert_law, gradients, streams

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
SHAPES = {"w": (2, 3), "b": (4,), "s": ()}


def first(strategy, condition, examples: int = 2000):
    """The smallest that is found."""
    return find(strategy, condition, settings=settings(max_examples=examples, database=None, derandomize=True, suppress_health_check=list(HealthCheck)))


@given(g=gradients(SHAPES))
def test_gradients(g: dict[str, np.ndarray]) -> None:
    assert {n: x.shape for n, x in g.items()} == SHAPES
    assert all(x.dtype == np.float64 and np.isfinite(x).all() for x in g.values())


@given(stream=streams(SHAPES))
def test_streams(stream: list[dict[str, np.ndarray]]) -> None:
    assert 1 <= len(stream) <= 29
    assert all({n: x.shape for n, x in g.items()} == SHAPES for g in stream)


@given(stream=streams({"w": (3,)}, steps=7, dtype="float16"))
def test_a_number_of_steps_in_a_type(stream: list[dict[str, np.ndarray]]) -> None:
    assert len(stream) == 7
    for g in stream:
        assert np.array_equal(g["w"], g["w"].astype(np.float16).astype(np.float64))


def test_shapes_may_be_those_of_tensors() -> None:
    assert first(gradients({"w": np.ones((2, 1))}), lambda g: True)["w"].shape == (2, 1)


@pytest.mark.parametrize(
    "condition",
    [
        lambda x: not x.any(),
        lambda x: np.abs(x).max() > 1e9,
        lambda x: 0 < np.abs(x).max() < 1e-6,
        lambda x: x.any() and not x[:, 0].any(),
        lambda x: x.any() and not x[0].any(),
        lambda x: len(set(x.ravel())) == 6,
        lambda x: len(set(x.ravel())) == 1 and x.any(),
    ],
    ids="zero huge tiny dead-column dead-row unlike ties".split(),
)
def test_what_comes_up(condition) -> None:
    assert condition(first(gradients({"w": (2, 3)}), lambda g: condition(g["w"]))["w"])


def test_nonfinite_gradients_only_where_they_are_asked_for() -> None:
    found = first(gradients({"w": (2,)}, finite=False), lambda g: bool(np.isnan(g["w"]).any() and np.isinf(g["w"]).any()))
    assert found["w"].shape == (2,)


def test_gradients_shrink_to_small_numbers() -> None:
    assert first(gradients({"w": (2,)}), lambda g: g["w"].sum() > 0)["w"].tolist() == [1.0, 1.0]


def test_streams_outlast_a_rule_s_warm_up() -> None:
    rule = updsl.parse("rule f(warmup = 60):\n    return if t <= warmup then g else 2*g")
    assert len(first(streams({"w": (1,)}, rule=rule), lambda stream: len(stream) > 60)) > 60
    assert max(len(s) for s in _some(streams({"w": (1,)}))) < 60


def _some(strategy) -> list:
    found = []

    @settings(max_examples=200, database=None, derandomize=True, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(stream) -> None:
        found.append(stream)

    collect()
    return found


def test_a_type_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8': choose float64"):
        gradients(SHAPES, dtype="int8")


@settings(max_examples=20)
@given(stream=streams({"w": (2, 2)}, rule="ema"))
def test_a_rule_in_a_test(stream: list[dict[str, np.ndarray]]) -> None:
    rule = updsl.load("ema", beta=0.5)
    state = rule.interpret.init(stream[0])
    most = 0.0
    for g in stream:
        out, state, _, _ = rule.interpret.update(g, state)
        most = max(most, np.abs(g["w"]).max())
        assert np.abs(out["w"]).max() <= most * (1 + 1e-12)


# --- laws ------------------------------------------------------------------------------------------------------------

CLIP = "rule f(c = 1) = clip norm > c per all"


def test_laws_that_hold() -> None:
    rule = updsl.parse(CLIP, c=2)
    assert assert_law(rule, "norm(out) <= c per all", examples=20).kind in ("tested", "proved")
    assert assert_law(rule, "law bounded(c = 1): norm(out) <= 1 per all", examples=20).law == "bounded"
    assert assert_law(rule, "rule(k*g) == k*rule(g) for k in [1, 1]", examples=20)
    assert assert_law(updsl.parse("norm"), "rule(k*g) == rule(g) for k in [1e-3, 1e3]", examples=20).kind == "proved"
    assert assert_law("clip_norm", "norm(out) <= max_norm per all", examples=20, seed=5, dtype="float64").rule == "clip_norm"


def test_the_values_that_a_rule_was_loaded_with() -> None:
    with pytest.raises(AssertionError, match=r"f\.claim: refuted"):
        assert_law(updsl.parse(CLIP, c=2), "norm(out) <= 1 per all", examples=20)
    assert assert_law(updsl.parse(CLIP, c=0.5), "norm(out) <= 1 per all", examples=20)


def test_what_is_refuted_is_shown() -> None:
    with pytest.raises(AssertionError) as error:
        assert_law(updsl.parse(CLIP), "norm(out) <= c/2 per all", examples=20)
    assert "step 1: g = [1.]" in str(error.value)
    assert "`<=` fails: 1 against 0.5" in str(error.value)
    with pytest.raises(AssertionError, match="vacuous"):
        assert_law(updsl.parse(CLIP), "norm(g) < 0 implies out == g", examples=20)


@pytest.mark.parametrize(
    ("law", "code", "place"),
    [
        ("norm(out) <= d per all", "unknown-name", "<law>:1:25"),
        ("law bounded: norm(out) <= d", "unknown-name", "<law>:1:27"),
        ("norm(out) per all", "not-a-condition", "<law>:1:12"),
        ("norm(out) <=", "unfinished-line", "<law>:1"),
        ("law it(d = 1): norm(out) <= 1", "unknown-parameter", "<law>:1:8"),
        ("norm(out) <= 1\nlaw two: out == g", "unexpected", "<law>:2:1"),
        ("norm(out) <= 1\nrule g = 1", "unexpected", "<law>:2:1"),
        ("law odd", "unexpected", "<law>:1"),
        ("", "unfinished-line", "<law>:1"),
    ],
)
def test_texts_that_are_no_laws(law: str, code: str, place: str) -> None:
    with pytest.raises(updsl.UpdslError) as error:
        assert_law(updsl.parse(CLIP), law)
    assert [d.code for d in error.value.diagnostics] == [code], str(error.value)
    assert place in str(error.value)


def test_a_law_is_tried_in_one_type() -> None:
    rule = updsl.parse("rule f = 1e5*g + g - 1e5*g")
    found = assert_law(rule, "out == g", examples=20)
    assert found.counterexample is not None
    assert found.counterexample.setting.dtype == "float32"
    with pytest.raises(AssertionError, match="in float32"):
        assert_law(rule, "out == g", examples=20, dtype="float32")
    assert assert_law(rule, "out == g", examples=20, dtype="float64").counterexample is None


@pytest.mark.parametrize("text", re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_the_page_s_python_runs(text: str) -> None:
    names: dict = {}
    exec(text, names)
    for test in (x for name, x in names.items() if name.startswith("test_")):
        test()
