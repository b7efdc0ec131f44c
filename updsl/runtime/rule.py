"""A rule with values of its parameters: what `load` and `parse` give, and its pure functions `init` and `update`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

from updsl import pipeline
from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import RuleState
from updsl.front.files import is_path
from updsl.front.module import Module
from updsl.front.unit import Constant
from updsl.runtime import arrays
from updsl.runtime.bind import Layout, frame, grouped, layout, named
from updsl.runtime.inputs import inputs_of
from updsl.runtime.parameters import rate, seeded, set_later, settled, typed
from updsl.runtime.state import State, register, same_rule, text_hash

MAX_ENGINES = 16
"""Sets of tensors whose Programs a rule keeps at hand."""


class Rule:
    """A rule and the values of its parameters. Immutable; made by `updsl.load` and `updsl.parse`.

    name, doc, text: of the rule file. params: every parameter's value. inputs: name → kind ("stream", "samples", "matrix", or the scope of a `per`).
    writes_weights: whether it is an optimizer, which writes w, and not a gradient transform.
    """

    def __init__(self, module: Module, given: Mapping[str, Any]):
        self.module = module
        self.params: Mapping[str, Constant] = MappingProxyType(settled(module, given))
        self.constants = pipeline.constants_of(module, self.params)
        self._engines: dict[tuple, pipeline.Engine] = {}

    name = property(lambda self: self.module.name)
    doc = property(lambda self: self.module.doc)
    text = property(lambda self: self.module.text)
    inputs: Mapping[str, str] = property(lambda self: dict(self.module.inputs))  # type: ignore[assignment]
    writes_weights = property(lambda self: self.module.writes_weights)

    @property
    def hash(self) -> str:
        """SHA-256 of the NFKC text and the parameters, in hexadecimal."""
        lines = [normalize("NFKC", self.text), *(f"{name} = {value!r}" for name, value in sorted(self.params.items()))]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def text_hash(self) -> int:
        """Of the NFKC text alone, as an integer of 60 bits: what states and checkpoints carry, so that none is taken up by another rule."""
        return text_hash(self.text)

    def __repr__(self) -> str:
        return f"<updsl rule {self.name}({', '.join(f'{n}={v!r}' for n, v in self.params.items())})>"

    def __deepcopy__(self, memo: dict) -> Rule:
        return self

    def __reduce__(self) -> tuple:
        return revived, (self.module, dict(self.params))

    def given(self, params: Mapping[str, Any]) -> Rule:
        """The same rule with these parameters changed."""
        return Rule(self.module, {**self.params, **params}) if params else self

    def engine(self, here: Layout, lr: bool, backend: str, watches: bool = True, device: str = "cpu") -> pipeline.Engine:
        """What runs the rule for these tensors, made once for each set of tensors, overridden parameters, backend, and kind of device."""
        set_later(self.module, self.constants, {n: v for g in here.groups for n, v in g.params.items() if n in self.constants}, "in a group")
        key = (here.tensors, here.overridden, lr, pipeline.to_backend(backend), watches, device)
        if key not in self._engines:
            engine = pipeline.to_engine(self.module, here.tensors, self.params, here.overridden, lr, backend, watches, device)
            while len(self._engines) >= MAX_ENGINES:
                del self._engines[next(iter(self._engines))]
            self._engines[key] = engine
        return self._engines[key]

    def sharded_engine(self, here: Layout, lr: bool, shards: Any) -> pipeline.Engine:
        """What runs the rule for tensors that lie in parts on several ranks."""
        set_later(self.module, self.constants, {n: v for g in here.groups for n, v in g.params.items() if n in self.constants}, "in a group")
        return pipeline.to_sharded_engine(self.module, here.tensors, self.params, here.overridden, lr, shards)

    def init(self, params: Any, groups: Sequence[Mapping[str, Any]] | None = None, seed: int = 0) -> State:
        """The state before the first step.

        params: the tensors, as a dict, pairs of (name, tensor) or a module; only names and shapes count here. groups:
        `[{"params": [names], "lr": …, "z_thresh": 2.0}, …]`, with a learning rate and parameters of the group's own; tensors in none form one last
        group. seed: of random draws. Raises UpdslError on an unknown name or a value out of bounds.
        """
        return start(self, params, groups, seed)

    def update(
        self,
        grads: Mapping[str, Any] | None,
        state: State,
        params: Any = None,
        lr: Any = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        set: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> tuple[dict[str, Any], State, dict[str, Any] | None, dict[str, Any]]:
        """(gradients, state) ↦ (out, state, weights, watch), a pure function: nothing handed over is changed.

        grads: name → tensor of the parameter's shape, dense, float64, float32, bfloat16 or float16; a tensor that is missing or None takes no part. params:
        the weights, needed where the rule reads w. lr: a number or 0-d tensor, needed where it reads lr; a group's own wins. groups: as in `init`, whose
        hold if left out. set: values of parameters for this step. inputs: by name, see `updsl.runtime.inputs`. Non-finite values propagate.
        out: name → tensor of the gradient's type. weights: the new weights, None unless the rule writes w. watch: label → 0-d tensor (scope all) or
        name → 0-d tensor or group → 0-d tensor. Raises UpdslError before anything is computed.
        """
        register()
        return advance(self, "torch", arrays.to_torch, grads, state, params, lr, groups, set, inputs)

    @property
    def interpret(self) -> Interpretation:
        """The same two functions in the float64 interpreter, the definition of the language."""
        return Interpretation(self)


class Interpretation:
    """`init` and `update` of a rule in the interpreter: takes NumPy arrays or torch tensors, gives NumPy float64 arrays."""

    def __init__(self, rule: Rule):
        self.rule = rule

    def init(self, params: Any, groups: Sequence[Mapping[str, Any]] | None = None, seed: int = 0) -> State:
        """As `Rule.init`."""
        return start(self.rule, params, groups, seed)

    def update(
        self,
        grads: Mapping[str, Any] | None,
        state: State,
        params: Any = None,
        lr: Any = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        set: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> tuple[dict[str, Any], State, dict[str, Any] | None, dict[str, Any]]:
        """As `Rule.update`, in NumPy float64."""
        return advance(self.rule, "interpret", arrays.to_numpy, grads, state, params, lr, groups, set, inputs)


def revived(module: Module, params: dict[str, Constant]) -> Rule:
    """A rule from what it was pickled as."""
    return Rule(module, params)


def start(rule: Rule, params: Any, groups: Sequence[Mapping[str, Any]] | None, seed: int) -> State:
    """The state before the first step of these tensors."""
    shapes = {name: tuple(x.shape) for name, x in named(params).items()}
    return State(layout(shapes, *grouped(rule.module, shapes, groups)), seeded(seed), RuleState(), rule.text_hash)


def regrouped(rule: Rule, here: Layout, groups: Sequence[Mapping[str, Any]] | None) -> Layout:
    """The same tensors in other groups, if any are given."""
    if groups is None:
        return here
    group_of, found = grouped(rule.module, [*here.shapes, *here.empty], groups)
    return Layout(here.tensors, here.empty, group_of, found)


def advance(
    rule: Rule,
    backend: str,
    convert: Callable[[Any], Any],
    grads: Mapping[str, Any] | None,
    state: State,
    params: Any,
    lr: Any,
    groups: Any,
    set: Mapping[str, Any] | None,
    inputs: Mapping[str, Any],
) -> tuple[dict[str, Any], State, dict[str, Any] | None, dict[str, Any]]:
    """One pure step: check everything, make the frame, run it."""
    if not isinstance(state, State):
        raise UpdslError(
            Diagnostic("no-state", "the second argument is the state that `init` or the step before gave", help="start with `state = rule.init(params)`")
        )
    same_rule(rule.name, rule.text_hash, state.rule, "the state", "hand over a state that this rule's `init` or `update` gave")
    here = regrouped(rule, state.layout, groups)
    lr = rate(lr)
    if set is not None and not isinstance(set, Mapping):
        raise typed("set", set, "values by parameter", "pass a dict, `{name: value}`")
    values = {**rule.params, **set_later(rule.module, rule.constants, set or {})}
    g = {name: convert(x) for name, x in arrays.gradients(from_samples(rule, here, grads, inputs), here).items()}
    engine = rule.engine(here, here.has_lr(lr), backend)
    found, batch = inputs_of(rule.module, engine, here, g, inputs, convert)
    w = {name: convert(x) for name, x in arrays.weights(named(params), g, here).items()} if params is not None else {}
    now = frame(rule.module, engine, here, values, lr, g, w, found, batch, state.seed)
    result = engine.run.step(state.kept, now)
    out = result.out | {name: convert(grads[name]) for name in here.empty if grads and grads.get(name) is not None}
    return out, state.after(result.state), result.weights, result.watches


def from_samples(rule: Rule, here: Layout, grads: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The gradients; where one is left out and there are per-sample gradients, their mean."""
    grads, samples = arrays.by_name(grads), inputs.get("samples")
    if rule.inputs.get("samples") != "samples" or not isinstance(samples, Mapping):
        return grads
    for name in here.shapes:
        if grads.get(name) is None and samples.get(name) is not None:
            arrays.supported(samples[name], f"the input `samples` of `{name}`")
            grads[name] = arrays.sample_mean(samples[name])
    return grads


def load(rule: str | os.PathLike[str], /, **params: Any) -> Rule:
    """A rule of the library by name, or of a file by path, with parameters by keyword.

    Raises UpdslError on every mistake in the text, and on a parameter that the rule does not have, of the wrong type, or out of bounds.
    """
    if not isinstance(rule, (str, os.PathLike)):
        raise typed("rule", rule, "a library name or a path", 'pass a text, such as `"zclip"`')
    return Rule(pipeline.from_file(rule), params)


def parse(text: str, /, name: str | None = None, **params: Any) -> Rule:
    """A rule from its text; `name` is what a bare pipeline is called. Raises UpdslError as `load` does."""
    for argument, value in {"text": text, "name": name or ""}.items():
        if not isinstance(value, str):
            raise typed(argument, value, "a text", "decode it first" if isinstance(value, bytes) else 'pass a text, such as `"clip norm > 1"`')
    return Rule(pipeline.from_text(text, name), params)


def to_rule(rule_or_name: Rule | str | os.PathLike[str], params: Mapping[str, Any]) -> Rule:
    """A rule as given, or loaded by name or path, with parameters by keyword."""
    return rule_or_name.given(params) if isinstance(rule_or_name, Rule) else load(rule_or_name, **params)


def as_argument(rule: Rule) -> str:
    """What stands for the rule in a call: its name in the library, its path, or for a text the rule that was made of it."""
    found, file = pipeline.library().find(rule.name), rule.module.unit.source.name
    if found is not None and found.source.text == rule.text:
        return json.dumps(rule.name)
    return "rule" if file.startswith("<") else json.dumps(file if is_path(file) else os.path.join(".", file), ensure_ascii=False)


def library() -> dict[str, str]:
    """{name: one line of documentation} of every rule of the library, in alphabetical order."""
    rules = pipeline.library().rules
    return {name: next(iter((rules[name].doc or "").strip().splitlines()), "").strip() for name in sorted(rules)}
