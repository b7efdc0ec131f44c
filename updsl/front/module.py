"""Files to rules: what a file declares, what it uses, and what the library adds.

A `Unit` is a parsed file with the names that its texts see. A `Module` is a unit together with the rule it stands for and that rule's parameters.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from updsl.core.diagnostic import Diagnostic, Label, UpdslError, did_you_mean
from updsl.core.ops import OPS
from updsl.core.source import Source, Span
from updsl.front import syntax
from updsl.front.parse import parse

Constant: TypeAlias = float | bool | str

BUILTIN_NAMES = frozenset("g it w lr t rows cols numel ndim name tensors batch pi".split())
FUNCTIONS = frozenset(op.name for op in OPS.values() if op.text == "call") | {"min", "max", "dim", "history"}
BOTH = frozenset(("norm", "rms", "absmax"))
"""Names that are a function and a library rule."""
HOMONYMS = frozenset((("sign", "sign"), ("add_noise", "std")))
"""Rule and name: names of the library that are functions too. The rule `sign` is the function; `std` is the parameter."""
FORBIDDEN = frozenset("params groups grads state backend nonfinite chain names seed".split())
"""Words that a parameter or input may not be, since the Python interface passes them by keyword."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the rule a file stands for. default is None if it must be given."""

    name: str
    default: Constant | None
    low: float = -math.inf
    high: float = math.inf
    span: Span | None = None


@dataclass(frozen=True, eq=False)
class Unit:
    """A parsed file. `library` finds a library file by name; `beside` a file beside this one."""

    source: Source
    file: syntax.File
    stem: str
    library: Callable[[str], Unit | None]
    used: Mapping[str, Unit] = field(default_factory=dict)
    sites: dict[int, Any] = field(default_factory=dict)
    """Of each declaration, by id: kept here because its names depend on this file (sites.py)."""

    @cached_property
    def rules(self) -> dict[str, syntax.Rule]:
        return {d.name.casefold(): d for d in self.file.declarations if isinstance(d, syntax.Rule)}

    @cached_property
    def fns(self) -> dict[str, syntax.Fn]:
        return {d.name: d for d in self.file.declarations if isinstance(d, syntax.Fn)}

    def find_rule(self, name: str) -> tuple[syntax.Rule, Unit] | None:
        """The rule that `name` means here: of this file, of a used one, else of the library."""
        folded = name.casefold()
        if folded in self.rules:
            return self.rules[folded], self
        if name in self.fns:
            return None
        for unit in self.used.values():
            if folded in unit.rules:
                return unit.rules[folded], unit
        found = self.library(folded)
        return (found.rules[folded], found) if found and folded in found.rules else None

    def find_fn(self, name: str) -> tuple[syntax.Fn, Unit] | None:
        """The `fn` that `name` means here, of this file or the library."""
        if name in self.fns:
            return self.fns[name], self
        if name.casefold() in self.rules:
            return None
        found = self.library(name.casefold())
        return (found.fns[name], found) if found and name in found.fns else None

    @cached_property
    def main(self) -> syntax.Rule | None:
        """The rule of the file's name, else the last."""
        return self.rules.get(self.stem.casefold()) or next(reversed(self.rules.values()), None)


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


class Library:
    """The rule files of a folder and its subfolders, by name, each parsed once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._units: dict[str, Unit | None] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        return {p.stem.casefold(): p for p in sorted(self.folder.glob("*/*.upd"))}

    @cached_property
    def rules(self) -> dict[str, syntax.Rule]:
        """The rules that the files stand for, by name; a file of functions stands for none."""
        units = {name: self.find(name) for name in self.files}
        return {name: unit.main for name, unit in units.items() if unit is not None and unit.main is not None}

    def find(self, name: str) -> Unit | None:
        """The library's file of this name, or None."""
        name = name.casefold()
        if name not in self.files:
            return None
        if name not in self._units:
            path = self.files[name]
            beside = {p.stem: p for p in self.files.values() if p.parent == path.parent}
            self._units[name] = load_unit(_text(path), path.stem, self.find, lambda other: _text(beside[other]) if other in beside else None)
        return self._units[name]


def _text(path: Path) -> Source:
    return Source(path.name, path.read_text(encoding="utf-8"))


def load_unit(
    source: Source, stem: str, library: Callable[[str], Unit | None], beside: Callable[[str], Source | None] | None = None, within: tuple[str, ...] = ()
) -> Unit:
    """Parse a file and what it uses. `beside` gives the text of a file beside this one, by name; `within` are the files that are using this one.

    Raises UpdslError on a mistake in any of the texts, a missing file, or files that use each other in a circle.
    """
    file = parse(source)
    used: dict[str, Unit] = {}
    for name in (n for d in file.declarations if isinstance(d, syntax.Use) for n in d.names):
        text = beside(name.id) if beside else None
        if text is None:
            raise UpdslError(
                Diagnostic(
                    "unknown-file",
                    f"there is no file `{name.id}.upd` beside this one",
                    name.span,
                    help="library rules need no `use`" if library(name.id) else None,
                )
            )
        if name.id.casefold() in (*within, stem.casefold()):
            raise UpdslError(Diagnostic("use-circle", f"`{name.id}` is already using this file", name.span, help="move what both need into a third file"))
        used[name.id] = load_unit(text, name.id, library, beside, (*within, stem.casefold()))
    return Unit(source, file, stem, library, used)


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
        raise UpdslError(circle)
    parameters = dict(_parameters(rule))
    inputs = {i.name: i.scope.name if i.scope else i.kind for i in input_items(rule, unit)}
    clash = next((parameters[n] for n in inputs if n in parameters), None)
    if clash:
        raise UpdslError(
            Diagnostic("shadowed-name", f"`{clash.name}` is a parameter here and an input of a stage", clash.span or rule.span, help="rename the parameter")
        )
    return Module(unit, rule, parameters, inputs, writes_weights(rule, unit))


# --- declarations ----------------------------------------------------------------------------------------------------


def declaration_mistakes(unit: Unit) -> Iterator[Diagnostic]:
    """Names declared twice, hidden built-ins, and laws or examples without a rule above them."""
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
                    yield Diagnostic(
                        "law-without-rule", f"this {what} stands above every rule", d.span, help=f"a {what} is about the rule above it: move it below its rule"
                    )
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
            what = "a built-in name" if p.name in BUILTIN_NAMES or p.name in FUNCTIONS else "declared in this file"
            yield Diagnostic("shadowed-name", f"the parameter `{p.name}` hides a name that is {what}", p.span, help="rename the parameter")
        if isinstance(d, syntax.Rule) and (keyword.iskeyword(p.name) or p.name in FORBIDDEN):
            yield Diagnostic(
                "forbidden-name",
                f"a parameter cannot be called `{p.name}`: Python could not pass it by name",
                p.span,
                help=f"rename it, for example `{p.name}_`",
            )


def _parameters(rule: syntax.Rule) -> Iterator[tuple[str, Parameter]]:
    """The main rule's parameters with their defaults worked out, in order."""
    from updsl.front.statics import constant

    known: dict[str, Constant] = {}
    for p in rule.parameters:
        default = constant(p.default, known) if p.default is not None else None
        low = constant(p.low, known) if p.low is not None else -math.inf
        high = constant(p.high, known) if p.high is not None else math.inf
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


def check_bounds(parameter: Parameter, value: Constant) -> None:
    """Raises UpdslError if the value is outside of the parameter's bounds."""
    if isinstance(value, (bool, str)) or parameter.low <= value <= parameter.high:
        return
    raise UpdslError(
        Diagnostic(
            "parameter-out-of-bounds",
            f"`{parameter.name}` = {value:g} is outside of its bounds [{parameter.low:g}, {parameter.high:g}]",
            parameter.span or Span(Source("<call>", ""), 0, 0),
            help="choose a value within the bounds",
        )
    )


# --- what a rule's text holds ----------------------------------------------------------------------------------------


def nodes(tree: object) -> Iterator[syntax.Node]:
    """Every node of a syntax tree in text order, the root first."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, syntax.Node):
            yield item
            waiting.extend(getattr(item, name) for name in reversed(item.__dataclass_fields__) if not name.endswith("span"))
        elif isinstance(item, tuple):
            waiting.extend(reversed(item))


def applied(rule: syntax.Rule, unit: Unit) -> Iterator[tuple[syntax.Node, syntax.Rule, Unit]]:
    """Every name in a rule's body that may apply a rule, with that rule."""
    own = {p.name for p in rule.parameters}
    for node in nodes(rule.body):
        match node:
            case syntax.Name(id=name) if name not in own and name not in BUILTIN_NAMES and name not in FUNCTIONS - BOTH:
                found = unit.find_rule(name)
            case syntax.Call(callee=name) if name not in FUNCTIONS - BOTH:
                found = unit.find_rule(name)
            case _:
                continue
        if found:
            yield node, *found


def applied_in_circle(rule: syntax.Rule, unit: Unit, within: tuple[syntax.Rule, ...] = (), done: set[int] | None = None) -> Iterator[Diagnostic]:
    """A rule that applies itself, directly or through others."""
    done = set() if done is None else done
    within = (*within, rule)
    for node, other, home in applied(rule, unit):
        if any(other is r for r in within):
            if other.name in BOTH:  # inside the library's own `norm`, the name is the function
                continue
            through = " → ".join(f"`{r.name}`" for r in (*within[[r is other for r in within].index(True) :], other))
            yield Diagnostic(
                "rule-circle",
                f"`{other.name}` applies itself: {through}",
                node.span,
                help="a rule cannot be its own stage; `repeat n times (…)` repeats a pipeline",
            )
        elif id(other) not in done:
            yield from applied_in_circle(other, home, within, done)
    done.add(id(rule))


def input_items(rule: syntax.Rule, unit: Unit, seen: set[int] | None = None) -> Iterator[syntax.InputItem]:
    """The inputs that a rule and all it applies declare; a stage's inputs become the main rule's."""
    seen = set() if seen is None else seen
    if id(rule) in seen:
        return
    seen.add(id(rule))
    for node in nodes(rule.body):
        if isinstance(node, syntax.InputItem):
            yield node
    for _, other, home in applied(rule, unit):
        yield from input_items(other, home, seen)


def writes_weights(rule: syntax.Rule, unit: Unit) -> bool:
    """Whether applying the rule writes w: it has `w ←`, or ends in a rule that does."""
    return gives_weights(rule.body, unit)


def gives_weights(body: syntax.Expr | tuple[syntax.Statement, ...], unit: Unit) -> bool:
    """Whether a body, arm or last stage writes w."""
    match body:
        case tuple():
            if any(isinstance(n, syntax.Assign) and n.name == "w" for s in body if not isinstance(s, syntax.Match) for n in nodes(s)):
                return True
            match body[-1] if body else None:
                case syntax.Match(arms=arms):
                    return any(gives_weights(a.body, unit) for a in arms)
                case syntax.Return(value=value):
                    return gives_weights(value, unit)
            return False
        case syntax.Pipe(stages=stages):
            return gives_weights(stages[-1], unit)
        case syntax.Per(body=inner):
            return gives_weights(inner, unit)
        case syntax.If(then=then, otherwise=otherwise):
            return gives_weights(then, unit) or gives_weights(otherwise, unit)
        case syntax.Name(id=name) | syntax.Call(callee=name) if name not in FUNCTIONS and name not in BUILTIN_NAMES:
            found = unit.find_rule(name)
            return bool(found and writes_weights(*found))
        case _:
            return False


def unknown(code: str, what: str, name: str, choices: Iterator[str] | list[str], span: Span) -> Diagnostic:
    """A name that means nothing here, with the nearest that does."""
    return Diagnostic(code, f"unknown {what} `{name}`", span, help=did_you_mean(name, choices))
