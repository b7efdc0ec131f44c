"""A rule's backends against the eager torch backend: first whether they agree with the float64 interpreter, then how long a step takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from updsl.bench.protocol import ROUNDS, Contender, measure, ratio, summary
from updsl.bench.sets import Shapes, thumbnail
from updsl.bench.tensors import Tensors, clock_of, distance
from updsl.core.frame import Tensor
from updsl.runtime.compiled import Compiled, compile
from updsl.runtime.rule import Rule

BASELINE = "torch"
LR, SAMPLES, STEPS = 1e-3, 4, 3
"""Learning rate; samples of a rule that reads the gradients of samples; steps that are compared with the interpreter."""
PLANNED = ("bytes_per_parameter", "idle_bytes_per_parameter", "sweeps", "launches", "workspace_bytes", "state_bytes_per_parameter")
"""What a plan tells about its cost."""


def bench(rule: Rule, shapes: Shapes, backends: Sequence[str], rounds: int = ROUNDS, device: str = "cpu") -> dict[str, Any]:
    """Figures of a rule on a set of tensors, as plain data: backend → times, error, plan and how many times as fast as BASELINE.

    backends: names as of `updsl.compile`; one that stands for another ("auto") is called by the other's name. Raises UpdslError as that does, and
    ValueError for a rule that has an input which cannot be made up.
    """
    tensors = Tensors(shapes, device)
    compiled: dict[str, tuple[Compiled, Contender]] = {}
    for backend in dict.fromkeys((BASELINE, *backends)):
        y, contender = contender_of(rule, tensors, backend)
        compiled.setdefault(y.backend, (y, contender))
    errors = {name: disagreement(rule, name, thumbnail(shapes), device) for name in compiled}
    found = measure([c for _, c in compiled.values()], rounds, clock=clock_of(device))
    figures = {
        n: {
            **summary(s),
            "times_as_fast": ratio(found[BASELINE], s),
            "error": errors[n] if math.isfinite(errors[n]) else None,
            "plan": plan_of(compiled[n][0]),
        }
        for n, s in found.items()
    }
    return {
        "rule": rule.name,
        "parameters": tensors.numel,
        "tensors": len(shapes),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "backends": figures,
    }


def plan_of(y: Compiled) -> dict[str, Any]:
    """What the plan of a compiled rule tells about its cost, where it has one."""
    plan = getattr(y, "plan", None)
    return {} if plan is None else {name: getattr(plan, name) for name in PLANNED}


def contender_of(rule: Rule, tensors: Tensors, backend: str) -> tuple[Compiled, Contender]:
    """The rule on these tensors, stepping in place, and as a contender of the backend's name."""
    inputs = inputs_of(rule, tensors)
    y = compile(rule, tensors.weights, backend=backend, lr=LR)
    outputs = (lambda: tensors.weights) if rule.writes_weights else lambda: tensors.grads
    return y, Contender(y.backend, lambda: y.step(tensors.grads, **inputs), tensors.fill, outputs)


def disagreement(rule: Rule, backend: str, shapes: Shapes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """The largest distance of a backend from the float64 interpreter, over STEPS steps and all tensors: of the weights' changes, for a rule that writes w."""
    tensors = Tensors(shapes, device, dtype)
    start = {n: w.double().cpu() for n, w in tensors.weights.items()}
    exact, weights = rule.interpret, {n: w.numpy() for n, w in start.items()}
    inputs, state, worst = inputs_of(rule, tensors), exact.init(start), 0.0
    _, contender = contender_of(rule, tensors, backend)
    for step in range(STEPS):
        tensors.scale = 1.0 + step
        contender.before()
        out, state, new, _ = exact.update(tensors.grads, state, weights, LR, **inputs)
        contender.step()
        if new is None:
            worst = max(worst, *(distance(contender.outputs()[n], x) for n, x in out.items()))
        else:
            weights = new
            worst = max(worst, *(distance(contender.outputs()[n].double().cpu() - start[n], torch.from_numpy(x) - start[n]) for n, x in new.items()))
    return worst


def inputs_of(rule: Rule, tensors: Tensors) -> dict[str, Any]:
    """Made up: streams and samples as the gradients, numbers 1. Raises ValueError for a matrix, whose shape only its rule knows."""
    return {name: _input(name, kind, tensors) for name, kind in rule.inputs.items()}


def _input(name: str, kind: str, tensors: Tensors) -> Any:
    grids = {n: Tensor(n, s).grid for n, s in tensors.shapes.items()}
    match kind:
        case "stream":
            return {n: g.clone() for n, g in tensors.grads.items()}
        case "samples":
            return {n: torch.stack([g * (1 + i / SAMPLES) for i in range(SAMPLES)]) for n, g in tensors.grads.items()}
        case "matrix":
            raise ValueError(f"`{name}` is a matrix of its own shape, which only the rule knows: this rule cannot be measured")
        case "row" | "column":
            return {n: torch.ones(grids[n][kind == "column"], device=tensors.device, dtype=tensors.dtype) for n in grids}
        case "tensor":
            return dict.fromkeys(grids, 1.0)
        case "group":
            return [1.0]
        case "all":
            return 1.0
    raise ValueError(f"`{name}` has one value per {kind}: this rule cannot be measured")
