"""Every rule of the library against an independent statement of its maths, over streams with spikes, zeros, ties and late starts; its examples; its form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Run
from reference.clipping import QUEST, best_step, clipping
from reference.normalizing import normalizing
from reference.optimizers import optimizers
from reference.private import private
from reference.projecting import projecting
from reference.stages import stages

import updsl
from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.laws.examples import run

RULES = sorted(updsl.library())
FOLDER = Path(__file__).parent.parent / "rules"
STEPS, LR = 30, 0.02
SHAPES = {"body.weight": (4, 3), "embed_tokens.weight": (3, 5), "lm_head.weight": (4, 4), "norm.bias": (5,), "conv.weight": (2, 3, 2)}
REFERENCES = {**stages, **clipping, **normalizing, **optimizers, **projecting, **private}
OFF = float("inf")

SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "norm": [{}, {"p": 1}, {"p": OFF}],
    "standardize": [{}, {"eps": 0.1}, {"eps": 1}],
    "scale_by": [{}, {"x": -2}, {"x": 0}],
    "ema": [{}, {"beta": 0.5}, {"beta": 0.99, "debias": False}],
    "momentum": [{}, {"beta": 0.5}, {"beta": 0.8, "dampening": 0.5}],
    "nesterov": [{}, {"beta": 0.5}, {"beta": 0.8, "dampening": 0.5}],
    "prev": [{}, {"start": 1}, {"start": -2}],
    "delay": [{}, {"n": 2}, {"n": 5}],
    "clip_norm": [{}, {"max_norm": 4}, {"max_norm": 20}],
    "clip_value": [{}, {"max_value": 0.1}, {"max_value": 5}],
    "clip_z": [{}, {"z_max": 1}, {"z_max": 0.3}],
    "sparsify": [{}, {"fraction": 0.5}, {"fraction": 1}],
    "quantize": [{}, {"bits": 3, "group_size": 4}, {"bits": 2, "group_size": 1}],
    "orthogonalize": [{}, {"steps": 1}, {"steps": 2}],
    "whiten": [{}, {"steps": 6, "beta": 0.5}, {"steps": 2, "beta": 0.4}],
    "growth_limit": [{}, {"ratio": 1.5}, {"ratio": 1.1, "eps": 0.1}],
    "weight_decay": [{}, {"rate": 1}, {"rate": 0}],
    "trust_ratio": [{}, {"eps": 0.1}, {"cap": 0.5}],
    "accumulate": [{}, {"n": 2}, {"n": 1}],
    "clip_grad_norm": [{}, {"max_norm": 5, "p": 1}, {"max_norm": 0.3, "p": OFF, "eps": 0.1}],
    "clip_grad_value": [{}, {"max_value": 0.1}, {"max_value": 5}],
    "agc": [{}, {"factor": 0.5}, {"factor": 0.1, "eps": 1}],
    "autoclip": [{}, {"p": 0.5}, {"p": 0.9, "window": 5}],
    "zclip": [
        {},
        {"warmup": 5, "max_norm": OFF},
        {"warmup": 5, "max_norm": 8, "z_thresh": 1, "factor": 0.7},
        {"warmup": 5, "max_norm": OFF, "option": "mean", "z_thresh": 1},
        {"warmup": 5, "max_norm": OFF, "mode": "percentile"},
        {"warmup": 1, "max_norm": OFF, "mode": "percentile", "z_thresh": 1, "skip_update": True, "alpha": 0.8},
    ],
    "adagc": [{"warmup": 5}, {"warmup": 0, "beta": 0.9}, {"warmup": 12, "ratio": 1.2, "max_norm": 4}, {}],
    "adagc_global": [{"warmup": 5}, {"warmup": 0, "beta": 0.9}, {"warmup": 12, "ratio": 1.2, "max_norm": 4}, {}],
    "spam_clip": [
        {},
        {"threshold": 20, "accumulate": 3, "gap": 10},
        {"threshold": 5, "beta2": 0.9, "accumulate": 1, "gap": 7},
        {"threshold": 5, "accumulate": 2, "guard": False},
    ],
    "adaclip": [{}, {"gamma": 0.5}, {"gamma": 0.9}],
    "adagn": [{}, {"gamma1": 0.5, "gamma2": 0.5}, {"eps": 0.1}],
    "layer_clip": [{}, {"weights": "dim"}, {"max_norm": 5}],
    "quest_mask": [{}, {"bits": 2, "trust": 0.5}, {"bits": 1, "trust": 2}, {"bits": 3}],
    "spike_skip": [{}, {"warmup": 5, "z_thresh": 2}, {"warmup": 3, "z_thresh": 1, "alpha": 0.5}],
    "normalized": [{}, {"eps": 1}, {"eps": 1e-12}],
    "sinkgd": [{}, {"rounds": 1}, {"rounds": 2, "eps": 0.1}],
    "swan": [{}, {"steps": 4}, {"steps": 6, "beta": 0.5}],
    "swan_centered": [{}, {"steps": 3}, {"steps": 10, "beta": 0.4}],
    "scale": [{}, {"last": "body", "beta": 0.5}, {"embed": "conv", "eps": 0.1}],
    "balance": [{}, {"beta": 0}, {"beta": 0.5, "sigma": 0}],
    "orthogonal_gradient": [{}],
    "tract": [{}, {"damping": 1}, {"damping": 0.01}],
    "sgd": [{}, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, {"momentum": 0.8, "nesterov": True}],
    "adam": [{}, {"beta1": 0.5, "beta2": 0.9}, {"eps": 0.1}],
    "amsgrad": [{}, {"beta1": 0.5, "beta2": 0.9}, {"eps": 0.1}],
    "adamw": [{}, {"beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1}, {"eps": 0.1, "weight_decay": 0}],
    "nadam": [{}, {"momentum_decay": 0.1, "beta1": 0.8}, {"weight_decay": 0.1}],
    "radam": [{}, {"beta2": 0.9}, {"weight_decay": 0.1, "beta1": 0.5}],
    "adamax": [{}, {"beta1": 0.5, "beta2": 0.9}, {"weight_decay": 0.1, "eps": 0.1}],
    "adagrad": [{}, {"lr_decay": 0.1, "initial": 0.5}, {"weight_decay": 0.1, "eps": 0.1}],
    "rmsprop": [{}, {"alpha": 0.9, "centered": True, "momentum": 0.9}, {"weight_decay": 0.1, "momentum": 0.5, "eps": 0.1}],
    "adafactor": [{}, {"weight_decay": 0.1, "d": 2}, {"beta2_decay": -0.5, "eps2": 0.1, "eps1": 1e-3}],
    "lion": [{}, {"beta1": 0.5, "weight_decay": 0.1}, {"beta2": 0.5}],
    "signum": [{}, {"beta": 0.5}, {"beta": 0}],
    "lamb": [{}, {"weight_decay": 0.1, "max_norm": OFF}, {"weight_decay": 0.1, "cap": 1}, {"weight_decay": 0}],
    "lars": [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "larc": True, "trust": 0.1},
        {"weight_decay": 0.01, "nesterov": True},
        {"momentum": 0, "weight_decay": 0.1},
    ],
    "muon": [{}, {"nesterov": False, "weight_decay": 0.1}, {"beta": 0.5, "steps": 2}],
    "adamp": [{"weight_decay": 0.1}, {"delta": 1.2, "nesterov": True, "weight_decay": 0.1}, {"delta": 0.7, "wd_ratio": 0.5, "weight_decay": 0.1}],
    "sgdp": [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "delta": 1.2, "nesterov": True},
        {"momentum": 0.5, "delta": 0.7, "dampening": 0.2, "weight_decay": 0.1},
    ],
    "diffgrad": [{}, {"weight_decay": 0.1}, {"beta1": 0.5, "beta2": 0.9, "eps": 0.1}],
    "adagrad_norm": [{}, {"initial": 1}, {"initial": 10}],
    "adagrad_norm_rows": [{}, {"initial": 1}, {"eps": 0.1}],
    "spam": [
        {},
        {"warmup": 4, "threshold": 50, "gap": 10, "accumulate": 3, "weight_decay": 0.1},
        {"threshold": 5, "beta2": 0.9, "accumulate": 2, "guard": False},
        {"threshold": 5, "gap": 9, "accumulate": 2},
    ],
    "stable_spam": [{}, {"gap": 10, "weight_decay": 0.1}, {"gap": 7, "total": 30, "gamma3": 0.9}, {"gap": OFF, "gamma1": 0.5, "gamma2": 0.5}],
    "stable_spam_paper": [{}, {"gap": 10, "weight_decay": 0.1}, {"gap": OFF, "gamma3": 0.9}],
    "sophia": [{}, {"every_k": 3, "rho": 10}, {"every_k": 1, "batch_size": 4, "weight_decay": 0}],
    "scion": [{}, {"constrained": False, "scale": 3}, {"beta": 0}],
    "lanton": [{}, {"alpha": 5}, {"beta1": 0.5, "beta2": 0.5}],
    "nap_sgd": [{}, {"momentum": 0}, {"momentum": 0.5}],
    "nap_adam": [{}, {"beta1": 0.5}, {"eps": 0.1}],
    "schedule_free_sgd": [{}, {"warmup": 5, "weight_decay": 0.1}, {"beta": 0.5}],
    "schedule_free_adamw": [{}, {"warmup": 5, "weight_decay": 0.1}, {"beta": 0.5, "eps": 0.1}],
    "npg_igt": [{}, {"eta": 0.5}, {"gamma": 0.1}],
    "shampoo": [{"eps": 0.1}, {"gap": 5, "beta1": 0.9, "eps": 0.1}, {"weight_decay": 0.1, "gap": 4, "eps": 0.01}],
    "ademamix": [{}, {"warmup": 10, "beta3": 0.99}, {"alpha": 1, "weight_decay": 0.1}],
    "adopt": [{}, {"beta1": 0.5, "beta2": 0.9}, {"eps": 0.5}],
    "adabelief": [{}, {"beta1": 0.5}, {"eps": 1e-3}],
    "mars_adamw": [{}, {"gamma": 0.1, "weight_decay": 0.1}, {"beta1": 0.5}],
    "cautious_adamw": [{}, {"weight_decay": 0.1}, {"beta1": 0.99}],
    "grokfast": [{}, {"alpha": 0.5}, {"gain": 0.1}],
    "lookahead": [{}, {"k": 2}, {"alpha": 0.8, "k": 3}],
    "galore": [{"rank": 2}, {"rank": 1, "gap": 7, "scale": 1}, {"gap": 5, "beta2": 0.9}],
    "fira": [{"rank": 2}, {"rank": 1, "gap": 7, "ratio": 1.5}, {"rank": 2, "gap": 5, "beta2": 0.9}],
    "gradnormlorp": [{"rank": 2}, {"rank": 1, "gap": 7, "scale": 0.25}, {"gap": 5, "beta2": 0.9}],
    "galore_with": [{}, {"scale": 1, "beta1": 0.5}, {"eps": 0.1, "beta2": 0.9}],
    "fira_with": [{}, {"scale": 1, "ratio": 1.5}, {"eps": 0.1, "beta2": 0.9}],
    "apollo_with": [{}, {"scale": 4, "per_channel": False}, {"eps": 0.1, "beta2": 0.9}],
    "conda": [{}, {"gap": 10}, {"scale": 0.25, "gap": 7, "beta2": 0.9}],
    "gradnormlorp_with": [{}, {"scale": 0.25}, {"beta1": 0.5, "eps": 0.1}],
    "dp_sgd_with": [{}, {"max_norm": 5, "noise": 0.5}, {"expected_batch": 10, "eps": 0.1}],
    "dp_sgd_per_layer_with": [{}, {"max_norm": 5, "noise": 0.5}, {"expected_batch": 10, "eps": 0.1}],
    "auto_s_with": [{"noise": 1}, {"radius": 3, "noise": 0.5}, {"gamma": 1}],
    "adaptive_dp_clip_with": [{}, {"start": 5, "rate": 0.5, "count_noise": 3}, {"target": 0.9, "noise": 0.5, "low": 0.9, "high": 2}],
    "dicesgd_with": [{}, {"max_norm": 3, "ratio": 0.5}, {"ratio": 8, "noise": 0}],
    "dicesgd_paper_with": [{}, {"c1": 3, "c2": 0.5}, {"noise": 0}],
    "diff2_with": [{}, {"gap": 4, "c2": 50}, {"noise2": 0, "c1": 5, "gap": 7}],
    "rldp_with": [{}, {"max_norm": 5}, {"noise": 0.5}],
    "dp_sgd": [{"noise": 0}, {"noise": 0, "max_norm": 5}, {"noise": 0, "expected_batch": 10}],
    "dp_sgd_per_layer": [{"noise": 0}, {"noise": 0, "max_norm": 5}, {"noise": 0, "expected_batch": 10}],
    "auto_s": [{}, {"radius": 3}, {"gamma": 0}],
    "adaptive_dp_clip": [
        {"noise": 0, "count_noise": 0},
        {"noise": 0, "count_noise": 0, "start": 5, "rate": 0.5},
        {"noise": 0, "count_noise": 0, "target": 0.9, "low": 0.9, "high": 2},
    ],
    "dicesgd": [{"noise": 0}, {"noise": 0, "max_norm": 3, "ratio": 0.5}, {"noise": 0, "ratio": 8}],
    "dicesgd_paper": [{"noise": 0}, {"noise": 0, "c1": 3}, {"noise": 0, "c2": 0.1}],
    "diff2": [{"noise1": 0, "noise2": 0}, {"noise1": 0, "noise2": 0, "gap": 4}, {"noise1": 0, "noise2": 0, "c2": 50}],
    "rldp": [{"noise": 0}, {"noise": 0, "max_norm": 5}, {"noise": 0, "max_norm": 0.1}],
}
DRAWN = {"add_noise", "apollo"}
"""Rules that draw and have no form without: see test_draws."""
STILL = {*stages, *clipping}
"""Rules whose runs leave the weights where they are, unless they write them."""


def arrays(seed: int, steps: int = STEPS, batch: tuple[int, ...] = ()) -> list[dict[str, np.ndarray]]:
    """Gradients on a coarse grid, so that there are ties; two spikes; one tensor silent for some steps, its first included, and another now and then."""
    rng = np.random.default_rng(seed)
    stream = []
    for t in range(steps):
        g = {n: np.round(rng.normal(size=(*batch, *s)) * 8) / 8 * (25 if t in (12, 20) else 1) for n, s in SHAPES.items()}
        g["norm.bias"] = g["norm.bias"] * (t >= 3)
        g["body.weight"] = g["body.weight"] * (t not in (7, 16))
        stream.append(g)
    return stream


def inputs_of(rule: updsl.Rule, steps: int = STEPS) -> dict[str, list[Any]]:
    """Streams for all inputs of a rule: samples of changing number, projections held for some steps, grams, losses."""
    found: dict[str, list[Any]] = {}
    for i, (name, kind) in enumerate(sorted(rule.inputs.items())):
        rng = np.random.default_rng(100 + i)
        if kind == "all":
            found[name] = [float(x) for x in np.abs(rng.normal(size=steps)) + 0.1]
        elif kind == "samples":
            found[name] = [arrays(200 + i + t, 1, (3 + t % 2,))[0] for t in range(steps)]
        elif name == "P":
            found[name] = [{n: rng_matrix(t // 6, n, s) for n, s in SHAPES.items() if len(s) == 2} for t in range(steps)]
        elif kind == "matrix":
            sizes = {n: int(np.prod(s[1:])) for n, s in SHAPES.items() if len(s) > 1}
            found[name] = [{n: (lambda x: x.T @ x / 9)(rng.normal(size=(9, k))) for n, k in sizes.items()} for _ in range(steps)]
        else:
            found[name] = arrays(300 + i, steps)
    return found


def rng_matrix(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A projection of rank 2 of a matrix: 2 × cols if rows ≥ cols, else rows × 2."""
    rng = np.random.default_rng([seed, len(name)])
    return rng.normal(size=(2, shape[1]) if shape[0] >= shape[1] else (shape[0], 2))


@cache
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {n: rng.normal(size=s) for n, s in SHAPES.items()}


def run_of(rule: updsl.Rule) -> Run:
    """The run of a rule's tests. Where g is the mean of samples, the stream is not read."""
    inputs = inputs_of(rule)
    stream = [{n: x.mean(0) for n, x in s.items()} for s in inputs["samples"]] if "samples" in inputs else arrays(0)
    return Run(stream, weights(), LR, inputs)


def interpreted(rule: updsl.Rule, given: Run):
    """What the interpreter gives on a run: the weights after each step if the rule writes them, else its result; the weights of a direction then move by
    lr times it."""
    state, w, lr = rule.interpret.init(given.w), given.w, 0 if rule.name in STILL else given.lr
    for t, g in enumerate(given.stream):
        out, state, new, _ = rule.interpret.update(g, state, w, lr=given.lr, **{n: x[t] for n, x in given.inputs.items()})
        w = new if new is not None else {n: w[n] - lr * out[n] for n in w}
        yield w if new is not None else out


def cases():
    for name, statement in REFERENCES.items():
        for i, hyper in enumerate(SETTINGS.get(name, [{}])):
            yield pytest.param(name, statement, hyper, id=f"{name}-{i}")


@pytest.mark.parametrize("name, statement, hyper", list(cases()))
def test_equals_the_mathematics(name, statement, hyper, record_property):
    rule = updsl.load(name, **hyper)
    given, worst = run_of(rule), 0.0
    for t, (found, expected) in enumerate(zip(interpreted(rule, given), statement(given, **hyper), strict=True)):
        for n in expected:
            scale = np.max(np.abs(expected[n])) or 1.0
            error = np.max(np.abs(found[n] - expected[n])) / scale
            worst = max(worst, error)
            assert error < 1e-9, f"step {t}, {n}: off by {error:.1e}"
    record_property("mathematics", f"{name} {worst:.17g}")


def to_torch(x):
    import torch

    return {n: to_torch(a) for n, a in x.items()} if isinstance(x, Mapping) else torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("name", RULES)
def test_torch_equals_the_interpreter(name):
    """A dozen steps, float64, at the first settings."""
    rule = updsl.load(name, **SETTINGS.get(name, [{}])[0])
    given = run_of(rule)
    slow, fast, w = rule.interpret.init(given.w), rule.init(given.w), given.w
    for t, g in enumerate(given.stream[:14]):
        inputs = {n: x[t] for n, x in given.inputs.items()}
        expected, slow, new, _ = rule.interpret.update(g, slow, w, lr=LR, **inputs)
        found, fast, written, _ = rule.update(to_torch(g), fast, to_torch(w), lr=LR, **{n: to_torch(x) for n, x in inputs.items()})
        assert (new is None) == (written is None)
        got, wanted = (found, expected) if new is None else (written, new)  # else out is a difference of weights, of fewer digits
        assert set(got) == set(wanted)
        for n, x in wanted.items():
            assert np.max(np.abs(got[n].numpy() - x)) <= 1e-9 * (np.max(np.abs(x)) or 1)
        w = new if new is not None else w


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RULES)
def test_narrow_types(name, dtype):
    """Finite results and weights of the gradient's type, with spikes and silent tensors."""
    import torch

    rule = updsl.load(name)
    given = run_of(rule)
    narrow = lambda x: {n: narrow(a) for n, a in x.items()} if isinstance(x, Mapping) else torch.tensor(x, dtype=getattr(torch, dtype))
    state, w = rule.init(given.w), narrow(given.w)
    for t, g in enumerate(given.stream[:14]):
        out, state, new, _ = rule.update(narrow(g), state, w, lr=LR, **{n: narrow(x[t]) for n, x in given.inputs.items()})
        w = new if new is not None else w
        for x in (*out.values(), *w.values()):
            assert x.dtype == getattr(torch, dtype)
            assert torch.isfinite(x).all()


def test_every_rule_is_compared():
    assert set(RULES) - set(REFERENCES) == DRAWN
    assert {name for name, hyper in SETTINGS.items() if len(hyper) < 3} <= {"orthogonal_gradient"}
    without_parameters = {n for n in REFERENCES if n not in SETTINGS}
    assert all(not updsl.load(n).params or n == "cautious" for n in without_parameters)


@pytest.mark.parametrize("name", RULES)
def test_examples(name):
    """Exact, or right to the last digit that is written."""
    rule = updsl.load(name)
    found = [e for about, e in laws_of(rule.module.unit) if about is rule.module.rule and isinstance(e, syntax.Example)]
    assert found or rule.inputs, "a rule without inputs has an example"
    for example in found:
        for got, expected in zip(*run(rule.module, example), strict=True):
            assert got.shape == expected.shape
            for x, written in zip(got.ravel(), expected.ravel(), strict=True):
                digits = len(f"{abs(written):.8g}".replace(".", "").lstrip("0").partition("e")[0])
                short = float(f"{written:.8g}") == written
                if not (short and np.isfinite(x) and abs(x - written) <= 0.5000001 * 10.0 ** (np.floor(np.log10(abs(written) or 1.0)) + 1 - digits)):
                    np.testing.assert_allclose(x, written, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_form(name):
    """A short first line, a citation where there is a paper, two laws, at most 30 lines a rule."""
    rule = updsl.load(name)
    for d in rule.module.unit.file.declarations:
        if isinstance(d, syntax.Rule):
            assert len(d.span.text.rstrip().splitlines()) <= 30
    laws = [law for about, law in laws_of(rule.module.unit) if about is rule.module.rule and isinstance(law, syntax.Law)]
    first = rule.doc.splitlines()[0]
    assert len(laws) >= 2
    assert 10 < len(first) <= 105
    assert first.endswith(".")
    if FOLDER.joinpath("stages", f"{name}.upd").exists():
        return
    assert any(mark in rule.doc for mark in ("arXiv:", "doi:", "https://", "torch.nn", "Coursera", "JMLR")), "no citation"


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_steps_of_quest_are_the_best(bits):
    """The range that errs least on normal entries, by numerical integration."""
    assert best_step(bits) == pytest.approx(QUEST[bits], abs=1e-3)


def test_draws(record_property):
    """add_noise adds its draw of the stated std; apollo equals apollo_with on the projection it drew, entries of variance 1 / rank, anew every gap steps."""
    g = {"x": np.zeros((200, 100))}
    rule = updsl.load("add_noise", std=3)
    out, *_ = rule.interpret.update(g, rule.interpret.init(g), g)
    assert np.std(out["x"]) == pytest.approx(3, rel=0.02)
    unit = updsl.load("add_noise")
    one, *_ = unit.interpret.update(g, unit.interpret.init(g), g)
    np.testing.assert_allclose(out["x"], 3 * one["x"], rtol=1e-12)
    record_property("mathematics", f"add_noise {np.max(np.abs(out['x'] - 3 * one['x'])) / np.max(np.abs(out['x'])):.17g}")
    apollo, given = updsl.load("apollo", rank=50, gap=3), updsl.load("apollo_with")
    rng, w = np.random.default_rng(0), {"x": np.zeros((60, 40))}
    state, other, drawn, worst = apollo.interpret.init(w), given.interpret.init(w), [], 0.0
    for _ in range(6):
        g = {"x": rng.normal(size=(60, 40))}
        out, state, *_ = apollo.interpret.update(g, state, w)
        drawn.append(state.kept.values["random_apollo.P"]["x"])
        expected, other, *_ = given.interpret.update(g, other, w, P={"x": drawn[-1]})
        np.testing.assert_allclose(out["x"], expected["x"], rtol=1e-9, atol=1e-12)
        worst = max(worst, np.max(np.abs(out["x"] - expected["x"])) / np.max(np.abs(expected["x"])))
    record_property("mathematics", f"apollo {worst:.17g}")
    assert np.std(drawn[0]) == pytest.approx(50**-0.5, rel=0.05)
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[2], drawn[3])
