"""normalizing/"""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import Run, matrix, norm, norm_all, ratio, rms, single
from reference.optimizers import adam_step
from reference.stages import whitened

normalizing: dict[str, Any] = {}


def rule(statement):
    normalizing[statement.__name__] = statement
    return statement


@rule
def normalized(run: Run, eps=1e-6):
    for g in run.stream:
        yield {k: x / (norm_all(g) + eps) for k, x in g.items()}


@single
def sinkgd(stream, w, lr, rounds=5, eps=1e-8):
    for g in stream:
        x = matrix(g).astype(float)
        m, n = x.shape
        if g.ndim < 2:
            yield g * np.sqrt(m) / max(norm(g), eps)
            continue
        for _ in range(rounds):
            x = np.sqrt(n) * x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), eps)
            x = np.sqrt(m) * x / np.maximum(np.linalg.norm(x, axis=0, keepdims=True), eps)
        yield x.reshape(g.shape)


def swan_like(g, centred, whiten):
    """Rows standardised, whitened, rescaled to the norm from before the whitening."""
    if g.ndim < 2:
        return centred(g)
    x = np.array([centred(r) for r in matrix(g)])
    y = whiten(x)
    return (ratio(y, norm(y)) * norm(x)).reshape(g.shape)


@single
def swan(stream, w, lr, steps=10, beta=0.8):
    for g in stream:
        yield swan_like(g, lambda r: ratio(r - np.mean(r), np.std(r)), lambda x: whitened(x, steps, beta))


@single
def swan_centered(stream, w, lr, steps=6, beta=0.5):
    for g in stream:
        yield swan_like(g, lambda r: (r - np.mean(r)) / np.sqrt(np.var(r) + 1e-8), lambda x: whitened(x, steps, beta))


@rule
def scale(run: Run, beta=0.9, last="lm_head", embed="embed_tokens", eps=1e-8):
    m = {k: np.zeros_like(x) for k, x in run.w.items()}
    v = {k: np.zeros_like(x) for k, x in run.w.items()}
    for t, g in enumerate(run.stream, 1):
        out = {}
        for k, x in g.items():
            if embed in k:
                out[k] = (matrix(x) / np.maximum(np.sqrt(np.mean(matrix(x) ** 2, 0, keepdims=True)), eps)).reshape(x.shape)
            elif x.ndim < 2:
                m[k], v[k], out[k] = adam_step(m[k], v[k], x, t, 0.9, 0.999, eps, hf=True)
            else:
                if last in k:
                    m[k] = x = beta * m[k] + (1 - beta) * x
                out[k] = (matrix(x) / np.maximum(np.sqrt(np.mean(matrix(x) ** 2, 1, keepdims=True)), eps)).reshape(x.shape)
        yield out


@rule
def balance(run: Run, beta=0.9, sigma=0.5, eps=1e-8):
    b = [{k: np.zeros_like(x) for k, x in run.w.items()} for _ in range(3)]
    for t in range(1, len(run.stream) + 1):
        for i in range(3):
            loss = run.inputs[f"loss{i}"][t - 1]
            for k, x in run.inputs[f"task{i}"][t - 1].items():
                fresh = x / (loss + eps)
                b[i][k] = fresh + beta / t**sigma * (b[i][k] - fresh)
        norms = [norm_all(x) for x in b]
        yield {k: sum(max(norms) / (norms[i] + eps) * b[i][k] for i in range(3)) for k in run.w}


@rule
def orthogonal_gradient(run: Run):
    for f, b, linear in zip(run.stream, run.inputs["backward"], run.inputs["linear"], strict=True):
        inner = lambda x, y: sum(float(np.sum(x[k] * y[k])) for k in x)
        c = inner(f, b) / max(inner(f, f), 1e-10)
        yield {k: linear[k] + f[k] + b[k] - c * f[k] for k in f}


@rule
def tract(run: Run, damping=0.1):
    for g, gram in zip(run.stream, run.inputs["gram"], strict=True):
        yield {k: (matrix(x) @ np.linalg.inv(gram[k] + damping * np.eye(len(gram[k])))).reshape(x.shape) if x.ndim > 1 else x for k, x in g.items()}


@single
def friction(stream, w, lr):
    for g, before in zip(stream, [np.zeros_like(w), *stream[:-1]], strict=True):
        yield g / (1 + np.exp(-np.abs(before - g)))


normalizing |= {f.__name__: f for f in (sinkgd, swan, swan_centered, friction)}
__all__ = ["normalizing", "rms"]
