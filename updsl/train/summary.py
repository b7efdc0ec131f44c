"""What the runs come to: numbers of each method, as a table and as JSON."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import torch

import updsl
from updsl.train.corpus import Corpus
from updsl.train.job import Run, Settings
from updsl.train.methods import Method


@dataclass(frozen=True)
class Summary:
    """Of one method over its seeds; None where there is nothing to say. Losses in nats a byte.

    worst_after_bad: the largest loss on held-out text in the steps from a bad batch on. steps_to_recover: mean number of steps after a bad one until
    that loss was back at what it was before, over the bad batches where it came back while it was measured; `unrecovered` counts the others.
    """

    method: str
    validation: list[float | None]
    worst_after_bad: float | None
    steps_to_recover: float | None
    unrecovered: int
    bad_batches: int
    clipped_share: float | None
    rule_ms: float | None
    optimizer_ms: float | None
    diverged: int


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """One Summary a method, in the order of the runs."""
    names = list(dict.fromkeys(r.method for r in runs))
    return [_summary(name, [r for r in runs if r.method == name and r.loss]) for name in names]


def _summary(name: str, runs: list[Run]) -> Summary:
    after = [losses for r in runs for losses in r.after_bad if len(losses) > 1]
    waits = [steps_to_recover(losses) for losses in after]
    recovered = [n for n in waits if n is not None]
    said = [c for r in runs for c in r.clipped if c is not None]
    return Summary(
        method=name,
        validation=[r.validation for r in runs],
        worst_after_bad=max((x if math.isfinite(x) else math.inf for losses in after for x in losses[1:]), default=None),
        steps_to_recover=statistics.mean(recovered) if recovered else None,
        unrecovered=len(waits) - len(recovered),
        bad_batches=len(waits),
        clipped_share=sum(said) / len(said) if said else None,
        rule_ms=_median_ms([s for r in runs for s in r.rule_seconds]),
        optimizer_ms=_median_ms([s for r in runs for s in r.optimizer_seconds]),
        diverged=sum(r.diverged is not None for r in runs),
    )


def _median_ms(seconds: list[float]) -> float | None:
    return 1e3 * statistics.median(seconds) if seconds else None


def steps_to_recover(losses: list[float]) -> int | None:
    """How many steps after the bad one the loss was at most what it was before (0: the bad step did no harm); None: it never was."""
    before, *after = losses
    return next((i for i, loss in enumerate(after) if loss <= before), None)


# --- for people ------------------------------------------------------------------------------------------------------

HEADINGS = ("", "validation\nloss", "worst loss after\na bad batch", "steps to\nrecover", "clipped\nsteps", "method\nms/step", "optimizer\nms/step")
LEGEND = """\
validation loss: nats a byte on files that no run trained on, mean over the seeds ± half their range
worst loss, steps to recover: on a batch of held-out text, from a batch of binary files on; "never": not while it was measured
clipped steps: "–" where the rule has no `clip`; ms/step: median"""


def table(summaries: Sequence[Summary]) -> str:
    """The summaries as lines of text, columns aligned."""
    rows = [[h.split("\n")[0] if "\n" in h else "" for h in HEADINGS], [h.split("\n")[-1] for h in HEADINGS], *(_row(s) for s in summaries)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADINGS))]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in rows)


def _row(s: Summary) -> list[str]:
    recover = _number(s.steps_to_recover, ".1f")
    if s.unrecovered:
        recover += f" ({s.unrecovered} of {s.bad_batches} never)"
    return [
        s.method,
        _validation(s),
        _number(s.worst_after_bad, ".2f"),
        recover,
        "–" if s.clipped_share is None else f"{s.clipped_share:.0%}",
        _number(s.rule_ms, ".2f"),
        _number(s.optimizer_ms, ".2f"),
    ]


def _validation(s: Summary) -> str:
    """Mean over the seeds, ± half the range; how many diverged."""
    values = [v for v in s.validation if v is not None]
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    mean = [f"{statistics.mean(values):.3f}{spread}"] if values else []
    return ", ".join([*mean, *([f"{s.diverged} diverged"] if s.diverged else [])]) or "–"


def _number(x: float | None, form: str) -> str:
    return "–" if x is None else format(x, form)


# --- for machines ----------------------------------------------------------------------------------------------------


def to_json(settings: Settings, methods: Sequence[Method], corpus: Corpus, runs: Sequence[Run], complete: bool) -> dict:
    """All there is to say about a job, as plain data; numbers that are not finite are None."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": complete,
        "versions": {"updsl": updsl.__version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "threads": torch.get_num_threads()},
        "settings": asdict(settings),
        "corpus": {"files": corpus.files, "bytes": {"train": len(corpus.train), "validation": len(corpus.validation), "binary": len(corpus.binary)}},
        "rules": {m.name: m.text for m in methods if m.text is not None},
        "summary": [_finite(asdict(s)) for s in summarize(runs)],
        "runs": [_finite(asdict(r)) for r in runs],
    }


def _finite(x):
    match x:
        case float():
            return x if math.isfinite(x) else None
        case dict():
            return {k: _finite(v) for k, v in x.items()}
        case list() | tuple():
            return [_finite(v) for v in x]
        case _:
            return x
