"""States that a bad step spoils for good: by what is not finite, or by 0.

A state latches what is not finite if, at some step, a gradient (or input) that is not finite makes the state so, and from then on no gradient can make it
finite again. It latches 0 if a gradient can make it 0, from then on it stays 0, and then a tensor stands still.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from updsl.core.diagnostic import Diagnostic, Label
from updsl.core.ir import Apply, Expr, Reduce, Ref, State, children
from updsl.core.scope import ALL, ELEMENT, TENSOR
from updsl.laws.lints.flow import Flow, is_clock
from updsl.laws.lints.signs import BAD, LATE, NAN, NONZERO, POSITIVE, ZERO, Kinds, Signs

SHOWN = 3
MAX_TRIALS = 200
INFINITE = frozenset(("inf",))


def nan_latch(flow: Flow) -> Iterator[Diagnostic]:
    """Of states that are one value for several entries: one bad entry spoils a whole tensor, or all."""
    yield from _latches(flow, "nan-latch", coarse=True)


def nan_latch_entries(flow: Flow) -> Iterator[Diagnostic]:
    """Of states with a value for each entry, if no coarser one latches."""
    if next(nan_latch(flow), None) is None:
        yield from _latches(flow, "nan-latch-entries", coarse=False)


def _latches(flow: Flow, code: str, coarse: bool) -> Iterator[Diagnostic]:
    if not any((s.type.scope != ELEMENT) == coarse and not is_clock(name) and not s.type.window for name, s in flow.states.items()):
        return
    for source in ("builtin g", *(f"input {i.name}" for i in flow.program.inputs)):
        for kind, t in product((NAN, INFINITE), (LATE, None)):
            struck, latched = _witness(flow, Signs(flow, {source: kind}, t), coarse)
            if latched:
                yield _bad(flow, code, source, latched, struck)
                return


def _witness(flow: Flow, struck: Signs, coarse: bool) -> tuple[Signs, list[State]]:
    """A step that spoils a state for ever, with every comparison chosen, and the states. `struck`: with none chosen."""
    waiting, tried = [struck], 0
    while waiting and tried < MAX_TRIALS:
        step, tried = waiting.pop(), tried + 1
        found = [s for s in _latched(flow, step) if (s.type.scope != ELEMENT) == coarse and not s.name.endswith("@tensor")]
        choice = next(iter(step.open), None)
        if found and choice is None:
            return step, found
        if found and choice is not None:
            waiting += [Signs(flow, step.given, step.t, choices={**step.choices, choice: way}) for way in (ZERO, POSITIVE)]
    return struck, []


def _latched(flow: Flow, struck: Signs) -> list[State]:
    """The states that are not finite after the step, and stay so."""
    bad: dict[str, Kinds] = {}
    for name, s in flow.states.items():
        if name in flow.kept and not is_clock(name) and not s.type.window and (kinds := struck.commit(name) & BAD):
            bad[name] = kinds
    while bad:
        after = Signs(flow, {f"state {name}": kinds for name, kinds in bad.items()}, struck.t)
        held = {name: after.commit(name) for name in bad}
        kept = {name: kinds | held[name] for name, kinds in bad.items() if held[name] <= BAD}
        if kept == bad:
            break
        bad = kept
    return [flow.states[name] for name in bad]


def _bad(flow: Flow, code: str, source: str, found: list[State], struck: Signs) -> Diagnostic:
    paths = {s.name: path(flow, struck, source, s.name) for s in found}
    first, *others = sorted(found, key=lambda s: (len(paths[s.name]), flow.place(s.name, s.span).start))
    names = [f"`{s.name}`" for s in (first, *others)]
    what = source.split(" ", 1)[1]
    said = "a gradient that is" if what == "g" else f"a value of `{what}` that is"
    here = flow.place(first.name, first.span)
    labels = [Label(place, "and here") for s in others if (place := flow.place(s.name, s.span)) != here]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    keeps = ", ".join(names[:SHOWN]) + more
    return Diagnostic(
        code,
        f"{said} not finite stays in {keeps} for ever",
        here,
        note_here=" → ".join(paths[first.name]),
        labels=tuple(dict.fromkeys(labels))[: SHOWN - 1],
        help=f"leave such steps out, by a line at the head of the rule's block: `skip when {_guard(flow, what)}`",
        severity="warning",
    )


def _guard(flow: Flow, what: str) -> str:
    """A condition for `skip` that the states allow."""
    scope = TENSOR if all(TENSOR <= s.type.scope for s in flow.states.values()) else ALL
    types = [i.type for i in flow.program.inputs if i.name == what]
    if any(t.samples for t in types):
        return f"not isfinite(absmax(sample_sum({what})) per {scope})"
    return f"not isfinite({what})" if any(t.scope <= scope for t in types) else f"not isfinite(absmax({what}) per {scope})"


def path(flow: Flow, struck: Signs, source: str, state: str) -> list[str]:
    """The shortest way that the bad value takes, by names and reductions."""
    known: dict[str, list[str]] = {}

    def to(e: Expr) -> list[str]:
        match e:
            case Ref(kind=kind, name=name) if f"{kind} {name}" == source:
                return [name]
            case Ref(kind="value", name=name):
                if name not in known:
                    y = flow.yields.get(name)
                    known[name] = []
                    ways = [to(flow.bindings[name].expr)] if y is None else [to(y.inner), to(y.outer)]
                    way = min(filter(None, ways), key=len, default=[])
                    shown = _shown(flow, name) if y is None else ""
                    known[name] = [*way, shown] if way and shown and shown != way[-1] else way
                return known[name]
        if not struck.of(e) & BAD:
            return []
        parts = children(e)[1:] if isinstance(e, Apply) and e.op == "select" else children(e)
        way = min((w for a in parts if struck.of(a) & BAD and (w := to(a))), key=len, default=[])
        return [*way, e.op] if way and isinstance(e, Reduce) else way

    way, last = to(flow.commits[state]), state.rsplit("#", 1)[0]
    return [*way, last] if not way or way[-1] != last else way


def _shown(flow: Flow, name: str) -> str:
    """A value's name as the text has it; "" for what has none there, and for a state's own."""
    head, _, last = name.removesuffix("@tensor").rpartition(".")
    plain = last.rstrip("0123456789")
    if {"kept", "reset"} & {*head.split("."), last} or plain in ("it", "skipped") or (f"{head}.{plain}" if head else plain) in flow.states:
        return ""
    return f"{head}.{last}" if head else last


# --- zero ------------------------------------------------------------------------------------------------------------


def zero_latch(flow: Flow) -> Iterator[Diagnostic]:
    for name, s in flow.states.items():
        if name not in flow.kept or is_clock(name) or s.type.window or not _can_be_zero(flow, name):
            continue
        rest = {f"state {other}": NONZERO for other in flow.states if other != name and not is_clock(other)}
        after = Signs(flow, rest | {f"state {name}": ZERO, "builtin g": NONZERO, "builtin w": NONZERO}, LATE)
        stands = [e for g in flow.given if (e := _step(flow, g)) is not None]
        if after.commit(name) == ZERO and stands and all(after.of(e) == ZERO for e in stands):
            yield Diagnostic(
                "zero-latch",
                f"`{name}` can become 0, is 0 from then on, and then nothing moves",
                flow.place(name, s.span),
                help=f"keep it above 0, such as by `max(…, 1e-8)` around what is given to `{name.rsplit('.', 1)[-1]}`",
                severity="warning",
            )


def _can_be_zero(flow: Flow, name: str) -> bool:
    """Whether some gradient makes the state 0 that was not."""
    rest = {f"state {other}": NONZERO for other in flow.states if other != name and not is_clock(other)}
    for g in (ZERO, NONZERO):
        for t in (1.0, 2.0, LATE):
            step = Signs(flow, rest | {f"state {name}": POSITIVE, "builtin g": g}, t, cancels=False)
            if "0" in step.commit(name):
                return True
    return False


def _step(flow: Flow, e: Expr) -> Expr | None:
    """What is given, or taken from the weight; None if that is the weight as it was."""
    match flow.behind(e):
        case Apply(op="sub", args=(Ref(name="w", kind="builtin"), x)):
            return x
        case Ref(name="w", kind="builtin"):
            return None
        case found:
            return found
