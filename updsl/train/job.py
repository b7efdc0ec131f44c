"""The main job: one small model, trained from the same seeds on the same batches by several methods, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import nn

from updsl.train.corpus import Corpus, batch
from updsl.train.methods import Method, Stepper
from updsl.train.model import Size, cross_entropy, make_model


@dataclass(frozen=True)
class Settings:
    """`bad_every`: one step in so many, on average, reads its batch from binary files; none of the first `calm` does."""

    steps: int = 300
    seeds: tuple[int, ...] = (0, 1)
    lr: float = 1e-2
    batch: int = 16
    bad_every: int = 40
    calm: int = 40
    size: Size = field(default_factory=Size)
    validation_batches: int = 16
    watched: int = 25
    """For so many steps from a bad one on, the loss on one batch of held-out text is measured after each step."""


@dataclass
class Run:
    """One method from one seed, step by step.

    after_bad: for each bad batch, the loss on one batch of held-out text before that step, after it, and after each of the next steps, up to the next bad one.
    diverged: the step at which the loss was not finite; the run stood still from then on.
    """

    method: str
    seed: int
    bad_steps: tuple[int, ...]
    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    clipped: list[bool | None] = field(default_factory=list)
    rule_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    after_bad: list[list[float]] = field(default_factory=list)
    validation: float | None = None
    diverged: int | None = None


def bad_steps(settings: Settings, seed: int) -> tuple[int, ...]:
    """The steps (from 0) whose batch is binary: drawn from the seed, and at least one if there is room."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    late = range(settings.calm, settings.steps)
    drawn = torch.rand(settings.steps, generator=generator)
    chosen = tuple(s for s in late if drawn[s] < 1 / settings.bad_every)
    return chosen or tuple(late[len(late) // 2 : len(late) // 2 + 1])


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, settings.steps // 20))
    return settings.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / settings.steps)))


def train(settings: Settings, methods: Sequence[Method], corpus: Corpus, progress: Callable[[int, int, list[Run]], None]) -> tuple[list[Run], bool]:
    """Every method from every seed; `progress` is told (step, steps, runs of this seed) after each step. Also says whether it ran to its end.

    All methods take a step before any takes the next, so that what an interrupted job leaves can be compared.
    """
    runs: list[Run] = []
    try:
        for seed in settings.seeds:
            with closing(_one_seed(settings, methods, corpus, seed, runs)) as steps:
                for step in steps:
                    progress(step, settings.steps, runs[-len(methods) :])
    except KeyboardInterrupt:
        return runs, False
    return runs, True


def _one_seed(settings: Settings, methods: Sequence[Method], corpus: Corpus, seed: int, runs: list[Run]) -> Generator[int, None, None]:
    bad = bad_steps(settings, seed)
    models = [make_model(settings.size, seed) for _ in methods]
    steppers = [m.start(model, settings.lr) for m, model in zip(methods, models, strict=True)]
    current = [Run(m.name, seed, bad) for m in methods]
    runs += current
    draws = torch.Generator().manual_seed(seed)
    (probe,) = held_out(settings, corpus, 1, settings.batch)
    try:
        for step in range(settings.steps):
            inputs, targets = batch(corpus.binary if step in bad else corpus.train, settings.batch, settings.size.context, draws)
            for run, model, stepper in zip(current, models, steppers, strict=True):
                if run.diverged is None:
                    if step in bad:
                        run.after_bad.append([mean_loss(model, [probe])])
                    _one_step(run, model, stepper, inputs, targets, learning_rate(settings, step))
                    if run.after_bad and len(run.after_bad[-1]) <= settings.watched:
                        run.after_bad[-1].append(mean_loss(model, [probe]))
            yield step + 1
    finally:
        batches = held_out(settings, corpus, settings.validation_batches, 2 * settings.batch)
        for run, model in zip(current, models, strict=True):
            if run.loss and run.diverged is None:
                run.validation = mean_loss(model, batches)


def _one_step(run: Run, model: nn.Module, stepper: Stepper, inputs: torch.Tensor, targets: torch.Tensor, lr: float) -> None:
    model.zero_grad()
    loss = cross_entropy(model, inputs, targets)
    value = loss.item()
    run.loss.append(value)
    if not math.isfinite(value):
        run.diverged = len(run.loss) - 1
        return
    loss.backward()
    update = stepper(model, lr, value)
    run.norm.append(update.norm)
    run.clipped.append(update.clipped)
    run.rule_seconds.append(update.rule_seconds)
    run.optimizer_seconds.append(update.optimizer_seconds)


def held_out(settings: Settings, corpus: Corpus, count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of text that no run trains on, the same for all runs."""
    draws = torch.Generator().manual_seed(0)
    return [batch(corpus.validation, size, settings.size.context, draws) for _ in range(count)]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return sum(cross_entropy(model, *b).item() for b in batches) / len(batches)
