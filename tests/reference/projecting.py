"""projecting/: rules whose projection is handed over, or whose result does not depend on the signs of a basis."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import Run, norm
from reference.optimizers import adam_step

projecting: dict[str, Any] = {}


def tensors(statement):
    """A statement about one tensor and its projections: (stream, projections or None, w, lr, **hyper) ↦ stream."""

    def model(run: Run, **hyper):
        names, projections = list(run.w), run.inputs.get("P", [{}] * len(run.stream))
        streams = [statement([g[n] for g in run.stream], [p.get(n) for p in projections], run.w[n].copy(), run.lr, **hyper) for n in names]
        for step in zip(*streams, strict=True):
            yield dict(zip(names, step, strict=True))

    projecting[statement.__name__] = model
    return statement


def down(x, p):
    return x @ p.T if x.shape[0] >= x.shape[1] else p.T @ x


def up(x, p, shape):
    return x @ p if shape[0] >= shape[1] else p @ x


def hf_adam(stream, w, **hyper):
    m = v = np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        m, v, u = adam_step(m, v, g, t, hf=True, **hyper)
        yield u


@tensors
def galore_with(stream, projections, w, lr, scale=0.25, beta1=0.9, beta2=0.999, eps=1e-6):
    if w.ndim != 2:
        yield from hf_adam(stream, w, beta1=beta1, beta2=beta2, eps=eps)
        return
    m = v = 0.0
    for t, (g, p) in enumerate(zip(stream, projections, strict=True), 1):
        m, v, u = adam_step(m, v, down(g, p), t, beta1, beta2, eps, hf=True)
        yield scale * up(u, p, w.shape)


def limited(previous, x, ratio):
    """Fira's limiter: (norm to keep, x)."""
    n = norm(x)
    factor = 1 if previous is None else max(n / (previous + 1e-8), ratio) / ratio
    return (n / factor if n > 0 else previous), x / factor


def channels(u, r, tall):
    axis = 1 if tall else 0
    return np.linalg.norm(u, axis=axis, keepdims=True) / (np.linalg.norm(r, axis=axis, keepdims=True) + 1e-8)


@tensors
def fira_with(stream, projections, w, lr, scale=0.25, ratio=1.01, beta1=0.9, beta2=0.999, eps=1e-6, guard=True):
    if w.ndim != 2:
        yield from hf_adam(stream, w, beta1=beta1, beta2=beta2, eps=eps)
        return
    m, v, limit = 0.0, 0.0, None
    for t, (g, p) in enumerate(zip(stream, projections, strict=True), 1):
        r = down(g, p)
        m, v = beta1 * m + (1 - beta1) * r, beta2 * v + (1 - beta2) * r**2
        u = m / (np.sqrt(v) + eps)
        rest = (g - scale * up(r, p, w.shape)) * channels(u, r, w.shape[0] >= w.shape[1])
        limit, rest = limited(limit, rest, ratio)
        yield np.sqrt(1 - beta2**t) / (1 - beta1**t) * (scale * up(u, p, w.shape) + rest)


@tensors
def apollo_with(stream, projections, w, lr, scale=1, per_channel=True, beta1=0.9, beta2=0.999, eps=1e-6, guard=True):
    if w.ndim != 2:
        yield from hf_adam(stream, w, beta1=beta1, beta2=beta2, eps=eps)
        return
    m, v, limit = 0.0, 0.0, None
    for t, (g, p) in enumerate(zip(stream, projections, strict=True), 1):
        r = down(g, p)
        m, v = beta1 * m + (1 - beta1) * r, beta2 * v + (1 - beta2) * r**2
        u = m / (np.sqrt(v) + eps)
        limit, d = limited(limit, g * (channels(u, r, w.shape[0] >= w.shape[1]) if per_channel else norm(u) / (norm(r) + 1e-8)), 1.01)
        yield np.sqrt(1 - beta2**t) / (1 - beta1**t) * np.sqrt(scale) * d


@tensors
def conda(stream, projections, w, lr, beta1=0.9, beta2=0.999, eps=1e-8, gap=2000, scale=1):
    if w.ndim != 2:
        yield from hf_adam(stream, w, beta1=beta1, beta2=beta2, eps=eps)
        return
    m = v = 0.0
    for t, g in enumerate(stream, 1):
        m = beta1 * m + (1 - beta1) * g
        if (t - 1) % gap == 0:
            u, _, vt = np.linalg.svd(m, full_matrices=False)
            p = vt if w.shape[0] >= w.shape[1] else u
        v = beta2 * v + (1 - beta2) * down(g, p) ** 2
        yield scale * np.sqrt(1 - beta2**t) / (1 - beta1**t) * up(down(m, p) / (np.sqrt(v) + eps), p, w.shape)


@tensors
def gradnormlorp_with(stream, projections, w, lr, scale=1, beta1=0.9, beta2=0.999, eps=1e-6):
    axis = tuple(range(1, w.ndim)) or None
    length = lambda x: np.sqrt(np.sum(x**2, axis=axis, keepdims=True))
    v_weights, m, v, gain_m, gain_v = w.copy(), 0.0, 0.0, 0.0, 0.0
    for t, (g, p) in enumerate(zip(stream, projections, strict=True), 1):
        gamma = length(v_weights)
        slope = np.sum(g * v_weights / gamma, axis=axis, keepdims=True)
        m, v, u = adam_step(m, v, down(g, p) if w.ndim == 2 else g, t, beta1, beta2, eps, hf=True)
        gain_m, gain_v, gain_u = adam_step(gain_m, gain_v, slope, t, beta1, beta2, eps, hf=True)
        v_weights = v_weights - lr * (scale * up(u, p, w.shape) if w.ndim == 2 else u)
        yield (gamma - lr * gain_u) * v_weights / length(v_weights)


def basis(g, rank):
    """Leading singular vectors of the smaller side, the entry of largest magnitude positive; unit vectors for a zero matrix."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    vectors = vt[:rank].T if g.shape[0] >= g.shape[1] else u[:, :rank]
    vectors = vectors * np.sign(vectors[np.argmax(np.abs(vectors), axis=0), range(vectors.shape[1])]) if s[0] > 0 else np.eye(*vectors.shape)
    return vectors.T if g.shape[0] >= g.shape[1] else vectors


def with_own_basis(name):
    """The rule that takes its bases from its gradients, every `gap` steps."""

    def statement(run: Run, rank=128, gap=200, **hyper):
        held = [{n: basis(g[n], rank) for n in g if g[n].ndim == 2} for g in run.stream[::gap]]
        given = Run(run.stream, run.w, run.lr, {"P": [held[t // gap] for t in range(len(run.stream))]})
        return projecting[f"{name}_with"](given, **hyper)

    projecting[name] = statement


for _name in ("galore", "fira", "gradnormlorp"):
    with_own_basis(_name)
