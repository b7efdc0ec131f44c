"""A rule compiled for one set of tensors, which it updates in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Frame, Result, RuleState
from updsl.core.plan import Summary
from updsl.pipeline import Engine, InPlace
from updsl.runtime import arrays, operation
from updsl.runtime.bind import Layout, frame, named, numbers
from updsl.runtime.commit import apart, overlapping, uninterrupted, writable, write
from updsl.runtime.flat import Flat, side_by_side
from updsl.runtime.inputs import inputs_of
from updsl.runtime.known import Known, like
from updsl.runtime.parameters import rate, set_later
from updsl.runtime.reference import over_tensors
from updsl.runtime.rule import Rule, from_samples, start, to_rule
from updsl.runtime.state import State


def compile(
    rule: Rule | str,
    params: Any,
    backend: str = "auto",
    lr: Any = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    watches: bool = True,
    **parameters: Any,
) -> Compiled:
    """A rule made ready for these tensors.

    rule: a rule, a library name or a path; its parameters by keyword. params: the tensors, as a dict, pairs of (name, tensor), a module, or what
    `updsl.flatten` gave; a rule that writes w writes them. backend: "auto" (C++ kernels on a CPU, Triton's on CUDA, torch elsewhere or where they do not
    cover the rule), "cpp", "triton", "torch" (generated torch source, eager), "inductor" (that through torch.compile), "interpret" (the float64 interpreter).
    lr, groups, seed: as of `Rule.init` and `Rule.update`; a step may have an lr of its own. watches: whether steps give the rule's watches.
    Raises UpdslError, before any step, for a text, parameter, group or backend that will not do, and where there are no tensors.
    """
    made, tensors = to_rule(rule, parameters), named(params)
    if not tensors:
        help_ = "pass a module, a dict, or a list of (name, tensor); an iterator, such as `model.named_parameters()`, gives its tensors once"
        raise UpdslError(Diagnostic("no-tensors", f"there are no tensors to compile `{made.name}` for", help=help_))
    return Compiled(made, tensors, backend, lr, groups, seed, watches, params if isinstance(params, Flat) else None)


class Compiled:
    """A rule for one set of tensors, with its state; made by `updsl.compile`. state: what it keeps. backend: the one that runs it. flat: the buffers that the
    tensors lie in. handle, steps: what the operations of `updsl.runtime.operation` find it by, and count."""

    def __init__(
        self,
        rule: Rule,
        params: Mapping[str, torch.Tensor],
        backend: str,
        lr: Any,
        groups: Sequence[Mapping[str, Any]] | None,
        seed: int,
        watches: bool,
        flat: Flat | None = None,
    ):
        arrays.all_supported(params, "")
        self.rule, self.params, self.lr = rule, dict(params), rate(lr)
        self.values = dict(rule.params)
        if rule.writes_weights:
            apart(self.params, "the memory")
        self.state: State = start(rule, self.params, groups, seed)
        self._backend, self._watches = backend, watches
        self._engines: dict[bool, Engine] = {}
        self._engine = self._engine_for(True)
        self._last: Last | None = None
        self.flat, self._cells = flat, 0
        self.handle = operation.handle_for(self, rule.name)
        self.steps = torch.zeros((), dtype=torch.int64)

    def _engine_for(self, has_lr: bool) -> Engine:
        if has_lr not in self._engines:
            self._engines[has_lr] = over_tensors(
                self.rule.engine(self.state.layout, has_lr, self._backend, self._watches, arrays.device_of(self.params.values()))
            )
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
        """Values of parameters from the next step on: numbers, or 0-d tensors, of which one on another device is copied, and not read. Raises UpdslError, and
        sets none, if one is unknown, constant, of the wrong type or, where it is read, out of bounds."""
        self.values |= set_later(self.rule.module, self.rule.constants, params)

    def step(self, grads: Mapping[str, torch.Tensor] | None, lr: Any = None, **inputs: Any) -> dict[str, Any]:
        """One step, in place: `out` into the gradients (not if the rule writes w and returns nothing), new weights into the parameters; gives the watches.

        grads: name → tensor of the parameter's shape; one that is missing or None takes no part. lr: a number or 0-d tensor. inputs: by name, as of
        `Rule.update`. All or nothing: on an UpdslError, or any other exception, gradients, parameters and state are as before. In a function under
        torch.compile the step is one operation, and the watches are float64.
        """
        if torch.compiler.is_compiling():
            return operation.trace(self, grads, lr, inputs, False)
        return self.eager(grads, lr, inputs, self.params)

    def step_flat(self, grads: Mapping[str, torch.Tensor], lr: Any = None, **inputs: Any) -> dict[str, Any]:
        """A step of gradients that lie in buffers: type, such as "float32" → buffer, laid out as those of the `updsl.flatten` that this was compiled for."""
        if torch.compiler.is_compiling():
            return operation.trace(self, grads, lr, inputs, True)
        return self.eager(self.flat_or_refuse().split(grads), lr, inputs, self.params)

    def flat_or_refuse(self) -> Flat:
        """The buffers. Raises UpdslError if this was compiled for tensors of any memory."""
        if self.flat is None:
            message = f"`{self.rule.name}` was compiled for tensors, and not for buffers"
            raise UpdslError(Diagnostic("not-flat", message, help="compile it for what `updsl.flatten` gives, or use `step`"))
        return self.flat

    def eager(self, grads: Mapping[str, torch.Tensor] | None, lr: Any, inputs: Mapping[str, Any], params: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The step itself, with the weights in `params`."""
        lr = self.lr if lr is None else rate(lr)
        if self._last is not None and not inputs and params is self.params and (now := self._last.again(grads, lr, self)) is not None:
            return self._step_in_place(now)
        return self._checked(grads, lr, inputs, params)

    @torch.no_grad()
    def _checked(self, grads: Mapping[str, torch.Tensor] | None, lr: Any, inputs: Mapping[str, Any], params: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """A step whose arguments are not known from the last."""
        self._last = None
        module, here, given = self.rule.module, self.state.layout, arrays.by_name(grads)
        engine = self._engine = self._engine_for(here.has_lr(lr))
        g = arrays.gradients(from_samples(self.rule, here, given, inputs), here)
        found, batch = inputs_of(module, engine, here, g, inputs, arrays.to_torch)
        now = frame(module, engine, here, self.values, lr, g, arrays.weights(params, g, here), found, batch, self.state.seed, consumed=True)
        written = self._written(engine, now, given)
        if isinstance(engine.run, InPlace) and engine.run.steps_in_place(now) and self._writes_all(engine, now, given) and self._inputs_apart(now, written):
            if len(now.g) == len(given) and not inputs and params is self.params:
                self._last = Last(now, here.has_lr(lr), [name for name in now.w if engine.reads_weights(name)], getattr(engine.run, "where", None))
            return self._step_in_place(now)
        result = engine.run.step(self.state.kept, now)
        self._commit(result, written, params)
        return result.watches

    def _written(self, engine: Engine, now: Frame, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients that a step writes. Raises UpdslError if one of them, or a weight, cannot be written."""
        written = {name: x for name, x in given.items() if name in now.g and engine.returns(name)}
        writable(written, "the gradient", {name: now.w[name] for name in now.g if engine.reads_weights(name)}, "the weight")
        if self.rule.writes_weights:
            writable(now.w, "the memory", {name: x for name, x in now.g.items() if name not in written}, "the gradient")
        return written

    def _inputs_apart(self, now: Frame, written: Mapping[str, torch.Tensor]) -> bool:
        """Whether a step in place writes over no input that it still reads."""
        inputs = [x for cells in now.inputs.values() for x in cells.values() if isinstance(x, torch.Tensor)]
        return not inputs or overlapping([*written.values(), *(now.w.values() if self.rule.writes_weights else ())], inputs) is None

    def traced(self, has_lr: bool) -> tuple[Engine, Layout]:
        """What runs steps, with an lr of their own or not, and over what."""
        here = self.state.layout
        return self._engine_for(has_lr or here.has_lr(self.lr)), here

    def _step_in_place(self, now: Frame) -> dict[str, Any]:
        run = cast(InPlace, self._engine.run)
        with uninterrupted():
            result = run.step_in_place(self.state.kept, now)
            self.state = self.state.after(result.state)
            if self.flat is not None:
                self._gather(self.state.kept)
        return result.watches

    def _gather(self, kept: RuleState) -> None:
        """Moves the state's arrays side by side, into one buffer for each state and type, when there are more of them than before."""
        count = sum(map(len, kept.values.values()))
        if count == self._cells:
            return
        self._cells = count
        cast(InPlace, self._engine.run).forget(kept)
        for cells in kept.values.values():
            own = [key for key, x in cells.items() if isinstance(x, torch.Tensor) and x.dim() and key in self.params]
            cells.update(zip(own, side_by_side([cells[key] for key in own]), strict=True))

    def _writes_all(self, engine: Engine, now: Frame, given: Mapping[str, torch.Tensor]) -> bool:
        """Whether what a step in place writes is what was handed over."""
        elsewhere = [name for name, g in now.g.items() if given.get(name) is not g]
        return all(name in given and now.g[name].data_ptr() == given[name].data_ptr() for name in elsewhere if engine.returns(name))

    def _commit(self, result: Result, grads: Mapping[str, torch.Tensor], params: Mapping[str, torch.Tensor]) -> None:
        weights = result.weights or {}
        targets = [*grads.values(), *(params[name] for name in weights)]
        with uninterrupted():
            write(targets, [*(result.out[name] for name in grads), *weights.values()])
            self.state = self.state.after(result.state)


class Last:
    """A step in place whose arguments were checked."""

    def __init__(self, frame: Frame, has_lr: bool, reads: Sequence[str], where: Any):
        self.has_lr, self.names = has_lr, list(frame.g)
        self.known = Known(list(frame.g.values()), [frame.w[name] for name in reads], len(reads) == len(frame.w), where)
        self.frame = like(frame, {}, frame.params, frame.lr, None)

    def again(self, grads: Mapping[str, torch.Tensor] | None, lr: Any, of: Compiled) -> Frame | None:
        """The frame of such a step, with these gradients and the numbers as of now; None where something must be checked."""
        here = of.state.layout
        if type(grads) is not dict or list(grads) != self.names or here.has_lr(lr) != self.has_lr:
            return None
        places = self.known.again(list(grads.values()))
        if places is None:
            return None
        return like(self.frame, grads, *numbers(here, of.values, lr), places)
