"""stages/"""

from __future__ import annotations

import numpy as np

from reference import Run, norm, norm_all, ratio, rms, rows, single

stages = {}


def stage(statement):
    stages[statement.__name__] = single(statement)
    return statement


def pointwise(name, f):
    """A stage without state: a function of one gradient."""

    def statement(stream, w, lr, **hyper):
        for g in stream:
            yield f(g, w, **hyper)

    stages[name] = single(statement)


pointwise("norm", lambda g, w, p=2: ratio(g, norm(g, p)))
pointwise("rms", lambda g, w: ratio(g, rms(g)))
pointwise("absmax", lambda g, w: ratio(g, np.max(np.abs(g))))
pointwise("center", lambda g, w: g - np.mean(g))
pointwise("standardize", lambda g, w, eps=0: ratio(g - np.mean(g), np.std(g) + eps))
pointwise("sign", lambda g, w: np.sign(g))
pointwise("scale_by", lambda g, w, x=1: x * g)
pointwise("clip_value", lambda g, w, max_value=1: np.clip(g, -max_value, max_value))
pointwise("clip_z", lambda g, w, z_max=2.5: np.clip(g, np.mean(g) - z_max * np.std(g), np.mean(g) + z_max * np.std(g)))
pointwise("centralize", lambda g, w: g - rows(g, np.mean) if g.ndim > 1 else g)
pointwise("weight_decay", lambda g, w, rate=0.01: g + rate * w)
pointwise("trust_ratio", lambda g, w, eps=0, cap=np.inf: g * (min(norm(w) / (norm(g) + eps), cap) if norm(g) and norm(w) else min(1, cap)))
pointwise("cautious", lambda g, w: g * (g != 0) * (g.size / max(np.count_nonzero(g), 1)))


@stage
def ema(stream, w, lr, beta=0.9, debias=True):
    """The weighted sum, written out."""
    for t in range(1, len(stream) + 1):
        weights = [(1 - beta) * beta ** (t - 1 - i) for i in range(t)]
        total = sum(weights) if debias else 1
        yield sum(a * g for a, g in zip(weights, stream[:t], strict=True)) / total


@stage
def momentum(stream, w, lr, beta=0.9, dampening=0):
    buffer = None
    for g in stream:
        buffer = g if buffer is None else beta * buffer + (1 - dampening) * g
        yield buffer


@stage
def nesterov(stream, w, lr, beta=0.9, dampening=0):
    buffer = None
    for g in stream:
        buffer = g if buffer is None else beta * buffer + (1 - dampening) * g
        yield g + beta * buffer


@stage
def prev(stream, w, lr, start=0):
    yield from [np.full_like(w, start), *stream[:-1]]


@stage
def delay(stream, w, lr, n=1):
    yield from ([np.zeros_like(w)] * n + stream)[: len(stream)]


@stage
def sparsify(stream, w, lr, fraction=0.1):
    for g in stream:
        order = sorted(range(g.size), key=lambda i: (-abs(g.flat[i]), i))
        kept = np.zeros_like(g)
        for i in order[: int(np.ceil(round(fraction * g.size, 9)))]:
            kept.flat[i] = g.flat[i]
        yield kept


@stage
def quantize(stream, w, lr, bits=8, group_size=128):
    for g in stream:
        flat = g.ravel()
        runs = [flat[i : i + group_size] for i in range(0, flat.size, group_size)]
        levels = 2 ** (bits - 1) - 1
        yield np.concatenate([np.round(ratio(r, np.max(np.abs(r)) / levels)) * np.max(np.abs(r)) / levels for r in runs]).reshape(g.shape)


def newton_schulz(x, steps=5):
    """Keller Jordan's quintic iteration."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def on_matrix(f):
    return lambda g, w, **hyper: f(g.reshape(g.shape[0] if g.ndim else 1, -1), **hyper).reshape(g.shape)


def whitened(x, steps=10, beta=0.8):
    """Each singular value goes through the iteration by itself: r ← β r (3 - r²), from its share of the norm."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    r = ratio(s, norm(s))
    for _ in range(steps):
        r = beta * r * (3 - r**2)
    return (u * r) @ vt


pointwise("orthogonalize", on_matrix(newton_schulz))
pointwise("whiten", on_matrix(whitened))


@stage
def growth_limit(stream, w, lr, ratio=1.01, eps=1e-8, guard=True):
    limit = None
    for g in stream:
        n = norm(g)
        factor = 1 if limit is None else max(n / (limit + eps), ratio) / ratio
        if n > 0 or not guard:
            limit = n / factor
        yield g / factor


@stage
def accumulate(stream, w, lr, n=4):
    for t in range(1, len(stream) + 1):
        yield np.mean(stream[t - n : t], axis=0) if t % n == 0 else np.zeros_like(w)


def clip_norm(run: Run, max_norm=1):
    for g in run.stream:
        n = norm_all(g)
        yield {k: x * (max_norm / n if n > max_norm else 1) for k, x in g.items()}


stages["clip_norm"] = clip_norm
