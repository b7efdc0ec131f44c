"""Mutants: what laws and examples tell from a rule, and what they do not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from updsl.cli import cli
from updsl.core.diagnostic import UpdslError
from updsl.core.source import Source
from updsl.front.files import library
from updsl.front.unit import Unit, load_unit
from updsl.laws import mutations
from updsl.laws.mutants import MutantReport, mutants, variants

ROOT = Path(__file__).resolve().parents[1]
EMA = "rule f(beta = 0.9):\n    state m = 0\n    m ← beta*m + (1 - beta)*g\n    return m\n"

TEXTS = {
    "drop_epsilon": ("g / (norm(g) + 1e-8)", "g / (norm(g) + 0)"),
    "swap_stages": ("norm per row → (clip abs > 2)", "(clip abs > 2) → norm per row"),
    "drop_stage": ("norm per row → (clip abs > 2)", "norm per row"),
    "flip_sign": ("g + (g - 1)", "g + (g + 1)"),
    "turn_scope": ("norm per row", "norm per column"),
    "complement": ("0.5*g*(1 - c)", "0.5*g*(c)"),
    "turn_comparison": ("clip norm ≥ 3", "clip norm <= 3"),
    "move_edge": ("if t <= 3 then g else 0", "if t <= 3 + 1 then g else 0"),
    "change_constant": ("10%*g", "20%*g"),
    "swap_extreme": ("min(g, 2)", "max(g, 2)"),
    "drop_debias": ("g / (1 - 0.5^t) + 1", "g + 1"),
    "swap_reduction": ("g / norm(g)", "g / absmax(g)"),
    "swap_logic": ("if not g > 1 then g else (2*g)", "if g > 1 then g else (2*g)"),
}
"""By mutation: the body of a rule, and a variant that it makes of it."""


def unit(text: str) -> Unit:
    return load_unit(Source("mine.upd", text), "mine", library().find)


def diffs(report: MutantReport) -> str:
    return "\n".join(m.diff() for m in report.survivors)


def variants_by(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {m.__name__: [] for m in mutations.MUTATIONS}
    for v in variants(unit(text)):
        found[v.mutation].append(v.text)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_a_mutation_edits_one_place(name):
    before, after = (f"rule f(c = 1) = {body}\n" for body in TEXTS[name])
    assert after in variants_by(before)[name]


def test_statements_are_mutated():
    found = variants_by("rule f:\n    state m = 0\n    skip when g > 1\n    x = min(g, 2)\n    m ← x + m\n    reset m\n    return m\n")
    assert {m.split("\n")[2].strip() for m in found["never"]} == {"skip when g > 1", "skip when false"}
    assert any("reset m when false" in m for m in found["never"])
    assert any("m ← g + m" in m for m in found["stale"])
    found = variants_by("rule f:\n    state m = 0\n    x = min(g, 2)\n    m ← g + m\n    return m + x\n")
    assert any("m ← x + m" in m for m in found["stale"])


def test_every_mutation_is_tested():
    assert {*TEXTS, "never", "stale"} == {m.__name__ for m in mutations.MUTATIONS}


def test_what_is_watched_documented_or_promised_is_left_alone():
    rule = 'rule f(c = 1 in [0, 2]):\n    """1 + 1"""\n    input a per all\n    watch x = norm(g) + 1\n    return g\n'
    assert list(variants(unit(rule + "\nlaw it: out + 1 == g + 1\nexample(a = 1): [1] gives [1]\n"))) == []


def test_weak_laws_let_variants_live_and_examples_kill_them():
    weak = mutants(unit(EMA + "law odd: rule(-g) == -rule(g)\n"), streams=5)
    assert weak.score < 0.5
    assert "-    m ← beta*m + (1 - beta)*g\n+    m ← beta*m + (beta)*g" in diffs(weak)
    strong = mutants(unit(EMA + "example: [1]; [2] gives [0.1]; [0.29]\n"))
    assert strong.score == 1
    assert {m.killer for m in strong.killed} == {"example"}


def test_a_law_kills():
    report = mutants(unit("rule f(c = 1) = clip norm > c per all\nlaw bounded: norm(out) <= c per all\n"), streams=40)
    assert {m.mutation for m in report.killed} == {"turn_scope", "swap_reduction", "turn_comparison"}
    assert {m.killer for m in report.killed} == {"bounded"}


def test_variants_that_are_the_rule_or_no_rule_are_counted_by_themselves():
    report = mutants(unit("rule f:\n    x = g + 1\n    return 3*g\nexample: [1] gives [3]\n"))
    assert report.same == 2  # nobody reads x
    report = mutants(unit("rule f = norm(g) → ema → g*it\n"))
    assert report.invalid == 1  # `ema → norm(g) → …`: a stage that does not read `it`


def test_a_branch_that_a_parameter_chooses_is_not_the_same():
    text = "rule f(plain = true):\n    return if plain then g else 2*g\nexample: [1] gives [1]\n"
    assert "4*g" in diffs(mutants(unit(text)))
    assert mutants(unit(text + "example(plain = false): [1] gives [2]\n")).score == 1


def test_a_law_that_the_rule_breaks_kills_nothing():
    report = mutants(unit("rule f = 2*g\nlaw shrinks: abs(out) <= abs(g)\n"), streams=5)
    assert report.unsound == ("shrinks",)
    assert report.killed == ()
    assert "`shrinks` does not hold" in str(report)


def test_mistakes_are_told_first():
    with pytest.raises(UpdslError):
        mutants(unit("rule f = 2*g\nexample: [1] gives [1]\n"))


def test_the_command_prints_survivors_as_diffs(tmp_path):
    file = tmp_path / "mine.upd"
    file.write_text("rule mine = 2*g + 1\n\nexample: [0] gives [1]\n", encoding="utf-8")
    found = CliRunner().invoke(cli, ["check", "--mutants", str(file)], standalone_mode=False)
    assert found.return_value == 0
    assert "2 of 3 variants killed (67%)" in found.output
    assert "-rule mine = 2*g + 1\n+rule mine = 4*g + 1" in found.output.replace("\n  ", "\n")
    assert CliRunner().invoke(cli, ["check", "--mutants", "--strict", str(file)], standalone_mode=False).return_value == 1
    found = CliRunner().invoke(cli, ["check", "--mutants", "--format", "json", str(file)], standalone_mode=False)
    report = json.loads(found.output)["files"][0]["mutants"]
    assert report["killed"] == 2
    assert [m["mutation"] for m in report["survivors"]] == ["change_constant"]
    assert report["score"] == pytest.approx(2 / 3)


# --- the library -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ema", "clip_norm", "adam", "norm"])
def test_rules_of_the_library_are_told_from_all_their_variants(name):
    report = mutants(name)
    assert not report.survivors, diffs(report)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_laws_and_examples_of_the_library_kill_what_is_wrong():
    reports = {name: mutants(name) for name in library().rules}
    killed, survivors = (sum(len(ms) for ms in part) for part in zip(*((r.killed, r.survivors) for r in reports.values()), strict=True))
    assert killed >= 0.95 * (killed + survivors), "\n".join(f"{name}: {report}" for name, report in reports.items() if report.survivors)
    assert not [name for name, r in reports.items() if r.unsound]


@pytest.fixture
def written() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_laws", ROOT / "docs" / "write_laws.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_the_laws_and_rules_of_the_library(written):
    text = written.PAGE.read_text(encoding="utf-8")
    laws, scores = (written.rows_of(text, head) for head in (written.LAWS, written.SCORES))
    assert [row[:3] for row in laws] == [law for name in sorted(library().rules) for law in written.listed(name)]
    assert [row[0] for row in scores] == sorted(library().rules)
    assert {row[3] for row in laws} == {"proved", "tested"}
    assert text == written.page(laws, scores)
