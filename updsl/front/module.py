"""The rule that a file stands for: its parameters and inputs, with every declaration of the file checked."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from updsl.core.diagnostic import Diagnostic, Label, UpdslError
from updsl.core.source import Source, Span
from updsl.front import syntax
from updsl.front.contents import applied_in_circle, input_items, writes_weights
from updsl.front.statics import constant
from updsl.front.unit import BOTH, BUILTIN_NAMES, FORBIDDEN, FUNCTIONS, HOMONYMS, Constant, Unit


@dataclass(frozen=True)
class Parameter:
    """A parameter of the rule a file stands for. default is None if it must be given."""

    name: str
    default: Constant | None
    low: float = -math.inf
    high: float = math.inf
    span: Span | None = None


@dataclass(frozen=True, eq=False)
class Module:
    """A file and the rule it stands for."""

    unit: Unit
    rule: syntax.Rule
    parameters: Mapping[str, Parameter]
    inputs: Mapping[str, str]
    writes_weights: bool

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def doc(self) -> str:
        return self.rule.doc or ""

    @property
    def text(self) -> str:
        return self.unit.source.text


def make_module(unit: Unit) -> Module:
    """The rule that the unit stands for, with its declarations checked. Raises UpdslError on a mistake in the declarations."""
    found = list(declaration_mistakes(unit))
    if unit.main is None:
        found.append(
            Diagnostic(
                "no-rule", "no rule here", Span(unit.source, 0, 0), help="a rule file is a pipeline such as `norm per column → ema`, or declares `rule NAME: …`"
            )
        )
    if found or unit.main is None:
        raise UpdslError(found)
    return module_of(unit, unit.main)


def module_of(unit: Unit, rule: syntax.Rule) -> Module:
    """One of a unit's rules as what the unit stands for. Raises UpdslError if it applies itself, or has bad parameters or inputs."""
    circle = next(applied_in_circle(rule, unit), None)
    if circle:
        raise UpdslError(circle[0])
    parameters = dict(_parameters(rule))
    inputs = {i.name: i.scope.name if i.scope else i.kind for i in input_items(rule, unit)}
    clash = next((parameters[n] for n in inputs if n in parameters), None)
    if clash:
        raise UpdslError(
            Diagnostic("shadowed-name", f"`{clash.name}` is a parameter here and an input of a stage", clash.span or rule.span, help="rename the parameter")
        )
    return Module(unit, rule, parameters, inputs, writes_weights(rule, unit))


def defaults(module: Module) -> dict[str, Constant]:
    """Every parameter's default; 1 for one that must be given."""
    return {name: 1.0 if p.default is None else p.default for name, p in module.parameters.items()}


# --- declarations ----------------------------------------------------------------------------------------------------


def declaration_mistakes(unit: Unit) -> Iterator[Diagnostic]:
    """Names declared twice, hidden built-ins, and laws or examples without a rule above them."""
    circles: set[frozenset[int]] = set()
    for rule in unit.rules.values():
        for found, circle in applied_in_circle(rule, unit):
            if circle not in circles:
                circles.add(circle)
                yield found
    yield from _use_mistakes(unit)
    seen: dict[str, syntax.Rule | syntax.Fn] = {}
    about: syntax.Rule | None = None
    laws: dict[str, syntax.Law] = {}
    for d in unit.file.declarations:
        match d:
            case syntax.Rule() | syntax.Fn():
                key = d.name.casefold() if isinstance(d, syntax.Rule) else d.name
                if key in seen or d.name in seen:
                    first = seen.get(key) or seen[d.name]
                    yield Diagnostic(
                        "duplicate-name",
                        f"`{d.name}` is declared twice in this file",
                        d.name_span,
                        labels=(Label(first.name_span, "first here"),),
                        help="rename one of the two",
                    )
                seen[key] = d
                is_library_rule = isinstance(d, syntax.Rule) and (d.name in BOTH or (d.name, d.name) in HOMONYMS)
                if (d.name in BUILTIN_NAMES or d.name in FUNCTIONS) and not is_library_rule:
                    yield Diagnostic("shadowed-name", f"`{d.name}` is a built-in name", d.name_span, help=f"choose another, such as `my_{d.name}`")
                yield from _parameter_mistakes(d, unit)
                if isinstance(d, syntax.Rule):
                    about, laws = d, {}
            case syntax.Law() | syntax.Example():
                what = "law" if isinstance(d, syntax.Law) else "example"
                if about is None:
                    yield Diagnostic("law-without-rule", f"this {what} stands above every rule", d.span, help="write it below the rule that it is about")
                if isinstance(d, syntax.Law):
                    if d.name in laws:
                        yield Diagnostic(
                            "duplicate-name",
                            f"the law `{d.name}` is declared twice for this rule",
                            d.span,
                            labels=(Label(laws[d.name].span, "first here"),),
                            help="rename one of the two",
                        )
                    laws[d.name] = d


def _use_mistakes(unit: Unit) -> Iterator[Diagnostic]:
    """Files used twice, and rules of this file with the name of a used one."""
    seen: dict[str, syntax.Name] = {}
    for name in (n for d in unit.file.declarations if isinstance(d, syntax.Use) for n in d.names):
        first, own = seen.setdefault(name.id.casefold(), name), unit.rules.get(name.id.casefold())
        if first is not name:
            yield Diagnostic("duplicate-name", f"`{name.id}` is used twice", name.span, labels=(Label(first.span, "first here"),), help="delete one of the two")
        elif own is not None:
            label = Label(own.name_span, "and declared here")
            yield Diagnostic("duplicate-name", f"`{name.id}` is used from another file", name.span, labels=(label,), help="rename one of the two")


def _parameter_mistakes(d: syntax.Rule | syntax.Fn, unit: Unit) -> Iterator[Diagnostic]:
    seen: dict[str, syntax.Parameter] = {}
    for p in d.parameters:
        if p.name in seen:
            yield Diagnostic(
                "duplicate-name", f"`{p.name}` is a parameter twice", p.span, labels=(Label(seen[p.name].span, "first here"),), help="rename one of the two"
            )
        seen[p.name] = p
        hides = p.name in BUILTIN_NAMES or p.name in FUNCTIONS or p.name in unit.fns or p.name.casefold() in unit.rules
        if hides and (d.name, p.name) not in HOMONYMS:
            what = "a built-in name" if p.name in BUILTIN_NAMES or p.name in FUNCTIONS else "a declaration of this file"
            yield Diagnostic("shadowed-name", f"the parameter `{p.name}` hides {what}", p.span, help=f"choose another name, such as `{p.name}_`")
        if isinstance(d, syntax.Rule) and (keyword.iskeyword(p.name) or p.name in FORBIDDEN):
            yield Diagnostic(
                "forbidden-name",
                f"a parameter cannot be called `{p.name}`: Python could not pass it by name",
                p.span,
                help=f"rename it, for example `{p.name}_`",
            )


def _parameters(rule: syntax.Rule) -> Iterator[tuple[str, Parameter]]:
    """The main rule's parameters with their defaults worked out, in order."""
    known: dict[str, Constant] = {}
    for p in rule.parameters:
        default = constant(p.default, known) if p.default is not None else None
        low = constant(p.low, known) if p.low is not None else -math.inf
        high = constant(p.high, known) if p.high is not None else math.inf
        if p.low is not None and isinstance(default, (bool, str)):
            raise UpdslError(Diagnostic("parameter-out-of-bounds", f"`{p.name}` is no number, and has no bounds", p.span, help="delete `in […]`"))
        if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low > high:
            raise UpdslError(
                Diagnostic(
                    "parameter-out-of-bounds", f"the bounds of `{p.name}` are not an interval of numbers", p.span, help="write `in [lo, hi]` with lo ≤ hi"
                )
            )
        parameter = Parameter(p.name, default, float(low), float(high), p.span)
        if default is not None:
            check_bounds(parameter, default)
            known[p.name] = default
        yield p.name, parameter


def check_setting(parameter: Parameter, value: Constant, span: Span, form: str) -> None:
    """Raises UpdslError if a law or an example cannot give the parameter this value, at this place, which it should have in this form."""
    if isinstance(value, str) != isinstance(parameter.default, str):
        kind = "a text, such as `mean` in quotes" if isinstance(parameter.default, str) else "a number, such as `0.9`"
        raise UpdslError(Diagnostic("wrong-kind", f"`{parameter.name}` is {kind}", span, help=f"write `{form}`"))
    check_bounds(parameter, value, span)


def check_bounds(parameter: Parameter, value: Constant, span: Span | None = None) -> None:
    """Raises UpdslError if the value is outside of the parameter's bounds. span: of the value, where it stands elsewhere."""
    if isinstance(value, (bool, str)) or parameter.low <= value <= parameter.high:
        return
    raise UpdslError(
        Diagnostic(
            "parameter-out-of-bounds",
            f"`{parameter.name}` is {value:g}, outside of its bounds [{parameter.low:g}, {parameter.high:g}]",
            span or parameter.span or Span(Source("<call>", ""), 0, 0),
            labels=(Label(parameter.span, "the bounds"),) if span and parameter.span else (),
            help=f"choose a value from {parameter.low:g} to {parameter.high:g}",
        )
    )
