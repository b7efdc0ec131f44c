"""optimizers/: weights after each step, or the direction of a rule that does not write them."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import Run, matrix, norm, norm_all, ratio, rms, single
from reference.clipping import adaclip, adagn
from reference.stages import newton_schulz

optimizers: dict[str, Any] = {}


def rule(statement):
    optimizers[statement.__name__] = statement
    return statement


def tensor_rule(statement):
    optimizers[statement.__name__] = single(statement)
    return statement


def adam_step(m, v, g, t, beta1=0.9, beta2=0.999, eps=1e-8, hf=False):
    """(m, v, update); hf adds eps before the bias correction."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    return m, v, np.sqrt(c2) / c1 * m / (np.sqrt(v) + eps) if hf else (m / c1) / (np.sqrt(v) / np.sqrt(c2) + eps)


def from_torch(name: str, cls: str, hyper: dict[str, str], fixed: dict[str, Any] | None = None, direction: bool = False):
    """torch.optim in float64: our hyper-parameter → torch's; betas by beta1 and beta2. direction: the rule gives (w - w') / lr."""

    def statement(run: Run, **given):
        import torch

        params = {k: torch.nn.Parameter(torch.from_numpy(x.copy())) for k, x in run.w.items()}
        kwargs = {hyper[k]: v for k, v in given.items() if k in hyper} | (fixed or {})
        if "beta1" in given or "beta2" in given:
            kwargs["betas"] = (given.get("beta1", 0.9), given.get("beta2", 0.999))
        optimizer = getattr(torch.optim, cls)(params.values(), lr=run.lr, **kwargs)
        for g in run.stream:
            before = {k: p.detach().numpy().copy() for k, p in params.items()}
            for k, p in params.items():
                p.grad = torch.from_numpy(g[k].copy())
            optimizer.step()
            after = {k: p.detach().numpy().copy() for k, p in params.items()}
            yield {k: (before[k] - after[k]) / run.lr for k in params} if direction else after

    optimizers[name] = statement


DECAY = {"eps": "eps", "weight_decay": "weight_decay"}
from_torch("sgd", "SGD", {k: k for k in ("momentum", "dampening", "nesterov", "weight_decay")})
from_torch("adam", "Adam", {"eps": "eps"}, direction=True)
from_torch("amsgrad", "Adam", {"eps": "eps"}, {"amsgrad": True}, direction=True)
from_torch("adamw", "AdamW", DECAY)
from_torch("nadam", "NAdam", DECAY | {"momentum_decay": "momentum_decay"})
from_torch("radam", "RAdam", DECAY)
from_torch("adamax", "Adamax", DECAY)
from_torch("adagrad", "Adagrad", DECAY | {"lr_decay": "lr_decay", "initial": "initial_accumulator_value"})
from_torch("rmsprop", "RMSprop", DECAY | {k: k for k in ("alpha", "momentum", "centered")}, direction=True)


def adafactor(run: Run, beta2_decay=-0.8, eps1=2.220446049250313e-16, eps2=1e-3, d=1, weight_decay=0):
    """torch.optim.Adafactor on matrix views."""
    import torch

    params = {k: torch.nn.Parameter(torch.from_numpy(x.reshape(x.shape[0], -1) if x.ndim > 1 else x).clone()) for k, x in run.w.items()}
    optimizer = torch.optim.Adafactor(params.values(), lr=run.lr, beta2_decay=beta2_decay, eps=(eps1, eps2), d=d, weight_decay=weight_decay)
    for g in run.stream:
        for k, p in params.items():
            p.grad = torch.from_numpy(g[k].copy()).reshape(p.shape)
        optimizer.step()
        yield {k: p.detach().numpy().reshape(run.w[k].shape).copy() for k, p in params.items()}


optimizers["adafactor"] = adafactor


@tensor_rule
def lion(stream, w, lr, beta1=0.9, beta2=0.99, weight_decay=0):
    m = np.zeros_like(w)
    for g in stream:
        w = w * (1 - lr * weight_decay) - lr * np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        yield w


@tensor_rule
def signum(stream, w, lr, beta=0.9):
    m = np.zeros_like(w)
    for g in stream:
        m = beta * m + (1 - beta) * g
        yield np.sign(m)


@rule
def lamb(run: Run, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01, max_norm=1, cap=np.inf):
    w = dict(run.w)
    m, v = ({k: np.zeros_like(x) for k, x in w.items()} for _ in range(2))
    for t, g in enumerate(run.stream, 1):
        clip = max(norm_all(g) / max_norm, 1)
        for k in w:
            m[k], v[k], u = adam_step(m[k], v[k], g[k] / clip, t, beta1, beta2, eps)
            if weight_decay:
                u = u + weight_decay * w[k]
                u = u * min(norm(w[k]) / norm(u) if norm(w[k]) and norm(u) else 1, cap)
            w = w | {k: w[k] - run.lr * u}
        yield w


@tensor_rule
def lars(stream, w, lr, momentum=0.9, trust=0.001, weight_decay=0, eps=1e-8, larc=False, nesterov=False):
    buffer = None
    for g in stream:
        if weight_decay:
            rate = trust * norm(w) / (norm(g) + weight_decay * norm(w) + eps) if norm(w) and norm(g) else 1
            g = (g + weight_decay * w) * (min(rate / lr, 1) if larc else rate)
        if momentum:
            buffer = g if buffer is None else momentum * buffer + g
            g = g + momentum * buffer if nesterov else buffer
        w = w - lr * g
        yield w


@tensor_rule
def muon(stream, w, lr, beta=0.95, steps=5, nesterov=True, weight_decay=0):
    b, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        if w.ndim < 2:
            b, v, u = adam_step(b, v, g, t, 0.9, 0.95, 1e-10)
        else:
            b = beta * b + (1 - beta) * g
            u = (1 - beta) * g + beta * b if nesterov else b
            u = newton_schulz(matrix(u), steps).reshape(w.shape) * max(1, w.shape[-2] / w.shape[-1]) ** 0.5
        w = w * (1 - lr * weight_decay) - lr * u
        yield w


def projected(u, g, w, delta, wd_ratio, eps):
    """AdamP's decision and projection: (update, factor of the weight decay)."""
    if w.ndim < 2:
        return u, 1
    for view in (matrix, lambda x: x.reshape(1, -1)):
        gv, wv, uv = view(g), view(w), view(u)
        cosines = [abs(a @ b) / (max(norm(a), eps) * max(norm(b), eps)) for a, b in zip(gv, wv, strict=True)]
        if max(cosines) < delta / np.sqrt(wv.shape[1]):
            unit = wv / (np.linalg.norm(wv, axis=1, keepdims=True) + eps)
            return (uv - unit * np.sum(unit * uv, 1, keepdims=True)).reshape(u.shape), wd_ratio
    return u, 1


@tensor_rule
def adamp(stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-8, delta=0.1, wd_ratio=0.1, weight_decay=0, nesterov=False):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        d = np.sqrt(v) / np.sqrt(1 - beta2**t) + eps
        u, share = projected((beta1 * m + (1 - beta1) * g if nesterov else m) / d, g, w, delta, wd_ratio, eps)
        w = w * (1 - lr * weight_decay * share) - lr / (1 - beta1**t) * u
        yield w


@tensor_rule
def sgdp(stream, w, lr, momentum=0, dampening=0, eps=1e-8, delta=0.1, wd_ratio=0.1, weight_decay=0, nesterov=False):
    m = np.zeros_like(w)
    for g in stream:
        m = momentum * m + (1 - dampening) * g
        u, share = projected(g + momentum * m if nesterov else m, g, w, delta, wd_ratio, eps)
        m = m if nesterov else u
        w = w * (1 - lr * weight_decay * share / (1 - momentum)) - lr * u
        yield w


@tensor_rule
def diffgrad(stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0):
    m, v, before = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        g = g + weight_decay * w
        m, v, u = adam_step(m, v, g, t, beta1, beta2, eps, hf=True)
        w = w - lr * u / (1 + np.exp(-np.abs(before - g)))
        before = g
        yield w


@rule
def adagrad_norm(run: Run, initial=0.01):
    total = initial**2
    for g in run.stream:
        total += norm_all(g) ** 2
        yield {k: x / np.sqrt(total) for k, x in g.items()}


@tensor_rule
def adagrad_norm_rows(stream, w, lr, initial=0.01, eps=1e-10):
    total = np.full((w.shape[0], 1) if w.ndim else (1, 1), float(initial))
    for g in stream:
        total = total + np.sum(matrix(g) ** 2, 1, keepdims=True)
        yield (matrix(g) / (np.sqrt(total) + eps)).reshape(g.shape)


@tensor_rule
def spam(stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0, warmup=150, threshold=5000, gap=500, accumulate=20, guard=True):
    m, v, position = np.zeros_like(w), np.zeros_like(w), warmup + 1
    for t, g in enumerate(stream, 1):
        kappa = 0 if position >= warmup else 0.99 * (1 + np.cos(np.pi * position / (warmup + 1))) / 2
        if t % gap == 0:
            m, v = np.zeros_like(w), np.zeros_like(w)
        if threshold and t >= accumulate and t % gap >= accumulate:
            spike = (g**2 > threshold * v) & ((v > 0) | (not guard))
            g = np.where(spike, np.sign(g) * np.sqrt(threshold * v), g)
        m, v, u = adam_step(m, v, g, t, beta1, beta2, eps, hf=True)
        w = (w - lr * (1 - kappa) * u) * (1 - lr * weight_decay)
        position = 0 if (t + 1) % gap == 0 else position + 1
        yield w


@tensor_rule
def stable_spam(
    stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, gamma1=0.7, gamma2=0.9, gamma3=0.999, total=np.inf, eta_min=0.5, gap=1000, guard=True
):
    m, v, c, top, p, q = np.zeros_like(w), np.zeros_like(w), 0, 0.0, 0.0, 0.0
    for t, g in enumerate(stream, 1):
        rho = 1 if total == np.inf else eta_min + (1 - eta_min) * (1 + np.cos(np.pi * t / (total + 1))) / 2
        w, c = w * (1 - lr * weight_decay), c + 1
        a = np.max(np.abs(g))
        top = gamma3 * top + (1 - gamma3) * a
        bound = top / (1 - gamma3**c)
        g = np.where(np.abs(g) > bound, g / (a or 1) * bound, g)
        n = norm(g)
        p, q = gamma1 * rho * p + (1 - gamma1 * rho) * n, gamma2 * q + (1 - gamma2) * n**2
        g = g / n * (p / (1 - (gamma1 * rho) ** c) / (np.sqrt(q / (1 - gamma2**c)) + eps)) if n > 0 else g
        reset = gap != 0 and t % gap == 0
        c = 1 if reset else c
        new_m, new_v, u = adam_step(m, v, g, c, beta1 * rho, beta2, eps)
        w = w - lr * u
        m, v = (np.zeros_like(w), np.zeros_like(w)) if reset else (new_m, new_v)
        yield w


@rule
def stable_spam_paper(run: Run, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, gamma1=0.7, gamma2=0.9, gamma3=0.999, gap=1000, guard=True):
    """The two normalisations on the whole stream, then Adams that start anew."""
    clipped = list(adaclip(run, gamma=gamma3))
    w = dict(run.w)
    for t, g in enumerate(adagn(Run(clipped, run.w, run.lr), gamma1=gamma1, gamma2=gamma2, eps=eps), 1):
        if t == 1 or t % gap == 0:
            m, v, c = {k: np.zeros_like(x) for k, x in w.items()}, {k: np.zeros_like(x) for k, x in w.items()}, 0
        c += 1
        for k in w:
            m[k], v[k], u = adam_step(m[k], v[k], g[k], c, beta1, beta2, eps)
            w = w | {k: w[k] * (1 - run.lr * weight_decay) - run.lr * u}
        yield w


@rule
def sophia(run: Run, beta1=0.965, beta2=0.99, rho=0.04, batch_size=1, weight_decay=0.1, every_k=10):
    w, m, h = dict(run.w), dict.fromkeys(run.w, 0.0), dict.fromkeys(run.w, 0.0)
    for t, (g, other) in enumerate(zip(run.stream, run.inputs["hessian_gradient"], strict=True), 1):
        for k in g:
            m[k] = beta1 * m[k] + (1 - beta1) * g[k]
            step = np.sign(m[k]) * np.minimum(np.abs(m[k]) / (rho * batch_size * h[k] + 1e-15), 1)
            w = w | {k: w[k] * (1 - run.lr * weight_decay) - run.lr * step}
            if t % every_k == 0:
                h[k] = beta2 * h[k] + (1 - beta2) * other[k] ** 2
        yield w


@tensor_rule
def scion(stream, w, lr, beta=0.9, constrained=True, scale=1):
    m = np.zeros_like(w)
    for g in stream:
        m = beta * m + (1 - beta) * g
        if w.ndim < 2:
            u = m / (rms(m) + 1e-8)
        else:
            kernel = {2: 1, 3: w.shape[-1], 4: w.shape[-1] ** 2}[w.ndim]
            u = newton_schulz(matrix(m)).reshape(w.shape) * np.sqrt(w.shape[0] / w.shape[1]) / kernel
        w = (w * (1 - lr) if constrained else w) - lr * scale * u
        yield w


@rule
def lanton(run: Run, alpha=1, beta1=0.95, beta2=0.9):
    m, h, before = dict.fromkeys(run.w, 0.0), dict.fromkeys(run.w, 0.0), None
    for g in run.stream:
        out, a = {}, {}
        for k, x in g.items():
            m[k] = beta1 * m[k] + (1 - beta1) * x
            shape = np.sqrt(matrix(x).shape[0] / matrix(x).shape[1])
            out[k] = newton_schulz(matrix(m[k])).reshape(x.shape) * shape if x.ndim > 1 else ratio(m[k], rms(m[k]))
            if before:
                d = x - before[k]
                dual = shape * np.sum(np.linalg.svd(matrix(d), compute_uv=False)) if x.ndim > 1 else np.sqrt(x.size) * norm(d)
                h[k] = beta2 * h[k] + (1 - beta2) * dual**2
            a[k] = alpha / np.sqrt(alpha**2 + h[k])
        before = g
        yield {k: x * np.sqrt(a[k] / max(a.values())) for k, x in out.items()}


def nap(step):
    """Weights after `step`, matrices given back the norm they started with."""

    def statement(stream, w, lr, **hyper):
        first, update = norm(w), step(stream, w, **hyper)
        for u in update:
            w = w - lr * u
            if w.ndim > 1 and norm(w) > 1e-8:
                w = w * first / norm(w)
            yield w

    return single(statement)


def momentum_of(stream, w, momentum=0.9):
    b = None
    for g in stream:
        b = g if b is None else momentum * b + g
        yield b


def adam_of(stream, w, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        m, v, u = adam_step(m, v, g, t, beta1, beta2, eps)
        yield u


optimizers |= {"nap": nap(lambda stream, w: iter(stream)), "nap_sgd": nap(momentum_of), "nap_adam": nap(adam_of)}


def schedule_free(stream, y, lr, beta, weight_decay, warmup):
    z, top, total = y, -1.0, 0.0
    for k, g in enumerate(stream):
        rate = lr * ((k + 1) / warmup if k < warmup else 1)
        top = max(top, rate)
        total += top**2
        c = top**2 / total
        g = g + weight_decay * y
        y = y + c * (z - y) + rate * (beta * (1 - c) - 1) * g
        z = z - rate * g
        yield y


@tensor_rule
def schedule_free_sgd(stream, w, lr, beta=0.9, weight_decay=0, warmup=0):
    yield from schedule_free(stream, w, lr, beta, weight_decay, warmup)


@tensor_rule
def schedule_free_adamw(stream, w, lr, beta=0.9, beta2=0.999, eps=1e-8, weight_decay=0, warmup=0):
    v, normalised = np.zeros_like(w), []
    for t, g in enumerate(stream, 1):
        v = beta2 * v + (1 - beta2) * g**2
        normalised.append(g / (np.sqrt(v / (1 - beta2**t)) + eps))
    yield from schedule_free(normalised, w, lr, beta, weight_decay, warmup)


@rule
def npg_igt(run: Run, gamma=0.5, eta=1):
    x, d = dict(run.w), None
    for i, g in enumerate(run.stream):
        g_i, eta_i = gamma * 2 / (i + 2), eta * (2 / (i + 2)) ** 0.8
        d = g if d is None else {k: (1 - eta_i) * d[k] + eta_i * g[k] for k in g}
        last, x = x, {k: x[k] - g_i * d[k] / norm_all(d) for k in g}
        yield {k: x[k] + (1 / eta_i - 1) * (x[k] - last[k]) for k in x}


def inverse_root(a, root, eps):
    values, vectors = np.linalg.eigh(a)
    if values.min() < eps:
        values = values - values.min() + eps
    return (vectors * values ** (-1 / root)) @ vectors.T


@tensor_rule
def shampoo(stream, w, lr, beta1=0, eps=1e-6, gap=1, weight_decay=0):
    left = right = m = 0.0
    a, b = (np.eye(n) for n in matrix(w).shape)
    for t, g in enumerate(stream, 1):
        x = matrix(g)
        m = beta1 * m + (1 - beta1) * x
        left, right = left + x @ x.T, right + x.T @ x
        if t % gap == 0:
            a = inverse_root(left, 4 if w.ndim > 1 else 2, eps)
            b = inverse_root(right, 4, eps) if w.ndim > 1 else b
        w = w * (1 - lr * weight_decay) - lr * (a @ (m / (1 - beta1**t)) @ b).reshape(w.shape)
        yield w


@tensor_rule
def ademamix(stream, w, lr, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5, warmup=0, eps=1e-8, weight_decay=0):
    """The schedule as half-lives: log(1/2)/log(β) - 1 grows linearly."""
    m, slow, v = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        part = min(t / warmup, 1) if warmup else 1
        life = (1 - part) * np.log(0.5) / np.log(beta1) + part * np.log(0.5) / np.log(beta3)
        b = 0.5 ** (1 / life)
        slow = b * slow + (1 - b) * g
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        u = (m / (1 - beta1**t) + alpha * part * slow) / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - lr * (u + weight_decay * w)
        yield w


@tensor_rule
def adopt(stream, w, lr, beta1=0.9, beta2=0.9999, eps=1e-6):
    m, v = np.zeros_like(w), stream[0] ** 2
    yield m
    for g in stream[1:]:
        m = beta1 * m + (1 - beta1) * g / np.maximum(np.sqrt(v), eps)
        v = beta2 * v + (1 - beta2) * g**2
        yield m


@tensor_rule
def adabelief(stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-16):
    m, s = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
        yield m / (1 - beta1**t) / (np.sqrt(s / (1 - beta2**t)) + eps)


@tensor_rule
def mars_adamw(stream, w, lr, beta1=0.95, beta2=0.99, gamma=0.025, eps=1e-8, weight_decay=0):
    m, v, last = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        c = (g - last) * gamma * (beta1 / (1 - beta1)) + g
        c = c / max(norm(c), 1)
        m, v, u = adam_step(m, v, c, t, beta1, beta2, eps)
        w, last = w - lr * (weight_decay * w + u), g
        yield w


@tensor_rule
def cautious_adamw(stream, w, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(stream, 1):
        m, v, u = adam_step(m, v, g, t, beta1, beta2, eps)
        mask = u * g > 0
        w = w * (1 - lr * weight_decay) - lr * u * mask * (mask.size / max(mask.sum(), 1))
        yield w


@tensor_rule
def grokfast(stream, w, lr, alpha=0.98, gain=2):
    average = stream[0]
    for g in stream:
        average = average * alpha + g * (1 - alpha)
        yield g + gain * average


@tensor_rule
def lookahead(stream, w, lr, k=6, alpha=0.5):
    slow = w
    for t, g in enumerate(stream, 1):
        w = w - lr * g
        if t % k == 0:
            w = slow = slow + alpha * (w - slow)
        yield w
