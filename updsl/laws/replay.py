"""A stream that breaks a law, run again: with the values of what the rule's text names, and as Python for anyone to run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from updsl.core.ir import Binding, Program, Reduce, Ref, Watch
from updsl.core.source import Source
from updsl.front.claim import Claim
from updsl.front.module import Module
from updsl.laws.trial import Setting, Took, Trial

DEFINES = re.compile(r"(?:let\s+)?([^\s=←<]+)\s*(?:=(?!=)|←|<-)")
"""A statement that gives a name its value."""
PARTS = frozenset(("bound", "beyond", "factor", "centre"))
"""Of a clip, named by its text as a whole."""
LONGEST = 40
"""Characters of a text that stands for its value."""


def replay(module: Module, claim: Claim, setting: Setting) -> tuple[list[Took], dict[str, str]]:
    """Every step, watched: the label of each value that is watched, which the rule's own text gives it, in its order."""
    labels: dict[str, str] = {}

    def watched(program: Program) -> tuple[Watch, ...]:
        named = list(_named(program, module.unit.source, fine=setting.dtype == "float64"))
        labels.update({name: label for name, label, _ in named})
        return tuple([Watch(name, ref) for name, _, ref in named])

    trial = Trial(module, claim, setting.tensors, setting.parameters, setting.numbers, setting.dtype, watched)
    return list(trial.steps(setting)), labels


def _named(program: Program, source: Source, fine: bool) -> Iterator[tuple[str, str, Ref]]:
    """The bindings that the text names, or that a short text stands for; fine: those of scope finer than tensor too. Those of guarded blocks have no value on
    some steps, and states are shown as they are after the step."""
    hidden = {e.name for _, e in program.commits if isinstance(e, Ref)} | {w.label for w in program.watches if w.label.rpartition(".")[2].startswith("clipped")}
    for b in program.body:
        if not isinstance(b, Binding) or b.name in hidden or b.expr.type.window or b.span.source is not source or b.name.rpartition(".")[2] in PARTS:
            continue
        text = b.span.text
        defined = DEFINES.match(text)
        stands = isinstance(b.expr, Reduce) or b.name.endswith(".measure") or re.fullmatch(r"(.*\.)?it\d*", b.name)
        label = defined.group(1) if defined else text if stands and len(text) <= LONGEST and "\n" not in text else None
        if label and (fine or not b.expr.type.scope.indices & {"i", "j"}):
            yield b.name, label, Ref(b.name, "value", b.expr.type)


# --- shown -----------------------------------------------------------------------------------------------------------


def shown(took: Took, labels: Mapping[str, str], streams: tuple[str, ...]) -> Iterator[str]:
    """What one step computes: intermediate values, states after it, what the rule gives, on this stream and on others."""
    shapes = {name: np.shape(g) for name, g in took.streams[0].items()}

    def of_shape(key: Any, x: np.ndarray) -> np.ndarray:
        """An entry for each of the parameter's, on its grid, in its shape."""
        return x.reshape(shapes[key]) if key in shapes and x.ndim == 2 and x.size == np.prod(shapes[key]) else x

    found = [(labels[n], {k: of_shape(k, a) for k, a in x.items()} if isinstance(x, Mapping) else x) for n, x in took.watches.items()]
    found += [(name, x) for name, x in took.states.items()]
    yield ", ".join([part for label, x in (*found, ("out", took.results[0])) for part in _parts(label, x)])
    for k, (text, stream, result) in enumerate(zip(streams, took.streams[1:], took.results[1:], strict=True), 1):
        text = text if len(text) <= LONGEST else f"stream {k}"
        yield ", ".join([*_parts(text, stream), *_parts(f"rule({text})", result)])


def _parts(label: str, x: Any) -> Iterator[str]:
    if not isinstance(x, Mapping):
        yield f"{label} = {brief(x)}"
        return
    for key, value in x.items():
        yield f"{label}{f' of {key}' if len(x) > 1 else ''} = {brief(value)}"


def brief(x: Any) -> str:
    """The numbers of a value, to six digits; of a window, those that it holds."""
    if isinstance(x, tuple):
        slots, count = map(to_array, x)
        x = slots[len(slots) - int(np.max(count, initial=0)) :]
    a = to_array(x)
    return f"{float(a):.6g}" if a.ndim == 0 else exact(np.array([float(f"{v:.6g}") for v in a.ravel()]).reshape(a.shape))


def exact(x: Any) -> str:
    """An array, so that it reads back to the last bit."""
    return np.array2string(to_array(x), separator=", ", threshold=64, precision=17, floatmode="unique", max_line_width=10**6).replace("\n", "")


def to_array(x: Any) -> np.ndarray:
    """As NumPy has it; torch's 16-bit types have to be widened."""
    return x.detach().double().numpy() if hasattr(x, "detach") else np.asarray(x)
