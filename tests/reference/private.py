"""private/: per-sample gradients and unit-normal draws handed over."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import Run, Tensors, norm, norm_all

private: dict[str, Any] = {}


def rule(statement):
    private[statement.__name__] = statement
    return statement


def sample(batch: Tensors, i: int) -> Tensors:
    return {k: x[i] for k, x in batch.items()}


def size(batch: Tensors) -> int:
    return len(next(iter(batch.values())))


def summed(batch: Tensors, factor) -> Tensors:
    """Σᵢ factor(gᵢ)·gᵢ."""
    samples = [sample(batch, i) for i in range(size(batch))]
    factors = [factor(s) for s in samples]
    return {k: sum(f * s[k] for f, s in zip(factors, samples, strict=True)) for k in batch}


def steps(run: Run, *names: str):
    return zip(*(run.inputs[n] for n in names), strict=True)


@rule
def dp_sgd_with(run: Run, max_norm=1, noise=1, eps=1e-6, expected_batch=0):
    for batch, z in steps(run, "samples", "draw"):
        total = summed(batch, lambda s: min(1, max_norm / (norm_all(s) + eps)))
        yield {k: (total[k] + noise * max_norm * z[k]) / (expected_batch or size(batch)) for k in z}


@rule
def dp_sgd_per_layer_with(run: Run, max_norm=1, noise=1, eps=1e-6, expected_batch=0):
    for batch, z in steps(run, "samples", "draw"):
        std = noise * np.sqrt(len(z) * max_norm**2)
        yield {k: (sum(x * min(1, max_norm / (norm(x) + eps)) for x in batch[k]) + std * z[k]) / (expected_batch or size(batch)) for k in z}


@rule
def auto_s_with(run: Run, radius=1, gamma=0.01, noise=0):
    for batch, z in steps(run, "samples", "draw"):
        total = summed(batch, lambda s: radius / (norm_all(s) + gamma) if norm_all(s) + gamma else 0)
        yield {k: (total[k] + noise * radius * z[k]) / size(batch) for k in z}


@rule
def adaptive_dp_clip_with(run: Run, start=1, target=0.5, rate=0.2, noise=1, count_noise=1, low=0.05, high=20):
    bound = start
    for batch, z, zb in steps(run, "samples", "draw", "count_draw"):
        factors: list[float] = []

        def factor(s, bound=bound, factors=factors):
            factors.append(min(1, bound / (norm_all(s) + 1e-6)))
            return factors[-1]

        total = summed(batch, factor)
        sigma = (noise**-2 - (2 * count_noise) ** -2) ** -0.5
        yield {k: (total[k] + sigma * bound * z[k]) / size(batch) for k in z}
        unclipped = sum(f >= 1 for f in factors) + count_noise * zb
        bound = float(np.clip(bound * np.exp(-rate * (unclipped / size(batch) - target)), low, high))


@rule
def dicesgd_with(run: Run, max_norm=1, ratio=1, noise=1):
    e = None
    for batch, z in steps(run, "samples", "draw"):
        total = summed(batch, lambda s: min(max_norm / (norm_all(s) + 1e-6), 1))
        error = {k: batch[k].sum(0) - total[k] for k in z}
        if e is None:
            out, e = total, error
        else:
            a = max_norm * ratio / (norm_all(e) + 1e-6)
            q = min(a, 1)
            out = {k: total[k] + q * e[k] for k in z}
            e = {k: e[k] * min(a, 1 - q) + error[k] for k in z}
        yield {k: (out[k] + noise * max_norm * np.sqrt(1 + 2 * ratio) * z[k]) / size(batch) for k in z}


def held(x: Tensors, bound: float) -> float:
    """min(1, bound/‖x‖)"""
    n = norm_all(x)
    return bound / n if n > bound else 1.0


def averaged(batch: Tensors, bound: float) -> Tensors:
    """The mean of the samples, each held to a norm of `bound`."""
    return {k: x / size(batch) for k, x in summed(batch, lambda s: held(s, bound)).items()}


@rule
def dicesgd_paper_with(run: Run, c1=1, c2=1, noise=1):
    e = {k: np.zeros_like(x) for k, x in run.w.items()}
    for batch, z in steps(run, "samples", "draw"):
        clipped = averaged(batch, c1)
        v = {k: clipped[k] + held(e, c2) * e[k] for k in z}
        e = {k: e[k] + batch[k].mean(0) - v[k] for k in z}
        yield {k: v[k] + noise * z[k] for k in z}


@rule
def diff2_with(run: Run, c1=1, c2=1, noise1=1, noise2=1, gap=15):
    """The weights move by the rule's own result: w ← w - lr·v."""
    w, before, v = dict(run.w), {}, {}
    for t, (batch, old, z) in enumerate(steps(run, "samples", "samples_before", "draw")):
        if t % gap == 0:
            fresh = averaged(batch, c1)
            v = {k: fresh[k] + noise1 * z[k] for k in z}
        else:
            moved = norm_all({k: w[k] - before[k] for k in z})
            change = averaged({k: batch[k] - old[k] for k in z}, c2 * moved)
            v = {k: v[k] + change[k] + noise2 * moved * z[k] for k in z}
        yield v
        before, w = w, {k: w[k] - run.lr * v[k] for k in z}


@rule
def rldp_with(run: Run, max_norm=1, noise=1):
    """All tensors are one group."""
    for batch, z in steps(run, "samples", "draw"):
        total = summed(batch, lambda s: held(s, max_norm))
        yield {k: (total[k] + noise * max_norm * z[k]) / size(batch) for k in z}


def without_draw(name: str):
    """The rule that draws for itself, with no noise."""

    def statement(run: Run, **hyper):
        zero = [{k: np.zeros_like(x) for k, x in run.w.items()}] * len(run.inputs["samples"])
        silent = Run(run.stream, run.w, run.lr, {**run.inputs, "draw": zero})
        return private[f"{name}_with"](silent, **hyper)

    private[name] = statement


def adaptive_dp_clip(run: Run, noise=0, count_noise=0, **hyper):
    """Without noise, which the draws are then nothing to."""
    steps = len(run.inputs["samples"])
    zero = [{k: np.zeros_like(x) for k, x in run.w.items()}] * steps
    return private["adaptive_dp_clip_with"](Run(run.stream, run.w, run.lr, {**run.inputs, "draw": zero, "count_draw": [0.0] * steps}), **hyper)


private["adaptive_dp_clip"] = adaptive_dp_clip
for _name in ("dp_sgd", "dp_sgd_per_layer", "auto_s", "dicesgd", "dicesgd_paper", "diff2", "rldp"):
    without_draw(_name)
