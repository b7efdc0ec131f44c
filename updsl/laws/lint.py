"""Lints: what is no mistake, and seldom meant. A lint is a row of the table: what it finds, and a function that finds it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ir import Program
from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.front.contents import applied
from updsl.front.elaborate import deep_recursion
from updsl.front.module import Module, defaults, module_of
from updsl.front.probes import programs_of
from updsl.front.unit import Constant, Unit
from updsl.laws.lints.always import law_always_holds
from updsl.laws.lints.beneath import bound_below_eps
from updsl.laws.lints.flow import Flow, first_of_each
from updsl.laws.lints.inert import inert_scale
from updsl.laws.lints.latch import nan_latch, nan_latch_entries, zero_latch
from updsl.laws.lints.unmeant import narrow_state, rule_without_arrow, steps_after_skip, unused_value


@dataclass(frozen=True)
class Lint:
    """code: of what it finds. doc: what that is, in a line. find: gives its findings in a Program (of: "flow"), in a rule's text ("rule"), or in a law ("law").
    quiet: it is true of most published methods, so that `updsl check` tells it only if asked."""

    code: str
    doc: str
    of: Literal["flow", "rule", "law"]
    find: Callable[..., Iterator[Diagnostic]]
    quiet: bool = False


_ROWS = (
    Lint("inert-scale", "a stage that only scales, in front of one that divides the scale out again", "flow", inert_scale),
    Lint("bound-below-eps", "a clip to a bound that is below the eps of what follows", "flow", bound_below_eps),
    Lint("nan-latch", "a gradient that is not finite stays for ever in a state that stands for many entries", "flow", nan_latch),
    Lint("nan-latch-entries", "a gradient that is not finite stays for ever in a state of entries", "flow", nan_latch_entries, quiet=True),
    Lint("zero-latch", "a state that can become 0, stays 0, and then nothing moves", "flow", zero_latch),
    Lint("steps-after-skip", "a stage that steps on, on a 0, where the one before it skips", "flow", steps_after_skip),
    Lint("narrow-state", "a slow average kept in 16 bits", "flow", narrow_state),
    Lint("unused-value", "a local or a state that nothing reads", "rule", unused_value),
    Lint("rule-without-arrow", "a rule within an expression, applied to what flows there", "rule", rule_without_arrow),
    Lint("law-always-holds", "a law that no change of the rule would break", "law", law_always_holds),
)
LINTS = {lint.code: lint for lint in _ROWS}
LOUD = frozenset(code for code, lint in LINTS.items() if not lint.quiet)


def lint_unit(unit: Unit, codes: Collection[str] = LINTS.keys(), programs: Sequence[Program] = ()) -> Iterator[Diagnostic]:
    """What lints find in a file that has no mistakes: in each of its rules that none of the others applies, with the defaults of parameters, and in its laws.
    codes: of the lints that look. programs: those of the main rule, if they are known."""
    parts = {id(other) for rule in unit.rules.values() for _, other, home in applied(rule, unit) if home is unit}
    for rule in unit.rules.values():
        yield from _of_text(Module(unit, rule, {}, {}, False), codes)
        if all(p.default is not None for p in rule.parameters) and (id(rule) not in parts or rule is unit.main):
            module = module_of(unit, rule)
            found = programs if rule is unit.main and programs else usable(module, defaults(module))
            yield from lint_programs(module, defaults(module), found, codes)
    for rule, about in laws_of(unit):
        if isinstance(about, syntax.Law):
            module = module_of(unit, rule)
            yield from lint_law(module, about, defaults(module), codes)


def lint_rule(module: Module, values: Mapping[str, Constant], codes: Collection[str] = LINTS.keys()) -> Iterator[Diagnostic]:
    """What lints find in a rule with these values of its parameters, and in its laws."""
    yield from _of_text(module, codes)
    yield from lint_programs(module, values, programs_of(module, values), codes)
    for rule, about in laws_of(module.unit):
        if rule is module.rule and isinstance(about, syntax.Law):
            yield from lint_law(module, about, values, codes)


def lint_programs(module: Module, values: Mapping[str, Constant], programs: Sequence[Program], codes: Collection[str] = LINTS.keys()) -> Iterator[Diagnostic]:
    """What lints find in a rule's Programs."""
    with deep_recursion():
        flows = [Flow(module, p, values) for p in programs]
        yield from first_of_each(d for lint in _ROWS if lint.of == "flow" and lint.code in codes for flow in flows for d in lint.find(flow))


def lint_law(module: Module, law: syntax.Law, values: Mapping[str, Constant], codes: Collection[str] = LINTS.keys()) -> Iterator[Diagnostic]:
    """What lints find in a law of the module's rule."""
    with deep_recursion():
        yield from (d for lint in _ROWS if lint.of == "law" and lint.code in codes for d in lint.find(module, law, values))


def usable(module: Module, values: Mapping[str, Constant]) -> Sequence[Program]:
    """The Programs of a rule; none if there is no tensor that it can be used for."""
    try:
        return programs_of(module, values)
    except UpdslError:
        return ()


def _of_text(module: Module, codes: Collection[str]) -> Iterator[Diagnostic]:
    yield from (d for lint in _ROWS if lint.of == "rule" and lint.code in codes for d in lint.find(module, module.rule))
