"""Arrays of a frame ↔ stacks of tensors of one shape, as generated code has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from updsl.core import frame
from updsl.core.frame import Key
from updsl.core.ir import Dim, Type
from updsl.core.scope import Scope

HALVES = (torch.float16, torch.bfloat16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic: float32 for 16-bit gradients, else the gradient's."""
    return torch.float32 if dtype in HALVES else dtype


@dataclass
class Call:
    """Tensors of one class, group, shape, dtype and device that are handled together. values: (kind, name) → what generated code is given."""

    owner: int
    group: int
    names: tuple[str, ...]
    shape: tuple[int, ...]
    given: torch.dtype
    weight_dtype: torch.dtype | None
    device: torch.device
    sizes: Mapping[str, int]
    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    parts: dict[str, object] = field(default_factory=dict)

    @property
    def real(self) -> torch.dtype:
        return compute_dtype(self.given)

    def key(self, scope: Scope) -> Key:
        """Under which a value of this scope, seen from the first tensor, is kept."""
        if "T" in scope.indices:
            return self.names[0]
        return self.group if "G" in scope.indices else ""

    def size(self, dim: Dim | None) -> int:
        return dim if isinstance(dim, int) else self.sizes[str(dim)]

    def cells(self, t: Type) -> tuple[int, int]:
        """The last two dimensions of a value of this type."""
        match t.scope.name:
            case "element":
                return self.size(t.rows), self.size(t.cols)
            case "row":
                return self.size(t.rows), 1
            case "column":
                return 1, self.size(t.cols)
            case "block":
                return -(-self.size(t.rows) * self.size(t.cols) // t.scope.size), 1
            case _:
                return 1, 1

    def own_shape(self, t: Type) -> tuple[int, ...]:
        """The shape of the cells as a frame has them."""
        match t.scope.name:
            case "element" if (t.rows, t.cols) == ("rows", "cols"):
                return self.shape
            case "element":
                return self.cells(t)
            case "row" | "column" | "block":
                return (prod(self.cells(t)),)
            case _:
                return ()

    def stacked(self, arrays: Sequence[Tensor], t: Type) -> Tensor:
        """The arrays of a frame, one for each tensor, as (tensor, [leading,] row, column): a view if they lie evenly in one buffer."""
        lead = arrays[0].shape[: arrays[0].ndim - len(self.own_shape(t))]
        shape = (*lead, *self.cells(t))
        if len(arrays) == 1:
            return arrays[0].detach().reshape(1, *shape)
        step = even_step(arrays)
        if not step:
            return torch.stack([a.detach().reshape(shape) for a in arrays])
        strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
        return arrays[0].detach().as_strided((len(arrays), *shape), (step, *strides))

    def each(self, stack: Tensor, t: Type, lead: int = 0) -> dict[str, Tensor]:
        """The array of each tensor, as a view of the stack; `lead`: how many dimensions stand before the cells."""
        shape = (*stack.shape[1 : 1 + lead], *self.own_shape(t))
        return {name: stack[k].reshape(shape) for k, name in enumerate(self.names)}


def memory_of(x: Tensor) -> int:
    """Where the memory of an array begins. Under `torch.func.vmap` there is none to be seen: then each array is by itself."""
    try:
        return x.untyped_storage().data_ptr()
    except NotImplementedError:
        return id(x)


def even_step(arrays: Sequence[Tensor]) -> int:
    """The distance, in entries, at which arrays of one shape follow one another in one buffer; 0 if they do not, or are not dense row-major."""
    first = arrays[0]
    memory = memory_of(first)
    step = arrays[1].storage_offset() - first.storage_offset()
    if step <= 0:
        return 0
    for i, a in enumerate(arrays):
        if (
            a.dtype != first.dtype
            or a.shape != first.shape
            or not a.is_contiguous()
            or memory_of(a) != memory
            or a.storage_offset() != first.storage_offset() + i * step
        ):
            return 0
    return int(step)


def even_runs(streams: Mapping[str, Sequence[Tensor]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Tensors in order, cut where one of their streams does not go on at an even distance in one buffer."""
    runs: list[list[str]] = []
    for name in names:
        run = runs[-1] if runs else None
        if run and all(_goes_on([streams[n][i] for n in run[-2:]], x) for i, x in enumerate(streams[name])):
            run.append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


def _goes_on(before: Sequence[Tensor], x: Tensor) -> bool:
    return memory_of(before[0]) == memory_of(x) and even_step([*before, x]) > 0


def sizes_of(tensor: frame.Tensor, matrices: Mapping[str, Tensor]) -> dict[str, int]:
    """What the named dimensions are for a tensor, given its matrix inputs."""
    named = dict(zip(("rows", "cols"), tensor.grid, strict=True))
    for name, m in matrices.items():
        named[f"{name}.rows"], named[f"{name}.cols"] = frame.Tensor(name, tuple(m.shape)).grid
    return named
