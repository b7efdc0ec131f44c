"""`updsl train` from its arguments to its exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

import updsl
from updsl.train.corpus import read_corpus
from updsl.train.job import Run, Settings, train
from updsl.train.methods import clip_grad_norm, no_clipping, ruled
from updsl.train.model import Size
from updsl.train.plot import plot
from updsl.train.summary import LEGEND, summarize, table, to_json

QUICK = Settings(steps=40, seeds=(0,), calm=10, bad_every=15, batch=4, size=Size(width=32, layers=1, heads=2, context=32), validation_batches=2)


def command(rule: str, *, steps: int | None, seeds: int | None, lr: float | None, out: Path, quick: bool, as_json: bool, say: Callable[[str], None]) -> bool:
    """Run the job, write its files, and say what came out: whether it ran to its end.

    Raises UpdslError for a rule that makes no sense, ClickException for what is no rule's fault.
    """
    settings = QUICK if quick else Settings()
    settings = replace(settings, steps=steps or settings.steps, lr=lr or settings.lr, seeds=tuple(range(seeds)) if seeds else settings.seeds)
    try:
        methods = [no_clipping(), clip_grad_norm(), ruled(updsl.load(rule))]
        corpus = read_corpus()
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    runs, complete = train(settings, methods, corpus, progress())
    data = json.dumps(to_json(settings, methods, corpus, runs, complete), indent=1, allow_nan=False)
    (out / "train.json").write_text(data, encoding="utf-8")
    say(data if as_json else report(settings, runs, complete, len(methods)))
    plotted = plot(runs, out / "train.png")
    if not as_json:
        say(f"plot: {out / 'train.png'}" if plotted else "no plot: matplotlib is not installed (pip install 'updsl[plot]')")
        say(f"numbers: {out / 'train.json'}")
    return complete


def report(settings: Settings, runs: Sequence[Run], complete: bool, methods: int) -> str:
    """The table, and what it means."""
    title = f"{settings.steps} steps, seeds {', '.join(map(str, settings.seeds))}, AdamW at a learning rate of up to {settings.lr:g}"
    if not complete:
        made, planned = sum(len(r.loss) for r in runs), settings.steps * len(settings.seeds) * methods
        title = f"interrupted after {made} of {planned} steps of: {title}"
    return "\n".join(["", title, "", table(summarize(runs)), "", LEGEND, ""])


def progress() -> Callable[[int, int, list[Run]], None]:
    """A line that fills up on a terminal; elsewhere a line for each tenth."""
    terminal = sys.stderr.isatty()
    began = time.monotonic()

    def show(step: int, steps: int, runs: list[Run]) -> None:
        if not terminal and step != steps and step % max(1, steps // 10):
            return
        losses = "  ".join(f"{r.method} {r.loss[-1]:.2f}" for r in runs)
        filled = 24 * step // steps
        bar = f"seed {runs[0].seed} [{'#' * filled}{'.' * (24 - filled)}] {step}/{steps}  {time.monotonic() - began:.0f} s  loss: {losses}"
        print(f"\r{bar}\x1b[K" if terminal else bar, end="\n" if step == steps or not terminal else "", file=sys.stderr, flush=True)

    return show
