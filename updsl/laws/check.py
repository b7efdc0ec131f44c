"""What is wrong with a rule file: its declarations, every rule's text, the names and scopes of its laws, and its examples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from os import PathLike

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ir import Program
from updsl.core.source import Span
from updsl.front import syntax
from updsl.front.claims import law_mistakes, laws_of
from updsl.front.contents import applied
from updsl.front.context import NAME_CODES
from updsl.front.elaborate import check_text, fn_mistakes
from updsl.front.files import open_unit
from updsl.front.module import declaration_mistakes, defaults, module_of
from updsl.front.probes import programs_of
from updsl.front.unit import Unit
from updsl.front.units import of_programs
from updsl.laws.lint import LOUD, lint_unit


def check_file(name_or_path: str | PathLike[str], lints: Collection[str] = LOUD) -> list[Diagnostic]:
    """Every mistake found in a file, and what the lints of these codes find. Raises UpdslError where there is nothing to check, or no structure."""
    return check_unit(open_unit(name_or_path), lints=lints)


def check_unit(unit: Unit, examples: bool = True, lints: Collection[str] = LOUD) -> list[Diagnostic]:
    """Every mistake found in a parsed file, and what the lints of these codes find, once, in the order of places. examples: whether they are run too."""
    found: dict[tuple[str, str, int, str], Diagnostic] = {}
    for d in unit_mistakes(unit, examples, lints):
        found.setdefault((d.code, d.span.source.name, d.span.start, d.message), d)
    return sorted(found.values(), key=lambda d: (d.span.source.name, d.span.start))


def unit_mistakes(unit: Unit, examples: bool = True, lints: Collection[str] = LOUD) -> Iterator[Diagnostic]:
    """Every mistake of a parsed file: of declarations, and in the texts of rules whose parameters are right; without any, of units, laws and examples;
    without any of these, what the lints of these codes find."""
    declared = list(declaration_mistakes(unit))
    if unit.main is None and not unit.fns:
        declared.append(
            Diagnostic(
                "no-rule", "no rule here", Span(unit.source, 0, 0), help="a rule file is a pipeline such as `norm per column → ema`, or declares `rule NAME: …`"
            )
        )
    yield from declared
    if any(d.code == "rule-circle" for d in declared):
        return  # the rules of a circle have no end
    at = [m.span for m in declared]
    wrong = [d.span for d in unit.file.declarations if isinstance(d, syntax.Rule | syntax.Fn) and any(p.span in at for p in d.parameters)]
    broken: set[int] = set()
    for rule, mistakes in _text_mistakes(unit, declared):
        mistakes = [m for m in mistakes if not any(s.source is m.span.source and s.start <= m.span.start < s.end for s in wrong)]
        yield from mistakes
        if rule is not None and any(m.severity == "error" for m in mistakes):
            broken.add(id(rule))
    if declared:
        return
    programs: list[Program] = []
    if unit.main is not None and not broken and all(p.default is not None for p in unit.main.parameters):
        module = module_of(unit, unit.main)
        programs = programs_of(module, defaults(module))
        yield from of_programs(programs, defaults(module)).conflicts
    about_laws = list(_law_mistakes(unit, broken, examples))
    yield from about_laws
    if not broken and not any(d.severity == "error" for d in about_laws):
        yield from lint_unit(unit, lints, programs)


def _law_mistakes(unit: Unit, broken: Collection[int], examples: bool) -> Iterator[Diagnostic]:
    """The mistakes in laws and examples of rules that are not broken."""
    for rule, about in laws_of(unit):
        if id(rule) in broken:
            continue
        module = module_of(unit, rule)
        match about:
            case syntax.Law():
                yield from law_mistakes(module, about, defaults(module))
            case syntax.Example() if examples:
                from updsl.laws.examples import example_mistakes

                yield from example_mistakes(module, about)


def _text_mistakes(unit: Unit, declared: Sequence[Diagnostic]) -> Iterator[tuple[syntax.Rule | None, list[Diagnostic]]]:
    """The mistakes in the texts of functions (None; if nothing is declared twice) and of each rule."""
    if not declared:
        yield None, fn_mistakes(unit)
    parts = {id(other) for rule in unit.rules.values() for _, other, home in applied(rule, unit) if home is unit}
    for rule in unit.rules.values():
        try:
            module = module_of(unit, rule)
        except UpdslError as e:
            mistakes = e.diagnostics
        else:
            mistakes, _ = check_text(module, defaults(module))
            if id(rule) in parts or any(p.default is None for p in module.parameters.values()):
                mistakes = [d for d in mistakes if d.code in NAME_CODES]  # what flows into it, and its parameters, are its callers' to say
        yield rule, mistakes
