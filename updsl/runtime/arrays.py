"""Arrays from outside as a backend takes them: torch tensors, or NumPy float64 for the interpreter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import numpy as np

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.runtime.bind import Layout, known

TORCH_TYPES = ("torch.float64", "torch.float32", "torch.bfloat16", "torch.float16")
SORT = attrgetter("dtype", "layout", "is_meta")
"""Of a tensor: what decides whether rules run on it."""


def is_tensor(x: Any) -> bool:
    """Of torch, without importing it."""
    return hasattr(x, "layout") and hasattr(x, "detach")


def dtype_name(x: Any) -> str:
    """ "float32" of torch.float32."""
    return str(x.dtype).removeprefix("torch.")


def supported(x: Any, what: str) -> None:
    """Raises UpdslError for an array that rules do not run on: integer, boolean, complex, sparse, quantized, or of 8 bits."""
    if is_tensor(x):
        kind = _unsupported(*SORT(x))
    elif isinstance(x, (np.ndarray, np.generic)):
        kind = None if x.dtype.kind == "f" else str(x.dtype)
    else:
        kind = None if is_real(x) else type(x).__name__
    if kind is not None:
        raise UpdslError(
            Diagnostic("tensor-type", f"{what} is {kind}; rules run on float64, float32, bfloat16 and float16, dense", help="convert it first, or leave it out")
        )


def _unsupported(dtype: Any, layout: Any, is_meta: bool) -> str | None:
    """What a tensor is that rules do not run on; None if they do."""
    if str(layout) != "torch.strided":
        return "sparse"
    return "on the meta device" if is_meta else None if str(dtype) in TORCH_TYPES else str(dtype).removeprefix("torch.")


def all_supported(xs: Mapping[str, Any], what: str) -> None:
    """`supported` for each of them; what: they are called so, followed by their names."""
    if are_tensors(xs.values()) and not any(_unsupported(*sort) for sort in set(map(SORT, xs.values()))):
        return
    for name, x in xs.items():
        supported(x, f"{what}`{name}`")


def are_tensors(xs: Iterable[Any]) -> bool:
    return all(hasattr(cls, "layout") and hasattr(cls, "detach") for cls in set(map(type, xs)))


def is_real(x: Any) -> bool:
    """Whether it is real numbers: a number, an array, a tensor, or nested sequences of them."""
    if is_tensor(x):
        return not x.is_complex()
    try:
        return np.asarray(x).dtype.kind in "fiub"
    except (TypeError, ValueError):
        return False


def device_of(xs: Iterable[Any]) -> str:
    """The kind of device that the first of them lies on; where others lie elsewhere, backends run the step in torch."""
    first = next(iter(xs), None)
    return first.device.type if first is not None and is_tensor(first) else "cpu"


def by_name(grads: Mapping[str, Any] | None) -> dict[str, Any]:
    """The gradients as a dict of its own. Raises UpdslError for anything but a mapping, or None."""
    if grads is not None and not isinstance(grads, Mapping):
        message = f"the gradients are given as {type(grads).__name__}, and need names"
        raise UpdslError(Diagnostic("unnamed-tensor", message, help="pass a dict, `{name: tensor}`"))
    return dict(grads or {})


def to_numpy(x: Any) -> np.ndarray:
    """As float64, on the host."""
    return x.detach().double().cpu().numpy() if is_tensor(x) else np.array(x, np.float64)


def to_torch(x: Any) -> Any:
    """A tensor as it is; NumPy arrays and sequences by their type; numbers and integers as float64."""
    import torch

    x = x if is_tensor(x) else torch.as_tensor(x, dtype=torch.float64 if isinstance(x, (int, float)) else None)
    return x if x.is_floating_point() else x.double()


def gradients(grads: Mapping[str, Any] | None, here: Layout) -> dict[str, Any]:
    """The gradients of tensors with entries, checked: those of None are left out. Raises UpdslError on an unknown name, type or shape."""
    grads = grads or {}
    if not grads.keys() <= here.shapes.keys():
        for name in grads:
            if name not in here.shapes and name not in here.empty:
                known(name, [*here.shapes, *here.empty], "a gradient is given for")
    found = {name: grads[name] for name in here.shapes if grads.get(name) is not None}
    all_supported(found, "the gradient of ")
    for name, g in found.items():
        if np.shape(g) != here.shapes[name]:
            raise UpdslError(Diagnostic("tensor-shape", f"the gradient of `{name}` has shape {tuple(np.shape(g))}, and the tensor {here.shapes[name]}"))
    return found


def sample_mean(samples: Any) -> Any:
    """The mean over the leading dimension, 0 over no samples, in float32 for 16-bit samples and rounded once."""
    n = max(len(samples), 1)
    if not is_tensor(samples):
        return samples.sum(axis=0) / n
    return (samples.float().sum(0) / n).to(samples.dtype) if samples.element_size() < 4 else samples.sum(0) / n


def reshaped(name: str, w: Any, before: tuple[int, ...]) -> UpdslError:
    """Of a tensor that has another shape than when the state was made."""
    message = f"`{name}` has shape {tuple(np.shape(w))}, and had {before} when the state was made"
    return UpdslError(Diagnostic("tensor-shape", message, help="make a new state with `init`"))


def weights(params: Mapping[str, Any], present: Mapping[str, Any], here: Layout) -> dict[str, Any]:
    """The weights of the tensors that take part, checked like gradients."""
    for name, w in params.items():
        if name in here.shapes and np.shape(w) != here.shapes[name]:
            raise reshaped(name, w, here.shapes[name])
    return {name: params[name] for name in present if name in params}
