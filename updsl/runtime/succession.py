"""What becomes of a rule's state when the parameters in the groups are others than before: it goes with the tensor, not with the name or the place.

A tensor that is in the groups no more, or in whose place there is another, leaves its state behind; one that is new starts with none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from updsl.core.frame import Key, RuleState

Value = TypeVar("Value")


@dataclass(frozen=True)
class Member:
    """A parameter of one of the optimizers, and its group's index among all groups."""

    name: str
    parameter: torch.Tensor
    optimizer: torch.optim.Optimizer
    group: int


class Succession:
    """From the parameters of the groups before to those of now. keys: of a state before → as of now, for tensors and groups that stayed; gone: names of the
    tensors before that did not."""

    def __init__(self, before: Iterable[Member], now: Iterable[Member]):
        self.before, by_id = list(before), {id(m.parameter): m for m in now}
        stayed = [(m, by_id[id(m.parameter)]) for m in self.before if id(m.parameter) in by_id]
        groups: dict[Key, Key] = {}
        for old, new in stayed:
            groups.setdefault(old.group, new.group)
        free = {m.group for m in by_id.values()} - set(groups.values())
        groups |= {m.group: m.group for m in self.before if m.group not in groups and m.group in free}
        self.keys: dict[Key, Key] = {"": "", **groups, **{old.name: new.name for old, new in stayed}}
        self.left = [m for m in self.before if id(m.parameter) not in by_id or by_id[id(m.parameter)].optimizer is not m.optimizer]
        self.gone = [m.name for m in self.before if id(m.parameter) not in by_id]

    @property
    def changes(self) -> bool:
        """Whether anything of a state is elsewhere now, or nowhere."""
        return bool(self.left) or any(old != new for old, new in self.keys.items())

    def of_state(self, state: RuleState) -> RuleState:
        """The state as of now."""
        return RuleState({name: self.of_keys(cells) for name, cells in state.values.items()}, state.run, self.of_keys(state.t))

    def of_keys(self, cells: Mapping[Any, Value]) -> dict[Any, Value]:
        """What there is of tensors and groups that stayed. Where two groups became one, the first one's."""
        found: dict[Any, Value] = {}
        for key, x in cells.items():
            if key in self.keys:
                found.setdefault(self.keys[key], x)
        return found
