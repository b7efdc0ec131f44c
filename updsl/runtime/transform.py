"""`attach`: a rule in front of any torch optimizer, through its step hooks."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.runtime.commit import write
from updsl.runtime.driver import driver_of
from updsl.runtime.hooks import sweep, take_out
from updsl.runtime.parameters import instead_of
from updsl.runtime.rest import is_left_out, rests
from updsl.runtime.rule import Rule, as_argument, to_rule
from updsl.runtime.scaling import found_inf, scale_of

PREFIX = "updsl."
INSIDE = ("optimizer", "original_optimizer")
"""Attributes under which wrappers (accelerate's and Lightning's, opacus's) hold the optimizer."""
FRAMEWORKS = frozenset("accelerate lightning lightning_fabric pytorch_lightning opacus".split())
"""Packages whose optimizers are wrappers; Lightning's has the hooks of the optimizer that it holds."""


def attached(optimizer: Optimizer) -> list[Handle]:
    """The handles of an optimizer, in the order in which their rules run. They are in its hooks, and nowhere else: they live as long as it does."""
    owners = (getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, Handle)]


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    rule_or_name: Rule | str | os.PathLike[str],
    *,
    names: Any = None,
    nonfinite: str = "skip",
    backend: str = "auto",
    seed: int = 0,
    chain: bool = False,
    mesh: Any = None,
    **params: Any,
) -> Handle:
    """Put a rule in front of an optimizer: at each `step`, every `p.grad` is replaced, in place, by what the rule makes of it.

    optimizer: any torch.optim.Optimizer but SparseAdam, a wrapper that holds one, or a list of them, which share `per all`: then the first `step` after new
    gradients transforms the gradients of all. rule_or_name: a rule, a library name or a path; `params` are its parameters. names: a module, a dict, or
    pairs of (name, tensor); if left out the groups' `param_names`, else "group.index". nonfinite: what becomes of a step with non-finite gradients or
    inputs: "skip" (nothing moves, neither the rule nor the optimizer; the host reads one flag), "mask" (on the device: states stay, gradients become
    0), "zero" (the entries become 0), "raise" (as skip, then an error), "propagate". backend: as of `updsl.compile`. seed: of random draws. chain:
    allow a second attach of the same rule. mesh: a DeviceMesh or ProcessGroup of all ranks that have a part of the model, for stages of a pipeline; parameters
    that are DTensors need none. A parameter group may set a parameter of the rule by an entry `updsl.<name>`, and its own `lr` is
    what the rule reads.

    Closures are evaluated first; under LBFGS each evaluation is a step of the rule. Steps are all or nothing: after an exception gradients and states are as
    before. Hooks do not survive pickling: a copy, deep copy or pickle of the optimizer steps without the rule, and torch leaves no place to warn of it.
    Attach to the copy, which goes on from the rule's state, or make the optimizer by `updsl.optimizer(Class, rule)`, whose copies have the rule. What the
    optimizer does comes after the rule: coupled weight decay is not clipped, and Adam undoes a common scale. Raises UpdslError before anything is
    changed: a rule that writes w, an unknown parameter, an object without hooks, a rule that is attached already, integer, complex or sparse
    parameters.
    """
    rule = to_rule(rule_or_name, params)
    inner = [unwrapped(o) for o in (optimizer if isinstance(optimizer, (list, tuple)) else [optimizer])]
    refuse_writer(rule, "attach")
    refuse_optimizers(inner)
    if not chain:
        refuse_again(rule, inner)
    return Handle(rule, inner, names, nonfinite, backend, seed, mesh)


def refuse_again(rule: Rule, optimizers: list[Optimizer]) -> None:
    """Raises UpdslError where the rule is attached to one of the optimizers, or to another one of the same parameters."""
    help_ = "`handle.remove()` the first, or pass `chain=True` to run it twice"
    for o in optimizers:
        if any(h.rule.text == rule.text for h in attached(o)):
            raise UpdslError(Diagnostic("already-attached", f"`{rule.name}` is attached to this {type(o).__name__} already", help=help_))
    parameters = {id(p) for o in optimizers for p in parameters_of(o)}
    if any(shares(h, rule, parameters) for h in list(handles)):
        gc.collect()  # an optimizer and its hooks refer to each other
        for h in [h for h in handles if shares(h, rule, parameters)]:
            message = f"`{rule.name}` is attached to another {type(h.optimizers[0]).__name__}, of the same parameters, already"
            raise UpdslError(Diagnostic("already-attached", message, help=help_))


def shares(handle: Handle, rule: Rule, parameters: set[int]) -> bool:
    """Whether the handle puts this rule before an optimizer of some of the parameters."""
    return not handle.is_removed and handle.rule.text == rule.text and any(id(p) in parameters for o in handle.optimizers for p in parameters_of(o))


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def marks(optimizer: Optimizer) -> list[tuple[torch.Tensor, int]]:
    """The gradients, each with how often it was written."""
    gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
    return [(g, 0 if g.is_inference() else g._version) for g in gradients]


def refuse_writer(rule: Rule, who: str) -> None:
    """Raises UpdslError for a rule that is itself an optimizer."""
    if rule.writes_weights:
        raise UpdslError(
            Diagnostic(
                "writes-weights",
                f"`{rule.name}` writes w: it is an optimizer, and `{who}` puts a rule before another one",
                help=f"use `updsl.Optimizer(params, {as_argument(rule)})`",
            )
        )


def refuse_optimizers(optimizers: list[Optimizer]) -> None:
    """Raises UpdslError for optimizers that no rule can stand before, alone or together."""
    for o in optimizers:
        if isinstance(o, SparseAdam):
            raise UpdslError(
                Diagnostic(
                    "not-an-optimizer",
                    "SparseAdam takes sparse gradients, and rules run on dense ones",
                    help="use `torch.optim.Adam`, with `sparse=False` in the embedding",
                )
            )
        if isinstance(o, LBFGS) and len(optimizers) > 1:
            raise UpdslError(
                Diagnostic(
                    "not-an-optimizer",
                    "LBFGS takes several gradients in a step, and cannot share a rule with another optimizer",
                    help="attach to each optimizer by itself",
                )
            )
    parameters = [id(p) for o in optimizers for p in parameters_of(o)]
    if not optimizers or len(set(map(id, optimizers))) < len(optimizers) or len(set(parameters)) < len(parameters):
        raise UpdslError(Diagnostic("duplicate-tensor", "attach needs optimizers, each of them once and each parameter in one of them"))


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside a wrapper. Raises UpdslError, naming the inner object's class, if it has no step hooks."""
    seen: list[Any] = []
    while is_wrapper(optimizer) and not any(optimizer is o for o in seen):
        seen.append(optimizer)
        inner = (getattr(optimizer, name, None) for name in INSIDE)
        optimizer = next((o for o in inner if o is not None), optimizer)
    if not has_hooks(optimizer):
        what, help_ = f"{type(optimizer).__name__} has no step hooks: it is no torch.optim.Optimizer", "attach to the torch optimizer, before it is wrapped"
        if isinstance(optimizer, (LRScheduler, ReduceLROnPlateau)):
            what, help_ = f"{type(optimizer).__name__} is a schedule of learning rates", "attach to the optimizer that it was made for"
        raise UpdslError(Diagnostic("not-an-optimizer", what, help=help_))
    return optimizer


def is_wrapper(x: Any) -> bool:
    """Whether it stands in an optimizer's place and holds the real one: of a known framework, or with groups and a step but without hooks."""
    of_framework = any(c.__module__.partition(".")[0] in FRAMEWORKS for c in type(x).__mro__)
    return of_framework or (not has_hooks(x) and hasattr(x, "param_groups") and hasattr(x, "step"))


def has_hooks(x: Any) -> bool:
    """Whether it is an optimizer of torch whose own `__init__` has run."""
    return isinstance(x, Optimizer) and hasattr(x, "_optimizer_step_pre_hooks")


class Handle:
    """A rule that stands before some optimizers; made by `updsl.attach`."""

    def __init__(self, rule: Rule, optimizers: list[Optimizer], names: Any, nonfinite: str, backend: str, seed: int, mesh: Any = None):
        before = max((h.place for o in optimizers for h in attached(o)), default=0)
        self.place = before + 1
        prefix = PREFIX if self.place == 1 else f"updsl{self.place}."
        self.rule, self.optimizers = rule, optimizers
        self.driver = driver_of(rule, optimizers, names, nonfinite, backend, seed, prefix, self._entries, mesh=mesh)
        self._waiting: list[Optimizer] = []
        self._seen: dict[int, list[tuple[torch.Tensor, int]]] = {}
        self._skipping = False
        self._present: tuple[str, ...] = ()
        self._kept: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._untouched: dict[int, dict[str, Any] | None] = {}
        self.driver.adopt()
        for o in optimizers:
            sweep(o)
        self._hooks = [(o, h) for o in optimizers for h in self._hooked(o)]
        self._after_hooks = [(o, o.register_step_post_hook(self._after)) for o in optimizers]
        handles.add(self)

    def _hooked(self, o: Optimizer) -> Iterable[Any]:
        yield o.register_step_pre_hook(self._before)
        yield o.register_state_dict_pre_hook(self.driver.before_save)
        yield o.register_load_state_dict_pre_hook(self.driver.before_load)
        yield o.register_load_state_dict_post_hook(self.driver.after_load)

    # --- what users call ---------------------------------------------------------------------------------------------

    def inputs(self, **inputs: Any) -> None:
        """Inputs of the next step, by name: `per all` a number or 0-d tensor, `per group` a sequence, others {name: tensor}. Raises UpdslError on an
        input that the rule does not have; one of a wrong shape is an error of the step, before anything changes."""
        self.driver.hand_over(inputs)

    def set(self, **params: Any) -> None:
        """Values of parameters from the next step on: numbers, or 0-d tensors, of which one on another device is copied, and not read. Raises UpdslError, and
        sets none, if one is unknown, constant, of the wrong type or, where it is read, out of bounds."""
        self.driver.set(params)

    def watch(self) -> dict[str, Any]:
        """The last step's watches: label → 0-d tensor (scope all), or name → 0-d tensor, or group index → 0-d tensor. Waits for no device."""
        return dict(self.driver.watches)

    def remove(self) -> None:
        """Take the rule away, and its state out of the optimizer's. During a step, from the end of the step on."""
        for o, hook in self._hooks:
            take_out(o, hook)
        self._hooks = []
        if not self._kept:
            self._finish_removal()

    @property
    def counts(self) -> dict[str, Any]:
        """Steps with non-finite gradients or inputs, how many of them in a row until now, and steps in which the rule itself made non-finite values.
        Numbers, or 0-d tensors where the device decides."""
        return self.driver.guard.counts

    @property
    def is_removed(self) -> bool:
        return not self._hooks

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Transform now, or, if the step evaluates a closure, after that. args holds the optimizer itself first."""
        self._kept.pop(id(optimizer), None)
        if isinstance(optimizer, LBFGS):
            own = optimizer.state.get(optimizer.param_groups[0]["params"][0])
            self._untouched = {id(optimizer): None if own is None else dict(own)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._closure(optimizer, args[1]), *args[2:]), kwargs
        if kwargs.get("closure") is not None:
            return args, kwargs | {"closure": self._closure(optimizer, kwargs["closure"])}
        self._transform(optimizer)
        return None

    def _closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(closure)
        def transformed() -> Any:
            loss = closure()
            if not self.is_removed:
                self._transform(optimizer)
            return loss

        return transformed

    @torch.no_grad()
    def _transform(self, optimizer: Optimizer) -> None:
        self._kept.pop(id(optimizer), None)
        if self._is_transformed(optimizer):
            if self._skipping:
                self._withhold(optimizer)
            return
        self._present = ()
        if any(h._kept.get(id(optimizer)) for h in attached(optimizer) if h is not self):
            return
        scale = scale_of(optimizer, self.optimizers, self.rule.name)
        if rests(self.driver, optimizer):
            return
        stepped = None if is_left_out(self.driver, found_inf(optimizer, self.optimizers)) else self.driver.compute(in_place=True, scale=scale)
        if stepped is None:
            self._remember()
            self._withhold(optimizer)
        else:
            names, out = tuple(stepped.frame.g), {} if stepped.result is None else stepped.result.out
            targets = [self.driver.gradient(name) for name in out]
            self.driver.commit(stepped, lambda: write(targets, list(out.values())))
            self._present, self._untouched = names, {}
            if scale is not None:
                optimizer.grad_scale = None  # type: ignore[attr-defined]
            self._remember()
        self._skipping, self._waiting = stepped is None, [o for o in self.optimizers if o is not optimizer]

    def _is_transformed(self, optimizer: Optimizer) -> bool:
        """Whether another optimizer's step has transformed this one's gradients, or skipped them. Raises UpdslError if this one steps again before the others
        have; after a step that was skipped they need not, since a GradScaler leaves out steps."""
        if self._waiting and all(self._has_other_gradients(o) for o in self.optimizers) and (self._skipping or optimizer in self._waiting):
            self._waiting = []
        if any(o is optimizer for o in self._waiting):
            self._waiting = [o for o in self._waiting if o is not optimizer]
            self._seen = self._seen if self._waiting else {}
            return True
        if self._waiting and self._skipping:
            self._waiting = []
        if self._waiting:
            late = ", ".join(type(o).__name__ for o in self._waiting)
            raise UpdslError(
                Diagnostic(
                    "stepped-twice",
                    f"this {type(optimizer).__name__} steps again before {late}, with which it shares `{self.rule.name}`",
                    help="step each optimizer once for each set of gradients",
                )
            )
        return False

    def _remember(self) -> None:
        """The gradients that were transformed, or skipped, of all optimizers, if there are several."""
        self._seen = {id(o): marks(o) for o in self.optimizers} if len(self.optimizers) > 1 else {}

    def _has_other_gradients(self, optimizer: Optimizer) -> bool:
        """Than those that were transformed: other tensors, or other values in them."""
        seen, now = self._seen.get(id(optimizer), []), marks(optimizer)
        return len(seen) != len(now) or any(g is not h or m != n for (g, m), (h, n) in zip(seen, now, strict=True))

    def _withhold(self, optimizer: Optimizer) -> None:
        """Without gradients an optimizer does not move."""
        parameters = parameters_of(optimizer)
        self._kept[id(optimizer)] = [(p, p.grad) for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None

    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        for p, g in self._kept.pop(id(optimizer), ()):
            p.grad = g
        if id(optimizer) in self._untouched:
            self._restore(optimizer, self._untouched.pop(id(optimizer)))
        if self.is_removed:
            self._finish_removal()
        else:
            self.driver.show(optimizer, self._present)

    @staticmethod
    def _restore(optimizer: Optimizer, before: dict[str, Any] | None) -> None:
        """LBFGS counts evaluations even if it does not move: where all were skipped, its state is as before."""
        first = optimizer.param_groups[0]["params"][0]
        if before is None:
            optimizer.state.pop(first, None)
        else:
            optimizer.state[first] = before

    def _finish_removal(self) -> None:
        for o, hook in self._after_hooks:
            take_out(o, hook)
        self._after_hooks = []
        for o in self.optimizers:
            sweep(o)
        self.driver.hide()

    def _entries(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's values of this rule's parameters. Raises UpdslError for an entry `updsl.<name>` that no attached rule has."""
        found = {key.removeprefix(PREFIX): value for key, value in group.items() if isinstance(key, str) and key.startswith(PREFIX)}
        rules = [self.rule, *(h.rule for o in self.optimizers for h in attached(o))]
        for name in found:
            if not any(name in rule.params for rule in rules):
                message = f"a parameter group sets `{PREFIX}{name}`, and `{self.rule.name}` has no parameter `{name}`"
                raise UpdslError(Diagnostic("unknown-parameter", message, help=instead_of(self.rule.module, name)))
        return {name: value for name, value in found.items() if name in self.rule.params}


handles: WeakSet[Handle] = WeakSet()
"""All that live, removed ones among them."""
