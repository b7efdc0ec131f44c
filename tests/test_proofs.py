"""Laws that are proved, each with its false neighbour, which is refuted; and the arguments."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import updsl
from updsl.laws.verdict import Verdict
from updsl.middle.algebra import Algebra

EXAMPLES = 40


def verdict(tmp_path: Path, rule: str, law: str, examples: int = EXAMPLES) -> Verdict:
    file = tmp_path / "mine.upd"
    file.write_text(f"{rule}\n\nlaw it: {law}\n", encoding="utf-8")
    (found,) = updsl.check(file, examples=examples)
    return found


ADAM = """rule f(beta1 = 0.9, beta2 = 0.999, eps = 1e-8):
    state m = 0, v = 0
    m ← beta1*m + (1 - beta1)*g
    v ← beta2*v + (1 - beta2)*g^2
    return m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)"""
ODD, EVEN = "rule(-g) == -rule(g)", "rule(-g) == rule(g)"
PERM, SCALED = "rule(p @ g) == p @ rule(g) for p permutation", "rule(k*g) == k*rule(g) for k in [-2, 2]"
TURN = "rule(q @ g) == q @ rule(g) for q orthogonal"

STRUCTURE = {
    "signs of states": (ADAM, ODD, EVEN),
    "an even rule": ("rule f = g^2 → ema", EVEN, ODD),
    "signs under a guard": ("rule f:\n    n = norm(g)\n    return if n == 0 then 0 else g / n", ODD, EVEN),
    "signs of weights that move": (
        "rule f(n = 2):\n    state slow = w\n    w ← w - lr*g\n    every n:\n        slow ← slow + (w - slow)/2\n        w ← slow",
        ODD,
        EVEN,
    ),
    "signs of a part": ("rule f = largest(g, 50%) → it * g", ODD, EVEN),
    "signs of clamps": ("rule f = clamp(g, -1, 1)", ODD, EVEN),
    "signs of several tensors": ("rule f:\n    match:\n        ndim > 1: g / (1 + norm(g) per all)\n        else: 2*g / (1 + norm(g) per all)", ODD, EVEN),
    "a skip": ("rule f:\n    state n = 0\n    skip when not isfinite(norm(g))\n    n ← n + norm(g)\n    return g * n", ODD, EVEN),
    "rows in another order": ("rule f = rms per row → rms per column → ema(0.9)", PERM, "rule(p @ g) == rule(g) for p permutation"),
    "rows of a state": (ADAM, PERM, "rule(p @ g) == rule(g) for p permutation"),
    "rows of a product": ("rule f = (g @ g.T) @ g", PERM, "rule(p @ g) == rule(g) for p permutation"),
    "a turned polar factor": ("rule f = polar(g)", TURN, "rule(q @ g) == rule(g) for q orthogonal"),
    "a turned state": ("rule f:\n    m = g → ema\n    return m / (1 + norm(m) per tensor)", TURN, "rule(q @ g) == rule(g) for q orthogonal"),
    "turned columns": ("rule f = norm per column", TURN, "rule(q @ g) == rule(g) for q orthogonal"),
    "a linear rule": ("rule f = ema(0.9) → nesterov", SCALED, "rule(k*g) == rule(g) for k in [-2, 2]"),
}


@pytest.mark.parametrize(("rule", "true", "false"), STRUCTURE.values(), ids=STRUCTURE)
def test_by_structure(rule: str, true: str, false: str, tmp_path: Path) -> None:
    found = verdict(tmp_path, rule, true)
    assert found.kind == "proved", str(found)
    assert found.detail.startswith("by structure: ")
    assert verdict(tmp_path, rule, false).kind == "refuted"


NOT_PROVED = {
    "a division by zero": ("rule f = g / norm(g)", ODD),
    "a root of what may be negative": ("rule f = g * sqrt(1 - norm(g))", ODD),
    "a number among the gradients": ("rule f = g + 1", ODD),
    "a sided clip": ("rule f = max(g, -1)", ODD),
    "one order of entries": ("rule f = largest(g, 50%) → it * g", PERM),
    "blocks": ("rule f = g * (1 + norm(g) per block(3))", PERM),
    "weights under another order": ("rule f = g + w", PERM),
    "columns in another order": ("rule f = norm per row", "rule(p @ g) == rule(g) for p permutation"),
    "a turned row": ("rule f = norm per row", TURN),
    "turned entries": ("rule f = sign", TURN),
    "another norm": ("rule f:\n    n = norm(g, 1)\n    return if n == 0 then 0 else g / n", TURN),
    "a state that starts at one": ("rule f:\n    state m = 1\n    m ← 0.9*m + 0.1*g\n    return m", ODD),
    "weights that move": ("rule f:\n    w ← w - lr*(g + 0.1*w)", ODD),
    "a root as a factor": ("rule f = g * norm(g)", SCALED),
    "a number that is fixed when the rule is made": (
        "rule f(k = 1):\n    let y = 0\n    every k:\n        y ← g^2\n    return y",
        "rule(-g) == rule(g) for k in [1, 1]",
    ),
    "any gradients": ("rule f = ema(0.9)", "rule(-g) == -rule(g) for g any"),
}


@pytest.mark.parametrize(("rule", "law"), NOT_PROVED.values(), ids=NOT_PROVED)
def test_what_does_not_hold_is_not_proved(rule: str, law: str, tmp_path: Path) -> None:
    assert verdict(tmp_path, rule, law, 8).kind != "proved"


CLIP = {
    f"a clip by {measure} {scope}".strip(): (f"rule f(c = 2) = clip {measure} > c {scope}".rstrip(), f"{measure}({{}}) <= c {scope}".rstrip())
    for measure, scopes in {
        "norm": ("per all", "per group", "per tensor", "per row", "per column", "per block(3)"),
        "abs": ("",),
        "rms": ("per tensor", "per row"),
        "absmax": ("per tensor", "per column", "per all"),
        "max": ("per tensor",),
        "std": ("per tensor",),
    }.items()
    for scope in scopes
}


@pytest.mark.parametrize(("rule", "bound"), CLIP.values(), ids=CLIP)
def test_a_clip_bounds_what_it_measures_and_leaves_all_else_alone(rule: str, bound: str, tmp_path: Path) -> None:
    for law in (bound.format("out"), f"{bound.format('g')} implies out == g"):
        found = verdict(tmp_path, rule, law)
        assert found.kind == "proved", str(found)
        assert found.detail.startswith("by algebra: ")
    for law in (bound.format("out").replace("<= c", "<= c/2"), f"{bound.format('g')} implies out == g".replace("<= c", "<= 2*c")):
        assert verdict(tmp_path, rule, law).kind == "refuted"


ALGEBRA = {
    "a unit norm": ("rule f = norm", "norm(g) > 0 implies norm(out) == 1", "norm(out) == 1"),
    "unit columns": (
        "rule f = norm per column",
        "norm(g) > 0 per column implies norm(out) == 1 per column",
        "norm(g) > 0 per column implies norm(out) == 1 per row",
    ),
    "a unit root mean square": (
        "rule f = rms per row",
        "rms(g) > 0 per row implies rms(out) == 1 per row",
        "rms(g) > 0 per row implies norm(out) == 1 per row",
    ),
    "a norm taken twice": ("rule f = norm per column", "rule(rule(g)) == rule(g)", "rule(rule(g)) == g"),
    "a root mean square taken twice": ("rule f = rms", "rule(rule(g)) == rule(g)", "rule(rule(g)) == 2*rule(g)"),
    "a center taken twice": ("rule f = g - mean(g)", "rule(rule(g)) == rule(g)", "rule(rule(g)) == g"),
    "a clip taken twice": ("rule f = clip abs > 1", "rule(rule(g)) == rule(g)", "rule(rule(g)) == g"),
    "a scale that goes out": ("rule f = norm per column", "rule(k*g) == rule(g) for k in [0.5, 8]", "rule(k*g) == rule(g) for k in [-8, 8]"),
    "an average of a constant": ("rule f = ema(0.9)", "rule(k + 0*g) == k for k in [-2, 2]", "rule(k + g) == k for k in [-2, 2]"),
    "an average of the weights": ("rule f = ema(0.9)", "rule(w) == w", "rule(w) == w/2"),
    "an average of sums": ("rule f = ema(0.9)", "rule(2*g + 3*w) == 2*rule(g) + 3*rule(w)", "rule(g^2) == rule(g)^2"),
    "an average under the largest": (
        "rule f = ema(0.9)",
        "abs(rule(clamp(g, -k, k))) <= k for k in [0, 5]",
        "abs(rule(clamp(g, -k, k))) <= k/2 for k in [1, 5]",
    ),
    "an average without its correction": ("rule f = norm → ema(0.9, debias = false)", "norm(out) <= 1", "norm(out) <= 0.05"),
    "signs": ("rule f = sign", "abs(out) <= 1", "abs(out) <= 0.5"),
    "lion": ("rule f = lion", "abs(out) <= lr", "abs(out) <= lr/2"),
    "adam at first": (ADAM, "t == 1 implies abs(out) <= 1", "t == 1 implies abs(out) <= 0.5"),
    "adam": (ADAM, "abs(out) <= (1 - beta1) / sqrt((1 - beta2)*(1 - beta1^2/beta2))", "abs(out) <= 0.5"),
    "columns after a round": (
        "rule f = repeat 2 times (rms per row → rms per column)",
        "rms(out) == 1 or rms(out) == 0 per column",
        "rms(out) == 1 or rms(out) == 0 per row",
    ),
    "bounded after anything": ("rule f = adam → norm per column → ema → clip norm > 1 per tensor", "norm(out) <= 1 per tensor", "norm(out) <= 0.9 per tensor"),
    "bounded before an average": ("rule f = clip norm > 1 per tensor → ema", "norm(out) <= 1 per tensor", "norm(out) <= 0.9 per tensor"),
    "bounded after what is not a number": ("rule f = g / (1 + norm(g)) → clip abs > 0.5", "abs(out) <= 0.5", "abs(out) <= 0.4"),
    "a sum of bounded parts": ("rule f = (g → clip norm > 1 per all) + (g → sign → clip norm > 2 per all)", "norm(out) <= 3 per all", "norm(out) <= 2 per all"),
    "a clip with eps": ("rule f(c = 1, eps = 1e-6) = g * min(1, c / (norm(g) + eps)) per all", "norm(out) <= c per all", "norm(out) <= c/2 per all"),
    "a divisor held above eps": ("rule f(eps = 1e-3) = g / max(norm(g), eps)", "norm(out) <= 1", "norm(out) <= 0.5"),
    "an arm for each": (
        "rule f:\n    match:\n        ndim > 1: norm per row\n        else: sign",
        "ndim > 1 implies norm(out) <= 1 per row",
        "norm(out) <= 1 per tensor",
    ),
    "samples": (
        "rule f(c = 1):\n    input samples\n    return sample_mean(samples → clip norm > c per all)",
        "norm(out) <= c per all",
        "norm(out) <= c/2 per all",
    ),
    "a warm-up": ("rule f(warmup = 3) = if t <= warmup then g else sign(g)", "t <= warmup implies out == g", "t <= warmup + 1 implies out == g"),
    "every few steps": (
        "rule f(n = 3):\n    let y = 0\n    every n:\n        y ← g\n    return y",
        "mod(t, n) != 0 implies out == 0",
        "mod(t, n) == 0 implies out == 0",
    ),
    "a clip of a centre": ("rule f = clip z > 2", "abs(out - mean(g)) <= 2*std(g)", "abs(out - mean(g)) <= std(g)"),
}


@pytest.mark.parametrize(("rule", "true", "false"), ALGEBRA.values(), ids=ALGEBRA)
def test_by_algebra(rule: str, true: str, false: str, tmp_path: Path) -> None:
    found = verdict(tmp_path, rule, true)
    assert found.kind == "proved", str(found)
    assert verdict(tmp_path, rule, false, 80).kind == "refuted"


COUNTED = {
    "entries that are all the same": ("rule f = 0*g + 1", "norm(out) <= 1"),
    "a sum of what has one number for each row": ("rule f = g + (norm(g) per row)", "sum(out) == sum(g) + (sum(norm(g) per row))"),
    "a row that is spread": ("rule f = g + (norm(g) per row)", "norm(out) <= norm(g) + norm(norm(g) per row)"),
    "a fact of an entry in a product": ("rule f = if g > 0 then g @ g.T @ g else 0", "out >= 0"),
    "a fact of an entry in a reduction": ("rule f = if g > 1 then sum(g) else 0", "out >= 0"),
    "a fact of today in an average": ("rule f:\n    m = g → ema\n    return if g > 1 then m else 0", "out >= 0"),
    "what is infinite at times": ("rule f = 0 / norm(g) * g", "out == 0"),
    "what cancels and is no number": ("rule f = g / norm(g) - g / norm(g)", "out == 0"),
    "tensors of one entry": ("rule f = if numel == 1 then 2*g else g", "out == g"),
    "square tensors": ("rule f = if rows == cols then 2*g else g", "out == g"),
    "tensors of three dimensions": ("rule f = g", "ndim == 3 implies out == 2*g"),
    "a name that only the law asks for": ("rule f = g", 'name == "bias" implies out == 2*g'),
    "how many tensors there are": ("rule part = g / tensors\nrule f = part", "out == g"),
    "a root squared": ("rule f = sqrt(g)^2", "out == g"),
}


@pytest.mark.parametrize(("rule", "law"), COUNTED.values(), ids=COUNTED)
def test_what_only_seems_to_hold_is_not_proved(rule: str, law: str, tmp_path: Path) -> None:
    found = verdict(tmp_path, rule, law, 100)
    assert found.kind in ("refuted", "vacuous"), str(found)
    assert "by " not in found.detail, str(found)


def test_algebra_answers_after_a_question_that_took_too_long() -> None:
    x, parts = ["symbol", "x", "positive"], [["symbol", f"a{i}", "real"] for i in range(21)]
    one = ["add", ["mul", x, ["power", x, "-1"]], ["number", "-1"]]
    algebra = Algebra()
    assert algebra.is_zero(one)
    assert not algebra.is_zero(x)
    assert algebra.is_nonnegative(["mul", x, ["power", parts[0], "2"]])
    assert not algebra.is_nonnegative(parts[0])
    algebra.patience = 0.5
    assert algebra.ask("zero", ["add", *(["power", ["add", a, b, ["number", "1"]], "-1"] for a, b in pairwise(parts))]) is None
    assert algebra.process is None
    algebra.patience = 30
    assert algebra.is_zero(one)
    algebra.close()


def test_algebra_does_not_evaluate_text() -> None:
    algebra = Algebra(30)
    assert algebra.ask("zero", ["number", "__import__('os')"]) is None
    assert algebra.is_zero(["number", "0"])
    algebra.close()
