"""Laws that are proved, each with its false neighbour, which is refuted; and the arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

import updsl
from updsl.laws.verdict import Verdict

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
    "a turned state": ("rule f:\n    m = g → ema\n    return polar(m) * (norm(m) per tensor)", TURN, "rule(q @ g) == rule(g) for q orthogonal"),
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
