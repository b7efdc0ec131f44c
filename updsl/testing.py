"""For tests of rules in Python: Hypothesis strategies for streams of gradients, and laws as assertions."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from updsl.core.diagnostic import UpdslError
from updsl.front.claim import claim_of
from updsl.front.claims import law_mistakes
from updsl.front.parse import parse_law
from updsl.laws.decide import decide
from updsl.laws.sample import ground_of
from updsl.laws.sample import streams as streams_of
from updsl.laws.verdict import Verdict
from updsl.properties import loaded

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from numpy import ndarray

    from updsl.runtime.rule import Rule

SPANS = (1, 1, 1, 2, 5)
"""Steps for which a gradient stays, alternates or grows."""
DTYPES = ("float64", "float32", "bfloat16", "float16")


def gradients(shapes: Mapping[str, Any], *, finite: bool = True, dtype: str = "float64") -> SearchStrategy[dict[str, ndarray]]:
    """A strategy for the gradients of one step: {name: float64 array}.

    shapes: {name: shape}, or {name: anything with a shape}, such as `dict(model.named_parameters())`. Entries are from a few values, so that ties and zeros
    come up, times a scale that differs from tensor to tensor, from 0 over 1e-9 to 1e12; rows and columns are dead now and then. finite: whether infinities and
    NaN are left out. dtype: "float64", "float32", "bfloat16" or "float16", which entries are rounded to. They shrink to small whole numbers.
    """
    return streams(shapes, steps=1, finite=finite, dtype=dtype).map(lambda stream: stream[0])


def streams(
    shapes: Mapping[str, Any], *, rule: Rule | str | PathLike[str] | None = None, steps: int | None = None, finite: bool = True, dtype: str = "float64"
) -> SearchStrategy[list[dict[str, ndarray]]]:
    """A strategy for streams of gradients: a list, step by step, of what `gradients` draws, as laws are tried on. Gradients stay, alternate or grow for a few
    steps, four times at most.

    rule: that the stream is for, by itself, its name or path: some streams outlast its warm-ups, gaps and windows (those of up to 128 steps). steps: their
    number, where it is to be one and the same. The rest as in `gradients`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose {', '.join(DTYPES)}")
    found = {name: tuple(getattr(x, "shape", x)) for name, x in shapes.items()}
    spans = SPANS
    if rule is not None:
        rule = loaded(rule)
        spans = ground_of(rule.module, claim_of(rule.module, parse_law("out == out")), rule.params).spans
    if steps is None:
        return streams_of(found, spans, not finite, dtype)
    return streams_of(found, (steps,), not finite, dtype).map(lambda stream: stream[:steps])


def assert_law(rule: Rule | str | PathLike[str], law: str, *, examples: int = 200, seed: int | None = None, dtype: str | None = None) -> Verdict:
    """Decides a law of a rule, and gives the verdict ("proved" or "tested").

    rule: a rule, or the name of one of the library, or a path; parameters have the values that it was loaded with, where the law sets none. law: as in a
    file, `law bounded(c = 2): norm(out) <= c per all`, or the claim alone, `rule(k*g) == k*rule(g) for k in [1e-3, 1e3]`. examples: streams that it is tried
    on. seed: of the streams; else the law has one of its own. dtype: the one type that it is tried in; else float64, then float32 (the verdict's
    `.counterexample` is there where the law fails in float32 alone).
    Raises AssertionError with the counterexample if the law is refuted, says nothing, or fails in the type that is asked for; UpdslError, with its place, if
    the text is wrong.
    """
    __tracebackhide__ = True
    rule, found = loaded(rule), parse_law(law)
    if mistakes := [d for d in law_mistakes(rule.module, found, rule.params) if d.severity == "error"]:
        raise UpdslError(mistakes)
    verdict = decide(rule.module, found, rule.params, examples, seed, dtype=dtype)
    if verdict.kind in ("refuted", "vacuous") or (dtype is not None and verdict.counterexample is not None):
        raise AssertionError(str(verdict))
    return verdict
