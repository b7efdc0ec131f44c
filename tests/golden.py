"""The golden files: which rule and parameters each is about, what is compared, and a runner for every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "data" / "golden"
BACKENDS = ("interpret", "torch", "inductor")


@dataclass(frozen=True)
class Case:
    """A golden file and what equals it.

    compare: kinds of its arrays: "out" (the gradient after the rule; "clip" too, after a part of it), "w" (the weights after each step; where the rule does
    not write them, w - lr·out). inputs: rule input → kind of the file's array. left_out: tensors that the rule treats differently, with the reason in
    docs/language-limits.md. gradient: the kind of the array that is the rule's gradient."""

    file: str
    rule: str
    compare: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    gradient: str = "g"
    tolerance: float = 1e-9


OFF = float("inf")

CASES = (
    Case("torchclip-norm2", "clip_grad_norm", ("out",), {"max_norm": 1.5}),
    Case("torchclip-value", "clip_grad_value", ("out",), {"max_value": 0.4}),
    Case("autoclip-p10", "autoclip", ("out",), {"p": 0.1}),
    Case("zclip-default", "zclip", ("out",)),
    Case("zclip-percentile", "zclip", ("out",), {"mode": "percentile", "warmup": 10, "max_norm": OFF}),
    Case("zclip-zscore-adaptive", "zclip", ("out",), {"warmup": 10, "max_norm": OFF}),
    Case("adagc-tensor-warm15", "adagc", ("out",), {"warmup": 15}),
    Case("agc-timm", "agc", ("out", "w"), lr=0.01),
    Case("fira-limiter", "growth_limit", ("out",), {"guard": False}),
    Case("ngd-optax", "normalized", ("out",)),
    Case("sinkgd-axolotl_L5", "sinkgd", ("out",), left_out=("t2",)),
    Case("scale", "scale", ("w",), {"last": "t3", "embed": "no such"}, lr=0.01),
    Case("sgd-dampening", "sgd", ("w",), {"momentum": 0.9, "dampening": 0.3}, lr=0.01),
    Case("sgd-nesterov", "sgd", ("w",), {"momentum": 0.9, "nesterov": True}, lr=0.01),
    Case("adam", "adam", ("w",), lr=0.01),
    Case("adamw", "adamw", ("w",), {"weight_decay": 0.1}, lr=0.01),
    Case("rmsprop-centered_momentum", "rmsprop", ("w",), {"alpha": 0.9, "centered": True, "momentum": 0.9, "weight_decay": 0.01}, lr=0.01),
    Case("adafactor", "adafactor", ("w",), {"weight_decay": 0.1}, lr=0.01, left_out=("t2",)),
    Case("lion", "lion", ("w",), {"weight_decay": 0.1}, lr=0.001),
    Case("muon-keller_f64", "muon", ("w",), {"weight_decay": 0.1}, lr=0.02),
    Case("stable_spam-gap0", "stable_spam", ("w",), {"gap": OFF}, lr=0.01),
    Case("stable_spam-gap0", "adaclip", ("clip",)),
    Case("spam-gap25", "spam", ("w",), {"warmup": 8, "threshold": 50, "gap": 25, "accumulate": 5}, lr=0.01),
    Case("spam-gap25", "spam_clip", ("out",), {"threshold": 50, "gap": 25, "accumulate": 5}),
    Case("swan-centered", "swan_centered", ("w",), lr=0.01),
    Case(
        "dbmtl-beta0",
        "balance",
        ("out",),
        {"beta": 0, "sigma": 0},
        gradient="task0",
        inputs={"task0": "task0", "task1": "task1", "task2": "task2", "loss0": "loss[0]", "loss1": "loss[1]", "loss2": "loss[2]"},
    ),
    Case("odice", "orthogonal_gradient", ("out",), inputs={"backward": "g2", "linear": "lin"}),
    Case("adagrad", "adagrad", ("w",), {"lr_decay": 0.01, "initial": 0.1, "weight_decay": 0.01}, lr=0.1),
    Case("lamb-timm", "lamb", ("w",), lr=0.01),
    Case("adamp", "adamp", ("w",), {"weight_decay": 0.1}, lr=0.01),
    Case("diffgrad", "diffgrad", ("w",), lr=0.01),
    Case("conda-f64", "conda", ("w",), {"beta2": 0.99, "gap": 10}, lr=0.01),
    Case("galore-f64", "galore_with", ("w",), {"beta2": 0.99}, lr=0.01, inputs={"P": "P@"}),
    Case("dpsgd-flat-nonoise", "dp_sgd", ("out",), {"max_norm": 1.3, "noise": 0}, inputs={"samples": "g"}),
    Case("autodp-autos-alllayer", "auto_s_with", ("out",), {"noise": 0.7}, inputs={"samples": "g", "draw": "z"}),
)


@cache
def load(file: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(meta, arrays) of a golden file."""
    spec = importlib.util.spec_from_file_location("golden_load", FOLDER / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(file, FOLDER)


def tensors_of(arrays: Mapping[str, np.ndarray], kind: str, step: int | str) -> dict[str, np.ndarray]:
    """The arrays of one kind and step, by tensor, or the one array of that kind and step under "" ."""
    prefix = f"{kind}/{step}"
    return {key[len(prefix) :].strip("/"): a for key, a in arrays.items() if key == prefix or key.startswith(prefix + "/")}


def errors(case: Case, backend: str) -> Iterator[tuple[str, int, str, float]]:
    """(what, step, tensor, error relative to the tensor's largest entry) of everything the file lets us compare."""
    _, arrays = load(case.file)
    shapes = tensors_of(arrays, case.gradient, 0)
    names = [n for n in shapes if n not in case.left_out]
    initial = tensors_of(arrays, "w", "init") or {n: np.zeros_like(a) for n, a in tensors_of(arrays, "out", 0).items()}
    initial = {n: initial[n] for n in names}
    stepper = make_stepper(case, backend, initial)
    step = 0
    while g := {n: a for n, a in tensors_of(arrays, case.gradient, step).items() if n in names}:
        given = {name: inputs_at(arrays, kind, step, names) for name, kind in case.inputs.items()}
        found = stepper.step(g, given)
        for what in case.compare:
            for n, expected in tensors_of(arrays, what, step).items():
                if n in names:
                    scale = np.max(np.abs(expected)) or 1.0
                    yield what, step, n, float(np.max(np.abs(found["w" if what == "w" else "out"][n] - expected)) / scale)
        step += 1


def inputs_at(arrays: Mapping[str, np.ndarray], kind: str, step: int, names: list[str]) -> Any:
    """An input of one step: tensor → array, or of "kind[i]" the i-th number. Of "kind@", which is stored at some steps only, the latest."""
    kind, _, index = kind.partition("[")
    held = kind.removesuffix("@")
    while kind != held and not tensors_of(arrays, held, step):
        step -= 1
    at = tensors_of(arrays, held, step)
    return float(at[""][int(index[:-1])]) if index else {n: a for n, a in at.items() if n in names}


class Stepper:
    """A rule run on NumPy arrays: gradients and inputs in, {"out": …, "w": …} of the step out."""

    def __init__(self, case: Case, weights: Mapping[str, np.ndarray]):
        import updsl

        self.case = case
        self.rule = updsl.load(case.rule, **case.params)
        self.w = {n: np.array(x, np.float64) for n, x in weights.items()}

    def after(self, out: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None) -> dict[str, dict[str, np.ndarray]]:
        self.w = dict(weights) if weights is not None else {n: x - (self.case.lr or 0) * out[n] if n in out else x for n, x in self.w.items()}
        return {"out": dict(out), "w": self.w}


class Interpreted(Stepper):
    """In the float64 interpreter."""

    def __init__(self, case: Case, weights: Mapping[str, np.ndarray]):
        super().__init__(case, weights)
        self.state = self.rule.interpret.init(self.w)

    def step(self, g: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        out, self.state, weights, _ = self.rule.interpret.update(None if "samples" in given else g, self.state, self.w, lr=self.case.lr, **given)
        return self.after(out, weights)


class Compiled(Stepper):
    """In a torch backend, in place."""

    def __init__(self, case: Case, weights: Mapping[str, np.ndarray], backend: str):
        super().__init__(case, weights)
        import torch

        import updsl

        self.torch = torch
        self.params = {n: torch.tensor(x, dtype=torch.float64) for n, x in self.w.items()}
        self.compiled = updsl.compile(self.rule, self.params, backend=backend, lr=case.lr)

    def to_torch(self, x: Any) -> Any:
        return {n: self.to_torch(a) for n, a in x.items()} if isinstance(x, Mapping) else self.torch.tensor(np.asarray(x), dtype=self.torch.float64)

    def step(self, g: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        grads = {n: self.to_torch(x.mean(0) if "samples" in given else x) for n, x in g.items()}
        self.compiled.step(grads, lr=self.case.lr, **{n: self.to_torch(x) for n, x in given.items()})
        out = {n: x.numpy().copy() for n, x in grads.items()}
        found = self.after(out, {n: x.numpy().copy() for n, x in self.params.items()} if self.rule.writes_weights else None)
        if not self.rule.writes_weights:
            for n, x in self.params.items():
                x.copy_(self.torch.from_numpy(np.asarray(self.w[n])))
        return found


def make_stepper(case: Case, backend: str, weights: Mapping[str, np.ndarray]) -> Stepper:
    return Interpreted(case, weights) if backend == "interpret" else Compiled(case, weights, backend)


def worst(case: Case, backend: str) -> dict[str, float]:
    """What is compared → the largest error over all steps and tensors."""
    found = dict.fromkeys(case.compare, 0.0)
    for what, _, _, error in errors(case, backend):
        found[what] = error if not error <= found[what] else found[what]
    return found
