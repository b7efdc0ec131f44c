"""What a rule promises: its units, and whether its laws hold."""

from __future__ import annotations

from os import PathLike
from typing import Any

from updsl.core.diagnostic import UpdslError
from updsl.front.files import open_unit
from updsl.front.units import Units, units_of
from updsl.laws.check import check_file
from updsl.laws.verdict import Verdict


def check(rule: str | PathLike[str], examples: int = 200, seed: int | None = None) -> list[Verdict]:
    """A verdict on every law of a rule file, in order.

    rule: the path of a file, or the name of a rule of the library. examples: streams of gradients that each law is tried on. seed: of the streams; each law has
    one of its own unless it is given, so that a verdict does not change from run to run. A verdict has `.rule` and `.law` (names), `.kind` ("proved", "tested",
    "refuted", "vacuous"), `.detail`, `.counterexample` (the smallest stream found, printed step by step) and `.seconds`; printed, it says all of them.
    Raises UpdslError where the file cannot be read, or has mistakes.
    """
    from updsl.laws.decide import decide_all

    mistakes = [d for d in check_file(rule) if d.severity == "error"]
    if mistakes:
        raise UpdslError(mistakes)
    return list(decide_all(open_unit(rule), examples, seed))


def units(rule: Any) -> Units:
    """The units [g]^a·[w]^b of what a rule gives, of its parameters, literals, inputs and states, and what follows for the scale of gradients.

    rule: a rule, or the name of one of the library, or a path. Printed, the result is a line a unit; `.carriers` are the literals and parameters that have one,
    `.conflicts` warnings where units contradict one another, `.equivariant` whether rule(k·g) = k^`.degree`·rule(g) is proved for every k > 0.
    Raises UpdslError where the text is wrong, or can be used for no tensor.
    """
    from updsl.runtime.rule import load

    rule = rule if hasattr(rule, "module") else load(rule)
    return units_of(rule.module, rule.params)
