"""Loss and gradient norm, step by step, the clipped steps marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from updsl.train.job import Run

COLOURS = ("tab:gray", "tab:blue", "tab:red", "tab:green")


def plot(runs: Sequence[Run], path: Path) -> bool:
    """A PNG of the first seed's runs; False if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    shown = [r for r in runs if r.loss and r.seed == runs[0].seed]
    bad = [s for s in shown[0].bad_steps if s < len(shown[0].loss)] if shown else []
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss, norm = figure.subplots(2, 1, sharex=True)
    for i, run in enumerate(shown):
        colour = COLOURS[i % len(COLOURS)]
        loss.plot(run.loss, color=colour, linewidth=1, label=run.method)
        norm.plot(run.norm, color=colour, linewidth=1)
        clipped = [s for s, c in enumerate(run.clipped) if c]
        norm.plot(
            clipped,
            [run.norm[s] for s in clipped],
            linestyle="none",
            marker="v",
            markersize=4,
            color=colour,
            label=f"clipped: {run.method}" if clipped else None,
        )
    for axes in (loss, norm):
        for i, step in enumerate(bad):
            axes.axvline(step, color="orange", alpha=0.5, linewidth=4, zorder=0, label="batch of binary files" if i == 0 and axes is loss else None)
        axes.set_yscale("log")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    loss.set(ylabel="loss (nats a byte)", title=f"updsl train, seed {shown[0].seed}" if shown else "updsl train: no step was made")
    norm.set(ylabel="norm of the gradient", xlabel="step")
    figure.savefig(path, dpi=110)
    return True
