"""What a name that means nothing could have been meant to be."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from updsl.core.diagnostic import did_you_mean

ELSEWHERE = {
    "infinity": "`inf`", "nan": "no NaN: test for it with `isfinite(x)`", "none": "`inf` for no limit, `0` for nothing", "null": "`0`",
    "grad": "`g`", "grads": "`g`", "gradient": "`g`", "x": "`g`, or `it` for what flows into a stage", "weight": "`w`", "weights": "`w`", "param": "`w`",
    "p": "`w` for the weight", "step": "`t`", "learning_rate": "`lr`", "pow": "`x^y`", "square": "`x^2`", "where": "`if c then a else b`",
    "relu": "`max(x, 0)`", "clip": "`clip norm > 1`, or `clamp(x, lo, hi)`", "matmul": "`x @ y`", "transpose": "`x.T`", "topk": "`largest(x, k)`",
    "shape": "`rows`, `cols` or `dim(i)`", "self": "nothing: a rule keeps what it needs in `state m = 0`", "randn": "`gaussian(1)`", "rand": "`uniform(0, 1)`",
    "svd": "`left_basis(x, k)`, `right_basis(x, k)` or `polar(x)`", "softmax": "`exp(x) / sum(exp(x))`", "samples": "`input samples` first in the rule's block",
}  # fmt: skip
"""Words of other languages, and what says it here."""

LETTERS: dict[str, str] = dict(zip("АВЕКМНОРСТХасеорхуіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEKMHOPCTXaceopxyijsABEZHIKMNOPTYXo", strict=True))
"""Letters of other scripts that look like Latin ones."""


DECLARE = "declare it, as a parameter, a local or a rule; `updsl list` shows the rules of the library"


def suggestion(name: str, choices: Iterable[str], otherwise: str = DECLARE) -> str:
    """Help for a name that means nothing here; otherwise: where it looks like none that does."""
    known = [*choices, "clip", "true", "false", "inf"]
    latin = "".join(LETTERS.get(c, c) for c in name)
    if latin != name and latin in known:
        return f"write `{latin}` in Latin letters"
    if name.casefold() in ELSEWHERE:
        return f"write {ELSEWHERE[name.casefold()]}"
    return did_you_mean(name, known) or otherwise


def look_alike(name: str) -> tuple[str, ...]:
    """A note on letters that look like Latin ones and are not."""
    odd = next((c for c in name if c in LETTERS), None)
    return () if odd is None else (f"`{odd}` is U+{ord(odd):04X} ({unicodedata.name(odd).lower()}), not the Latin `{LETTERS[odd]}`",)
