"""A rule compiled for one set of tensors, which it updates in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any, cast

import torch

from updsl.core.frame import Frame, Result
from updsl.core.plan import Summary
from updsl.pipeline import Engine, InPlace
from updsl.runtime import arrays
from updsl.runtime.bind import frame, named, numbers
from updsl.runtime.commit import apart, overlapping, uninterrupted, writable, write
from updsl.runtime.inputs import inputs_of
from updsl.runtime.parameters import rate, set_later
from updsl.runtime.reference import over_tensors
from updsl.runtime.rule import Rule, from_samples, start, to_rule
from updsl.runtime.state import State


def compile(
    rule: Rule | str, params: Any, backend: str = "auto", lr: Any = None, groups: Sequence[Mapping[str, Any]] | None = None, seed: int = 0, watches: bool = True
) -> Compiled:
    """A rule made ready for these tensors.

    rule: a rule, a library name or a path. params: the tensors, as a dict, pairs of (name, tensor) or a module; a rule that writes w writes them. backend:
    "auto" (C++ kernels on a CPU, torch where they do not cover the rule), "cpp" (the same), "torch" (generated torch source, eager), "inductor" (that through
    torch.compile), "interpret" (the float64 interpreter).
    lr, groups, seed: as of `Rule.init` and `Rule.update`; a step may have an lr of its own. watches: whether steps give the rule's watches.
    Raises UpdslError, before any step, for a text, parameter, group or backend that will not do.
    """
    return Compiled(to_rule(rule, {}), named(params), backend, lr, groups, seed, watches)


class Compiled:
    """A rule for one set of tensors, with its state; made by `updsl.compile`. state: what it keeps. backend: the one that runs it."""

    def __init__(
        self, rule: Rule, params: Mapping[str, torch.Tensor], backend: str, lr: Any, groups: Sequence[Mapping[str, Any]] | None, seed: int, watches: bool
    ):
        for name, p in params.items():
            arrays.supported(p, f"`{name}`")
        self.rule, self.params, self.lr = rule, dict(params), rate(lr)
        self.values = dict(rule.params)
        if rule.writes_weights:
            apart(self.params, "the memory")
        self.state: State = start(rule, self.params, groups, seed)
        self._backend, self._watches = backend, watches
        self._engines: dict[bool, Engine] = {}
        self._engine = self._engine_for(True)
        self._last: Last | None = None

    def _engine_for(self, has_lr: bool) -> Engine:
        if has_lr not in self._engines:
            self._engines[has_lr] = over_tensors(self.rule.engine(self.state.layout, has_lr, self._backend, self._watches))
        return self._engines[has_lr]

    @property
    def backend(self) -> str:
        """The backend's name, never "auto"."""
        return self._engine.name

    @property
    def source(self) -> dict[str, str]:
        """{file name: text} of the generated code."""
        return self._engine.source

    @property
    def plan(self) -> Summary | None:
        """How a step goes through memory: sweeps, bytes_per_parameter, idle_bytes_per_parameter, launches, state_bytes_per_parameter, workspace_bytes; as text,
        sweep by sweep. Of the first step, where that depends on the step. None where torch runs the rule."""
        run, here = self._engine.run, self.state.layout
        if not hasattr(run, "summary"):
            return None
        return run.summary({name: (arrays.dtype_name(self.params[name]),) * 2 for name in here.shapes}, here.group_of)

    def set(self, **params: Any) -> None:
        """Values of parameters from the next step on. Raises UpdslError, and sets none, if one is unknown, constant, of the wrong type or out of bounds."""
        self.values |= set_later(self.rule.module, self.rule.constants, params)

    @torch.no_grad()
    def step(self, grads: Mapping[str, torch.Tensor] | None, lr: Any = None, **inputs: Any) -> dict[str, Any]:
        """One step, in place: `out` into the gradients (not if the rule writes w and returns nothing), new weights into the parameters; gives the watches.

        grads: name → tensor of the parameter's shape; one that is missing or None takes no part. lr: a number or 0-d tensor. inputs: by name, as of
        `Rule.update`. All or nothing: on an UpdslError, or any other exception, gradients, parameters and state are as before.
        """
        lr = self.lr if lr is None else rate(lr)
        if self._last is not None and not inputs and (now := self._last.again(grads, lr, self)) is not None:
            return self._step_in_place(now)
        self._last = None
        module, here, given = self.rule.module, self.state.layout, arrays.by_name(grads)
        engine = self._engine = self._engine_for(here.has_lr(lr))
        g = arrays.gradients(from_samples(self.rule, here, given, inputs), here)
        found, batch = inputs_of(module, engine, here, g, inputs, arrays.to_torch)
        now = frame(module, engine, here, self.values, lr, g, arrays.weights(self.params, g, here), found, batch, self.state.seed, consumed=True)
        written = {name: x for name, x in given.items() if name in g and self._returns(engine, name)}
        writable(written, "the gradient")
        if module.writes_weights:
            writable({name: self.params[name] for name in g}, "the memory")
        if isinstance(engine.run, InPlace) and engine.run.steps_in_place(now) and self._writes_all(engine, now, given):
            if len(now.g) == len(given) and not inputs:
                self._last = Last(now, here.has_lr(lr))
            return self._step_in_place(now)
        result = engine.run.step(self.state.kept, now)
        self._commit(result, written)
        return result.watches

    def _step_in_place(self, now: Frame) -> dict[str, Any]:
        run = cast(InPlace, self._engine.run)
        with uninterrupted():
            result = run.step_in_place(self.state.kept, now)
            self.state = self.state.after(result.state)
        return result.watches

    def _writes_all(self, engine: Engine, now: Frame, given: Mapping[str, torch.Tensor]) -> bool:
        """Whether what a step in place writes is what was handed over."""
        return all(name in given and now.g[name].data_ptr() == given[name].data_ptr() for name in now.g if self._returns(engine, name))

    @staticmethod
    def _returns(engine: Engine, name: str) -> bool:
        program = engine.elaborated.programs[engine.elaborated.class_of[name]]
        return program.weight is None or program.returns

    def _commit(self, result: Result, grads: Mapping[str, torch.Tensor]) -> None:
        weights = result.weights or {}
        targets = [*grads.values(), *(self.params[name] for name in weights)]
        with uninterrupted():
            write(targets, [*(result.out[name] for name in grads), *weights.values()])
            self.state = self.state.after(result.state)


class Last:
    """A step in place whose arguments were checked: those of the next need no checks where they are the same tensors, or alike."""

    def __init__(self, frame: Frame, has_lr: bool):
        self.frame, self.has_lr = frame, has_lr
        self.names, self.tensors = list(frame.g), list(frame.g.values())

    def again(self, grads: Mapping[str, torch.Tensor] | None, lr: Any, of: Compiled) -> Frame | None:
        """The frame of such a step, with these gradients and the numbers as of now; None where something must be checked."""
        here = of.state.layout
        if type(grads) is not dict or list(grads) != self.names or here.has_lr(lr) != self.has_lr:
            return None
        tensors = list(grads.values())
        if not all(map(is_, tensors, self.tensors)):
            if not all(map(is_alike, tensors, self.tensors)) or len({x.data_ptr() for x in tensors}) < len(tensors):
                return None
            self.tensors = tensors
        params, lrs = numbers(here, of.values, lr)
        return replace(self.frame, g=grads, lr=lrs, params=params)


def is_alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    """The same tensor, or one of the same type, size, layout and device."""
    return x is y or (
        type(x) is torch.Tensor and x.dtype is y.dtype and x.shape == y.shape and x.device == y.device and x.is_contiguous() and not x.is_inference()
    )
