"""`Optimizer`: a rule as a torch optimizer. `optimizer`: the class of a torch optimizer with a rule before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.runtime.commit import write
from updsl.runtime.driver import Driver, Stepped, driver_of
from updsl.runtime.parameters import instead_of, rate
from updsl.runtime.rest import rests
from updsl.runtime.rule import Rule, to_rule
from updsl.runtime.transform import PREFIX, Handle, attach, refuse_writer

OWN_ENTRIES = frozenset("params param_names lr name initial_lr max_lr min_lr swa_lr".split())
"""Entries of parameter groups that are torch's and its schedulers', or a label."""


class Optimizer(torch.optim.Optimizer):
    """An optimizer whose update is a rule: w ← w − lr·out, or what the rule itself writes to w.

    params: tensors, pairs of (name, tensor), or groups, as of any torch optimizer; a group may set `lr` and the rule's parameters by their names.
    rule_or_name: a rule, a library name or a path; its parameters by keyword. lr: a number or 0-d tensor. names: a module, a dict or pairs of (name,
    tensor), for rules that route by name; if left out those of `params`, else "group.index". nonfinite, backend, seed, mesh: as of `updsl.attach`; a step that
    is skipped moves no weight. Raises UpdslError for a parameter that the rule does not have, of the wrong type or out of bounds, and for integer,
    complex or sparse tensors.
    """

    def __init__(
        self,
        params: Any,
        rule_or_name: Rule | str | os.PathLike[str],
        lr: Any = 1e-3,
        *,
        names: Any = None,
        nonfinite: str = "skip",
        backend: str = "auto",
        seed: int = 0,
        mesh: Any = None,
        **parameters: Any,
    ):
        self.rule = to_rule(rule_or_name, parameters)
        self._driver: Driver | None = None
        super().__init__(params, {"lr": not_negative(lr)})
        self._start(names, nonfinite, backend, seed, mesh)

    def _start(self, names: Any, nonfinite: str, backend: str, seed: int, mesh: Any = None) -> None:
        driver = driver_of(self.rule, [self], names, nonfinite, backend, seed, PREFIX, self._entries, mesh=mesh)
        driver.adopt()
        self.register_state_dict_pre_hook(driver.before_save)
        self.register_load_state_dict_pre_hook(driver.before_load)
        self.register_load_state_dict_post_hook(driver.after_load)
        self._driver = driver

    @property
    def driver(self) -> Driver:
        """What runs the rule."""
        assert self._driver is not None
        return self._driver

    def _entries(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in self.rule.params if name in group}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of any torch optimizer. Raises UpdslError for an entry that is neither torch's nor a parameter of the rule."""
        for name in param_group:
            if name not in OWN_ENTRIES and name not in self.rule.params:
                message = f"a parameter group sets `{name}`, and `{self.rule.name}` has no parameter `{name}`"
                raise UpdslError(Diagnostic("unknown-parameter", message, help=instead_of(self.rule.module, name)))
        not_negative(param_group.get("lr"))
        super().add_param_group(param_group)

    # --- steps -------------------------------------------------------------------------------------------------------

    def inputs(self, **inputs: Any) -> None:
        """Inputs of the next step, by name, as of `Handle.inputs`."""
        self.driver.hand_over(inputs)

    def set(self, **params: Any) -> None:
        """Values of the rule's parameters from the next step on, as of `Handle.set`."""
        self.driver.set(params)

    def watch(self) -> dict[str, Any]:
        """The last step's watches, as of `Handle.watch`."""
        return dict(self.driver.watches)

    @property
    def counts(self) -> dict[str, Any]:
        """Of bad steps, as of `Handle.counts`."""
        return self.driver.guard.counts

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; `p.grad` stays as it is. closure: evaluates the model and returns the loss, which `step` returns.

        All or nothing: after an exception weights and states are as before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._update()
        return loss

    def _update(self) -> None:
        driver = self.driver
        if rests(driver, self):
            driver.show(self, ())
            return
        stepped = driver.compute(in_place=False)
        if stepped is None:
            return
        names = list(stepped.frame.g)
        targets = [] if stepped.result is None else [driver.target(name) for name in names]
        weights = None if stepped.result is None else stepped.result.weights
        if stepped.result is None:
            driver.commit(stepped, lambda: None)
        elif weights is not None:
            driver.commit(stepped, lambda: write(targets, [weights[name] for name in names]))
        else:
            moves = [moved(stepped, name) for name in names]
            driver.commit(stepped, lambda: torch._foreach_add_(targets, moves) if names else None)
        driver.show(self, names)

    # --- pickling ----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        names = [(m.name, m.parameter) for m in self.driver.members().values()]
        more = {
            "rule": self.rule,
            "names": names,
            "nonfinite": self.driver.guard.policy,
            "backend": self.driver.backend,
            "seed": self.driver.seed,
            "values": self.driver.values,
        }
        return {**torch.optim.Optimizer.__getstate__(self), "updsl": more}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        more = state.pop("updsl", None)
        if more is None:  # torch comes here to load a state_dict, too
            super().__setstate__(state)
            return
        self.rule = more["rule"]
        super().__setstate__(state)
        self._start(more["names"], more["nonfinite"], more["backend"], more["seed"])
        self.driver.values = dict(more["values"])


def not_negative(lr: Any) -> Any:
    """A learning rate as it is. Raises UpdslError if it is below 0, as torch's optimizers do, or no number."""
    if rate(lr) is not None and lr < 0:
        raise UpdslError(Diagnostic("parameter-out-of-bounds", f"`lr` is {float(lr):g}, below 0", help=f"pass `lr={-float(lr):g}`"))
    return lr


def moved(stepped: Stepped, name: str) -> torch.Tensor:
    """−lr·out, in float32 for 16-bit tensors."""
    assert stepped.result is not None
    out = stepped.result.out[name]
    lr = stepped.frame.lr[stepped.frame.group_of[name]]
    return (out.float() if out.element_size() < 4 else out) * -lr


def optimizer(cls: type[torch.optim.Optimizer], rule_or_name: Rule | str | os.PathLike[str], **params: Any) -> type[torch.optim.Optimizer]:
    """The class of an optimizer with a rule before it, for factories, and for optimizers that are pickled or copied: its instances attach the rule again.

    cls: a class of torch.optim, or one derived from it. params: the rule's, and what `updsl.attach` takes beside them, but `chain`. An instance's
    handle is its attribute `handle`. Raises UpdslError as `attach` does.
    """
    options = {name: params.pop(name) for name in ("names", "nonfinite", "backend", "seed", "mesh") if name in params}
    rule = to_rule(rule_or_name, params)
    refuse_writer(rule, "optimizer")
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise UpdslError(
            Diagnostic(
                "not-an-optimizer",
                f"{getattr(cls, '__name__', type(cls).__name__)} is no class of torch optimizers",
                help="pass a class, such as `torch.optim.AdamW`",
            )
        )
    return _with_rule(cls, rule, options)


def _with_rule(cls: type[torch.optim.Optimizer], rule: Rule, options: Mapping[str, Any]) -> type[torch.optim.Optimizer]:
    class WithRule(cls):  # type: ignore[misc, valid-type]
        handle: Handle

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.handle = attach(self, rule, **options)

        def __getstate__(self) -> dict[str, Any]:
            return {**super().__getstate__(), "updsl": self.handle.driver.values}

        def __setstate__(self, state: dict[str, Any]) -> None:
            state = dict(state)
            values = state.pop("updsl", None)
            super().__setstate__(state)
            if values is not None:  # torch comes here to load a state_dict, too
                self.handle = attach(self, rule, chain=True, **options)  # a shallow copy has the same parameters
                self.handle.driver.values = dict(values)

        def __reduce_ex__(self, protocol: Any) -> tuple:
            return _made_again, (cls, rule, dict(options)), self.__getstate__()

    WithRule.__name__ = WithRule.__qualname__ = f"{cls.__name__}_{rule.name}"
    WithRule.__doc__ = f"{cls.__name__}, whose gradients first go through the rule `{rule.name}`."
    return WithRule


def _made_again(cls: type[torch.optim.Optimizer], rule: Rule, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    return object.__new__(_with_rule(cls, rule, options))
