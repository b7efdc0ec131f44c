"""What does not hold is never proved: laws that are almost true, and laws of rules whose texts were changed in one place."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from false_laws import FALSE

from updsl.core.diagnostic import UpdslError
from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.claim import claim_of
from updsl.front.claims import laws_of
from updsl.front.files import beside, library
from updsl.front.module import Module, module_of
from updsl.front.probes import tensors_of
from updsl.front.statics import constant
from updsl.front.unit import Constant, Unit, load_unit
from updsl.laws.check import defaults
from updsl.laws.equal import by_programs
from updsl.laws.mutants import variants
from updsl.laws.prove import prove
from updsl.laws.sample import Search, ground_of

RULES = sorted(Path(__file__, "../../rules").resolve().rglob("*.upd"))
STREAMS = 60
QUICK = 12
"""Variants that are looked at in an ordinary run, on fewer streams."""


def loaded(text: str, file: Path) -> Unit:
    return load_unit(Source(file.name, text), file.stem, library().find, beside(file))


def settled(module: Module, law: syntax.Law) -> dict[str, Constant]:
    """The values that a law is decided with."""
    values = defaults(module)
    for s in law.settings:
        assert s.name is not None
        values[s.name] = constant(s.value, values)
    return values


@pytest.mark.parametrize(("rule", "law"), FALSE.values(), ids=FALSE)
def test_what_does_not_hold_is_not_proved(rule: str, law: str) -> None:
    unit = loaded(f"{rule}\n\nlaw it{'' if law.startswith('(') else ':'} {law}\n", Path("mine.upd"))
    ((name, it),) = laws_of(unit)
    assert isinstance(it, syntax.Law)
    module = module_of(unit, name)
    values = settled(module, it)
    assert tensors_of(module, values)
    assert prove(module, it, values) is None


def wrongly_proved(unit: Unit, streams: int) -> list[str]:
    """The laws of a file that are proved, and that a stream breaks all the same."""
    found = []
    for name, law in laws_of(unit):
        if not isinstance(law, syntax.Law):
            continue
        module = module_of(unit, name)
        values = settled(module, law)
        argument = prove(module, law, values)
        if argument is None:
            continue
        claim = claim_of(module, law)
        search = Search(module, claim, values, ground_of(module, claim, values))
        search.run(streams, 1)
        if search.found is not None and all(map(math.isfinite, search.found[1].breach.sides)):  # numbers of a wild variant overflow
            found.append(f"{name}.{law.name}: {argument}, and yet {search.found[1].breach}\n{unit.source.text}")
    return found


def check_variants(texts: list[tuple[Path, str]], streams: int) -> None:
    wrong = []
    for file, text in texts:
        try:
            wrong += wrongly_proved(loaded(text, file), streams)
        except UpdslError:
            continue  # a variant that is no rule
    assert not wrong, "\n".join(wrong)


def texts_of(files: list[Path]) -> list[tuple[Path, str]]:
    return [(file, v.text) for file in files for v in variants(loaded(file.read_text(encoding="utf-8"), file))]


def test_no_variant_of_a_rule_is_proved_what_streams_refute() -> None:
    some = random.Random(5)
    check_variants(some.sample(texts_of(some.sample(RULES, 12)), QUICK), STREAMS // 6)


@pytest.mark.nightly
@pytest.mark.parametrize("file", RULES, ids=lambda f: f.stem)
def test_no_variant_is_proved_what_streams_refute(file: Path) -> None:
    check_variants(texts_of([file]), STREAMS)


UNLIKE = {
    "roots of what may be negative": ("sqrt(g)*sqrt(g)", "g"),
    "what cancels and may be no number": ("g/norm(g) - g/norm(g)", "0*g"),
    "magnitudes of roots": ("abs(sqrt(g))", "sqrt(abs(g))"),
    "cells that are counted": ("norm(g + (mean(g) per row) - g) + 0*g", "norm(mean(g) per row) + 0*g"),
}


@pytest.mark.parametrize(("one", "other"), UNLIKE.values(), ids=UNLIKE)
def test_rules_that_differ_are_not_equal_by_algebra(one: str, other: str) -> None:
    (a, of_a), (b, of_b) = (
        (m, defaults(m)) for m in (module_of(u, u.main) for u in (loaded(f"rule f = {x}\n", Path("f.upd")) for x in (one, other)) if u.main)
    )
    assert by_programs(a, b, of_a, of_b) is None
