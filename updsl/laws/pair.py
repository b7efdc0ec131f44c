"""Two rules on the same drawn streams of gradients: the smallest found on which they differ."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from updsl.back.interpret import Interpreter
from updsl.core.diagnostic import UpdslError
from updsl.core.frame import Tensor
from updsl.front import syntax
from updsl.front.claim import Claim, claim_of
from updsl.front.elaborate import elaborate
from updsl.front.module import Module
from updsl.front.unit import Constant
from updsl.laws.contrast import told_apart
from updsl.laws.replay import exact
from updsl.laws.sample import Ground, Search, ground_of
from updsl.laws.trial import TOLERANCE, Arrays, Breach, Copy, Outcome, OutOfTime, Setting, compare, finite_max

SAME = syntax.Law("same", (), None, syntax.Compare(syntax.Name("out"), (("==", syntax.Name("out")),)))
"""What streams are drawn for: it quantifies nothing."""


class Side:
    """One of the rules, for some tensors. Raises UpdslError where it cannot be used for them."""

    def __init__(self, module: Module, tensors: tuple[Tensor, ...], values: Mapping[str, Constant]):
        self.module, self.values = module, values
        self.made = elaborate(module, tensors, values)
        self.engine = Interpreter(self.made.programs, self.made.class_of, tensors)


class Pair:
    """Both rules, for some tensors. Where one writes the weights, both are optimizers, and weights are compared; else what they give. is_given_alike: whether
    inputs of one name are of one grid."""

    def __init__(self, a: Side, b: Side, tensors: tuple[Tensor, ...]):
        self.sides, self.tensors = (a, b), tensors
        self.optimizers = a.module.writes_weights or b.module.writes_weights
        self.programs, self.is_given_alike = [], True
        for t in tensors:  # one for each, with the inputs of both: what is handed over
            p, q = (side.made.programs[side.made.class_of[t.name]] for side in self.sides)
            inputs = {i.name: i for i in (*q.inputs, *p.inputs)}
            self.is_given_alike &= all(inputs[i.name] == i for i in q.inputs)
            self.programs.append(replace(p, inputs=tuple(inputs.values())))
        self.class_of = {t.name: i for i, t in enumerate(tensors)}

    def results(self, setting: Setting) -> Iterator[tuple[Arrays, Arrays]]:
        """What both give at each step."""
        copies = [Copy(side.engine, dict(setting.weights)) for side in self.sides]
        for step, g in enumerate(setting.steps):
            given = setting.inputs[step] if setting.inputs else {}
            yield self.after(copies[0], self.sides[0], g, given, setting), self.after(copies[1], self.sides[1], g, given, setting)

    def after(self, copy: Copy, side: Side, g: Arrays, given: Mapping[str, Any], setting: Setting) -> Arrays:
        out = copy.step(g, {n: x for n, x in given.items() if n in side.module.inputs}, replace(setting, parameters=side.values))
        if not self.optimizers:
            return out
        if not side.module.writes_weights:
            copy.w = {n: w - setting.lr * out[n] for n, w in copy.w.items()}
        return copy.w

    def run(self, setting: Setting, until: float = math.inf) -> Outcome:
        """Until they differ, or the stream ends."""
        compared, largest = 0, dict.fromkeys((t.name for t in self.tensors), 0.0)
        for step, ((a, b), g) in enumerate(zip(self.results(setting), setting.steps, strict=True), 1):
            if time.perf_counter() > until:
                raise OutOfTime
            for name in g:
                largest[name] = max(largest[name], *(finite_max(xs[name]) for xs in (g, a, b)))
                x, y = np.asarray(a[name]), np.asarray(b[name])
                same = compare("eq", x, y, largest[name], TOLERANCE["float64"], True)
                compared += same.size
                if not np.all(same):
                    index = tuple(int(i) for i in np.argwhere(~same)[0])
                    return Outcome(compared, Breach(step, name, index, "eq", True, (float(x[index]), float(y[index]))))
        return Outcome(compared, None)


class Comparison(Search):
    """Streams that both rules run on, for tensors that both can be used for."""

    def __init__(self, a: Module, b: Module, of_a: Mapping[str, Constant], of_b: Mapping[str, Constant]):
        claims: list[Claim] = [claim_of(m, SAME) for m in (a, b)]
        grounds = ground_of(a, claims[0], of_a), ground_of(b, claims[1], of_b)
        self.modules: tuple[Module, Module] = (a, b)
        self.pairs: dict[tuple[Tensor, ...], Pair] = {}
        drawn, fewest = (dict.fromkeys((*x, *y)) for x, y in zip(*((g.sets, g.fewest) for g in grounds), strict=True))
        for tensors in {**drawn, **fewest}:
            try:
                pair = Pair(Side(a, tensors, of_a), Side(b, tensors, of_b), tensors)
            except UpdslError:  # one of them cannot be used for these
                continue
            if pair.is_given_alike:
                self.pairs[tensors] = pair
        spans = max((g.spans for g in grounds), key=lambda spans: spans[-1])
        ground = Ground(tuple(ts for ts in drawn if ts in self.pairs), tuple(ts for ts in fewest if ts in self.pairs), spans)
        super().__init__(replace(a, inputs={**b.inputs, **a.inputs}), claims[0], of_a, ground)

    def trial(self, setting: Setting) -> Any:
        return self.pairs[setting.tensors]

    @property
    def optimizers(self) -> bool:
        return any(m.writes_weights for m in self.modules)

    def shown(self) -> Iterator[str]:
        """The stream on which they differ, step by step."""
        assert self.found is not None
        setting, _ = self.found
        many = len(setting.tensors) > 1

        def of(arrays: Arrays) -> str:
            return ", ".join(f"{f'{n}: ' if many else ''}{exact(x)}" for n, x in arrays.items())

        if any(np.any(w) for w in setting.weights.values()):
            yield f"with w = {of(setting.weights)}"
        if self.optimizers and setting.lr != 1:
            yield f"with lr = {setting.lr:g}"
        for step, (g, results) in enumerate(zip(setting.steps, self.pairs[setting.tensors].results(setting), strict=True), 1):
            yield f"step {step}: g = {of(g)}"
            for given in setting.inputs[step - 1 : step]:
                yield from (f"  {name} = {', '.join(map(exact, by.values()))}" for name, by in given.items())
            gives = zip(told_apart(*self.modules), results, strict=True)
            yield from (f"  {name} {'has w =' if self.optimizers else 'gives'} {of(result)}" for name, result in gives)
