"""Steps over the parameters of torch optimizers that are like the one before: of the same tensors or of such as are alike, shown in the same places."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat
from operator import attrgetter, is_
from typing import Any

import torch

from updsl.core.frame import Counts, Frame, RuleState
from updsl.runtime.bind import Layout, numbers
from updsl.runtime.known import Known, like
from updsl.runtime.mirror import RUN, STEPS

GRADIENT = attrgetter("grad")


class Last:
    """A step in place whose arguments were checked. parameters: all that might take part, of which some have a gradient; reads: whether weights matter."""

    def __init__(self, here: Layout, parameters: list[torch.Tensor], frame: Frame, reads: bool, where: Any):
        self.tensors, self.parameters, self.names = here.tensors, parameters, list(frame.g)
        self.entries = here.overridden, here.has_lr(None)
        self.absent = [p.grad is None for p in parameters]
        self.is_whole = not any(self.absent)
        self.known = Known(list(frame.g.values()), [p for p, absent in zip(parameters, self.absent, strict=True) if reads and not absent], reads, where)
        self.frame = like(frame, {}, frame.params, frame.lr, None)

    def again(self, here: Layout, values: Mapping[str, Any]) -> Frame | None:
        """The frame of such a step, with the gradients and numbers as of now; None where something must be checked."""
        if here.tensors is not self.tensors or (here.overridden, here.has_lr(None)) != self.entries:
            return None
        gradients = list(map(GRADIENT, self.parameters))
        if self.is_whole:
            if any(map(is_, gradients, repeat(None))):
                return None
        else:
            if [g is None for g in gradients] != self.absent:
                return None
            gradients = [g for g in gradients if g is not None]
        places = self.known.again(gradients)
        if places is None:
            return None
        return like(self.frame, dict(zip(self.names, gradients, strict=True)), *numbers(here, values, None), places)


class Display:
    """What was put into an optimizer's state: references, which stay as they are from step to step, and counts of steps, which do not. parameters, names: of
    the tensors that took part."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor], present: tuple[str, ...], state: RuleState, prefix: str):
        self.present, self.state, self.values = present, optimizer.state, state.values
        self.entries = list(optimizer.state.values())
        self.sizes = list(map(len, self.entries))
        self.mine = [optimizer.state[p] for p in parameters.values()]
        self.base = state.t.base if isinstance(state.t, Counts) else None
        self.counts = [] if self.base is None else [self.base[name] for name in parameters]
        self.is_even = len(set(self.counts)) == 1
        self.steps, self.run = prefix + STEPS, prefix + RUN
        self.of_run = next((entries for entries in self.entries if self.run in entries), None)

    def again(self, optimizer: torch.optim.Optimizer, present: tuple[str, ...], state: RuleState) -> bool:
        """Whether all is there still; then the counts are as of now."""
        now, t = optimizer.state, state.t
        if now is not self.state or state.values is not self.values or present != self.present or not isinstance(t, Counts) or t.base is not self.base:
            return False
        if len(now) != len(self.entries) or not all(map(is_, now.values(), self.entries)) or list(map(len, self.entries)) != self.sizes:
            return False
        steps = self.steps
        if self.is_even:
            n = self.counts[0] + t.more
            for entries in self.mine:
                entries[steps] = n
        else:
            for entries, n in zip(self.mine, self.counts, strict=True):
                entries[steps] = n + t.more
        if self.of_run is not None:
            self.of_run[self.run] = state.run
        return True
