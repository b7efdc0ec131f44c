"""What goes in and out of one step, the same for every backend; arrays are NumPy's or torch's.

Keys of a value by its scope: tensor name for tensor and finer, group index for group, "" for all.
Arrays by scope: element the grid (the parameter's own shape where the grid is the parameter's), row (rows,), column (cols,), block
(number of blocks,), coarser 0-d. Samples have a leading dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

Array: TypeAlias = Any
Key: TypeAlias = str | int


@dataclass(frozen=True)
class Tensor:
    """A parameter tensor as elaboration sees it."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[int, int]:
        """The matrix view: rows, cols."""
        return (self.shape[0], prod(self.shape[1:])) if self.shape else (1, 1)

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Counts(Mapping[str, int]):
    """Steps by tensor name: `base`, and as many more for each. What all tensors of a step have more is one number."""

    __slots__ = ("base", "more")

    def __init__(self, base: Mapping[str, Any], more: int = 0):
        self.base, self.more = base, more

    def __getitem__(self, name: str) -> int:
        return self.base[name] + self.more

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass
class RuleState:
    """Everything a rule keeps between steps. `values`: state name → key → array; a window is a pair (buffer, count): the buffer has a leading
    dimension of n slots, newest last, and count (an integer array of the cells' shape) says how many of the last slots are filled. A key is absent before
    the first step of its cell. `run`: steps of the run so far. `t`: steps of the tensor so far, by tensor name; a 0-d array where the device decides."""

    values: dict[str, dict[Key, Array]] = field(default_factory=dict)
    run: int = 0
    t: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the gradients and weights of a step lie: their addresses, in order (w: None where the rule does not read weights). Steps that have the same object
    are of the same memory; those that have the same `alike`, of tensors of the same names, types and shapes, dense, in the same groups."""

    g: list[int]
    w: list[int] | None
    alike: object


@dataclass
class Frame:
    """The inputs of one step. Only tensors that take part (with a gradient and at least one entry) are in `g`, in the order of the parameters.

    group_of: tensor → group index. lr and params: group index → number (float or 0-d array); all groups have every parameter, and one that no group
    overrides has the same value in all. inputs: name → key → array ("stream", "samples", "matrix": by tensor; "per": by the keys of its scope).
    batch: number of samples, if the rule has sample inputs. seed: of the draws. consumed: the caller overwrites `g` with `out`, so that an array of `g` which
    a rule leaves as it is may be handed out itself. places: if the caller has just looked."""

    g: dict[str, Array]
    w: dict[str, Array]
    group_of: dict[str, int]
    lr: dict[int, Any]
    params: dict[int, dict[str, Any]]
    inputs: dict[str, dict[Key, Array]] = field(default_factory=dict)
    batch: int | None = None
    seed: int = 0
    consumed: bool = False
    places: Places | None = None


@dataclass
class Result:
    """What one step gives: new arrays, nothing changed in place. weights is None unless the rule writes w. watches: label → 0-d array (scope all) or
    key → 0-d array (tensor, group). overflowed: asked before the next step, whether an entry of the new
    weights, or else of out, is not finite; None where nobody looked."""

    out: dict[str, Array]
    weights: dict[str, Array] | None
    watches: dict[str, Any]
    state: RuleState
    overflowed: Callable[[], bool] | None = None
