"""A step's further inputs: which there are, and in which form each is handed over.

`per all` a number or 0-d tensor · `per group` a sequence, or group index → number · `per tensor` name → number · `per row`, `column`, `block(k)`
name → 1-D tensor · streams name → tensor of the gradient's shape · samples name → tensor with a leading dimension of samples · matrix name → matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Key, Tensor
from updsl.core.ir import Dim, Input
from updsl.front.module import Module
from updsl.pipeline import Engine
from updsl.runtime.arrays import is_real, supported
from updsl.runtime.bind import Layout, known

Given = Mapping[str, Any]


def inputs_of(
    module: Module, engine: Engine, here: Layout, present: Iterable[str], given: Given, convert: Callable[[Any], Any]
) -> tuple[dict[str, dict[Key, Any]], int | None]:
    """The frame's inputs, and its number of samples. present: the tensors that take part; `convert` makes an array of the backend's kind.

    Raises UpdslError on an input that the rule does not have, one that is missing where it is read, and one of the wrong form.
    """
    for name in given:
        known_input(module, name)
    present, found, batch = list(present), {}, None
    for item, readers in _read(engine, present).items():
        if given.get(item.name) is None:
            raise UpdslError(
                Diagnostic("missing-input", f"`{module.name}` reads the input `{item.name}`, which is not given", help=f"pass `{item.name}=`: {form(item)}")
            )
        values = {key: convert(x) for key, x in _by_key(item, given[item.name], here, readers).items()}
        found[item.name] = found.get(item.name, {}) | values  # classes whose grids differ read the same input
        if item.kind == "samples":
            for name, x in values.items():
                if batch not in (None, len(x)):
                    raise UpdslError(
                        Diagnostic(
                            "input-shape",
                            f"`{item.name}` of `{name}` has {len(x)} samples, where others have {batch}",
                            help="hand over the same samples of all",
                        )
                    )
                batch = len(x)
    return found, batch


def zero_inputs(engine: Engine, here: Layout, present: Mapping[str, Any]) -> dict[str, Any]:
    """Zeros for all inputs that are read, of one sample. present: the tensors that take part, by name."""
    tensors = {t.name: t for t in here.tensors}

    def zeros(item: Input, name: str) -> Any:
        return present[name].new_zeros([1 if n is None else n for n in _shape(item, tensors[name])])

    found: dict[str, Any] = {}
    for item, readers in _read(engine, [name for name in present if name in tensors]).items():
        if item.kind == "per" and item.type.scope.name == "all":
            found[item.name] = 0.0
        elif item.kind == "per" and item.type.scope.name == "group":
            found[item.name] = {here.group_of[name]: 0.0 for name in readers} | found.get(item.name, {})
        else:
            found[item.name] = {name: zeros(item, name) for name in readers} | found.get(item.name, {})
    return found


def known_input(module: Module, name: str) -> None:
    """Raises UpdslError, with the nearest name, unless the rule has an input of this name."""
    if name not in module.inputs:
        near = did_you_mean(name, module.inputs)
        if name in module.parameters:
            near = f"`{name}` is a parameter: pass it when the rule is loaded, or set it"
        raise UpdslError(Diagnostic("unknown-input", f"`{module.name}` has no input `{name}`", help=near))


def _read(engine: Engine, present: list[str]) -> dict[Input, list[str]]:
    """Input → the tensors that take part and whose Programs read it."""
    readers: dict[Input, list[str]] = {}
    if any(p.inputs for p in engine.elaborated.programs):
        for name in present:
            for item in engine.elaborated.programs[engine.elaborated.class_of[name]].inputs:
                readers.setdefault(item, []).append(name)
    return readers


def form(item: Input) -> str:
    """How an input is handed over."""
    match item.kind, item.type.scope.name:
        case "per", "all":
            return "a number"
        case "per", "group":
            return "a sequence, one number for each group"
        case "per", "tensor":
            return "{name: number}"
        case "per", _:
            return "{name: 1-D tensor}"
        case "samples", _:
            return "{name: tensor}, samples leading"
        case "matrix", _:
            return "{name: matrix}"
        case _:
            return "{name: tensor} of the shapes of the gradients"


def _by_key(item: Input, given: Any, here: Layout, readers: list[str]) -> dict[Key, Any]:
    """The values of one input, by key, of the right shapes."""
    if item.kind == "per" and item.type.scope.name == "all":
        return {"": _shaped(item, "", given, ())}
    if item.kind == "per" and item.type.scope.name == "group":
        return _by_group(item, given, here, readers)
    if not isinstance(given, Mapping):
        raise _wrong_form(item)
    for name in given:
        if name not in here.shapes and name not in here.empty:
            known(name, [*here.shapes, *here.empty], f"the input `{item.name}` names")
    found: dict[Key, Any] = {}
    tensors = {t.name: t for t in here.tensors}
    for name in readers:
        if given.get(name) is None:
            raise UpdslError(Diagnostic("missing-input", f"the input `{item.name}` is not given for `{name}`, whose update reads it"))
        found[name] = _shaped(item, name, given[name], _shape(item, tensors[name]))
    return found


def _by_group(item: Input, given: Any, here: Layout, readers: list[str]) -> dict[Key, Any]:
    if not isinstance(given, Mapping) and not (isinstance(given, Sequence) or getattr(given, "ndim", 0) == 1):
        raise _wrong_form(item)
    by_index = dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
    wanted = dict.fromkeys(here.group_of[name] for name in readers)
    lacking = next((i for i in wanted if i not in by_index), None)
    if lacking is not None:
        raise UpdslError(Diagnostic("missing-input", f"the input `{item.name}` is not given for group {lacking}", help="hand over one number for each group"))
    return {i: _shaped(item, i, by_index[i], ()) for i in wanted}


def _shape(item: Input, tensor: Tensor) -> tuple[int | None, ...]:
    """What an input's value for a tensor must have as its shape; None is any size."""
    rows, cols = tensor.grid
    match item.kind, item.type.scope.name:
        case "stream", _:
            return tensor.shape
        case "samples", _:
            return None, *tensor.shape
        case "matrix", _:
            return _size(item.type.rows, tensor), _size(item.type.cols, tensor)
        case _, "row":
            return (rows,)
        case _, "column":
            return (cols,)
        case _, "block":
            return (-(-tensor.numel // item.type.scope.size),)
        case _, "element":
            return tensor.shape
        case _:
            return ()


def _size(d: Dim | None, tensor: Tensor) -> int | None:
    """A side of a matrix: of the tensor's grid where the rule's text ties it to that, else any."""
    return d if isinstance(d, int) else dict(zip(("rows", "cols"), tensor.grid, strict=True)).get(d or "")


def _shaped(item: Input, key: Key, x: Any, want: tuple[int | None, ...]) -> Any:
    where = f"the input `{item.name}`" + (f" of `{key}`" if key != "" else "")
    if item.kind != "per":
        supported(x, where)
    elif not is_real(x):
        raise UpdslError(Diagnostic("input-shape", f"{where} is {type(x).__name__}, and must be real", help=f"pass `{item.name}=`: {form(item)}"))
    have = tuple(np.shape(x))
    if len(have) != len(want) or any(w not in (None, h) for h, w in zip(have, want, strict=True)):
        shown = "×".join("n" if n is None else str(n) for n in want) or "one number"
        raise UpdslError(Diagnostic("input-shape", f"{where} has shape {have}, and must be {shown}", help=f"pass `{item.name}=`: {form(item)}"))
    return x


def _wrong_form(item: Input) -> UpdslError:
    return UpdslError(Diagnostic("input-shape", f"the input `{item.name}` is handed over in another form", help=f"pass `{item.name}=`: {form(item)}"))
