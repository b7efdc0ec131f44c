"""clipping/"""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import Run, Tensors, norm, norm_all, rms, rows, single

clipping: dict[str, Any] = {}


def rule(statement):
    clipping[statement.__name__] = statement
    return statement


def scaled(g: Tensors, factor: float) -> Tensors:
    return {k: x * factor for k, x in g.items()}


@rule
def clip_grad_norm(run: Run, max_norm=1, p=2, eps=1e-6):
    for g in run.stream:
        total = norm(np.array([norm(x, p) for x in g.values()]), p)
        yield scaled(g, min(1, max_norm / (total + eps)))


@rule
def clip_grad_value(run: Run, max_value=1):
    for g in run.stream:
        yield {k: np.clip(x, -max_value, max_value) for k, x in g.items()}


@rule
def agc(run: Run, factor=0.01, eps=1e-3):
    for g in run.stream:
        out = {}
        for k, x in g.items():
            unit = (lambda a: rows(a, np.linalg.norm)) if x.ndim > 1 else (lambda a: np.full_like(a, norm(a)))
            bound, n = factor * np.maximum(unit(run.w[k]), eps), unit(x)
            out[k] = np.where(n < bound, x, x * bound / np.maximum(n, 1e-6))
        yield out


@rule
def autoclip(run: Run, p=0.1, window=10000, eps=1e-6, guard=True):
    history: list[float] = []
    for g in run.stream:
        n = norm_all(g)
        history = [*history, n][-window:]
        yield scaled(g, min(1, np.percentile(history, 100 * p) / (n + eps)))


@rule
def zclip(
    run: Run, alpha=0.97, z_thresh=2.5, max_norm=1, eps=1e-6, warmup=25, mode="zscore", option="adaptive_scaling", factor=1, skip_update=False, guard=True
):
    early: list[float] = []
    mean = var = None
    for g in run.stream:
        n = norm_all(g)
        if mean is None:
            early.append(n)
            if len(early) >= warmup:
                mean, var = np.mean(early), np.var(early)
            yield scaled(g, min(1, max_norm / (n + 1e-6)))
            continue
        std, bound = np.sqrt(var), None
        if mode == "percentile":
            if n > mean + z_thresh * std:
                bound = mean + z_thresh * std
        elif (z := (n - mean) / (std + eps)) > z_thresh:
            bound = mean if option == "mean" else factor * (mean + z_thresh * std / (z / z_thresh))
        limit = min(n if bound is None else bound, max_norm)
        coefficient = limit / (n + 1e-6)
        if not (skip_update and bound is not None):
            value = n if bound is None else bound
            mean = alpha * mean + (1 - alpha) * value
            var = alpha * var + (1 - alpha) * (value - mean) ** 2
        yield scaled(g, coefficient if n > limit and coefficient < 1 else 1)


@rule
def adagc(run: Run, ratio=1.04, beta=0.99, eps=1e-6, warmup=100, max_norm=1, guard=True):
    average: dict[str, float] = {}
    for t, g in enumerate(run.stream, 1):
        out = {}
        factor = min(1, max_norm / (norm_all(g) + eps))
        for k, x in g.items():
            if t <= warmup:
                out[k] = x * factor
                if (n := norm(out[k])) > 0 or not guard:
                    average[k] = min(average.get(k, n), n)
                continue
            n = norm(x)
            last = average.setdefault(k, n)
            out[k] = x * (ratio * last / (n + eps)) if n > ratio * last else x
            average[k] = beta * last + (1 - beta) * min(n, ratio * last)
        yield out


@rule
def adagc_global(run: Run, ratio=1.04, beta=0.99, eps=1e-6, warmup=100, max_norm=1, guard=True):
    average = None
    for t, g in enumerate(run.stream, 1):
        n = norm_all(g)
        if t <= warmup:
            yield scaled(g, min(1, max_norm / (n + eps)))
            if n > 0 or not guard:
                average = min(n, max_norm) if average is None else min(average, n, max_norm)
            continue
        average = n if average is None else average
        bound = ratio * average
        yield scaled(g, bound / (n + eps) if n > bound else 1)
        average = beta * average + (1 - beta) * min(n, bound)


@single
def spam_clip(stream, w, lr, threshold=5000, beta2=0.999, accumulate=20, gap=500, guard=True):
    v = np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        if t % gap == 0:
            v = np.zeros_like(w)
        if threshold and t >= accumulate and t % gap >= accumulate:
            spike = (g**2 > threshold * v) & ((v > 0) | (not guard))
            g = np.where(spike, np.sign(g) * np.sqrt(threshold * v), g)
        v = beta2 * v + (1 - beta2) * g**2
        yield g


@single
def adaclip(stream, w, lr, gamma=0.999, guard=True):
    top = 0.0
    for t, g in enumerate(stream, 1):
        a = np.max(np.abs(g))
        top = gamma * top + (1 - gamma) * a
        bound = top / (1 - gamma**t)
        yield np.where(np.abs(g) > bound, g / (a or 1) * bound, g)


@single
def adagn(stream, w, lr, gamma1=0.7, gamma2=0.9, eps=1e-8, guard=True):
    p = q = 0.0
    for t, g in enumerate(stream, 1):
        n = norm(g)
        p, q = gamma1 * p + (1 - gamma1) * n, gamma2 * q + (1 - gamma2) * n**2
        yield g / n * (p / (1 - gamma1**t) / (np.sqrt(q / (1 - gamma2**t)) + eps)) if n > 0 else g


@rule
def layer_clip(run: Run, max_norm=1, weights="uniform"):
    for g in run.stream:
        if norm_all(g) < max_norm:
            yield g
            continue
        size = sum(x.size for x in g.values())
        share = {k: 1 / len(g) if weights == "uniform" else x.size / size for k, x in g.items()}
        yield {k: x / (norm(x) + 1e-10) * max_norm * np.sqrt(share[k]) for k, x in g.items()}


def best_step(bits: int) -> float:
    """Half the range of the uniform quantiser of 2^bits levels, symmetric about 0, that errs least on normal entries."""
    x = np.linspace(-9, 9, 360_001)
    density = np.exp(-(x**2) / 2)

    def error(a: float) -> float:
        step = 2 * a / (2**bits - 1)
        q = np.clip(np.round(x / step + 0.5) - 0.5, -(2**bits - 1) / 2, (2**bits - 1) / 2) * step
        return float(np.sum(density * (x - q) ** 2))

    low, high = 0.5, 3.5
    for _ in range(60):
        third = (high - low) / 3
        low, high = (low, high - third) if error(low + third) < error(high - third) else (low + third, high)
    return (low + high) / 2


QUEST = {1: 0.7978845587140913, 2: 1.4935346200015913, 3: 2.051068354131873, 4: 2.513930578568423}


@single
def quest_mask(stream, w, lr, bits=4, trust=1):
    a = QUEST[bits]
    mask = np.zeros(w.shape, bool)
    for row, kept in zip(w.reshape(-1, w.shape[-1] if w.ndim else 1), mask.reshape(-1, w.shape[-1] if w.ndim else 1), strict=True):
        sigma = rms(row)
        s = a * sigma + 1e-8
        step = 2 * s / (2**bits - 1)
        q = np.round(np.clip(row, -s, s) / step + 0.5) * step - step / 2
        kept[:] = np.abs(q - row) <= sigma * trust * a / (2**bits - 1)
    for g in stream:
        yield g * mask


@rule
def spike_skip(run: Run, z_thresh=6, alpha=0.97, warmup=25):
    seen: list[float] = []
    mean = var = 0.0
    for g in run.stream:
        n = norm_all(g)
        if len(seen) < warmup:
            seen.append(n)
            mean, var = float(np.mean(seen)), float(np.var(seen))
            yield g
            continue
        bound = mean + z_thresh * np.sqrt(var)
        value = min(n, bound)
        mean = alpha * mean + (1 - alpha) * value
        var = alpha * var + (1 - alpha) * (value - mean) ** 2
        yield scaled(g, 0 if n > bound else 1)


clipping |= {f.__name__: f for f in (spam_clip, adaclip, adagn, quest_mask)}
