"""The library against the packages that have its methods: pip install -e '.[compare]'. Where a package is not installed, its tests are skipped.

Two tables: what is equal, up to a bound with its reason where it is not rounding in float64; and what differs, with the reason, seen to differ. MENDED names
errors that the packages once had, which the first table shows are gone: where it fails under an older version, that is why.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import updsl

LR, STEPS = 0.02, 30
SHAPES = {"tall": (6, 4), "wide": (3, 5), "square": (4, 4), "bias": (5,)}
ALL, MATRICES = tuple(SHAPES), ("tall", "wide", "square")
EXACT = 1e-9
OFF = float("inf")
TINY = 1e-30
"""An eps that takes no part: packages add it in different places."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One method of a package, and the rule that it is compared with.

    make: the package's module and parameters ↦ a torch optimizer, or an optax transform. rule: a library name, or a text. about: why the bound is not EXACT, or
    what differs. spare: no tensor is ever silent."""

    package: str
    method: str
    make: Callable[..., Any]
    rule: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ALL
    bound: float = EXACT
    about: str = ""
    spare: bool = False

    @property
    def label(self) -> str:
        return f"{self.package}-{self.method}"


def stream(case: Case) -> Iterator[Tensors]:
    """Gradients on a coarse grid, with two spikes; a vector that is silent at first, and a matrix that is at times."""
    rng = np.random.default_rng(0)
    for t in range(STEPS):
        g = {n: np.round(rng.normal(size=SHAPES[n]) * 8) / 8 * (25 if t in (12, 20) else 1) for n in case.tensors}
        if not case.spare:
            g |= {n: 0 * x for n, x in g.items() if (n == "bias" and t < 3) or (n == "wide" and t in (7, 16))}
        yield g


def weights(case: Case) -> Tensors:
    rng = np.random.default_rng(1)
    found = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    return {n: found[n] for n in case.tensors}


def ours(case: Case) -> Iterator[Tensors]:
    """The weights after each step, in the float64 interpreter."""
    rule = updsl.parse(case.rule) if " " in case.rule else updsl.load(case.rule, **case.params)
    w = weights(case)
    state = rule.interpret.init(w)
    for g in stream(case):
        out, state, new, _ = rule.interpret.update(g, state, w, lr=LR)
        w = new if new is not None else {n: w[n] - LR * out[n] for n in w}
        yield w


def of_torch(case: Case, module: Any) -> Iterator[Tensors]:
    params = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in weights(case).items()}
    optimizer = case.make(module, list(params.values()))
    getattr(optimizer, "train", lambda: None)()
    for g in stream(case):
        for n, p in params.items():
            p.grad = torch.tensor(g[n])
        optimizer.step()
        yield {n: p.detach().numpy().copy() for n, p in params.items()}


def of_optax(case: Case, module: Any) -> Iterator[Tensors]:
    jax = pytest.importorskip("jax", reason="optax needs jax")
    jax.config.update("jax_enable_x64", True)
    transform = case.make(module)
    w = {n: jax.numpy.asarray(x) for n, x in weights(case).items()}
    state = transform.init(w)
    for g in stream(case):
        updates, state = transform.update({n: jax.numpy.asarray(x) for n, x in g.items()}, state, w)
        w = module.apply_updates(w, updates)
        yield {n: np.asarray(x) for n, x in w.items()}


def error(case: Case) -> float:
    """The largest difference of weights, relative to how far the tensor has gone, over all steps."""
    module = pytest.importorskip(case.package, reason=f"{case.package} is not installed: pip install -e '.[compare]'")
    if case.package == "heavyball":
        importlib.import_module("heavyball.utils").compile_mode = None
    start, worst = weights(case), 0.0
    theirs = of_optax(case, module) if case.package == "optax" else of_torch(case, module)
    for got, expected in zip(ours(case), theirs, strict=True):
        for n, x in expected.items():
            worst = max(worst, float(np.max(np.abs(got[n] - x)) / (np.max(np.abs(x - start[n])) or 1.0)))
    return worst


def po(method: str, rule: str, params: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None, group=None, **more: Any) -> Case:
    """A class of pytorch_optimizer."""
    make = lambda m, p: getattr(m, method)([{"params": p, **group}] if group else p, lr=LR, **(given or {}))
    return Case("pytorch_optimizer", method, make, rule, params or {}, **more)


def ox(method: str, make: Callable[[Any], Any], rule: str, params: Mapping[str, Any] | None = None, **more: Any) -> Case:
    return Case("optax", method, make, rule, params or {}, **more)


def direction(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A transform of gradients, and then a step against it."""
    return lambda m: m.chain(make(m), m.scale(-LR))


def hb(method: str, rule: str, params: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None, **more: Any) -> Case:
    return Case("heavyball", method, lambda m, p: getattr(m, method)(p, lr=LR, compile_step=False, **(given or {})), rule, params or {}, **more)


SVD = "its singular vectors are computed in float32"
STORED = "its states and arithmetic are float32"
LOW = {"rank": 2, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}

EQUAL = (
    po("AdaBelief", "adabelief", {}, {"eps": 1e-16, "rectify": False}),
    po("AdaMax", "adamax"),
    po("AdamP", "adamp", {"eps": TINY}, {"eps": TINY}),
    po("SGDP", "sgdp", {"momentum": 0.9, "nesterov": True, "delta": 1.2}, {"momentum": 0.9, "nesterov": True, "delta": 1.2}),
    po("AdEMAMix", "ademamix", {"warmup": 10, "weight_decay": 0.1}, {"t_alpha_beta3": 10, "weight_decay": 0.1, "weight_decouple": True}),
    po("ADOPT", "adopt", {}, {"clip_lambda": None, "eps": 1e-6, "betas": (0.9, 0.9999)}),
    po("DiffGrad", "diffgrad", {}, {"rectify": False}),
    po("Lion", "lion", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    po("MARS", "mars_adamw", {"eps": TINY}, {"mars_type": "adamw", "optimize_1d": True, "weight_decay": 0, "eps": TINY}),
    po("ScheduleFreeSGD", "schedule_free_sgd", {}, {"momentum": 0.9}),
    po("ScheduleFreeAdamW", "schedule_free_adamw"),
    po("SignSGD", "signum"),
    po("SPAM", "spam", {"threshold": 20, "accumulate": 3, "guard": False}, {"threshold": 20, "grad_accu_steps": 3}),
    po("StableSPAM", "stable_spam_paper", {"gap": 10}, {"update_proj_gap": 10}, spare=True),
    po(
        "AdaGC",
        "rule r = adagc(ratio = 1.05, beta = 98%, warmup = 4, eps = 0) → adam(eps = 0)",
        {},
        {"warmup_steps": 5, "weight_decay": 0, "eps": TINY},
        bound=1e-6,
        about="its global norm is summed in float32",
        spare=True,
    ),
    po("LARS", "lars", {"weight_decay": 0.1, "eps": 0}, {"weight_decay": 0.1}, tensors=MATRICES, spare=True),
    po("RAdam", "radam", {"eps": TINY}, {"degenerated_to_sgd": True, "eps": TINY}),
    po("Conda", "conda", tensors=MATRICES, bound=1e-4, about=SVD),
    po("GaLore", "galore", {"rank": 2}, group=LOW, tensors=MATRICES, bound=1e-4, about=SVD),
    po("Fira", "fira", {"rank": 2}, group=LOW, tensors=MATRICES, bound=1e-4, about=SVD, spare=True),
    po("Shampoo", "shampoo", tensors=MATRICES, bound=1e-4, about="its products start at eps·I; ours are lifted to eps where needed"),
    po("SCION", "scion", {"constrained": False}, {}, bound=1e-1, about="its iteration is in bfloat16"),
    po("Muon", "muon", {}, {}, {"use_muon": True}, tensors=MATRICES, bound=1e-1, about="its iteration is in bfloat16"),
    ox("sgd", lambda m: m.sgd(LR, 0.9, nesterov=True), "sgd", {"momentum": 0.9, "nesterov": True}),
    ox("adam", lambda m: m.adam(LR), "adam"),
    ox("adamw", lambda m: m.adamw(LR, weight_decay=0.1), "adamw", {"weight_decay": 0.1}),
    ox("adamax", lambda m: m.adamax(LR), "adamax"),
    ox("radam", lambda m: m.radam(LR, eps=TINY), "radam", {"eps": TINY}),
    ox("adagrad", lambda m: m.adagrad(LR, 0.1, eps=0.0), "adagrad", {"initial": 0.1, "eps": 0}),
    ox(
        "rmsprop",
        lambda m: m.rmsprop(LR, 0.9, centered=True, momentum=0.9, eps_in_sqrt=False),
        "rmsprop",
        {"alpha": 0.9, "centered": True, "momentum": 0.9},
    ),
    ox("lion", lambda m: m.lion(LR, 0.9, 0.99, weight_decay=0.1), "lion", {"weight_decay": 0.1}),
    ox("signum", lambda m: m.signum(LR, 0.9), "signum"),
    ox("sign_sgd", lambda m: m.sign_sgd(LR), "sign"),
    ox("lamb", lambda m: m.lamb(LR, weight_decay=0.01), "lamb", {"max_norm": OFF}),
    ox("adabelief", lambda m: m.adabelief(LR, eps=1e-16, eps_root=1e-16), "adabelief"),
    ox("contrib.ademamix", lambda m: m.contrib.ademamix(LR, alpha=5), "ademamix"),
    ox("contrib.adopt", lambda m: m.contrib.adopt(LR, use_clipping=False), "adopt"),
    ox("contrib.schedule_free_sgd", lambda m: m.contrib.schedule_free_sgd(LR), "schedule_free_sgd", spare=True),
    ox("contrib.schedule_free_adamw", lambda m: m.contrib.schedule_free_adamw(LR), "schedule_free_adamw", spare=True),
    ox("contrib.normalize", direction(lambda m: m.contrib.normalize()), "normalized", {"eps": 0}),
    ox("normalize_by_update_norm", direction(lambda m: m.normalize_by_update_norm()), "normalized"),
    ox("clip_by_global_norm", direction(lambda m: m.clip_by_global_norm(1.0)), "clip_norm"),
    ox("clip", direction(lambda m: m.clip(0.4)), "clip_grad_value", {"max_value": 0.4}),
    ox("adaptive_grad_clip", direction(lambda m: m.adaptive_grad_clip(0.01)), "agc", tensors=("bias",)),
    ox("centralize", direction(lambda m: m.centralize()), "centralize"),
    ox("ema", direction(lambda m: m.ema(0.9)), "ema"),
    ox("trace", direction(lambda m: m.trace(0.9)), "momentum"),
    ox("trace (nesterov)", direction(lambda m: m.trace(0.9, nesterov=True)), "nesterov"),
    ox("scale_by_trust_ratio", direction(lambda m: m.scale_by_trust_ratio()), "trust_ratio"),
    ox("add_decayed_weights", direction(lambda m: m.add_decayed_weights(0.1)), "weight_decay", {"rate": 0.1}),
    hb("SGD", "sgd", {"momentum": 0.9}, {"beta": 0.9}, bound=1e-5, about=STORED),
    hb("AdamW", "adamw", {"weight_decay": 0.1, "beta2": 0.99}, {"weight_decay": 0.1}, bound=1e-5, about=STORED),
    hb("NAdam", "nadam", bound=1e-5, about=STORED),
    hb("AdEMAMix", "ademamix", {"alpha": 2}, bound=1e-5, about=STORED),
    hb("SFAdamW", "schedule_free_adamw", {"beta2": 0.99}, {"betas": (0.9, 0.99)}, bound=1e-5, about=STORED),
    Case(
        "adamp",
        "AdamP",
        lambda m, p: m.AdamP(p, lr=LR, weight_decay=0.1, nesterov=True, delta=1.2),
        "adamp",
        {"weight_decay": 0.1, "nesterov": True, "delta": 1.2},
    ),
    Case("adamp", "SGDP", lambda m, p: m.SGDP(p, lr=LR, momentum=0.9, weight_decay=0.1), "sgdp", {"momentum": 0.9, "weight_decay": 0.1}),
    Case(
        "schedulefree",
        "SGDScheduleFree",
        lambda m, p: m.SGDScheduleFree(p, lr=LR, momentum=0.8, warmup_steps=5, weight_decay=0.1),
        "schedule_free_sgd",
        {"beta": 0.8, "warmup": 5, "weight_decay": 0.1},
    ),
    Case(
        "schedulefree",
        "AdamWScheduleFree",
        lambda m, p: m.AdamWScheduleFree(p, lr=LR, betas=(0.8, 0.95), warmup_steps=5, weight_decay=0.1),
        "schedule_free_adamw",
        {"beta": 0.8, "beta2": 0.95, "warmup": 5, "weight_decay": 0.1},
    ),
)

MENDED = {
    "SPAM": "spikes were clipped in a copy, to no effect",
    "StableSPAM": "spikes were clipped in a copy, to no effect",
    "AdaGC": "the global norm was left without its root",
    "SignSGD": "the momentum buffer was set to 0 on every step",
    "Shampoo": "the roots were of order k, not 2k, and each side was given the gradient as the other had left it",
}
"""Of pytorch_optimizer, in earlier versions; not in 4.1.0."""

DIFFERENT = (
    po("AdaFactor", "adafactor", about="the paper's form with another clipping and scale, not torch's"),
    po("Lamb", "lamb", about="no bias correction, the weight's norm held to 10, and no clipping by the global norm unless asked"),
    po("SGDP", "sgdp", {"momentum": 0.9}, {"momentum": 0.9}, about="without nesterov the buffer stays as it is; the official code projects it too"),
    po("StableSPAM", "stable_spam", {"gap": 10, "guard": False}, {"update_proj_gap": 10}, spare=True, about="real resets; the official code forgets the step"),
    po("LARS", "lars", {"weight_decay": 0.1}, {"weight_decay": 0.1}, about="vectors have no ratio, and a zero gradient gets one"),
    ox("amsgrad", lambda m: m.amsgrad(LR), "amsgrad", about="its maximum is of the corrected moment, torch's of the uncorrected"),
    ox("nadam", lambda m: m.nadam(LR), "nadam", about="no schedule of the momentum"),
    ox("lars", lambda m: m.lars(LR, 0.1), "lars", {"weight_decay": 0.1, "eps": 0}, spare=True, about="its ratio has the norm of gradient and decay together"),
    ox("adafactor", lambda m: m.adafactor(LR), "adafactor", about="the paper's form with momentum and clipping of its own"),
    ox("contrib.muon", lambda m: m.contrib.muon(LR), "muon", tensors=MATRICES, about="its momentum is corrected for its start"),
    ox("adaptive_grad_clip", direction(lambda m: m.adaptive_grad_clip(0.01)), "agc", about="units of a matrix are its columns: layers keep their outputs last"),
    hb("RMSprop", "rmsprop", {"alpha": 0.99}, {"betas": (0.0, 0.99)}, about="its second moment is corrected for its start"),
    hb("ADOPT", "adopt", {"beta2": 0.99, "eps": 1e-8}, {"betas": (0.9, 0.99)}, about="both averages are corrected for their start"),
    hb("Muon", "muon", {"beta": 0.9}, tensors=MATRICES, about="the coefficients change from round to round, and the gradient is added whole to its average"),
    hb("Scion", "scion", about="it draws the weights anew before its first step"),
)


@pytest.mark.parametrize("case", EQUAL, ids=lambda c: c.label)
def test_equals_the_package(case: Case, record_property) -> None:
    found = error(case)
    version = importlib.metadata.version(case.package)
    rule = "adagc" if " " in case.rule else case.rule
    about = f"{case.about}; in earlier versions {MENDED[case.method]}" if case.package == "pytorch_optimizer" and case.method in MENDED else case.about
    record_property("package", f"{case.package} {version} {case.method.replace(' ', '_')} {rule} {found:.17g} {about.removeprefix('; ')}")
    assert found <= case.bound


@pytest.mark.parametrize("case", DIFFERENT, ids=lambda c: c.label)
def test_differs_from_the_package_as_is_said(case: Case, record_property) -> None:
    """What a new version of the package mends is seen here."""
    assert error(case) > 1e-3
    version = importlib.metadata.version(case.package)
    record_property("differs", f"{case.package} {version} {case.method.replace(' ', '_')} {case.rule} {case.about}")


CLIPS = {
    "l2_clip_": "clip norm > 1 per tensor",
    "rmsnorm_clip_": "clip rms > 1 per tensor",
    "global_l2norm_clip": "clip_norm",
    "global_rmsnorm_clip": "clip rms > 1 per all",
}


def test_pytorch_optimizers_normalize_gradient_is_another_method() -> None:
    """It divides by the standard deviation, and so is none of `normalized`, `norm` and `rms`."""
    gradient = pytest.importorskip("pytorch_optimizer.optimizer.utils.gradient", reason="pytorch-optimizer is not installed: pip install -e '.[compare]'")
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    gradient.normalize_gradient(x)
    assert torch.allclose(x, torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64) / 7**0.5, atol=1e-6)


def test_heavyballs_agc_is_by_tensor() -> None:
    """Its unit is the whole tensor; of `agc`, a row."""
    heavyball = pytest.importorskip("heavyball.utils", reason="heavyball is not installed: pip install -e '.[compare]'")
    heavyball.compile_mode = None
    w, g = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    heavyball.adaptive_gradient_clipping_([w], [g], 0.1, minimum=1e-3, eps=1e-8)
    assert torch.allclose(g, torch.tensor([[0.0, 0.0], [0.0, 0.5]]))


@pytest.mark.parametrize("method", CLIPS)
def test_equals_heavyballs_clips(method: str, record_property) -> None:
    heavyball = pytest.importorskip("heavyball.utils", reason="heavyball is not installed: pip install -e '.[compare]'")
    heavyball.compile_mode = None
    case = Case("heavyball", method, lambda m, p: None, CLIPS[method])
    g, w = next(stream(case)), weights(case)
    rule = updsl.load("clip_norm") if CLIPS[method] == "clip_norm" else updsl.parse(CLIPS[method])
    out, *_ = rule.interpret.update(g, rule.interpret.init(w), w)
    given = [torch.tensor(x) for x in g.values()]
    found = getattr(heavyball, method)(given, 1.0)
    worst = max(float(np.max(np.abs(a.numpy() - out[n]))) for n, a in zip(g, found or given, strict=True))
    if CLIPS[method] == "clip_norm":
        record_property("package", f"heavyball {importlib.metadata.version('heavyball')} {method} clip_norm {worst:.17g} ")
    assert worst <= EXACT


def test_equals_the_functions_of_pytorch_optimizer(record_property) -> None:
    """agc, centralize_gradient and gradfilter_ema, which are no optimizers."""
    pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed: pip install -e '.[compare]'")
    agc, gradient_centralization, grokfast = (
        importlib.import_module(f"pytorch_optimizer.optimizer.{n}") for n in ("agc", "gradient_centralization", "grokfast")
    )
    case = Case("pytorch_optimizer", "functions", lambda m, p: None, "agc")
    w = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in weights(case).items()}
    model, averages = torch.nn.ParameterDict(w), None
    found: dict[str, list[Tensors]] = {"agc": [], "centralize": [], "grokfast": []}
    for g in stream(case):
        found["agc"].append({n: agc.agc(p.detach(), torch.tensor(g[n])).numpy() for n, p in w.items()})
        centred = {n: torch.tensor(x) for n, x in g.items()}
        for x in centred.values():
            gradient_centralization.centralize_gradient(x)
        found["centralize"].append({n: x.numpy() for n, x in centred.items()})
        for n, p in w.items():
            p.grad = torch.tensor(g[n])
        averages = grokfast.gradfilter_ema(model, averages)
        found["grokfast"].append({n: p.grad.numpy().copy() for n, p in w.items()})
    names = {"agc": "agc", "centralize": "centralize_gradient", "grokfast": "gradfilter_ema"}
    for name, expected in found.items():
        rule = updsl.load(name)
        state, worst = rule.interpret.init(weights(case)), 0.0
        for g, x in zip(stream(case), expected, strict=True):
            out, state, *_ = rule.interpret.update(g, state, weights(case))
            worst = max(worst, *(float(np.max(np.abs(out[n] - x[n])) / (np.max(np.abs(x[n])) or 1)) for n in x))
        record_property("package", f"pytorch_optimizer {importlib.metadata.version('pytorch_optimizer')} {names[name]} {name} {worst:.17g} ")
        assert worst <= EXACT
