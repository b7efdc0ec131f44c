"""What was found about a law, and the stream that breaks it, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from updsl.front.claim import Claim
from updsl.front.module import Module
from updsl.front.probes import NAMES
from updsl.laws.replay import exact, replay, shown
from updsl.laws.snippet import snippet
from updsl.laws.trial import Breach, Setting, Took

Kind = Literal["proved", "tested", "refuted", "vacuous"]
TOLD = 6
"""The last steps of a stream, of which more than the gradient is shown."""


@dataclass(frozen=True)
class Counterexample:
    """The smallest stream found that breaks a law, all else that it was tried with, and where it breaks. Printed, it goes step by step: the gradient, values
    that the rule's text names, states after the step, `out`, what the rule gives on other streams of the law; and both sides where the law fails."""

    setting: Setting
    breach: Breach
    module: Module
    claim: Claim

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def snippet(self) -> str:
        """Python that runs the rule on the stream, wherever updsl is installed, and ends in an AssertionError where the law fails."""
        return snippet(self.module, self.claim, self.setting, self.breach, self.replayed[0])

    def lines(self) -> list[str]:
        """Step by step."""
        s, found = self.setting, []
        given: dict[str, object] = {n: v for n, v in {**s.parameters, **s.numbers}.items() if n in self.claim.ranges}
        given |= {f"{q} of {t}": exact(x) for q, by in s.matrices.items() for t, x in by.items()}
        if any(np.any(w) for w in s.weights.values()):
            given |= {f"w of {n}" if len(s.weights) > 1 else "w": exact(w) for n, w in s.weights.items()}
        if self.module.writes_weights:
            given["lr"] = s.lr
        found += [f"in {s.dtype}"] if s.dtype != "float64" else []
        found += [f"with {', '.join(f'{n} = {v}' for n, v in given.items())}"] if given else []
        steps, labels = self.replayed
        streams = tuple([" ".join(e.span.text.split()) for e in self.claim.given])
        for step, g in enumerate(s.steps, 1):
            found += [f"step {step}: g{f' of {name}' if len(g) > 1 or name != NAMES[0] else ''} = {exact(x)}" for name, x in g.items()]
            for name, cells in (s.inputs[step - 1] if s.inputs else {}).items():
                found += [f"    {name}{f' of {key}' if len(cells) > 1 else ''} = {exact(x)}" for key, x in cells.items()]
            if len(s.steps) - step < TOLD:
                found += [f"    {line}" for line in shown(steps[step - 1], labels, streams)]
        at = f" of {self.breach.key}" if len(s.tensors) > 1 and self.breach.key != "" else ""
        cell = f" at {list(self.breach.index)}" if self.breach.index else ""
        return [*found, f"at step {self.breach.step}{at}{cell} {self.breach}"]

    @cached_property
    def replayed(self) -> tuple[list[Took], dict[str, str]]:
        return replay(self.module, self.claim, self.setting)


@dataclass(frozen=True)
class Verdict:
    """rule, law: their names. kind: "proved", "tested", "refuted" or "vacuous"; detail: the argument, or on what it was tested; counterexample: of a refuted
    law, or of one that holds in float64 and fails in the type that its setting names; seconds: that the decision took."""

    rule: str
    law: str
    kind: Kind
    detail: str
    counterexample: Counterexample | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        head = f"{self.rule}.{self.law}: {self.kind}{f' ({self.detail})' if self.detail else ''}"
        return "\n".join([head, *(f"    {line}" for line in (self.counterexample.lines() if self.counterexample else ()))])

    def data(self) -> dict:
        """As plain data."""
        found = self.counterexample
        more = {"counterexample": found and found.lines(), "snippet": found and found.snippet()}
        return {"rule": self.rule, "law": self.law, "kind": self.kind, "detail": self.detail, **more, "seconds": self.seconds}
