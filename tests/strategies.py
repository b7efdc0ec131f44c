"""Random well-typed rule files over all constructs of the language, with tensors and streams to run them on. Draws are Hypothesis's to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from agreement import Step
from hypothesis import Phase, settings
from hypothesis import strategies as st
from rule_files import written_file
from writing import Writer

SHAPES = {
    "a.weight": (4, 3), "b.weight": (3, 5), "c.bias": (4,), "k.conv": (2, 3, 2, 1), "d.weight": (4, 3),
    "s.scale": (), "o.one": (1, 1), "e.none": (0, 3), "f.bias": (4,),
}  # fmt: skip
SETS = (
    ("b.weight",), ("a.weight", "c.bias"), ("k.conv", "s.scale", "e.none"), ("a.weight", "d.weight"), ("c.bias", "o.one", "b.weight"), ("a.weight", "c.bias",
    "d.weight", "f.bias"),
    ("a.weight", "b.weight", "c.bias", "k.conv"), tuple(SHAPES),
)  # fmt: skip
MAX_BATCH = 3
CHOICES, ENTRIES = 1024, 4096
"""Bytes that a program and its streams are decoded from, in one draw: of many small draws Hypothesis repeats parts, and most programs would be alike."""


WHOLE = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


def examples(share: float) -> settings:
    """This share of the profile's number of examples; the quick profile does not shrink, which would take longer than the test may."""
    quick = settings.default.max_examples <= 100
    return settings(max_examples=max(1, round(share * settings.default.max_examples)), phases=WHOLE[:3] if quick else WHOLE)


@dataclass(frozen=True, repr=False)
class Case:
    """A rule file and what it runs on."""

    text: str
    weights: Mapping[str, np.ndarray]
    steps: tuple[Step, ...]
    lr: float
    groups: tuple[Mapping[str, Any], ...] | None
    seed: int

    def __repr__(self) -> str:
        return f"Case of {self.shapes}, groups {self.groups}, {len(self.steps)} steps:\n{self.text}"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: w.shape for name, w in self.weights.items()}


def texts() -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """Rule files, with the inputs of their main rules."""
    return st.binary(min_size=CHOICES, max_size=CHOICES).map(lambda data: written_file(Writer(iter(data))))


# --- streams ---------------------------------------------------------------------------------------------------------


def array(data: bytes, shape: tuple[int, ...], scale: float = 1 / 48) -> np.ndarray:
    """Entries from bytes, small ones first; no two equal, none 0, so that order and signs are those of the bytes."""
    codes = np.frombuffer(data, np.uint8).astype(np.float64)
    signed = np.where(codes % 2 == 1, -(codes + 1) / 2, codes / 2)
    return ((signed + 0.05 + 0.9 * np.mod(0.6180339887 * (1 + np.arange(codes.size)), 1.0)) * scale).reshape(shape)


def streams(data: Iterator[int], shapes: Mapping[Any, tuple[int, ...]], lead: tuple[int, ...] = ()) -> dict[Any, np.ndarray]:
    """An array for each shape, with these leading dimensions."""
    return {name: array(bytes(next(data, 0) for _ in range(math.prod(lead + shape))), lead + shape) for name, shape in shapes.items()}


def input_shapes(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the values of an input by tensor."""
    grids = {name: (shape[0] if shape else 1, math.prod(shape[1:])) for name, shape in shapes.items()}
    match kind:
        case "matrix":
            return {name: (2, rows) for name, (rows, _) in grids.items()}
        case "tensor":
            return dict.fromkeys(shapes, ())
        case "row":
            return {name: (rows,) for name, (rows, _) in grids.items()}
        case "column":
            return {name: (cols,) for name, (_, cols) in grids.items()}
        case "block(3)":
            return {name: (-(-rows * cols // 3),) for name, (rows, cols) in grids.items()}
    return dict(shapes)


def handed_over(data: Iterator[int], inputs: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], groups: int, batch: int) -> dict[str, Any]:
    """The further inputs of one step."""
    found: dict[str, Any] = {}
    for name, kind in inputs.items():
        match kind:
            case "all":
                found[name] = streams(data, {"": ()})[""]
            case "group":
                found[name] = streams(data, dict.fromkeys(range(groups), ()))
            case "samples":
                found[name] = streams(data, shapes, (batch,))
            case _:
                found[name] = streams(data, input_shapes(kind, shapes))
    return found


def grouping(pen: Writer, names: tuple[str, ...]) -> tuple[dict[str, Any], ...] | None:
    """Parameter groups, with learning rates and values of parameters of their own."""
    if pen.chance(2):
        return None
    one = {"params": [names[0]], "lr": 0.02} | ({"a": 0.77} if pen.chance(2) else {})
    more = [{"params": list(names[1:2]), "b": 0.21}] if len(names) > 2 and pen.chance(2) else []
    return (one, *more)


def cases(missing: bool = False, steps: int = 5, kernels: str = "") -> st.SearchStrategy[Case]:
    """Rule files, tensors, and streams for them. missing: some tensors have no gradient at some steps. kernels: of what this backend's cover."""
    size = CHOICES + ENTRIES
    return st.binary(min_size=size, max_size=size).map(lambda data: decoded(data[:CHOICES], iter(data[CHOICES:]), missing, steps, kernels))


def decoded(choices: bytes, data: Iterator[int], missing: bool, steps: int, kernels: str = "") -> Case:
    """The case that these bytes stand for."""
    pen = Writer(data)
    names = pen.pick(SETS)
    shapes = {name: SHAPES[name] for name in names}
    groups = grouping(pen, names)
    changed = pen.number(1, 2 * steps)
    text, inputs = written_file(Writer(iter(choices)), groups is not None, kernels)
    weights, taken = streams(data, shapes), []
    for t in range(steps):
        there = {n: s for n, s in shapes.items() if not missing or not pen.chance(3)} or {names[0]: shapes[names[0]]}
        g = streams(data, there)
        taken.append(Step(g, handed_over(data, inputs, there, len(groups or ()) + 1, pen.number(1, MAX_BATCH)), {"a": 0.37} if t + 1 == changed else {}))
    return Case(text, weights, tuple(taken), 0.05, groups, pen.number(0, 10**4))
