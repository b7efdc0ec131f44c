"""Where two rules differ, for people to read: parameters, inputs, what they write and keep, and their texts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from updsl.core.diagnostic import UpdslError, printable
from updsl.front.format import format_source
from updsl.front.module import Module
from updsl.front.probes import programs_of
from updsl.front.unit import Constant


def differences(a: Module, b: Module, of_a: Mapping[str, Constant], of_b: Mapping[str, Constant]) -> Iterator[str]:
    """Lines, each about one thing that only one of them has, or that they have in different ways; then their texts, as `diff -u` shows them."""
    names = told_apart(a, b)
    if a.writes_weights != b.writes_weights:
        yield f"only {names[b.writes_weights]} writes the weights itself: they are compared as optimizers, w ← w - lr*out for the other"
    yield from _contrast("parameter", names, _parameters(a, of_a), _parameters(b, of_b))
    yield from _contrast("input", names, a.inputs, b.inputs)
    yield from _contrast("state", names, _states(a, of_a), _states(b, of_b))
    yield from difflib.unified_diff(_text(a), _text(b), *names, lineterm="", n=1)


def _text(m: Module) -> list[str]:
    return [printable(line) for line in format_source(m.unit.source).splitlines()]


def told_apart(a: Module, b: Module) -> tuple[str, str]:
    """What to call two rules: their names, else their files, else first and second."""
    for names in ((a.name, b.name), (a.unit.source.name, b.unit.source.name)):
        if names[0] != names[1]:
            return names
    return "the first", "the second"


def _contrast(what: str, names: tuple[str, str], of_a: Mapping[str, str], of_b: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*of_a, *of_b)):
        x, y = of_a.get(name), of_b.get(name)
        if x is None or y is None:
            yield f"{what} {name} ({x or y}): only in {names[x is None]}"
        elif x != y:
            yield f"{what} {name}: {x} in {names[0]}, {y} in {names[1]}"


def _parameters(m: Module, values: Mapping[str, Constant]) -> dict[str, str]:
    def shown(x: Constant) -> str:
        return str(x).lower() if isinstance(x, bool) else f'"{x}"' if isinstance(x, str) else f"{x:.10g}"

    bounds = {n: "" if (p.low, p.high) == (-float("inf"), float("inf")) else f" in [{p.low:g}, {p.high:g}]" for n, p in m.parameters.items()}
    return {n: f"{shown(values[n])}{bounds[n]}" for n in m.parameters}


def _states(m: Module, values: Mapping[str, Constant]) -> dict[str, str]:
    """By name: the cells that each has a value for, and its type where the text gives one."""
    try:
        programs = programs_of(m, values)
    except UpdslError:
        return {}
    states = {s.name: s for p in programs for s in p.states}
    return {
        n: f"per {s.type.scope}{f', a window of {s.type.window}' if s.type.window else ''}{f', {s.dtype}' if s.dtype else ''}"
        for n, s in sorted(states.items())
    }
