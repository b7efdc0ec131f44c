"""Laws: true ones pass, false ones are refuted by a stream that one can follow, and what says nothing is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import updsl
from updsl.cli import cli
from updsl.front import syntax
from updsl.front.claim import claim_of
from updsl.front.claims import laws_of
from updsl.front.module import module_of
from updsl.laws.check import defaults
from updsl.laws.trial import Trial
from updsl.laws.verdict import Verdict

EXAMPLES = 25


def verdicts(tmp_path: Path, text: str, examples: int = EXAMPLES, seed: int | None = None) -> dict[str, Verdict]:
    file = tmp_path / "mine.upd"
    file.write_text(text, encoding="utf-8")
    return {v.law: v for v in updsl.check(file, examples=examples, seed=seed)}


def verdict(tmp_path: Path, rule: str, law: str) -> Verdict:
    return verdicts(tmp_path, f"{rule}\n\nlaw it: {law}\n")["it"]


CLIP = "rule f(c = 1) = clip norm > c per all"
NORM = "rule f = norm per column"
EMA = "rule f(beta = 0.9):\n    state m = 0\n    m ← beta*m + (1 - beta)*g\n    return m"
STEP = "rule f(eps = 0.01):\n    w ← w - lr*g / (norm(g) + eps)"

PAIRS = {
    "a bound": (CLIP, "norm(out) <= c per all", "norm(out) <= c/2 per all"),
    "a bound of each tensor": (CLIP, "norm(out) <= c", "norm(out) >= c"),
    "implies": (CLIP, "norm(g) <= c per all implies out == g", "norm(g) <= 2*c per all implies out == g"),
    "odd": (CLIP, "rule(-g) == -rule(g)", "rule(-g) == rule(g)"),
    "idempotent": (NORM, "rule(rule(g)) == rule(g)", "rule(rule(g)) == rule(g)/2"),
    "a range": (NORM, "rule(k*g) == rule(g) for k in [0.5, 8]", "rule(k*g) == rule(g) for k in [-8, 8]"),
    "a permutation": (NORM, "rule(p @ g) == p @ rule(g) for p permutation", "rule(p @ g) == rule(g) for p permutation"),
    "an orthogonal matrix": (NORM, "rule(q @ g) == q @ rule(g) for q orthogonal", "rule(q @ g) == rule(g) for q orthogonal"),
    "states": (EMA, "t > 1 or out == 0.1*g", "out == 0.1*g"),
    "the first step": (EMA, "t == 1 implies out == 0.1*g", "t == 2 implies out == 0.1*g"),
    "a parameter": (EMA, "t == 1 implies out == (1 - beta)*g for beta in [0, 1]", "t == 1 implies out == beta*g for beta in [0, 1]"),
    "a constant parameter": (
        "rule f(p = 2):\n    return g / norm(g, p)",
        "norm(g) > 0 implies norm(out, p) == 1 for p in [1, 3]",
        "norm(g) > 0 implies norm(out, 2) == 1 for p in [1, 3]",
    ),
    "weights": (STEP, "norm(out) <= lr", "norm(out) <= lr/2"),
    "weights that move": (STEP, "rule(-g) == -rule(g)", "norm(w - out) <= norm(w)"),
    "cells": ("rule f = norm per row", "norm(g) > 0 per row implies norm(out) == 1 per row", "norm(out) == 1 per row"),
    "a shape": ("rule f = if ndim > 1 then norm per row else g", "ndim < 2 implies out == g", "ndim < 3 implies out == g"),
    "chains": (CLIP, "0 <= norm(out) <= c per all", "0 < norm(out) <= c per all"),
}


@pytest.mark.parametrize(("rule", "true", "false"), PAIRS.values(), ids=PAIRS)
def test_a_law_and_its_false_neighbour(rule: str, true: str, false: str, tmp_path: Path) -> None:
    found = verdicts(tmp_path, f"{rule}\n\nlaw yes: {true}\nlaw no: {false}\n")
    assert found["yes"].kind in ("tested", "proved"), str(found["yes"])
    assert found["no"].kind == "refuted", str(found["no"])


def test_what_is_found_is_small(tmp_path: Path) -> None:
    found = verdict(tmp_path, "rule f:\n    return g / (norm(g) + 1e-3)", "norm(g) > 0 implies norm(out) == 1").counterexample
    assert found is not None
    (g,) = found.setting.steps
    assert {n: x.tolist() for n, x in g.items()} == {"weight": [1.0]}
    assert "step 1: g = [1.]" in str(found)
    assert found.breach.sides == (pytest.approx(1 / 1.001), 1.0)


def test_what_is_found_is_small_and_plain_where_only_many_entries_or_small_ones_broke_it(tmp_path: Path, unproved: None) -> None:
    found = verdicts(tmp_path, f"{CLIP}\n\nlaw c(c = 100): norm(out) <= 5 per all\nlaw k: rule(k*g) == rule(g) for k in [1, 1e3]\n")
    for v in found.values():
        assert v.counterexample is not None
        (step,) = v.counterexample.setting.steps
        assert [x.shape for x in step.values()] == [(1,)]
        assert all(f"{x:.0e}" == f"{x:e}".replace("00000", "").replace(".0e", "e") for g in step.values() for x in g.tolist())


def test_what_fails_is_named(tmp_path: Path) -> None:
    assert str(verdict(tmp_path, CLIP, "not norm(out) > c/2 per all")).endswith("at step 1 `not >` fails: 1 against 0.5")
    assert str(verdict(tmp_path, CLIP, "not (norm(out) > c/2 per all) and out == out")).endswith("at step 1 at [0] `not >` fails: 1 against 0.5")
    assert str(verdict(tmp_path, CLIP, "isfinite(out) for g any")).endswith("at step 1 at [0] the claim does not hold")


def test_a_name_that_only_the_law_asks_for_is_tried(tmp_path: Path) -> None:
    found = verdicts(tmp_path, f'{CLIP}\n\nlaw yes: name ~ "head" implies norm(out) <= c per all\nlaw no: name == "b.head" implies norm(out) <= c/2 per all\n')
    assert found["yes"].kind == "tested", str(found["yes"])
    assert found["no"].kind == "refuted", str(found["no"])
    assert "step 1: g of b.head = " in str(found["no"])


@pytest.mark.parametrize("scope", ["row", "column", "tensor", "group", "all", "block(2)"])
def test_a_stream_may_be_of_any_scope(scope: str, tmp_path: Path) -> None:
    assert verdict(tmp_path, CLIP, f"norm(rule(norm(g) per {scope})) <= c per all").kind in ("tested", "proved")
    assert verdict(tmp_path, CLIP, f"norm(rule(norm(g) per {scope})) <= c/2 per all").kind == "refuted"


def test_a_range_may_have_no_end(tmp_path: Path, unproved: None) -> None:
    far = "norm(rule(k*g)) <= c per all for k in [1e30*1e9, inf]"
    found = verdicts(tmp_path, f"{CLIP}\n\nlaw yes: norm(rule(k*g)) <= c per all for k in [1, inf]\nlaw far: {far}\n")
    assert [v.kind for v in found.values()] == ["tested", "tested"]


def test_what_is_found_breaks_the_law_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.upd"
    file.write_text(f"{EMA}\n\nlaw it: t == 3 implies out == 0.1*g\n", encoding="utf-8")
    (found,) = updsl.check(file, examples=EXAMPLES)
    assert found.counterexample is not None
    setting = found.counterexample.setting
    assert len(setting.steps) == 3
    rule = updsl.load(file)
    (about, law) = next(laws_of(rule.module.unit))
    assert isinstance(law, syntax.Law)
    module = module_of(rule.module.unit, about)
    assert Trial(module, claim_of(module, law), setting.tensors, defaults(module), {}).run(setting).breach == found.counterexample.breach


def test_a_verdict_does_not_change(tmp_path: Path, unproved: None) -> None:
    text = f"{EMA}\n\nlaw it: t == 2 implies out == 0.1*g\nlaw other: norm(out) <= 5\n"
    assert list(map(str, verdicts(tmp_path, text).values())) == list(map(str, verdicts(tmp_path, text).values()))
    assert "seed 7" in verdicts(tmp_path, f"{CLIP}\nlaw it: norm(out) <= c per all", seed=7)["it"].detail


def test_a_late_mistake_is_found(tmp_path: Path) -> None:
    rule = "rule f(warmup = 12):\n    return if t <= warmup then 0*g else g"
    assert verdict(tmp_path, rule, "out == 0").kind == "refuted"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_gradient_after_long_silence_is_tried(seed: int, tmp_path: Path) -> None:
    rule = "rule f(beta1 = 0.9, beta2 = 0.999, eps = 1e-8):\n    m = g → ema(beta1)\n    v = g^2 → ema(beta2)\n    return m / (sqrt(v) + eps)"
    assert verdicts(tmp_path, f"{rule}\n\nlaw it: abs(out) <= 1\n", examples=200, seed=seed)["it"].kind == "refuted"


def test_an_arm_for_a_name_is_tried(tmp_path: Path) -> None:
    rule = 'rule f:\n    match:\n        name ~ "^lm_head": 2*g\n        else: g'
    found = verdict(tmp_path, rule, "out == g").counterexample
    assert found is not None
    assert [t.name for t in found.setting.tensors] == ["lm_head"]


@pytest.mark.parametrize("law", ["norm(g) < 0 implies out == g", "norm(g) >= 0", "norm(rule(g)) < 0 implies t == 1"])
def test_laws_that_say_nothing(law: str, tmp_path: Path) -> None:
    assert verdict(tmp_path, CLIP, law).kind == "vacuous"


def test_a_premise_that_streams_do_not_reach_is_told(tmp_path: Path) -> None:
    rule = "rule f(warmup = 1000):\n    return if t <= warmup then 0*g else g"
    said = verdict(tmp_path, rule, "t > warmup implies out == 2*g").detail
    assert said.startswith(f"its premise held nowhere in {EXAMPLES} streams, ")
    assert said.endswith(" steps, none longer than 27")
    assert verdicts(tmp_path, f"{rule}\n\nlaw it(warmup = 2): t > warmup implies out == 2*g")["it"].kind == "refuted"


def test_gradients_may_be_any_only_where_the_law_says_so(tmp_path: Path, unproved: None) -> None:
    assert verdict(tmp_path, EMA, "isfinite(norm(out))").kind == "tested"
    found = verdict(tmp_path, EMA, "isfinite(norm(out)) for g any")
    assert found.kind == "refuted"
    assert verdict(tmp_path, EMA, "rule(g) == rule(g) for g any").kind == "tested"


def test_inputs_are_drawn_and_the_same_in_every_run(tmp_path: Path, unproved: None) -> None:
    rule = "rule f:\n    input h, loss per all, P as matrix\n    return P @ (g + h)*loss"
    assert verdict(tmp_path, rule, "rule(g) == rule(0 + g)").kind == "tested"
    assert verdict(tmp_path, rule, "out == g").kind == "refuted"
    samples = "rule f(c = 1):\n    input samples\n    return sample_mean(samples → clip norm > c per all)"
    assert verdict(tmp_path, samples, "norm(out) <= c per all").kind == "tested"


def test_units_prove_that_a_rule_scales(tmp_path: Path) -> None:
    found = verdicts(
        tmp_path,
        "rule f = norm per column → clip z > 2.5 → ema(0.9)\n\n"
        "law yes: rule(k*g) == rule(g) for k in [1e-3, 1e3]\nlaw no: rule(k*g) == k*rule(g) for k in [1, 2]\n",
    )
    assert found["yes"].kind == "proved"
    assert found["no"].kind == "refuted"
    assert verdict(tmp_path, "rule f = clip norm > norm(it)/2 per all", "rule(k*g) == k*rule(g) for k in [1, 2]").kind == "proved"
    assert verdict(tmp_path, CLIP, "rule(k*g) == k*rule(g) for k in [1, 2]").kind == "refuted"


def test_mistakes_come_before_laws(tmp_path: Path) -> None:
    with pytest.raises(updsl.UpdslError) as error:
        verdicts(tmp_path, "rule f = norn\n\nlaw it: norm(out) <= 1\n")
    assert error.value.diagnostics[0].code == "unknown-name"


def test_the_command(tmp_path: Path, unproved: None) -> None:
    file = tmp_path / "mine.upd"
    file.write_text(f"{CLIP}\n\nlaw yes: norm(out) <= c per all\nlaw no: norm(out) <= c/2 per all\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["check", "--laws", "--examples", "20", str(file)], standalone_mode=False)
    assert result.return_value == 1
    assert "f.yes: tested (20 streams" in result.output
    assert "f.no: refuted" in result.output
    assert "step 1: g = [1.]" in result.output
    result = CliRunner().invoke(cli, ["check", "--laws", "--examples", "20", "--format", "json", str(file)], standalone_mode=False)
    assert [law["kind"] for law in json.loads(result.output)["files"][0]["laws"]] == ["tested", "refuted"]


@pytest.mark.parametrize("name", ["adam", "clip_norm", "ema", "lion", "norm", "sinkgd", "zclip"])
def test_laws_of_the_library(name: str) -> None:
    assert {v.kind for v in updsl.check(name, examples=6)} <= {"tested", "proved"}


def test_a_law_is_tried_on_a_tensor_for_each_pattern(tmp_path):
    rule = 'rule f:\n    match:\n        name ~ "head": 2*g\n        name ~ "embed": 3*g\n        else: g'
    assert verdict(tmp_path, rule, 'name ~ "embed" and ndim > 1 implies out == 3*g').kind in ("tested", "proved")
    assert verdict(tmp_path, rule, 'name ~ "embed" and ndim > 1 implies out == 2*g').kind == "refuted"
    assert verdict(tmp_path, rule, 'name ~ "head" and ndim > 1 implies out == 3*g').kind == "refuted"


@pytest.mark.parametrize("stream", ["1", "if t == 1 then 2 else 0", 'if name == "weight" then g else 0', "norm(g) per all"])
def test_a_stream_may_be_a_number(tmp_path, stream):
    assert verdict(tmp_path, CLIP, f"norm(rule({stream})) <= c per all").kind in ("tested", "proved")
    assert verdict(tmp_path, "rule f = g", f"rule({stream}) == 7").kind == "refuted"
