"""Bounds that a later eps makes meaningless: what is let through is smaller than what is added to its size before it is divided by."""

from __future__ import annotations

from collections.abc import Iterator

from updsl.core.diagnostic import Diagnostic, Label
from updsl.core.ir import Apply, Expr, roots, walk
from updsl.laws.lints.bounds import Bounds
from updsl.laws.lints.degree import name_of
from updsl.laws.lints.flow import Flow


def bound_below_eps(flow: Flow) -> Iterator[Diagnostic]:
    clips = Bounds(flow, averages=False)
    if not any(clips.clip_of(b.expr) for b in flow.bindings.values()):
        return
    for e in roots(flow.program):
        for n in walk(e):
            if isinstance(n, Apply) and n.op == "div":
                yield from _beneath(flow, n.args[1])


def _beneath(flow: Flow, divisor: Expr) -> Iterator[Diagnostic]:
    """Of a divisor size + eps, or max(size, eps)."""
    match flow.behind(divisor):
        case Apply(op="add" | "maximum", args=(a, b)):
            size, eps = (b, a) if flow.number(a) is not None else (a, b)
        case _:
            return
    least = flow.number(eps)
    if least is None or least <= 0 or flow.number(size) is not None:
        return
    bounds = Bounds(flow)
    bounds.clips.clear()
    most = bounds.of(size)
    if not bounds.clips or not 0 <= most[0] or not most[1] <= least:
        return
    clip = next(iter(bounds.clips.values()))
    place = next((b.span for b in flow.bindings.values() if b.expr is flow.behind(clip.place)), clip.place.span)
    if not flow.is_own(place):
        return
    name = name_of(flow, eps)
    shown = f"{name} = {least:g}" if name.startswith("`") else name
    labels = (Label(eps.span, "this is added to it"),) if flow.is_own(eps.span) and eps.span != place else ()
    yield Diagnostic(
        "bound-below-eps",
        f"all that this bound of {clip.bound:g} lets through is below the {shown} of what follows, which decides the scale instead",
        place,
        labels=labels,
        help="raise the bound well above it, or lower it well below the bound",
        severity="warning",
    )
