"""Verdicts: what is proved and fails where numbers are rounded, what is out of time, and counterexamples that run anywhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner

import updsl
from updsl.cli import cli
from updsl.front.claims import laws_of
from updsl.front.module import module_of
from updsl.laws.check import defaults
from updsl.laws.decide import decide
from updsl.laws.verdict import Verdict
from updsl.pipeline import from_text

EXAMPLES = 40
OVERFLOWS = "rule f:\n    return g^5 / mean(g^2)^2\n\nlaw it: mean(g^2) > 0 implies rule(k*g) == k*rule(g) for k in [1, 2]\n"
"""Right over the reals; g^5 is too large for float32 where g is 1e8."""


def decided(text: str, examples: int = EXAMPLES, **options) -> Verdict:
    """The verdict on the first law of a text."""
    unit = from_text(text, "f").unit
    rule, law = next(iter(laws_of(unit)))
    module = module_of(unit, rule)
    return decide(module, law, defaults(module), examples, **options)


def broken(verdict: Verdict) -> str:
    """How the snippet of a verdict ends."""
    assert verdict.counterexample is not None, str(verdict)
    with pytest.raises(AssertionError) as error:
        exec(verdict.counterexample.snippet(), {})
    return str(error.value)


def test_what_is_proved_is_tried_in_float32() -> None:
    found = decided(OVERFLOWS)
    assert found.kind == "proved"
    assert found.detail.startswith("by algebra")
    assert found.detail.endswith("; in float32 it fails")
    assert found.counterexample is not None
    assert found.counterexample.setting.dtype == "float32"
    assert "in float32\n" in str(found.counterexample)
    assert broken(found).startswith("`it` does not hold at step")
    assert decided(OVERFLOWS, dtype="float64").counterexample is None


def test_what_is_tested_is_tried_in_float32(unproved: None) -> None:
    text = "rule f:\n    return (g + 1e6) - 1e6\n\nlaw it: abs(g) <= 1 implies abs(out - g) < 1e-3\n"
    found = decided(text)
    assert (found.kind, found.detail.split("; ")[-1]) == ("tested", "in float32 it fails")
    broken(found)
    found = decided(text, dtype="float32")
    assert found.kind == "refuted"
    assert found.detail.endswith(", in float32")


@pytest.mark.parametrize(("dtype", "fails"), [("float64", False), ("float32", False), ("float16", False), ("bfloat16", True)])
def test_a_law_in_a_type_of_its_own(dtype: str, fails: bool, unproved: None) -> None:
    found = decided("rule f = clip abs > 1/3\n\nlaw it: abs(out) < 0.3335\n", dtype=dtype)
    assert (found.kind == "refuted") == fails, str(found)
    if fails:
        broken(found)


def test_weights_are_rounded_to_the_type(unproved: None) -> None:
    text = "rule f = adamw(weight_decay = 0)\n\nlaw it: t == 1 and lr == 0.001 and abs(g) >= 0.1 implies out != 0\n"
    found = decided(text, 200, dtype="bfloat16")
    assert found.kind == "refuted", "at a weight of 1 there is no step between 0 and 2^-8"
    assert decided(text).kind == "tested"
    broken(found)


def test_out_of_time_is_not_false(unproved: None) -> None:
    text = "rule f = ema\n\nlaw it: norm(out) <= 1e-30\n"
    found = decided(text, timeout=1e-9)
    assert found.kind == "tested"
    assert found.detail.startswith("0 streams, 0 steps")
    assert found.detail.endswith("out of time after 1e-09 s")
    assert decided(text).kind == "refuted"
    late = decided("rule f(warmup = 100) = ema\n\nlaw it: norm(rule(rule(g))) <= 1e30\n", 100_000, timeout=3.0)
    assert late.kind == "tested"
    assert 0 < int(late.detail.split()[0]) < 100_000
    assert re.fullmatch(r"\d+ streams, \d+ steps, seed \d+; out of time after 3 s", late.detail)
    unreached = decided("rule f = ema\n\nlaw it: t > 1000 implies out == g\n", 100_000, timeout=1.0)
    assert unreached.kind == "tested"
    assert unreached.detail.endswith("; its premise held nowhere; out of time after 1 s")


def test_what_is_proved_needs_no_time_for_streams() -> None:
    found = decided(OVERFLOWS, timeout=1e-9)
    assert found.kind == "proved"
    assert found.detail.endswith("out of time after 1e-09 s")


SNIPPETS = {
    "a text": "fn twice(x) = 2*x\n\nrule f(c = 1) = twice(g)\n\nlaw it: out == c*twice(twice(g))",
    "samples": "rule f:\n    input samples\n    return sample_mean(samples)\n\nlaw it: out == g",
    "inputs": "rule f:\n    input a per all, b per group, c per tensor, d per row\n    return g*a*b*c*d\n\nlaw it: out == g",
    "matrices": "rule f:\n    input P as matrix\n    return P @ g\n\nlaw it: rule(q @ g) == q @ out for q orthogonal",
    "weights": "rule f = sgd(momentum = 0.9)\n\nlaw it: t < 3 implies norm(w - out) <= norm(w)",
    "windows": "rule f = clip norm > quantile(norm(it) → history(3), 50%) per all\n\nlaw it: out == g",
    "a NaN": "rule f = ema\n\nlaw it: isfinite(norm(out)) for g any",
    "quotes and signs": 'rule f(mode = "a\\\\b"):\n    """It\'s \'\'\' of \\\\ both."""\n    return if mode ~ "a" then g else 2*g\n\nlaw it: out == 2*g',
    "blocks": "rule f:\n    state m = 0\n    repeat 2 times:\n        every 2 from 2:\n            m ← m + g\n    return m\n\nlaw it: out == 0",
}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("text", SNIPPETS.values(), ids=SNIPPETS)
def test_a_counterexample_is_shown_and_runs(text: str, dtype: str) -> None:
    found = decided(text, dtype=dtype)
    assert found.kind == "refuted", str(found)
    assert broken(found).startswith("`it` does not hold at step")
    assert "step 1: g" in str(found)


def test_intermediate_values_are_shown() -> None:
    text = "rule f(c = 1):\n    n = norm(g)\n    x = g → clip norm > c → ema(beta = 0.5)\n    return x*n\n\nlaw it: t < 2 or out == 0"
    lines = str(decided(text).counterexample).split("\n")
    assert lines == [
        "step 1: g = [1.]",
        "    n = 1, norm = 1, clip norm > c = [1.], x = [1.], ema.m = [0.5], out = [1.]",
        "step 2: g = [1.]",
        "    n = 1, norm = 1, clip norm > c = [1.], x = [1.], ema.m = [0.75], out = [1.]",
        "at step 2 at [0] `==` fails: 1 against 0",
    ]


def test_a_snippet_of_the_library_names_its_rule(tmp_path: Path) -> None:
    file = tmp_path / "zclip.upd"
    file.write_text(updsl.load("zclip").text + "\nlaw no(warmup = 2): norm(out) < max_norm per all\n", encoding="utf-8")
    no = next(v for v in updsl.check(file, examples=10) if v.law == "no")
    assert no.counterexample is not None
    assert "warmup=2" in no.counterexample.snippet()
    run = subprocess.run([sys.executable, "-c", no.counterexample.snippet()], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "AssertionError: `no` does not hold at step" in run.stderr


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "f.upd"
    file.write_text(OVERFLOWS, encoding="utf-8")

    def run(*options: str):
        return CliRunner().invoke(cli, ["check", "--laws", "--examples", "40", *options, str(file)], standalone_mode=False)

    found = run("--snippet")
    assert found.return_value == 0
    assert "in float32 it fails" in found.output
    assert "rule = updsl.parse(" in found.output
    assert run("--strict").return_value == 1
    assert run("--strict", "--dtype", "float64").return_value == 0
    assert "out of time after 1e-06 s" in run("--timeout", "1e-6").output
    assert '"snippet": "' in run("--format", "json").output


def test_the_guide_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first block is a rule file, the command, and what it prints; how many steps there are is Hypothesis's."""
    guide = (Path(__file__).parents[1] / "docs/laws-guide.md").read_text(encoding="utf-8")
    block = next(re.finditer(r"(?:^(?:    .*)?\n)+(?=\S)", guide[guide.index("    rule ") :], re.MULTILINE)).group()
    text, command, printed = re.split(r"\$ updsl (.*)\n", dedent(block))
    monkeypatch.chdir(tmp_path)
    Path("clipped.upd").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(cli, command.split(), standalone_mode=False)
    found, shown = (re.sub(r"\d+ steps|on stream \d+", "…", x.strip()) for x in (result.output, printed))
    assert found == shown


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_breaks_in_one_entry_of_a_large_tensor_is_shown_in_a_small_one(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "f.upd"
    file.write_text("rule f:\n    m = g → ema(0.9)\n    v = g^2 → ema(0.999)\n    return m / (sqrt(v) + 1e-8)\n\nlaw one: abs(out) <= 1\n", encoding="utf-8")
    (found,) = updsl.check(file, examples=200, seed=seed)
    assert found.kind == "refuted"
    assert sum(t.numel for t in found.counterexample.setting.tensors) <= 4
