"""What becomes of a step whose gradients or inputs are not all finite.

skip       states and the run's step stay, and the caller does not move; the host reads one flag
mask       decided on the device: states, weights and the counts of the tensors stay, and `out` is 0; the run's step, which the host counts, goes on
zero       non-finite entries become 0, then the step is as usual
raise      as skip, then an error
propagate  nothing is looked at
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Frame, Result, RuleState

POLICIES = ("skip", "mask", "zero", "raise", "propagate")
LIMIT = 100
"""Bad steps in a row after which training is taken to be lost."""


class Guard:
    """A policy, and what it has counted: steps with non-finite gradients or inputs (`bad`, `in_a_row`), and steps in which the rule made non-finite values
    of finite ones (`overflowed`). Counts are numbers or 0-d tensors of the device."""

    def __init__(self, policy: str, who: str):
        if policy not in POLICIES:
            help_ = did_you_mean(str(policy), POLICIES) or f"choose one of {', '.join(POLICIES)}"
            raise UpdslError(Diagnostic("unknown-policy", f"unknown policy for non-finite gradients `{policy}`", help=help_))
        self.policy, self.who = policy, who
        self.bad: Any = 0
        self.in_a_row: Any = 0
        self.overflowed: Any = 0
        self.flags: list[torch.Tensor] = []
        """Of the next step, above 0 where a GradScaler leaves it out, whatever its gradients are."""
        self._steps = 0
        self._counted: tuple[Any, Any, Any] = (0, 0, 0)

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted, by name."""
        return {"bad": self.bad, "in_a_row": self.in_a_row, "overflowed": self.overflowed}

    def admit(self, frame: Frame, look: Callable[[Frame], Any] | None = None) -> tuple[Frame | None, Any]:
        """The frame to step with, None to skip the step; and whether it was finite (None: not looked at). `settle` counts it. look: a faster way to tell
        whether the gradients are finite, which does not always know.

        Raises UpdslError under "raise", and after 100 bad steps in a row."""
        if self.policy == "propagate":
            return frame, None
        finite: Any = None if look is None else look(frame)
        if finite is None:
            finite = all_finite(looked_at(frame))
        for flag in self.flags:
            finite = torch.as_tensor(finite)  # a faster way may give a truth value of Python's
            finite = finite & (flag == 0).all().to(finite.device)
        reads = self.policy in ("skip", "raise")
        on_host = reads or finite.device.type == "cpu"
        if reads:
            finite = bool(finite)
            if not finite and any(bool(flag) for flag in self.flags):
                return None, finite
            self._counted = self.bad + (not finite), 0 if finite else self.in_a_row + 1, self.overflowed
        else:
            self._counted = self.bad + ~finite, torch.where(finite, 0, self.in_a_row + 1), self.overflowed
        in_a_row = self._counted[1]
        if (on_host or self._steps % LIMIT == LIMIT - 1) and int(in_a_row) >= LIMIT:
            raise _lost(self.who, int(in_a_row))
        if reads and not finite:
            self.settle()
            if self.policy == "raise":
                raise UpdslError(Diagnostic("nonfinite-gradients", f"a gradient or an input of `{self.who}` is not finite; nothing was changed"))
            return None, finite
        return (zeroed(frame) if self.policy == "zero" else frame), finite

    def review(self, state: RuleState, frame: Frame, result: Result, finite: Any) -> Result | None:
        """The result, under "mask" with all as it was where the step was bad, or None if that takes a skip: a state's first value has none before it."""
        if finite is None:
            return result
        made = result.weights if result.weights is not None else {name: x for name, x in result.out.items() if x is not frame.g[name]}
        self.count_overflow(finite, ~all_finite(made.values()))
        if self.policy != "mask":
            return result
        if has_all(state, result.state):
            return masked(state, frame, result, finite)
        return result if bool(finite) else None

    def count_overflow(self, finite: Any, overflowed: Any) -> None:
        """A step that was finite (None: not looked at), and whether it gave what is not."""
        if finite is not None:
            self._counted = *self._counted[:2], self.overflowed + (overflowed & finite if self.policy == "mask" else overflowed)

    def settle(self) -> None:
        """Count the step: it is done, or skipped. There is no operation of torch here, which might fail."""
        self.bad, self.in_a_row, self.overflowed = self._counted
        self._steps += 1


def _lost(who: str, steps: int) -> UpdslError:
    return UpdslError(
        Diagnostic(
            "nonfinite-gradients",
            f"the gradients or inputs of `{who}` were not finite on {steps} steps in a row",
            help="lower the learning rate, or resume from a checkpoint",
        )
    )


def looked_at(frame: Frame) -> list[torch.Tensor]:
    """The gradients and inputs of a step."""
    return [*frame.g.values(), *(x for cells in frame.inputs.values() for x in cells.values())]


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Whether every entry is, as a 0-d tensor on the first device; nothing waits for a device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for x in tensors:
        if x.numel():
            by_device.setdefault(x.device, []).append(x.detach())
    flags = []
    for device, xs in by_device.items():
        if device.type == "cpu":
            flags.append(finite_on_host(xs))
        else:
            flags.append(finite_numbers(torch._foreach_norm(xs, float("inf"))))
    return torch.stack([f.to(flags[0].device) for f in flags]).all() if flags else torch.tensor(True)


def finite_on_host(xs: list[torch.Tensor]) -> torch.Tensor:
    """As `all_finite`, where reading costs nothing: a finite 2-norm, the cheapest, says that all entries are; it overflows at 1e18."""
    if all(x.element_size() >= 4 and x.is_floating_point() for x in xs):
        finite = finite_numbers(torch._foreach_norm(xs))
        if finite:
            return finite
    return finite_numbers([e for x in xs for e in torch.aminmax(x)])


def finite_numbers(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Whether 0-d tensors are all finite."""
    return torch.isfinite(torch.stack([x.double() if x.dtype == torch.float64 else x.float() for x in numbers])).all()


def zeroed(frame: Frame) -> Frame:
    """Non-finite entries as 0."""

    def zero(x: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(x, 0.0, 0.0, 0.0)

    inputs = {name: {key: zero(x) for key, x in cells.items()} for name, cells in frame.inputs.items()}
    return replace(frame, g={name: zero(x) for name, x in frame.g.items()}, inputs=inputs)


def has_all(state: RuleState, after: RuleState) -> bool:
    """Whether every value of the state after was there before, of the same size."""
    return all(
        key in state.values.get(name, {}) and all(a.shape == b.shape for a, b in zip(_parts(x), _parts(state.values[name][key]), strict=True))
        for name, cells in after.values.items()
        for key, x in cells.items()
    )


def masked(state: RuleState, frame: Frame, result: Result, finite: torch.Tensor) -> Result:
    """States and weights as they were and `out` 0 where the step was not finite."""

    def choose(new: torch.Tensor, old: Any) -> torch.Tensor:
        return torch.where(finite.to(new.device), new, old)

    values = {
        name: {
            key: tuple(choose(a, b) for a, b in zip(x, state.values[name][key], strict=True)) if isinstance(x, tuple) else choose(x, state.values[name][key])
            for key, x in cells.items()
        }
        for name, cells in result.state.values.items()
    }
    out = {name: choose(x, 0) for name, x in result.out.items()}
    weights = None if result.weights is None else {name: choose(x, frame.w[name]) for name, x in result.weights.items()}
    t = {name: choose(torch.as_tensor(n, device=finite.device), state.t.get(name, 0)) if name in frame.g else n for name, n in result.state.t.items()}
    return Result(out, weights, result.watches, RuleState(values, result.state.run, t))


def _parts(x: Any) -> tuple:
    return x if isinstance(x, tuple) else (x,)
