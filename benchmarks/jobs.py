"""The jobs, and everything that does them: updsl, and what people use for the same today.

J1: norm per column → clip z > 2.5 → ema(0.9), written back into the gradient.
J2: ZClip, one factor for all gradients from the history of their norm; a step that clips, and one that leaves all as it is (idle).
J3: clipping by the global norm, then AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import updsl
from benchmarks import references
from updsl.bench.protocol import Contender
from updsl.bench.tensors import Tensors

Make = Callable[[Tensors], Contender]
LR = 1e-3
TINY = torch.finfo(torch.float32).tiny
MAX_NORM = 1e-3
"""Of J2's clipping steps: below the norm of every set, so that each step clips."""


@dataclass(frozen=True)
class Job:
    """rule: its text. floor: the passes over memory that it needs. scales: of the gradients of the steps that are compared with `reference`. others: who
    else does it, by name."""

    name: str
    rule: str
    floor: tuple[str, ...]
    reference: Callable[[Tensors], references.Reference]
    others: Mapping[str, Make]
    scales: tuple[float, ...] = (1.0, 3.0, 0.5)
    writes_weights: bool = False


def ours(job: Job, backend: str) -> Make:
    """The job's rule in a backend. Raises ValueError where another takes its place, as torch does where there is no compiler."""

    def make(tensors: Tensors) -> Contender:
        y = compiled(job, tensors, backend)
        if y.backend != backend:
            raise ValueError(f"the backend is {y.backend} here")
        return Contender(f"updsl {backend}", lambda: y.step(tensors.grads), tensors.fill, lambda: tensors.weights if job.writes_weights else tensors.grads)

    return make


def compiled(job: Job, tensors: Tensors, backend: str) -> Any:
    """The job's rule, ready for these tensors."""
    return updsl.compile(updsl.parse(job.rule, name=job.name.replace(" ", "_")), tensors.weights, backend=backend, lr=LR)


# --- J1 --------------------------------------------------------------------------------------------------------------


def headline(g: torch.Tensor, m: torch.Tensor, correction: Any) -> None:
    """J1 for one tensor, in place, as one writes it."""
    x = g / torch.linalg.vector_norm(g, dim=0, keepdim=True).clamp_min(TINY)
    mean, std = x.mean(), x.std(correction=0)
    x = x.clamp(mean - 2.5 * std, mean + 2.5 * std)
    m.mul_(0.9).add_(x, alpha=0.1)
    g.copy_(m / correction)


def headline_list(gs: Sequence[torch.Tensor], ms: Sequence[torch.Tensor], correction: torch.Tensor) -> None:
    """J1 for all tensors: what is handed to torch.compile."""
    for g, m in zip(gs, ms, strict=True):
        headline(g, m, correction)


def headline_foreach(gs: list[torch.Tensor], ms: list[torch.Tensor], correction: float) -> None:
    """J1 with torch's multi-tensor operations, where it has them: statistics of columns it has not."""
    xs = torch._foreach_div(gs, [torch.linalg.vector_norm(g, dim=0, keepdim=True).clamp_min(TINY) for g in gs])
    means, bounds = [x.mean() for x in xs], [2.5 * x.std(correction=0) for x in xs]
    for x, mean, bound in zip(xs, means, bounds, strict=True):
        x.clamp_(mean - bound, mean + bound)
    torch._foreach_mul_(ms, 0.9)
    torch._foreach_add_(ms, xs, alpha=0.1)
    torch._foreach_copy_(gs, torch._foreach_div(ms, correction))


def headline_stacked(g: torch.Tensor, m: torch.Tensor, correction: torch.Tensor) -> None:
    """J1 for a stack of tensors of one shape. Mean and standard deviation come from sums over columns, so that the entries are read once less."""
    if g.ndim == 2:  # vectors are matrices of one column; Inductor 2.13 fails with a KeyError on the form without it
        g, m = g.unsqueeze(-1), m.unsqueeze(-1)
    sums, squares = g.sum(1, keepdim=True), g.square().sum(1, keepdim=True)
    factor = torch.where(squares > 0, squares.rsqrt(), 0.0)
    numel = g[0].numel()
    mean = (sums * factor).sum((1, 2), keepdim=True) / numel
    variance = (squares * factor.square()).sum((1, 2), keepdim=True) / numel - mean.square()
    bound = 2.5 * variance.clamp_min(0.0).sqrt()
    x = torch.minimum(torch.maximum(g * factor, mean - bound), mean + bound)
    average = 0.9 * m + 0.1 * x
    m.copy_(average)
    g.copy_(average / correction)


def averaging(name: str, tensors: Tensors, step: Callable[[float], object]) -> Contender:
    """A contender of J1, whose step takes 1 − 0.9^t."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        step(1 - 0.9**steps)

    return Contender(name, count, tensors.fill, lambda: tensors.grads)


def zeros(tensors: Tensors) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gradients, and as many averages."""
    gs = list(tensors.grads.values())
    return gs, [torch.zeros_like(g) for g in gs]


def eager_loop(tensors: Tensors) -> Contender:
    gs, ms = zeros(tensors)

    def step(correction: float) -> None:
        for g, m in zip(gs, ms, strict=True):
            headline(g, m, correction)

    return averaging("eager loop", tensors, step)


def foreach(tensors: Tensors) -> Contender:
    gs, ms = zeros(tensors)
    return averaging("foreach", tensors, lambda correction: headline_foreach(gs, ms, correction))


def compiled_list(tensors: Tensors) -> Contender:
    gs, ms = zeros(tensors)
    run = torch.compile(headline_list, fullgraph=True, dynamic=False)
    correction = torch.zeros((), device=tensors.device)
    return averaging("compiled list", tensors, lambda c: run(gs, ms, correction.fill_(c)))


def compiled_stacks(tensors: Tensors) -> Contender:
    stacks = list(tensors.stacks.values())
    averages = [torch.zeros_like(g) for g in stacks]
    run = torch.compile(headline_stacked, fullgraph=True, dynamic=False)
    correction = torch.zeros((), device=tensors.device)

    def step(c: float) -> None:
        correction.fill_(c)
        for g, m in zip(stacks, averages, strict=True):
            run(g, m, correction)

    return averaging("Inductor by hand", tensors, step)


# --- J2 --------------------------------------------------------------------------------------------------------------


def clip_grad_norm(max_norm: float, foreach: bool | None = None) -> Make:
    """torch's own: it multiplies whether it clips or not."""

    def make(tensors: Tensors) -> Contender:
        attach_grads(tensors)
        ws = list(tensors.weights.values())
        step = lambda: torch.nn.utils.clip_grad_norm_(ws, max_norm, foreach=foreach)
        return Contender("clip_grad_norm_" + (" (foreach)" if foreach else ""), step, tensors.fill)

    return make


def attach_grads(tensors: Tensors) -> None:
    """The gradients in their places beside the weights."""
    for name, w in tensors.weights.items():
        w.grad = tensors.grads[name]


# --- J3 --------------------------------------------------------------------------------------------------------------


def clipped_adamw(name: str, make: Callable[..., torch.optim.Optimizer]) -> Make:
    """clip_grad_norm_, then an optimizer of torch's kind."""

    def contender(tensors: Tensors) -> Contender:
        attach_grads(tensors)
        ws = [w.requires_grad_() for w in tensors.weights.values()]
        optimizer = make(ws, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

        def before() -> None:
            tensors.fill()
            attach_grads(tensors)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(ws, 1.0)
            optimizer.step()

        return Contender(name, step, before, lambda: tensors.weights)

    return contender


def heavyball(tensors: Tensors) -> Contender:
    import heavyball

    return clipped_adamw("HeavyBall", heavyball.AdamW)(tensors)


def optax(tensors: Tensors) -> Contender:
    """optax under jax.jit, with everything it may overwrite donated; gradients and weights are JAX's own."""
    import jax
    import optax

    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.01))
    kept: dict[str, Any] = {"w": {n: jax.numpy.array(w.detach().numpy()) for n, w in tensors.weights.items()}, "scale": None}
    kept["state"] = transform.init(kept["w"])

    def update(w: Any, state: Any, g: Any) -> Any:
        change, state = transform.update(g, state, w)
        return optax.apply_updates(w, change), state

    run = jax.jit(update, donate_argnums=(0, 1))

    def before() -> None:
        if kept["scale"] != tensors.scale:
            tensors.fill()
            kept["g"], kept["scale"] = {n: jax.numpy.array(g.numpy()) for n, g in tensors.grads.items()}, tensors.scale

    def step() -> None:
        kept["w"], kept["state"] = jax.block_until_ready(run(kept["w"], kept["state"], kept["g"]))

    import numpy

    return Contender("optax", step, before, lambda: {n: numpy.asarray(w) for n, w in kept["w"].items()})


J1 = Job(
    "J1",
    "norm per column → clip z > 2.5 → ema(0.9)",
    ("read", "average"),
    references.headline,
    {"eager loop": eager_loop, "foreach": foreach, "compiled list": compiled_list, "Inductor by hand": compiled_stacks},
)
CLIPPING = Job(
    "J2 clipping",
    f"zclip(warmup = 1, eps = 0.01, max_norm = {MAX_NORM})",
    ("read", "scale"),
    references.spikes(2.5, MAX_NORM, 0.01),
    {"clip_grad_norm_": clip_grad_norm(MAX_NORM), "clip_grad_norm_ (foreach)": clip_grad_norm(MAX_NORM, True)},
    scales=(1.0, 1.0, 4.0),
)
IDLE = Job(
    "J2 idle",
    "zclip(warmup = 1, eps = 0.01, max_norm = inf)",
    ("read",),
    references.spikes(2.5, math.inf, 0.01),
    {"clip_grad_norm_": clip_grad_norm(1e9), "clip_grad_norm_ (foreach)": clip_grad_norm(1e9, True)},
    scales=(1.0, 1.0, 4.0),
)
J3 = Job(
    "J3",
    "clip_grad_norm → adamw",
    ("read", "adam"),
    references.clipped_adamw(LR),
    {
        "AdamW (fused)": clipped_adamw("AdamW (fused)", lambda ws, **settings: torch.optim.AdamW(ws, fused=True, **settings)),
        "AdamW (foreach)": clipped_adamw("AdamW (foreach)", lambda ws, **settings: torch.optim.AdamW(ws, foreach=True, **settings)),
        "HeavyBall": heavyball,
        "optax": optax,
    },
    writes_weights=True,
)
JOBS = {job.name: job for job in (J1, CLIPPING, IDLE, J3)}
SLOW_TO_COMPILE = ("compiled list",)
"""Whose compile time grows with the number of tensors, by half a second each."""
