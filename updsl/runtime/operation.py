"""A step as an operation of torch's: a function under torch.compile calls it whole, and does not look inside.

Two forms: `updsl::step` takes a list of gradients, and `updsl::step_flat` one buffer of them for each type; weights that are flat are handed over as buffers
to both. They write gradients and weights in place, count the step in `steps` (so that a step whose gradients nobody reads is taken all the same, and steps keep
their order), and give the watches as one vector of float64. What is no tensor is in `call`, a text, and says what the tensors are. States stay with the
compiled rule, which `handle` finds.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Key
from updsl.core.scope import ALL, GROUP
from updsl.pipeline import Engine
from updsl.runtime.bind import Layout
from updsl.runtime.flat import Flat

Shown = tuple[tuple[str, Key | None], ...]
"""Label and key of each number that a step shows; the key of a number of the whole model is None."""


class Stepping(Protocol):
    """What the operations need of a compiled rule."""

    handle: str
    params: dict[str, Tensor]
    flat: Flat | None
    steps: Tensor

    def traced(self, has_lr: bool) -> tuple[Engine, Layout]: ...

    def flat_or_refuse(self) -> Flat: ...

    def eager(self, grads: Mapping[str, Tensor], lr: Any, inputs: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Call:
    """What of a step is no tensor. names: of the gradients, or of buffers of them. written, read: of the weights, or of buffers of them, as they are handed
    over. number: whether lr is a number. inputs: the form of each. shown: what the numbers are that the step gives."""

    names: tuple[str, ...]
    written: tuple[str, ...]
    read: tuple[str, ...]
    number: bool
    inputs: Any
    shown: tuple[tuple[str, Any], ...]

    @property
    def text(self) -> str:
        return json.dumps([self.names, self.written, self.read, self.number, self.inputs, self.shown])


@lru_cache(maxsize=64)
def call_of(text: str) -> Call:
    """The inverse of `Call.text`."""
    names, written, read, number, inputs, shown = json.loads(text)
    return Call(tuple(names), tuple(written), tuple(read), number, inputs, tuple((label, key) for label, key in shown))


# --- compiled rules by handle ------------------------------------------------------------------------------------------

_numbers = count(1)
_alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def handle_for(y: Any, name: str) -> str:
    """A text that finds y for as long as it lives."""
    handle = f"{name}-{next(_numbers)}"
    _alive[handle] = y
    return handle


def found(handle: str) -> Any:
    """The compiled rule. Raises UpdslError if it is gone."""
    y = _alive.get(handle)
    if y is None:
        message = f"a compiled function calls a step of `{handle.rpartition('-')[0]}`, and the rule compiled for it is gone"
        raise UpdslError(Diagnostic("compiled-rule-gone", message, help="keep what `updsl.compile` gave for as long as functions that step it"))
    return y


# --- the operations ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("updsl::step", mutates_args=("grads", "weights", "steps"))
def step(handle: str, call: str, grads: Sequence[Tensor], weights: Sequence[Tensor], given: Sequence[Tensor], lr: Tensor | None, steps: Tensor) -> Tensor:
    """One step of a compiled rule in place, of the gradients that the call names."""
    y, how = found(handle), call_of(call)
    return _step(y, how, dict(zip(how.names, grads, strict=True)), weights, given, lr, steps)


@torch.library.custom_op("updsl::step_flat", mutates_args=("grads", "weights", "steps"))
def step_flat(handle: str, call: str, grads: Sequence[Tensor], weights: Sequence[Tensor], given: Sequence[Tensor], lr: Tensor | None, steps: Tensor) -> Tensor:
    """One step of a compiled rule in place, of one buffer of gradients for each type."""
    y, how = found(handle), call_of(call)
    return _step(y, how, y.flat.split(dict(zip(how.names, grads, strict=True))), weights, given, lr, steps)


def _step(y: Any, how: Call, grads: dict[str, Tensor], weights: Sequence[Tensor], given: Sequence[Tensor], lr: Tensor | None, steps: Tensor) -> Tensor:
    leaves = iter(given)
    inputs = {name: _put_together(form, leaves) for name, form in how.inputs}
    rate = lr.item() if lr is not None and how.number else lr
    watches = y.eager(grads, rate, inputs, _params(y, dict(zip((*how.written, *how.read), (*weights, *leaves), strict=True))))
    steps += 1
    device = next(iter(grads.values())).device if grads else torch.device("cpu")
    numbers = [watches[label] if key is None else watches[label][key] for label, key in how.shown]
    return torch.stack([x.to(device, torch.float64) for x in numbers]) if numbers else torch.empty(0, dtype=torch.float64, device=device)


def _params(y: Any, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights by name: those that the rule was compiled for, but where a copy is to be written."""
    own = y.params if y.flat is None else y.flat.buffers
    if all(w.data_ptr() == own[name].data_ptr() for name, w in given.items()):
        return y.params
    return {**y.params, **(given if y.flat is None else y.flat.split(given))}


@step.register_fake
@step_flat.register_fake
def _watches(handle: str, call: str, grads: Sequence[Tensor], weights: Sequence[Tensor], given: Sequence[Tensor], lr: Tensor | None, steps: Tensor) -> Tensor:
    return torch.empty(len(call_of(call).shown), dtype=torch.float64, device=grads[0].device if grads else "cpu")


# --- what is traced ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def trace(y: Stepping, grads: Mapping[str, Tensor] | None, lr: Any, inputs: Mapping[str, Any], flat: bool) -> dict[str, Any]:
    """A step, while a function that takes it is traced. flat: the gradients are one buffer for each type."""
    grads = {name: g for name, g in (grads or {}).items() if g is not None}
    names = tuple(grads)
    given: list[Tensor] = []
    forms = tuple([(name, _taken_apart(x, given)) for name, x in inputs.items() if x is not None])
    call, written, read, shown = planned(y.handle, names, None if lr is None else _is_number(lr), forms, flat)
    own = y.params if y.flat is None else y.flat.buffers
    given += [own[name] for name in read]
    operation = step_flat if flat else step
    rate = None if lr is None else _number(lr)
    numbers = operation(y.handle, call, list(grads.values()), [own[name] for name in written], given, rate, y.steps)
    return _shown(numbers, shown)


@torch.compiler.assume_constant_result
def planned(handle: str, names: tuple[str, ...], number: bool | None, forms: Any, flat: bool) -> tuple[str, tuple[str, ...], tuple[str, ...], Shown]:
    """The call of a step of these gradients, or of buffers of them; the weights, or buffers of them, that it writes, and reads; what it shows.
    number: whether lr is one, None if there is none."""
    y = found(handle)
    engine, here = y.traced(number is not None)
    present = {*(y.flat_or_refuse().names_of(names) if flat else names)}
    present |= {key for name, form in forms if name == "samples" and form[0] == "by key" for key, _ in form[1]}  # their mean is the gradient
    taking_part = [name for name in here.shapes if name in present]
    needed = [name for name in taking_part if engine.reads_weights(name)]
    weights = tuple(needed if y.flat is None else dict.fromkeys(y.flat.places[name].buffer for name in needed))
    written, read = (weights, ()) if y.rule.writes_weights else ((), weights)
    shown = shown_of(engine, here, taking_part)
    return Call(names, written, read, bool(number), forms, shown).text, written, read, shown


def shown_of(engine: Engine, here: Layout, names: Sequence[str]) -> Shown:
    """What a step of these tensors shows."""
    shown: dict[tuple[str, Key | None], None] = {}
    for name in names:
        for watch in engine.elaborated.programs[engine.elaborated.class_of[name]].watches:
            scope = watch.expr.type.scope
            shown[watch.label, None if scope == ALL else here.group_of[name] if scope == GROUP else name] = None
    return tuple(shown)


def _shown(numbers: Tensor, shown: Shown) -> dict[str, Any]:
    """The watches from their vector."""
    watches: dict[str, Any] = {}
    for i, (label, key) in enumerate(shown):
        if key is None:
            watches[label] = numbers[i]
        else:
            watches.setdefault(label, {})[key] = numbers[i]
    return watches


def _is_number(x: Any) -> bool:
    return not isinstance(x, Tensor)


def _number(x: Any) -> Tensor:
    """A number as a tensor. As a product it is computed from an argument of the traced function, which is not traced anew for another number."""
    return x if isinstance(x, Tensor) else torch.ones((), dtype=torch.float64) * x


def _taken_apart(x: Any, leaves: list[Tensor]) -> Any:
    """An input's form; its tensors are added to `leaves`."""
    if isinstance(x, dict):
        return "by key", tuple([(key, _taken_apart(value, leaves)) for key, value in x.items() if value is not None])
    if isinstance(x, (list, tuple)):
        return "in order", tuple([_taken_apart(value, leaves) for value in x])
    leaves.append(_number(x))
    return "number" if _is_number(x) else "tensor"


def _put_together(form: Any, leaves: Any) -> Any:
    """The inverse of `_taken_apart`."""
    match form:
        case "number":
            return next(leaves).item()
        case "tensor":
            return next(leaves)
        case "by key", pairs:
            return {key: _put_together(one, leaves) for key, one in pairs}
        case _, forms:
            return [_put_together(one, leaves) for one in forms]
