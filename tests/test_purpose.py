"""Three claims that people make of optimizers, and that are false, as laws: each is refuted by a stream that one can follow, and a mended one holds."""

from __future__ import annotations

from pathlib import Path

import pytest

import updsl
from updsl.laws.verdict import Verdict

EXAMPLES = 30
SPIKE = "if t == 1 and not isfinite(norm(g) per all) then g else if t < 4 then 1 else 1000"
"""A spike on the fourth step, after ones; the first gradient may be anything but finite."""

CLAIMS = {
    "zclip clips after a nan": (
        updsl.load("zclip").text,
        f"law no(warmup = 2, max_norm = inf, guard = false): t == 4 implies absmax(rule({SPIKE})) <= 10 for g any",
        f"law yes(warmup = 2, max_norm = inf, guard = true): t == 4 implies absmax(rule({SPIKE})) <= 10 for g any",
    ),
    "a clip in front of adam bounds its step": (
        "rule f(c = 0.5, eps = 1e-8) = clip norm > c per all → adam(eps = eps)",
        "law no: norm(out) <= c per all",
        "law yes(eps = 0): t == 1 and g != 0 implies rule(k*g) == rule(g) for k in [1e-3, 1e3]",
    ),
    "a clip in front of adam changes its step": (
        """rule f(c = 1, eps = 1e-8):
    clipped = g → clip norm > c per all → adam(eps = eps)
    return clipped - (g → adam(eps = eps))""",
        "law no(eps = 0): norm(g) > c per all implies out != 0",
        "law yes: t == 1 and g != 0 implies abs(out) <= eps*max(1, (norm(g) per all)/c)/abs(g)",
    ),
    "a norm with an eps does not depend on the scale": (
        "rule f(eps = 1e-3):\n    return g / (norm(g) + eps)",
        "law no: rule(k*g) == rule(g) for k in [1e-3, 1e3]",
        "law yes(eps = 0): norm(g) > 0 implies rule(k*g) == rule(g) for k in [1e-3, 1e3]",
    ),
    "neither does what the library's norm gives": (
        "rule f(eps = 0) = if eps > 0 then g / (norm(g) + eps) else (it → norm)",
        "law no(eps = 1e-3): rule(k*g) == rule(g) for k in [1e-3, 1e3]",
        "law yes: rule(k*g) == rule(g) for k in [1e-3, 1e3]",
    ),
}


def verdicts(tmp_path: Path, *texts: str) -> dict[str, Verdict]:
    file = tmp_path / "zclip.upd"
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return {v.law: v for v in updsl.check(file, examples=EXAMPLES)}


@pytest.mark.parametrize(("rule", "false", "true"), CLAIMS.values(), ids=CLAIMS)
def test_a_claim_is_refuted_and_its_mended_neighbour_holds(rule: str, false: str, true: str, tmp_path: Path) -> None:
    found = verdicts(tmp_path, rule, false, true)
    assert found["yes"].kind in ("tested", "proved"), str(found["yes"])
    assert found["yes"].counterexample is None, str(found["yes"])
    assert found["no"].kind == "refuted", str(found["no"])
    shown = found["no"].counterexample
    assert shown is not None
    assert sum(t.numel for t in shown.setting.tensors) <= 4
    assert len(shown.setting.steps) <= 6
    with pytest.raises(AssertionError, match="`no` does not hold at step"):
        exec(shown.snippet(), {})
