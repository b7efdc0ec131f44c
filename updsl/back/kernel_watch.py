"""What a step shows: the numbers of that step, as tensors once somebody asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from updsl.core.frame import Key


class Lazy(dict):
    """A dict that is filled when it is first looked at: nobody can tell, but that it costs nothing until then."""

    def __init__(self, make: Callable[[], dict]):
        super().__init__()
        self._make: Callable[[], dict] | None = make

    def fill(self) -> None:
        """Two threads may both do this: they put in the same."""
        make = self._make
        if make is not None:
            dict.update(self, make())
            self._make = None

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


def _filled_first(name: str) -> Callable:
    method = getattr(dict, name)

    def filled(self: Lazy, *args: Any, **more: Any) -> Any:
        self.fill()
        return method(self, *args, **more)

    filled.__name__ = name
    return filled


READS = "__getitem__ __iter__ __reversed__ __len__ __contains__ __eq__ __ne__ __repr__ __or__ __ror__ keys values items get copy"
WRITES = "__setitem__ __delitem__ __ior__ pop popitem setdefault update clear"
for _name in f"{READS} {WRITES}".split():
    setattr(Lazy, _name, _filled_first(_name))


class Shown:
    """The numbers of a step by label: arrays or tensors that no later step changes."""

    def __init__(self) -> None:
        self.cells: dict[str, list[tuple[Sequence[Key | None], Any]]] = {}
        self.model: dict[str, Any] = {}

    def add(self, label: str, keys: Sequence[Key | None], numbers: Any) -> None:
        """A number for each of these keys; one for None is nobody's."""
        self.cells.setdefault(label, []).append((keys, numbers))

    @property
    def watches(self) -> dict[str, Any]:
        """label → 0-d tensor (scope all), or key → 0-d tensor."""
        return Lazy(self._watches)

    def _watches(self) -> dict[str, Any]:
        by_key: dict[str, Any] = {label: Lazy(partial(by_key_of, parts)) for label, parts in self.cells.items()}
        return by_key | {label: to_tensor(numbers).reshape(()) for label, numbers in self.model.items()}


def by_key_of(parts: Sequence[tuple[Sequence[Key | None], Any]]) -> dict[Key, Tensor]:
    """key → 0-d tensor."""
    return {key: x for keys, numbers in parts for key, x in zip(keys, to_tensor(numbers).unbind(), strict=True) if key is not None}


def to_tensor(numbers: np.ndarray | Tensor) -> Tensor:
    return torch.from_numpy(numbers) if isinstance(numbers, np.ndarray) else numbers
