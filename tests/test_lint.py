"""Lints: each fires where it should and not beside it, says where and what to do, and what it says is so in the interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import texts
from test_units import stream

import updsl
from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ir import GRID, Apply, Expr, Reduce, Ref, Type
from updsl.core.ops import OPS, Op
from updsl.core.resources import folder
from updsl.core.scope import ELEMENT, TENSOR
from updsl.core.source import Source
from updsl.front.files import library
from updsl.front.probes import programs_of
from updsl.front.unit import load_unit
from updsl.laws.check import check_unit
from updsl.laws.lint import LINTS, LOUD
from updsl.laws.lints.bounds import Bounds
from updsl.laws.lints.flow import Flow
from updsl.laws.lints.signs import Signs, kind

GUARD = "    skip when not isfinite(absmax(g) per all)\n"

CASES: dict[str, tuple[list[str], list[str]]] = {
    "inert-scale": (
        [
            "clip norm > 1 → norm",
            "clip norm > 1 per all → sign",
            "clip abs > 1 → sign",
            "0.5*g → adam",
            "scale_by(3) → norm per row",
            "norm per all → norm per column",
            "rule f(c = 1):\n    x = g * min(1, c / (norm(g) + 1e-6))\n    return x / max(rms(x), 1e-8)",
            "rule f:\n    x = 2*g\n    state s = 0\n    s ← 0.9*s + 0.1*rms(x)\n    return x / s",
            "rule f:\n    x = 2*g\n    n = norm(x)\n    return if n == 0 then 0 else x / n",
            "clip norm > 1 per all → adam",
            "clip norm > 1 → lion",
            "clip norm > 1 → muon",
            "ema(0.9) → clip norm > 1 → norm",
            "2*g → clip norm > 1 → adam",
            "norm → clip norm > 0.5 → norm",
            "adam → clip norm > 1 → sign",
            "rule f:\n    u = g → clip norm > 1 → adam\n    w ← w - lr*(u + 0.1*w)",
        ],
        [
            "adam → clip norm > 1",
            "clip norm > 1 → ema",
            "clip norm > 1 per tensor → norm per all",
            "norm per row → norm per column",
            "clip z > 2 → norm",
            "clip abs > 1 → norm",
            "scale_by(-2) → sign",
            "scale_by(0) → norm",
            "clip norm > 1 → sgd",
            "ema(0.9) → clip norm > 1 → ema(0.9)",
            "ema(0.9) → clip abs > 1 → norm",
            "clip norm > 1 → clip norm > 2",
            "adam → sign",
            "clip norm > 1 → g + it → sign",
            "rule f:\n    x = 2*g\n    state s = 1\n    s ← 0.9*s + 0.1*rms(x)\n    return x / s",
            "rule f:\n    x = g → clip norm > 1\n    return x / (norm(x) + 0.5)",
            "rule f(c = 1):\n    x = if norm(g) > c then 0*g else g\n    return x → norm per all",
            "rule f:\n    x = g → clip norm > 1\n    return norm(x) * (x → norm)",
        ],
    ),
    "bound-below-eps": (
        [
            "rule f(c = 1, eps = 10):\n    x = g → clip norm > c\n    return x / (norm(x) + eps)",
            "clip_grad_norm(1e-9) → normalized",
            "clip abs > 1e-10 → adam",
            "rule f:\n    x = g → clip absmax > 1e-3 per row\n    return x / max(rms(x) per row, 0.01)",
        ],
        [
            "rule f(c = 1, eps = 0.1):\n    x = g → clip norm > c\n    return x / (norm(x) + eps)",
            "clip_grad_norm(1) → normalized",
            "clip abs > 1e-6 → adam",
            "rule f:\n    x = g → clip rms > 1e-3\n    return x / (absmax(x) + 1e-2)",
            "rule f:\n    x = g → clip norm > 1e-3 per row\n    return x / (norm(x) + 1e-2)",
            "rule f:\n    x = g → clip norm > 1\n    return g / (norm(g) + 10) + x",
        ],
    ),
    "nan-latch": (
        [
            "rule f:\n    n = norm(g) → ema\n    return clip norm > 2*n",
            "rule f:\n    state top = 0\n    top ← max(top, absmax(g))\n    return g / (top + 1e-8)",
            "rule f:\n    state m = 0\n    m ← if norm(g) < inf then 0.9*m + 0.1*mean(g) else m + mean(g)\n    return g - m",
            "rule f:\n    state μ = 0\n    n = norm(g) per all\n    x = if n > 3*μ then μ else n\n    μ ← 0.9*μ + 0.1*x\n    return g / max(x, 1)",
            "rule f:\n    input loss per all\n    l = loss → ema\n    return g * l",
            "rule f:\n    state n = 0\n    every 2:\n        n ← 0.5*n + norm(g)\n    return g / (n + 1)",
            "rule f:\n    n = norm(g) → momentum\n    return g / (n + 1)",
        ],
        [
            f"rule f:\n{GUARD}    n = norm(g) → ema\n    return clip norm > 2*n",
            "rule f:\n    state m = 0\n    n = norm(g)\n    m ← if isfinite(n) then 0.9*m + 0.1*n else m\n    return clip norm > 2*m",
            "rule f:\n    n = norm(g) → prev\n    return clip norm > 2*n",
            "rule f:\n    state m = 0\n    n = norm(g)\n    m ← if n < 1e30 then 0.9*m + 0.1*n else m\n    return clip norm > 2*m",
            "rule f:\n    state m = 0\n    m ← if any(not isfinite(g)) then m else 0.9*m + 0.1*norm(g)\n    return clip norm > 2*m",
            "rule f:\n    state m = 0\n    x = if isfinite(g) then g else 0\n    m ← 0.9*m + 0.1*norm(x)\n    return clip norm > 2*m",
            "rule f:\n    state n = 0\n    reset n when mod(t, 100) == 0\n    n ← n + norm(g)\n    return g / (n + 1)",
            "rule f:\n    n = tanh(norm(g))\n    return g / (1 + n)",
            "adam",
        ],
    ),
    "nan-latch-entries": (
        ["adam", "ema", "norm per column → clip z > 2.5 → EMA", "momentum", "lion", "rule f:\n    state L = 0\n    L ← 0.5*L + g @ g.T\n    return L @ g"],
        [
            f"rule f:\n{GUARD}    return g → adam",
            "sgd(0)",
            "rule f:\n    x = if isfinite(g) then g else 0\n    return x → ema",
            "friction",
            "clip norm > 1",
        ],
    ),
    "zero-latch": (
        [
            "rule f:\n    state s = 1\n    s ← min(s, rms(g))\n    return s*g",
            "rule f:\n    state s = 1\n    s ← s*max(cosine(g, g → prev), 0)\n    return s*g",
            "rule f:\n    state s = 1\n    s ← s*norm(g)\n    w ← w - lr*s*sign(g)",
            "rule f(warmup = 10):\n    state γ = inf\n    n = norm(g)\n    x = if t > warmup and n > γ then g * (γ / n) else g\n"
            "    γ ← if t <= warmup then min(γ, n) else 0.9*γ + 0.1*min(n, γ)\n    return x",
            "rule f:\n    state usual = 0\n    n = norm(g)\n    bound = if t == 1 then inf else 2*usual\n"
            "    usual ← if t == 1 then n else 0.9*usual + 0.1*min(n, bound)\n    return clip n > bound",
        ],
        [
            "rule f:\n    state s = 1\n    s ← min(s, max(rms(g), 1e-8))\n    return s*g",
            "rule f:\n    state s = 1\n    s ← s*(if norm(g) > 1 then 0.5 else 1.1)\n    return s*g",
            "rule f:\n    state s = 1\n    s ← 0.9*s + 0.1*rms(g)\n    return s*g",
            "rule f:\n    state s = 1\n    s ← min(s, rms(g))\n    return (s + 1)*g",
            "rule f:\n    state usual = 0\n    n = norm(g)\n    bound = if usual == 0 then inf else 2*usual\n"
            "    usual ← if usual == 0 then n else 0.9*usual + 0.1*min(n, bound)\n    return clip n > bound",
            "ema",
            "accumulate",
        ],
    ),
    "steps-after-skip": (
        [
            "rule f = guarded → ema\n\nrule guarded:\n    skip when not isfinite(absmax(g))\n    return g",
            "rule f = calm(3) → 2*it → momentum\n\nrule calm(c):\n    skip when norm(g) > c\n    skip when t == 2\n    return g",
        ],
        [
            "rule f = guarded\n\nrule guarded:\n    skip when not isfinite(absmax(g))\n    return g → ema",
            "rule f:\n    skip when not isfinite(absmax(g))\n    return g → ema",
            "rule f = ema → guarded\n\nrule guarded:\n    skip when not isfinite(absmax(g))\n    return g",
            "rule f = guarded → clip norm > 1\n\nrule guarded:\n    skip when not isfinite(absmax(g))\n    return g",
        ],
    ),
    "narrow-state": (
        [
            "rule f(beta = 0.999):\n    state v = 0 as bfloat16\n    v ← beta*v + (1 - beta)*g^2\n    return g / (sqrt(v) + 1e-8)",
            "rule f:\n    state v = 0 as float16\n    v ← v + 0.01*(g - v)\n    return v",
            "rule f:\n    state v = 0 as float16\n    v ← if t == 1 then g else 0.995*v + 0.005*g\n    return v",
        ],
        [
            "rule f(beta = 0.9):\n    state v = 0 as bfloat16\n    v ← beta*v + (1 - beta)*g^2\n    return g / (sqrt(v) + 1e-8)",
            "rule f(beta = 0.999):\n    state v = 0 as float32\n    v ← beta*v + (1 - beta)*g^2\n    return g / (sqrt(v) + 1e-8)",
            "rule f:\n    state v = 0 as float16\n    v ← g\n    return v",
            "rule f:\n    state v = 0 as float16\n    v ← v + 0.1*(g - v)\n    return v",
        ],
    ),
    "unused-value": (
        [
            "rule f:\n    x = g → clip norm > 1\n    return g",
            "rule f:\n    a = norm(g)\n    b = 2*a\n    return g",
            "rule f:\n    state k = 0\n    k ← k + 1\n    return g",
            "rule f:\n    let x = g\n    repeat 2 times:\n        x ← x / 2\n    return g",
            "rule f:\n    n = norm(w)\n    w ← w - lr*g",
        ],
        [
            "rule f:\n    x = g → clip norm > 1\n    return x",
            "rule f:\n    n = norm(g)\n    watch n = n\n    return g",
            "rule f:\n    n = norm(g)\n    skip when n > 5\n    return g",
            "rule f:\n    n = norm(w)\n    w ← w - lr*g/n",
            "rule f:\n    c = 2\n    match:\n        ndim > 1: clip norm > c\n        else: g",
            'rule f(mode = "a"):\n    n = norm(g)\n    return if mode == "b" then g / n else g',
            "rule f:\n    state k = 0\n    k ← k + 1\n    return g / k",
            "rule f:\n    let x = g\n    n = norm(g)\n    every 2:\n        x ← x / n\n    return x",
        ],
    ),
    "rule-without-arrow": (
        ["rule f:\n    return g - ema(0.5)", "rule f:\n    m = ema(0.9)\n    return m", "rule f:\n    return clip norm > 2*norm(ema)"],
        [
            "ema(0.5)",
            "rule f:\n    return g - (g → ema(0.5))",
            "rule f:\n    x = if ndim > 1 then (standardize per row) else standardize\n    return x",
            "rule f:\n    match:\n        ndim > 1: adam\n        else: sign",
            "repeat 2 times (rms per row → rms per column)",
            "clip norm > 2*norm(g)",
        ],
    ),
    "law-always-holds": (
        [
            f"rule f(c = 1) = clip norm > c\n\nlaw l{claim}"
            for claim in (
                ": norm(out) >= 0",
                ": out == out",
                ": norm(g) >= 0",
                ": rule(g) == out",
                ": norm(out) <= c implies norm(out) <= c",
                ": norm(out) <= c and t > 1 implies norm(out) <= c",
                ": abs(sign(out)) <= 1",
                "(c = inf): norm(out) <= c",
                ": norm(out) < 0 implies out == g",
                ": 0*out == 0",
                ": cosine(out, g) <= 1 or out == g",
                ": rule(k*g) == rule(k*g) for k in [1, 2]",
            )
        ],
        [
            f"rule f(c = 1) = clip norm > c\n\nlaw l{claim}"
            for claim in (
                ": norm(out) <= c",
                ": norm(out) >= 0 and norm(out) <= c",
                ": norm(g) <= c implies out == g",
                ": rule(-g) == -rule(g)",
                ": norm(out) > 0",
                ": cosine(out, g) >= 0",
                ": rule(k*g) == rule(g) for k in [1, 1]",
                ": abs(sign(out)) <= k for k in [0, 1]",
                "(c = 1): norm(out) < c + 1",
                ': name ~ "lm_head" and ndim > 1 implies norm(out) == 1',
            )
        ],
    ),
}
"""For each lint, texts in which it finds something, and neighbours in which it finds nothing."""


def found(text: str, code: str | None = None) -> list[Diagnostic]:
    unit = load_unit(Source("f.upd", text + "\n"), "f", library().find)
    diagnostics = check_unit(unit, lints=LINTS)
    assert all(d.severity == "warning" for d in diagnostics), diagnostics
    return [d for d in diagnostics if code in (None, d.code)]


def test_every_lint_has_cases() -> None:
    assert set(CASES) == set(LINTS)
    assert all(fires and passes for fires, passes in CASES.values())


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, (fires, _) in CASES.items() for text in fires])
def test_it_finds(code: str, text: str) -> None:
    first = found(text, code)[0]
    assert first.severity == "warning"
    assert first.help
    assert first.span.source.name == "f.upd"
    assert first.span.text.strip()


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, (_, passes) in CASES.items() for text in passes])
def test_it_passes(code: str, text: str) -> None:
    assert found(text, code) == []


# --- what they say is so ---------------------------------------------------------------------------------------------


def spoiled(rule: updsl.Rule) -> set[str]:
    """The states that are not finite after steps on NaN in every gradient, and further steps on finite ones."""
    weights, steps = stream(rule, 9)
    state = rule.interpret.init(weights)
    for t, step in enumerate(steps):
        g = {n: np.full_like(x, np.nan) for n, x in step.g.items()} if 2 <= t < 6 else step.g
        state = rule.interpret.update(g, state, params=weights, lr=0.1, **step.inputs)[1]
    return {name for name, values in state.values.items() if not all(np.isfinite(x).all() for x in values.values() if not isinstance(x, tuple))}


LATER = {"rotated_adam.P"}
"""What is spoiled when its block runs next, after more steps than these."""


@pytest.mark.parametrize("name", sorted(set(updsl.library()) - {"sgd"}))
def test_a_bad_gradient_stays_where_it_is_said_to(name: str) -> None:
    """In sgd it stays in a momentum that, by default, nothing reads."""
    rule = updsl.load(name)
    said = [d.message for d in updsl.lint(rule) if d.code.startswith("nan-latch") and d.message.startswith("a gradient")]
    states = {s for message in said for s in re.findall(r"`([^`]+)`", message)}
    found = spoiled(rule)
    assert states <= found | LATER
    assert bool(states) == bool(found)


@pytest.mark.parametrize("name", [n for n in updsl.library() if "guard" in updsl.load(n).params])
def test_what_is_guarded_does_not_latch(name: str) -> None:
    assert not {d.code for d in updsl.lint(updsl.load(name))} & {"nan-latch", "zero-latch"}


@pytest.mark.parametrize(
    ("name", "codes"), [("zclip", {"nan-latch"}), ("adaclip", {"nan-latch"}), ("adagc", {"nan-latch", "zero-latch"}), ("adagn", {"nan-latch"})]
)
def test_what_is_not_guarded_does(name: str, codes: set[str]) -> None:
    assert {d.code for d in updsl.lint(updsl.load(name, guard=False))} == codes


def test_the_shortest_way_is_shown() -> None:
    (latch,) = updsl.lint(updsl.load("zclip", guard=False))
    assert latch.note_here == "g → norm → x → μ' → μ"


@pytest.mark.parametrize("text", CASES["nan-latch"][0] + CASES["nan-latch-entries"][0])
def test_a_latch_is_mended_as_its_help_says(text: str) -> None:
    (latch,) = (d for d in found(text) if d.code.startswith("nan-latch"))
    assert latch.help is not None
    line = latch.help.split("`")[1]
    block = text if text.startswith("rule") else f"rule f:\n    return {text}"
    head, *rest = block.split("\n")
    at = 1 if rest and rest[0].lstrip().startswith("input") else 0
    mended = "\n".join([head, *rest[:at], f"    {line}", *rest[at:]])
    assert not [d for d in found(mended) if d.code.startswith("nan-latch")]


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("clip norm > 1 → norm", "norm"),
        ("clip abs > 1 → sign", "sign"),
        ("0.5*g → adam(eps = 0)", "adam(eps = 0)"),
        ("norm per all → norm per column", "norm per column"),
    ],
)
def test_what_changes_nothing_changes_nothing(text: str, without: str) -> None:
    assert "changes nothing" in found(text, "inert-scale")[0].message
    for a, b in zip(outs(text), outs(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_only_weighs_steps_changes_something() -> None:
    (d,) = found("clip norm > 1 per all → adam(eps = 0)", "inert-scale")
    assert "bounds no step" in d.message
    clipped, plain = outs("clip norm > 1 per all → adam(eps = 0)"), outs("adam(eps = 0)")
    assert np.allclose(clipped[0], plain[0], rtol=1e-12)
    assert not np.allclose(clipped[-1], plain[-1], rtol=1e-3)
    assert max(np.linalg.norm(x) for x in clipped) > 1


@pytest.mark.parametrize("text", CASES["zero-latch"][0])
def test_what_latches_0_stands_still(text: str) -> None:
    rule = updsl.parse(text)
    weights, steps = stream(rule, 14)
    state = rule.interpret.init(weights)
    for t, step in enumerate(steps):
        g = {n: np.zeros_like(x) for n, x in step.g.items()} if t < 2 else step.g
        out, state, *_ = rule.interpret.update(g, state, params=weights, lr=0.1)
    assert all(not np.any(x) for x in out.values())


def outs(text: str) -> list[np.ndarray]:
    """What a rule gives for one tensor, on each step of a stream with a spike."""
    rule = updsl.parse(text)
    weights, steps = stream(rule)
    state, given = rule.interpret.init(weights), []
    for step in steps:
        out, state, *_ = rule.interpret.update(step.g, state, params=weights, lr=0.1)
        given.append(out[next(iter(out))])
    return given


# --- doors -----------------------------------------------------------------------------------------------------------


def test_lint_takes_a_rule_a_name_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.upd"
    path.write_text("clip norm > 1 → sign\n", encoding="utf-8")
    for rule in (updsl.load("mars_adamw"), "mars_adamw", updsl.load(str(path)), path, str(path)):
        assert "inert-scale" in {d.code for d in updsl.lint(rule)}
        assert {d.severity for d in updsl.lint(rule)} == {"warning"}
    assert updsl.lint("norm") == []


def test_a_rule_is_looked_at_with_its_parameters() -> None:
    text = "rule f(c = 1, eps = 1e-6):\n    x = g → clip norm > c\n    return x / (norm(x) + eps)"
    assert [d.code for d in updsl.lint(updsl.parse(text, c=1e-9))] == ["inert-scale", "bound-below-eps"]
    assert [d.code for d in updsl.lint(updsl.parse(text))] == ["inert-scale"]


def test_a_text_with_mistakes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.upd").write_text("clip norm > c\n", encoding="utf-8")
    with pytest.raises(UpdslError, match="unknown name or stage `c`"):
        updsl.lint(tmp_path / "mine.upd")


def test_all_rules_of_a_file_are_looked_at_and_parts_only_within_others() -> None:
    text = "rule a = clip norm > 1 → sign\n\nrule part(c) = clip norm > c\n\nrule f = part(2) → norm\n"
    assert [(d.code, d.span.line) for d in found(text)] == [("inert-scale", 1), ("inert-scale", 5)]


def check(run: Any, *arguments: str) -> tuple[int, set[str]]:
    code, out, _ = run("check", "--format", "json", *arguments, "f.upd")
    return code, {d["code"] for d in json.loads(out)["files"][0]["diagnostics"]}


@pytest.mark.usefixtures("here")
def test_check_warns_and_strict_counts(run: Any, here: Path) -> None:
    (here / "f.upd").write_text("clip norm > 1 → adam\n", encoding="utf-8")
    assert check(run) == (0, {"inert-scale"})
    assert check(run, "--strict") == (1, {"inert-scale"})
    assert check(run, "--lint") == (0, {"inert-scale", "nan-latch-entries"})
    (here / "f.upd").write_text("norm per column → clip z > 2.5 → EMA\n", encoding="utf-8")
    assert check(run, "--strict") == (0, set())
    assert check(run, "--strict", "--lint") == (1, {"nan-latch-entries"})


def test_the_page_lists_every_lint_and_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (folder("docs/errors").parent / "lints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([a-z-]+)`\]\(errors/([a-z-]+)\.md\) \| (.*) \|$", page, re.MULTILINE)
    assert [(code, file, doc.split("; told with")[0]) for code, file, doc in rows] == [(code, code, lint.doc) for code, lint in LINTS.items()]
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(block, {})
    assert capsys.readouterr().out.startswith("inert-scale 1 1 this clip changes nothing")


def test_only_what_is_true_of_most_methods_is_quiet() -> None:
    assert set(LINTS) - LOUD == {"nan-latch-entries"}


TRUE_OF_THE_LIBRARY = {
    "adafactor": {"nan-latch"},
    "adagrad_norm": {"nan-latch"},
    "adagrad_norm_rows": {"nan-latch"},
    "adaptive_dp_clip_with": {"nan-latch"},
    "gradnormlorp": {"nan-latch"},
    "gradnormlorp_with": {"nan-latch"},
    "lamb": {"inert-scale"},
    "lanton": {"nan-latch"},
    "mars_adamw": {"inert-scale"},
}
"""What is found in methods as they were published."""


def test_what_is_found_in_the_library() -> None:
    told = {n: {d.code for d in updsl.lint(n)} & LOUD for n in updsl.library()}
    assert {n: codes for n, codes in told.items() if codes} == TRUE_OF_THE_LIBRARY


# --- signs and ranges say what ops do --------------------------------------------------------------------------------

SAMPLES = {"nan": [np.nan], "-inf": [-np.inf], "-": [-2.5, -0.5], "0": [0.0], "+": [0.5, 2.5], "inf": [np.inf]}
"""Numbers of each kind."""
PLAIN = [op for op in OPS.values() if op.kind in ("elementwise", "reduction") and op.reference is not None]


def applied(op: Op) -> Expr:
    """The op of inputs a0, a1, …"""
    refs = tuple(Ref(f"a{i}", "input", GRID) for i in range(len(op.args)))
    if op.kind == "reduction":
        return Reduce(op.name, refs, TENSOR, Type(TENSOR, boolean=op.boolean), (2.0,) if op.static else ())
    return Apply(op.name, refs, Type(ELEMENT, "rows", "cols", boolean=op.boolean))


def calls(op: Op) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    """Kinds of arguments, and arguments of these kinds: two cells of each where it is a reduction."""
    for kinds in product(SAMPLES, repeat=len(op.args)):
        conditions = [op.conditions or (op.name == "select" and i == 0) for i in range(len(kinds))]
        if any(c and k not in "0+" for c, k in zip(conditions, kinds, strict=True)) or (op.name == "quantile" and kinds[1] not in "0+"):
            continue
        cells = [[1.0, 1.0] if c and k == "+" else (SAMPLES[k] * 2)[:2] for c, k in zip(conditions, kinds, strict=True)]
        if op.kind == "reduction":
            yield kinds, [np.array(c) if a not in op.numbers else np.array(min(1.0, c[0])) for a, c in zip(op.args, cells, strict=True)]
        else:
            yield from ((kinds, [np.array(x) for x in one]) for one in product(*cells))


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_signs_are_those_of_the_reference(op: Op) -> None:
    """But for what is not finite of finite operands: that is left out on purpose."""
    assert op.reference is not None
    module = updsl.parse("sign").module
    flow = Flow(module, programs_of(module, {})[0], {})
    for kinds, values in calls(op):
        with np.errstate(all="ignore"):
            result = float(op.reference(*values, **({"p": 2.0} if op.static else {})))
        found = Signs(flow, {f"input a{i}": frozenset((k,)) for i, k in enumerate(kinds)}).of(applied(op))
        if np.isfinite(result) or not all(np.isfinite(v).all() for v in values):
            assert kind(result) <= found, (kinds, values, result, found)


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_ranges_hold_the_reference(op: Op) -> None:
    assert op.reference is not None
    module = updsl.parse("sign").module
    flow = Flow(module, programs_of(module, {})[0], {})
    for kinds, values in calls(op):
        with np.errstate(all="ignore"):
            result = float(op.reference(*values, **({"p": 2.0} if op.static else {})))
        if "nan" not in kinds and not np.isnan(result):
            given = {f"input a{i}": (float(np.min(v)), float(np.max(v))) for i, v in enumerate(values)}
            low, high = Bounds(flow, given).of(applied(op))
            slack = 1e-12 * abs(result) if np.isfinite(result) else 0.0
            assert low - slack <= result <= high + slack, (values, result, (low, high))


@settings(max_examples=15)
@given(texts())
def test_random_files_are_looked_at(made: tuple[str, dict[str, str]]) -> None:
    assert {d.severity for d in found(made[0])} <= {"warning"}
