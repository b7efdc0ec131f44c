"""What laws are tried on: the streams that are drawn, and that what is in a law means what the language says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import updsl
from updsl.front import syntax
from updsl.front.claim import claim_of
from updsl.front.claims import laws_of
from updsl.front.module import Module, module_of
from updsl.laws.check import defaults
from updsl.laws.decide import decide
from updsl.laws.sample import Search, ground_of
from updsl.laws.trial import Outcome, Setting, Trial
from updsl.pipeline import from_text

EXAMPLES = 25


def law_of(text: str) -> tuple[Module, syntax.Law]:
    """The first law of a text, with the rule that it is about."""
    unit = from_text(text, "f").unit
    rule, law = next((rule, law) for rule, law in laws_of(unit) if isinstance(law, syntax.Law))
    return module_of(unit, rule), law


def drawn(monkeypatch: pytest.MonkeyPatch, text: str, dtype: str = "float64", streams: int = 150) -> list[Setting]:
    """What a law is tried on, if it always holds."""
    module, law = law_of(text)
    claim, seen = claim_of(module, law), []
    monkeypatch.setattr(Trial, "run", lambda self, setting, until: seen.append(setting) or Outcome(1, None))
    search = Search(module, claim, defaults(module), ground_of(module, claim, defaults(module)), dtype)
    search.run(streams, 1)
    return seen


def gradients(settings: list[Setting]) -> list[np.ndarray]:
    return [x for s in settings for g in s.steps for x in g.values()]


def test_streams_hold_what_breaks_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = drawn(monkeypatch, "rule f = norm per column\n\nlaw it: out == g")
    every = gradients(settings)
    matrices = [x for x in every if x.ndim == 2 and min(x.shape) > 1 and x.any()]
    assert any(x.size and not x.any() for x in every), "nothing"
    assert any(x.size > 2 and len(np.unique(x)) == 1 and x.any() for x in every), "constant"
    assert any(1 < len(np.unique(np.abs(x))) < x.size for x in every), "ties"
    assert any(not x[:, 0].any() for x in matrices), "dead columns"
    assert any(not x[0].any() for x in matrices), "dead rows"
    assert any(x.any() and np.abs(x).max() < 1e-7 for x in every), "tiny entries"
    assert any(np.abs(x).max() > 1e11 for x in every), "huge entries"
    assert all(np.isfinite(x).all() for x in every)
    spikes = [(a, b) for s in settings for a, b in zip(s.steps, s.steps[1:], strict=False) for n in a if 0 < 100 * np.abs(a[n]).max() < np.abs(b[n]).max()]
    assert spikes
    assert any(all(np.array_equal(g[n], s.steps[0][n]) for g in s.steps for n in g) and len(s.steps) > 3 for s in settings), "gradients that stay"
    assert any(max(t.numel for t in s.tensors) > 100 * min(t.numel for t in s.tensors) for s in settings), "tensors of very different sizes"


def test_streams_outlast_the_spans_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "rule f(warmup = 100):\n    return if t <= warmup then 0*g else g\n\nlaw it: out == g"
    assert max(len(s.steps) for s in drawn(monkeypatch, long)) > 101
    block = "rule f:\n    state m = 0\n    every 37:\n        m ← g\n    return m\n\nlaw it: out == g"
    assert max(len(s.steps) for s in drawn(monkeypatch, block)) > 38
    window = "rule f = clip norm > quantile(norm(it) → history(30), 10%)\n\nlaw it: out == g"
    assert max(len(s.steps) for s in drawn(monkeypatch, window)) > 31
    stage = "rule f = ema → zclip\n\nlaw it: out == g"
    assert max(len(s.steps) for s in drawn(monkeypatch, stage)) > 26, "a warm-up of a stage"
    of_law = "rule f = g\n\nlaw it: t == 63 implies out == g"
    assert max(len(s.steps) for s in drawn(monkeypatch, of_law)) > 63


def test_names_match_a_pattern_and_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = drawn(monkeypatch, 'rule f:\n    match:\n        name ~ "^head\\.[0-9]+$": 2*g\n        else: g\n\nlaw it: out == g')
    names = {t.name for s in settings for t in s.tensors}
    assert any(n.startswith("head.") for n in names)
    assert "weight" in names


def test_gradients_of_16_bits_are_such_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, bits in (("float16", 11), ("bfloat16", 8)):
        for x in gradients(drawn(monkeypatch, "rule f = g\n\nlaw it: out == g", dtype)):
            assert np.isfinite(x).all()
            mantissa = np.frexp(x)[0] * 2.0**bits
            assert (np.abs(x) < 1e-4).all() or np.array_equal(mantissa[np.abs(x) > 1e-4], np.round(mantissa[np.abs(x) > 1e-4]))


def test_inputs_and_matrices_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = drawn(monkeypatch, "rule f:\n    input h, loss per all\n    input samples\n    return sample_mean(samples)*loss + h\n\nlaw it: out == g")
    assert {len(next(iter(i["samples"].values()))) for s in settings for i in s.inputs} == {1, 2, 3}
    assert len({float(i["loss"][""]) for s in settings for i in s.inputs}) > 3
    turned = drawn(monkeypatch, "rule f = g\n\nlaw it: rule(q @ g) == p @ g for q orthogonal for p permutation")
    for s in turned:
        for name, q in s.matrices["q"].items():
            np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-12)
            p = s.matrices["p"][name]
            assert np.array_equal(p @ p.T, np.eye(len(p)))
            assert set(np.unique(p)) <= {0.0, 1.0}
    assert any(len(q) == 2 and not np.isin(np.abs(q), (0, 1)).all() for s in turned for q in s.matrices["q"].values()), "more than signs and orders"


EMA = "rule f(beta = 0.9, scale = 1):\n    state m = 0\n    m ← beta*m + (1 - beta)*g\n    return scale*m"
STEP = "rule f(eps = 0.01):\n    w ← w - lr*g / (norm(g) + eps)"
MEANINGS = {
    "two streams": (EMA, "rule(2*g) + rule(g) == rule(3*g)", "rule(2*g) + rule(g) == rule(2*g)"),
    "a stream of a stream": (EMA, "rule(rule(2*g)) == 2*rule(out)", "rule(rule(2*g)) == 2*rule(g)"),
    "a stream starts anew": (
        EMA,
        "t == 2 implies rule(if t == 1 then 0*g else g) == (1 - beta)*g",
        "t == 2 implies rule(if t == 1 then g else g) == (1 - beta)*g",
    ),
    "a stream of numbers": (EMA, "rule(if t == 1 then 1 else 0) == (1 - beta)*beta^(t - 1)", "rule(if t == 1 then 1 else 0) == 0"),
    "a number for each row": ("rule f = norm per row", "norm(g) > 0 per row implies rule(norm(g) per row)*sqrt(cols) == 1", "rule(norm(g) per row) == g"),
    "a setting": (EMA, "t == 1 implies out == 0.5*g", "t == 1 implies out == 0.1*g", "beta = 0.5"),
    "two ranges": (
        EMA,
        "t == 1 implies out == a*(1 - beta)*g/a for beta in [0, 1] for a in [1, 2]",
        "t == 1 implies out == a*(1 - beta)*g for beta in [0, 1] for a in [1, 2]",
    ),
    "in every cell of the premise": ("rule f = clamp(g, 0, inf)", "g >= 0 implies out == g", "norm(g) >= 0 implies out == g"),
    "cells that tensors differ in": (
        "rule f = norm per column",
        "if ndim > 1 then (norm(g) > 1e-6 per column) else false implies if ndim > 1 then (abs(norm(out) - 1) < 1e-6 per column) else true",
        "if ndim > 1 then (norm(g) > 1e-6 per column) else false implies if ndim > 1 then (norm(out) > 1 per column) else true",
    ),
    "a name that only the law asks for": (
        "rule f = norm per column",
        'name ~ "embed_tokens" and norm(g) > 0 implies norm(out) > 0',
        'name ~ "embed_tokens" and norm(g) > 0 implies norm(out) > 1.01',
    ),
    "an input": ("rule f:\n    input h\n    return g + h", "out - g == h", "out - g == 2*h"),
    "a number for each tensor": ("rule f:\n    input s per tensor\n    return g*s", "out == s*g", "out == s*s*g"),
    "a learning rate": (STEP, "norm(out) <= lr", "norm(out) <= 0.5"),
    "weights": ("rule f = g + 0.1*w", "out == g + 0.1*w", "out == g + 0.2*w"),
    "weights of its own": (STEP, "t == 1 implies rule(2*g)*(norm(2*g) + eps) == 2*out*(norm(g) + eps)", "t > 1 implies out == 0"),
    "attributes": ("rule f = g*rows", "out == g*rows", "out == g*cols"),
    "a name": ('rule f:\n    match:\n        name ~ "head": 2*g\n        else: g', 'name ~ "head" or out == g', 'not (name ~ "head") or out == g'),
    "or": (EMA, "t > 1 or out == 0.1*g", "t > 2 or out == 0.1*g"),
    "not": ("rule f = sign(g)", "not (abs(out) > 1)", "not (abs(out) == 1)"),
    "not equal": ("rule f = sign(g)", "g != 0 implies out != 0", "norm(g) > 0 implies out != 0"),
    "random draws are the same": ("rule f = g + gaussian(1)", "rule(2*g) - 2*g == out - g", "out == g"),
    "a nan is a nan": ("rule f = 2*g", "out == 2*g for g any", "out - g == g for g any"),
    "of a text": ("rule f = g", "isfinite(g) implies isfinite(out) for g any", "isfinite(out) for g any"),
}


@pytest.mark.parametrize("case", MEANINGS.values(), ids=MEANINGS)
def test_a_law_means_what_it_says(case: tuple[str, ...], tmp_path: Path) -> None:
    rule, true, false, *settings = case
    set_ = f"({settings[0]})" if settings else ""
    file = tmp_path / "mine.upd"
    file.write_text(f"{rule}\n\nlaw yes{set_}: {true}\nlaw no{set_}: {false}\n", encoding="utf-8")
    yes, no = updsl.check(file, examples=EXAMPLES)
    assert yes.kind in ("tested", "proved"), str(yes)
    assert no.kind == "refuted", str(no)
    assert no.counterexample is not None
    with pytest.raises(AssertionError, match="`no` does not hold at step"):
        exec(no.counterexample.snippet(), {})


def test_parameters_have_the_values_that_the_rule_is_loaded_with() -> None:
    module, law = law_of("rule f(c = 1) = clip norm > c\n\nlaw it: norm(out) <= 1")
    assert decide(module, law, {"c": 1.0}, EXAMPLES).kind in ("tested", "proved")
    assert decide(module, law, {"c": 2.0}, EXAMPLES).kind == "refuted"
