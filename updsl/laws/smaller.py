"""Smaller streams that break a law still: fewer and smaller tensors, fewer steps, plainer numbers.

Made smaller piece by piece, and not choice by choice as Hypothesis would: that seldom leads from several tensors to one, or past a step in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from updsl.core.frame import Tensor
from updsl.laws.trial import Arrays, Setting

PLAIN = (1.0, 0.0, -1.0, 2.0, 0.5, 10.0)
"""Entries of a gradient that are tried in the place of others, the plainest first; after them, numbers of one digit."""
LOUD = (1.0, 10.0)
"""What the largest entry of a tensor is multiplied by, to stand for all of it."""
MOVED = frozenset(("all", "group", "tensor", "stream", "samples"))
"""Kinds of inputs that can be those of another tensor."""
STILL = (0.0, 1.0)
"""Of a weight."""
FEW = 8
"""Entries of a tensor up to which each is tried alone."""

Made: TypeAlias = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
"""A tensor's gradient → that of a tensor of this shape."""


@dataclass(frozen=True)
class Room:
    """What a setting may be made of. sets: of tensors, the plainest first; kinds: of the rule's inputs, by name; squares: a setting's tensors → matrices of the
    law's names; ranges: numbers of each of its ranges, the plainest first; at: the entry at which the last setting broke the law, if it is one."""

    sets: Sequence[tuple[Tensor, ...]]
    kinds: Mapping[str, str]
    squares: Callable[[Setting], dict[str, Arrays]]
    ranges: Mapping[str, Sequence[float]]
    at: Callable[[], tuple[int, ...]] = tuple


def smaller(setting: Setting, breaks: Callable[[Setting], Setting | None], room: Room) -> Setting:
    """The smallest setting that is found, one change after the other. breaks: the setting up to where the law breaks, or None where it holds, or there is
    neither time nor patience."""
    louder = [lambda s, k=k: _tensors(s, room, lambda x, shape: np.full(shape, k * _largest(x))) for k in LOUD]
    changes = (
        lambda s: _tensors(s, room, np.resize),
        lambda s: _tensors(s, room, _course(room.at())),
        _steps,
        lambda s: _numbers(s, room.ranges),
        _wholes,
        _entries,
        *louder,
    )
    again = True
    while again:
        again = False
        for change in changes:
            while (found := next(filter(None, map(breaks, change(setting))), None)) is not None:
                setting, again = found, True
    return setting


def _tensors(setting: Setting, room: Room, made: Made) -> Iterator[Setting]:
    """Other tensors with fewer entries, the fewest first; each with gradients made of those of one that is there, and its other numbers. Not where inputs have
    sizes of their own."""
    if not all(room.kinds[name] in MOVED for given in setting.inputs[:1] for name in given):
        return
    order = sorted(room.sets, key=lambda ts: sum(t.numel for t in ts))
    for tensors in order[: order.index(setting.tensors)]:
        for source in (t for t in setting.tensors if _has_inputs(setting, t.name)):
            inputs = [{name: _moved_input(cells, room.kinds[name], source, tensors) for name, cells in given.items()} for given in setting.inputs]
            yield replace(
                setting,
                tensors=tensors,
                steps=tuple([_moved(g, source, tensors, made) for g in setting.steps]),
                weights=_moved(setting.weights, source, tensors),
                inputs=tuple(inputs),
                matrices=room.squares(replace(setting, tensors=tensors)),
            )


def _course(at: tuple[int, ...]) -> Made:
    """The entry there, for all entries."""
    return lambda x, shape: np.full(shape, x[at]) if x.ndim == len(at) and all(i < n for i, n in zip(at, x.shape, strict=True)) else np.resize(x, shape)


def _has_inputs(setting: Setting, name: str) -> bool:
    """Whether every input has a value for this tensor, or one for all."""
    return all(name in cells or cells.keys() & {"", 0} for given in setting.inputs for cells in given.values())


def _moved(xs: Mapping[Any, Any], source: Tensor, tensors: Sequence[Tensor], made: Made = np.resize) -> Arrays:
    return {t.name: made(xs[source.name], t.shape) for t in tensors}


def _largest(x: np.ndarray) -> float:
    """The entry of the largest magnitude; NaN is larger."""
    return float(x.flat[np.argmax(np.abs(x))]) if x.size else 0.0


def _moved_input(cells: Mapping[Any, Any], kind: str, source: Tensor, tensors: Sequence[Tensor]) -> dict[Any, Any]:
    match kind:
        case "all" | "group":
            return dict(cells)
        case "samples":
            return {t.name: np.array([np.resize(sample, t.shape) for sample in cells[source.name]]) for t in tensors}
        case "tensor":
            return {t.name: cells[source.name] for t in tensors}
        case _:
            return _moved(cells, source, tensors)


def _steps(setting: Setting) -> Iterator[Setting]:
    """Without some steps in a row: half of them, a quarter, …, one."""
    n = len(setting.steps)
    length = n // 2
    while length:
        for start in range(0, n - length + 1, length):
            rest = [i for i in range(n) if not start <= i < start + length]
            inputs = tuple([setting.inputs[i] for i in rest]) if setting.inputs else ()
            yield replace(setting, steps=tuple([setting.steps[i] for i in rest]), inputs=inputs)
        length //= 2


def _numbers(setting: Setting, ranges: Mapping[str, Sequence[float]]) -> Iterator[Setting]:
    """Plainer numbers of the law's ranges."""
    for name, marks in ranges.items():
        of_rule = name in setting.parameters
        now = setting.parameters[name] if of_rule else setting.numbers[name]
        for v in marks[: marks.index(now) if now in marks else len(marks)]:
            yield replace(setting, parameters={**setting.parameters, name: v}) if of_rule else replace(setting, numbers={**setting.numbers, name: v})


def _wholes(setting: Setting) -> Iterator[Setting]:
    """A learning rate of 1, weights of 0 or 1, gradients of 1 or 0 at all steps or at one."""
    if setting.lr != 1.0:
        yield replace(setting, lr=1.0)
    if setting.seed:
        yield replace(setting, seed=0)
    for v in STILL:
        if (plain := _filled(setting.weights, v, STILL)) is not None:
            yield replace(setting, weights=plain)
    for v in PLAIN[:2]:
        every = [_filled(g, v) or g for g in setting.steps]
        if any(a is not b for a, b in zip(every, setting.steps, strict=True)):
            yield replace(setting, steps=tuple(every))
        for i, g in enumerate(setting.steps):
            if (plain := _filled(g, v)) is not None:
                yield replace(setting, steps=(*setting.steps[:i], plain, *setting.steps[i + 1 :]))


def _filled(xs: Arrays, v: float, plain: tuple[float, ...] = PLAIN) -> Arrays | None:
    """All entries this number; None if that is no plainer."""
    if all(_rank(y, plain) <= _rank(v, plain) for x in xs.values() for y in x.ravel()):
        return None
    return {n: np.full(x.shape, v) for n, x in xs.items()}


def _entries(setting: Setting) -> Iterator[Setting]:
    """One entry of a gradient or a weight a plainer number."""
    for i, g in enumerate(setting.steps):
        for plain in _plainer(g):
            yield replace(setting, steps=(*setting.steps[:i], plain, *setting.steps[i + 1 :]))
    for plain in _plainer(setting.weights, STILL):
        yield replace(setting, weights=plain)


def _plainer(xs: Arrays, plain: tuple[float, ...] = PLAIN) -> Iterator[Arrays]:
    for name, x in xs.items():
        for at in range(x.size if x.size <= FEW else 0):
            for v in (*plain, _short(x.flat[at]))[: _rank(x.flat[at], plain)]:
                y = x.copy()
                y.flat[at] = v
                yield {**xs, name: y}


def _rank(v: float, plain: tuple[float, ...]) -> int:
    return plain.index(v) if v in plain else len(plain) + (_short(v) != v and not np.isnan(v))


def _short(v: float) -> float:
    """The number, with one digit."""
    return float(f"{v:.0e}") if np.isfinite(v) else v
