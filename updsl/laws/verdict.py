"""What was found about a law, and the stream that breaks it, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from updsl.laws.trial import Breach, Setting

Kind = Literal["proved", "tested", "refuted", "vacuous"]
SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "": "holds"}


@dataclass(frozen=True)
class Counterexample:
    """The smallest stream found that breaks a law, all else that it was tried with, and where it breaks."""

    setting: Setting
    breach: Breach

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Step by step."""
        s, found = self.setting, []
        given: dict[str, object] = dict(s.numbers)
        given |= {f"{q} of {t}": _shown(x) for q, by in s.matrices.items() for t, x in by.items()}
        if any(np.any(w) for w in s.weights.values()):
            given |= {f"w of {n}" if len(s.weights) > 1 else "w": _shown(w) for n, w in s.weights.items()}
        found += [f"with {', '.join(f'{n} = {v}' for n, v in given.items())}"] if given else []
        for step, g in enumerate(s.steps, 1):
            for name, x in g.items():
                found.append(f"step {step}: g{f' of {name}' if len(g) > 1 else ''} = {_shown(x)}")
        at = f" of {self.breach.key}" if len(s.tensors) > 1 and self.breach.key != "" else ""
        cell = f" at {list(self.breach.index)}" if self.breach.index else ""
        sides = " against ".join(f"{x:.17g}" for x in self.breach.sides)
        return [*found, f"at step {self.breach.step}{at}{cell} `{SIGNS[self.breach.op]}` fails: {sides}"]


@dataclass(frozen=True)
class Verdict:
    """rule, law: their names. kind: "proved", "tested", "refuted" or "vacuous"; detail: the argument, or on what it was tested; counterexample: of a refuted
    law; seconds: that the decision took."""

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
        found = self.counterexample and self.counterexample.lines()
        return {"rule": self.rule, "law": self.law, "kind": self.kind, "detail": self.detail, "counterexample": found, "seconds": self.seconds}


def _shown(x: np.ndarray) -> str:
    return np.array2string(np.asarray(x), separator=", ", threshold=64, precision=17, floatmode="unique").replace("\n", "")
