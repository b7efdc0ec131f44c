"""Units: what carries them, what contradicts, and that rules scale as their units say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from agreement import Step, run
from test_cpp import SHAPES, inputs_of

import updsl
from updsl import pipeline
from updsl.core.frame import Tensor
from updsl.core.ir import Apply, Binding, Const, Every, Expr, Program, Ref, Statement, rewrite
from updsl.front import regex
from updsl.front.elaborate import Elaborated
from updsl.front.exponents import NONE, Equations, Exponents, Linear, unknown
from updsl.front.units import Inference, Units, units_of


def of(text: str, **params: Any) -> Units:
    rule = updsl.parse(text, **params)
    return units_of(rule.module, rule.params)


def carried(units: Units) -> dict[str, str]:
    return {c.name or c.span.text: str(c.unit) for c in units.carriers}


# --- what carries a unit ---------------------------------------------------------------------------------------------


def test_eps_of_adam_carries_the_gradient() -> None:
    assert carried(updsl.units("adam")) == {"eps": "[g]"}
    assert updsl.units("adam").out == NONE


def test_the_bound_of_a_clip_carries_the_gradient() -> None:
    assert carried(of("clip norm > 2 per all")) == {"2": "[g]"}
    assert str(of("clip norm > 2 per all").out) == "[g]"


def test_lr_of_adamw_carries_the_weight() -> None:
    units = updsl.units("adamw")
    assert {n: str(u) for n, u in units.parameters.items() if u != NONE} == {"eps": "[g]", "lr": "[w]", "weight_decay": "[w]^-1"}
    assert str(units.out) == "[w]"


def test_what_is_printed() -> None:
    said = ["out: [w]", "eps = 1e-08: [g]", "weight_decay = 0.01: [w]^-1", "lr: [w]", "behaves differently at another loss scale, through `eps`"]
    assert list(updsl.units("adamw").lines()) == said


def test_a_literal_factor_has_none_and_a_literal_term_what_it_must() -> None:
    assert carried(of("rule f:\n    return 3*g + 0.5")) == {"0.5": "[g]"}
    assert carried(of("rule f:\n    return g^2 + 0.5")) == {"0.5": "[g]^2"}


def test_each_application_has_unknowns_of_its_own() -> None:
    text = "fn soft(x) = x / (abs(x) + 1e-3)\nrule f:\n    return soft(g) + soft(g^2)"
    units = of(text)
    assert not units.conflicts
    assert sorted(str(c.unit) for c in units.carriers) == ["[g]", "[g]^2"]
    assert not of("rule part(c = 1):\n    return g / (abs(g) + c)\nrule main:\n    return (g → part) + (g^2 → part)").conflicts


def test_zero_and_infinity_have_any_unit() -> None:
    units = of("rule f(cap = inf):\n    return min(g + 0, cap)")
    assert units.equivariant
    assert not of("rule f(cap = 2):\n    return min(g + 0, cap)").equivariant


def test_a_let_has_the_unit_of_its_latest_value() -> None:
    assert not of("rule f:\n    let x = g\n    x ← x * g\n    x ← x / norm(x)\n    return x + 1").conflicts


def test_a_state_has_one_unit() -> None:
    assert str(of("rule f:\n    state v = 0\n    v ← 0.9*v + g^2\n    return v").states["v"]) == "[g]^2"
    assert of("rule f:\n    state v = 0\n    v ← 0.9*v + g*v + g\n    return v").conflicts


def test_literals_have_none_where_they_may_then_parameters() -> None:
    units = of("rule f(a = 2):\n    return a * g * (1 + 0.5)")
    assert carried(units) == {}
    assert carried(of("rule f(a = 2):\n    return a * g + 0.5*1")) == {"a": "[g]^-1"}


def test_the_base_of_a_power_that_varies_has_none() -> None:
    assert not of("rule f(beta = 0.9):\n    return g / (1 - beta^t)").conflicts
    assert of("rule f:\n    return g^t").conflicts


def test_a_fixed_power_counts() -> None:
    assert str(of("rule f(p = 3):\n    return abs(g)^p").out) == "[g]^3"
    assert str(of("rule f:\n    return sqrt(abs(g))").out) == "[g]^1/2"


def test_every_arm_counts() -> None:
    text = 'rule f(c = 1):\n    match:\n        name ~ "^lm_head": clip norm > c\n        else: norm'
    assert carried(of(text)) == {"c": "[g]"}


# --- contradictions --------------------------------------------------------------------------------------------------


def test_a_sum_of_different_units_is_reported_where_it_stands() -> None:
    units = of("rule f:\n    x = g + g^2\n    return x")
    (found,) = units.conflicts
    assert (found.message, found.span.text, found.severity) == ("this adds [g] and [g]^2", "g + g^2", "warning")
    assert not units.equivariant


def test_functions_of_numbers_take_no_units() -> None:
    (found,) = of("rule f:\n    return exp(g)").conflicts
    assert found.message == "`exp` takes what has no unit, and this is [g]"
    assert not of("rule f:\n    return tanh(g / norm(g))").conflicts


def test_a_rule_with_a_contradiction_still_runs() -> None:
    rule = updsl.parse("rule f:\n    return g + g^2")
    w = {"x": np.ones(3)}
    out, *_ = rule.interpret.update({"x": np.full(3, 2.0)}, rule.interpret.init(w), w)
    assert out["x"].tolist() == [6.0, 6.0, 6.0]


def test_check_warns_and_explain_says(tmp_path) -> None:
    from updsl.laws.check import check_file

    file = tmp_path / "f.upd"
    file.write_text("rule f:\n    return g + g^2\n", encoding="utf-8")
    assert [(d.code, d.span.line, d.severity) for d in check_file(file)] == [("unit-conflict", 2, "warning")]
    assert "eps = 1e-08: [g]" in updsl.explain("adam")


# --- equations -------------------------------------------------------------------------------------------------------


def test_unknowns_of_low_ranks_are_solved_for_first() -> None:
    e, (a, b, c) = Equations(), (unknown(rank, "x") for rank in (1, 2, 3))
    assert e.add(a.plus(b).plus(c), Linear(Exponents(Fraction(1), Fraction(0))))
    assert [str(e.value(x)) for x in (a, b, c)] == ["[g]", "no unit", "no unit"]


def test_what_contradicts_is_left_out() -> None:
    e, a = Equations(), unknown(1, "a")
    assert e.add(a, Linear(Exponents(g=Fraction(2))))
    assert not e.add(a, Linear())
    assert str(e.value(a)) == "[g]^2"


@pytest.mark.parametrize("pattern", ["^lm_head", "a|b", r"layer\.\d+\.(q|k)_proj$", "x{3}", "[^a-z]", ".", "^$", "(bias|norm)+$"])
def test_a_name_that_matches(pattern: str) -> None:
    found = regex.example(pattern)
    assert found is not None
    assert regex.search(pattern, found)


def test_a_pattern_that_nothing_matches() -> None:
    assert regex.example("a^b") is None


# --- rules scale as their units say ----------------------------------------------------------------------------------

KG, KW = 2.0**8, 2.0**-8
"""Powers of two whose roots, up to the eighth, are too: no rounding changes."""


class Scaled:
    """Elaborates as before, with every literal, parameter and input scaled by its unit; found: the units."""

    def __init__(self, elaborate: Callable[..., Elaborated], kg: float, kw: float):
        self.elaborate, self.kg, self.kw = elaborate, kg, kw
        self.inference: Inference | None = None

    def __call__(self, *args: Any, **more: Any) -> Elaborated:
        elaborated = self.elaborate(*args, **more)
        self.inference = Inference(elaborated.programs, args[2])
        return replace(elaborated, programs=tuple(self.program(c, p) for c, p in enumerate(elaborated.programs)))

    def program(self, c: int, p: Program) -> Program:
        assert self.inference is not None
        units = self.inference.units()

        def factor(u: Exponents) -> float:
            return u.of(self.kg, self.kw)

        def one(n: Expr) -> Expr:
            match n:
                case Const(value=float(v)):
                    assert self.inference is not None
                    return Const(v * factor(self.inference.scale(c, n)))
                case Ref(name, "param" | "input") | Ref("lr" as name, "builtin"):
                    unit = (units.parameters if n.kind != "input" else units.inputs).get(name, NONE)
                    return n if unit == NONE else Apply("mul", (Const(factor(unit)), n), n.type)
                case _:
                    return n

        def e(x: Expr) -> Expr:
            return rewrite(x, one)

        def body(statements: tuple[Statement, ...]) -> Iterator[Statement]:
            for s in statements:
                match s:
                    case Binding():
                        yield replace(s, expr=e(s.expr))
                    case Every():
                        yield replace(s, body=tuple(body(s.body)), yields=tuple(replace(y, inner=e(y.inner), outer=e(y.outer)) for y in s.yields))

        return replace(
            p,
            states=tuple(s if s.init is None else replace(s, init=e(s.init)) for s in p.states),
            body=tuple(body(p.body)),
            commits=tuple((name, e(x)) for name, x in p.commits),
            out=None if p.out is None else e(p.out),
            weight=None if p.weight is None else e(p.weight),
            watches=tuple(replace(w, expr=e(w.expr)) for w in p.watches),
        )


def scales(
    make: Callable[[], updsl.Rule], weights: Mapping[str, np.ndarray], steps: tuple[Step, ...], exact: bool, patch: pytest.MonkeyPatch, **more: Any
) -> None:
    """Outputs and weights of a run that is scaled, against those of one that is not."""
    plain = run(make(), "interpret", weights, steps, **more)
    scaled = Scaled(pipeline.elaborate, KG, KW)
    with patch.context() as p:
        p.setattr(pipeline, "elaborate", scaled)
        larger = tuple(replace(s, g={n: KG * x for n, x in s.g.items()}) for s in steps)
        found = run(make(), "interpret", {n: KW * w for n, w in weights.items()}, larger, **more)
    assert scaled.inference is not None
    units = scaled.inference.units()
    assert not units.conflicts
    for a, b in zip(found, plain, strict=True):
        for n in b.out:
            close(a.out[n], units.out.of(KG, KW) * b.out[n], exact)
            close(a.w[n], KW * b.w[n], exact)


def close(a: np.ndarray, b: np.ndarray, exact: bool) -> None:
    np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-9, atol=0 if exact else 1e-9 * np.abs(b[np.isfinite(b)]).max(initial=0.0))


def stream(rule: updsl.Rule, steps: int = 6) -> tuple[dict[str, np.ndarray], tuple[Step, ...]]:
    rng = np.random.default_rng(1)
    weights = {n: rng.standard_normal(s) for n, s in SHAPES.items()}
    taken = []
    for t in range(steps):
        g = {n: rng.standard_normal(s) * (30.0 if t == 3 else 1.0) for n, s in SHAPES.items()}
        given_ = inputs_of(rule, 100 * t, {n: torch.tensor(x) for n, x in g.items()})
        if rule.name == "tract":
            given_["gram"] = {n: torch.eye(Tensor(n, SHAPES[n]).grid[1]).double() for n in given_["gram"]}
        taken.append(Step(g, {k: v if isinstance(v, float) else {n: x.numpy() for n, x in v.items()} for k, v in given_.items()}))
    return weights, tuple(taken)


CONTRADICT = frozenset("adabelief adafactor adagn adamp diffgrad friction lamb radam sgdp shampoo sinkgd stable_spam stable_spam_paper".split())
"""Rules that add or choose between different units, as published."""


@pytest.mark.parametrize("name", [n for n in updsl.library() if n not in CONTRADICT])
def test_a_rule_of_the_library_scales_as_its_units_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scales(lambda: updsl.load(name), *stream(updsl.load(name)), exact=True, patch=monkeypatch, lr=0.1)


def test_rules_of_the_library_that_contradict_themselves() -> None:
    assert {n for n in updsl.library() if updsl.units(n).conflicts} == CONTRADICT


TEXTS = {
    "pipeline": "norm per column → clip z > 2.5 → ema(0.9)",
    "functions": "fn soft(x, c) = x / (abs(x) + c)\nrule f(c = 0.5):\n    return soft(g, c) + soft(g^2, 1e-3) + soft(sqrt(abs(g)), 2)",
    "rounds": "rule f:\n    let x = g\n    repeat 3 times:\n        x ← x / (rms(x) + 0.25)\n    return x",
    "blocks": "rule f:\n    state s = 1\n    every 2:\n        s ← 0.5*s + 0.5*norm(g) + 0.1\n    return g / s",
    "windows": "rule f:\n    c = median(norm(g) → history(3))\n    return g → clip norm > 1.5*c + 0.2",
    "arms": 'rule f(c = 2):\n    match:\n        name ~ "bias": clip abs > c\n        ndim > 1: clip norm > 3*c per row\n        else: g',
    "skips": "rule f(z = 3):\n    state m = 0\n    x = norm(g) per all\n    skip when t > 2 and x > z*m\n    m ← 0.9*m + 0.1*x\n    return g / (m + 1)",
    "weights": "rule f(decay = 0.1, eps = 1e-6):\n    w ← w - lr*(g / (norm(g) + eps) + decay*w) - 1e-3*sign(w)*norm(w)",
    "choices": "rule f(c = 1):\n    return if abs(g) > 0.5 then min(g, c) else clamp(g, -0.25, 4)",
    "powers": "rule f(p = 3):\n    return (abs(g)^p + 0.5)^(1/p) * sign(g) + var(g)^0.5",
    "quantiles": "rule f(q = 80%):\n    return (g → clip abs > quantile(abs(it), q)) - 0.1",
    "draws": "rule f(sigma = 0.5):\n    return g + gaussian(sigma) + uniform(-1, 1)*norm(g)",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_scales_as_its_units_say(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scales(lambda: updsl.parse(text), *stream(updsl.parse(text)), exact="^p" not in text, patch=monkeypatch, lr=0.1)
