"""What a rule promises: its units, whether its laws hold, whether it does the same as another, and what in it is seldom meant."""

from __future__ import annotations

from os import PathLike
from typing import Any

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.front.canonical import canonical_digest
from updsl.front.files import open_unit
from updsl.front.units import Units, units_of
from updsl.laws.check import check_file, check_unit
from updsl.laws.equal import Equivalence, compared
from updsl.laws.verdict import Verdict


def check(rule: str | PathLike[str], examples: int = 200, seed: int | None = None) -> list[Verdict]:
    """A verdict on every law of a rule file, in order.

    rule: the path of a file, or the name of a rule of the library. examples: streams of gradients that each law is tried on. seed: of the streams; each law has
    one of its own unless it is given, so that a verdict does not change from run to run. A verdict has `.rule` and `.law` (names), `.kind` ("proved", "tested",
    "refuted", "vacuous"), `.detail`, `.counterexample` and `.seconds`; printed, it says all of them. A counterexample is the smallest stream found, step by
    step; its `.snippet()` is Python that reproduces it. A law that holds in float64 and fails in float32 has one too, and says so in its detail.
    Raises UpdslError where the file cannot be read, or has mistakes.
    """
    from updsl.laws.decide import decide_all

    mistakes = [d for d in check_file(rule) if d.severity == "error"]
    if mistakes:
        raise UpdslError(mistakes)
    return list(decide_all(open_unit(rule), examples, seed))


def lint(rule: Any) -> list[Diagnostic]:
    """What is no mistake in a rule and seldom meant: stages that change nothing, states that one bad gradient spoils for good, values that nothing reads.

    rule: a rule, looked at with the values that its parameters have; or the path of a file or a name of the library: then all rules of the file, with defaults.
    Each finding is a Diagnostic of severity "warning": `.code` (docs/lints.md lists them), `.message`, `.file`, `.line`, `.column`, `.help`.
    Raises UpdslError where the text has mistakes, or can be used for no tensor.
    """
    from updsl.laws.lint import lint_rule, lint_unit

    module = getattr(rule, "module", None)
    unit = open_unit(rule) if module is None else module.unit
    mistakes = [d for d in check_unit(unit, examples=False, lints=()) if d.severity == "error"]
    if mistakes:
        raise UpdslError(mistakes)
    return list(lint_unit(unit) if module is None else lint_rule(module, rule.params))


def units(rule: Any) -> Units:
    """The units [g]^a·[w]^b of what a rule gives, of its parameters, literals, inputs and states, and what follows for the scale of gradients.

    rule: a rule, or the name of one of the library, or a path. Printed, the result is a line a unit; `.carriers` are the literals and parameters that have one,
    `.conflicts` warnings where units contradict one another, `.equivariant` whether rule(k·g) = k^`.degree`·rule(g) is proved for every k > 0.
    Raises UpdslError where the text is wrong, or can be used for no tensor.
    """
    rule = loaded(rule)
    return units_of(rule.module, rule.params)


def equivalent(a: Any, b: Any, examples: int = 200, seed: int | None = None) -> Equivalence:
    """Whether two rules do the same to every stream of gradients, each with the values of its parameters.

    a, b: rules, names of the library, or paths. examples: streams tried, where algebra does not decide; seed: of the streams, else one that the texts give.
    The result is true where they are equal: `.kind` is "algebra" (for every stream), "tested" (on the streams tried, in float64, up to rounding) or
    "different". `.detail` is the argument or says what was tried, `.counterexample` the smallest stream found on which they differ, line by line, and
    `.differences` tells parameters, inputs, states and texts apart. Rules of which one writes the weights are compared as optimizers: w ← w − lr·out for the
    other. Raises UpdslError where a text is wrong.
    """
    a, b = loaded(a), loaded(b)
    return compared(a.module, b.module, a.params, b.params, examples, seed)


def canonical_hash(rule: Any) -> str:
    """SHA-256, in hexadecimal, of what a rule's text says, with the values of its parameters: the same for texts that differ in names, layout, comments,
    documentation, laws and examples, and the order of what does not depend on one another.

    rule: a rule, or the name of one of the library, or a path. The rules and functions that it applies count by what they say. The same in every process and
    version of Python. Two rules of one hash do the same; two that do the same may have different ones: `equivalent` compares them. Checkpoints carry the hash
    of the text itself. Raises UpdslError where the text is wrong.
    """
    rule = loaded(rule)
    return canonical_digest(rule.module, rule.params)


def loaded(rule: Any) -> Any:
    """A rule as given, or of that name or path."""
    from updsl.runtime.rule import load

    return rule if hasattr(rule, "module") else load(rule)
