"""Laws: their names and scopes. Whether a claim is true is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Const, Ref, Type
from updsl.core.scope import ALL, ELEMENT, TENSOR
from updsl.front import syntax
from updsl.front.contents import input_items
from updsl.front.context import Context, Default, Env, Facts, Flag, Instance, Slot, Value
from updsl.front.elaborate import PROBES, deep_recursion, of_text
from updsl.front.expression import expression
from updsl.front.module import Module, check_setting
from updsl.front.sites import Sites
from updsl.front.statements import declare_input
from updsl.front.statics import constant, number
from updsl.front.unit import BUILTIN_NAMES, FUNCTIONS, Constant, Unit

MAX_PASSES = 20


def law_mistakes(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> list[Diagnostic]:
    """What is wrong with the names and scopes of a law about the module's rule."""
    found = list(_setting_mistakes(module, law)) + list(_quantifier_mistakes(module, law)) or list(_value_mistakes(module, law, parameters))
    if found:
        return found
    with deep_recursion():
        return of_text([tuple(_probe(module, law, parameters, shape)) for shape in PROBES])


def laws_of(unit: Unit) -> Iterator[tuple[syntax.Rule, syntax.Law | syntax.Example]]:
    """The laws and examples of a file, each with the rule above it."""
    about: syntax.Rule | None = None
    for d in unit.file.declarations:
        match d:
            case syntax.Rule():
                about = d
            case syntax.Law() | syntax.Example() if about is not None:
                yield about, d


def _setting_mistakes(module: Module, law: syntax.Law) -> Iterator[Diagnostic]:
    for s in law.settings:
        if s.name is None:
            yield Diagnostic("unknown-parameter", "a law sets parameters by name", s.span, help=f"write `law {law.name}(name = …): …`")
        elif s.name not in module.parameters:
            help_ = did_you_mean(s.name, module.parameters) or f"its parameters are {', '.join(f'`{n}`' for n in module.parameters) or 'none'}"
            yield Diagnostic("unknown-parameter", f"`{module.name}` has no parameter `{s.name}`", s.span, help=help_)


def _value_mistakes(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> Iterator[Diagnostic]:
    """What the law's brackets and ranges say that cannot be a value of a parameter, or is no range. Of a law whose names are right."""
    known = dict(parameters)
    try:
        for s in law.settings:
            known[s.name or ""] = constant(s.value, known)
            check_setting(module.parameters[s.name or ""], known[s.name or ""], s.span, f"law {law.name}({s.name} = …): …")
        for q in law.quantifiers:
            if q.low is not None and q.high is not None:
                low, high = float(number(q.low, known)), float(number(q.high, known))
                if not (low <= high and low < inf and high > -inf):
                    message = f"the bounds of `{q.name}` are not an interval of numbers"
                    yield Diagnostic("parameter-out-of-bounds", message, q.span, help=f"write `for {q.name} in [lo, hi]` with lo ≤ hi")
                elif q.name in module.parameters:
                    for end in (low, high):
                        check_setting(module.parameters[q.name], end, q.span, f"for {q.name} in [lo, hi]")
    except UpdslError as e:
        yield from e.diagnostics


def _quantifier_mistakes(module: Module, law: syntax.Law) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for q in law.quantifiers:
        if q.name in seen:
            yield Diagnostic("duplicate-name", f"`{q.name}` is quantified twice", q.span, help="quantify each name once")
        seen.add(q.name)
        taken = q.name in BUILTIN_NAMES or q.name in FUNCTIONS or q.name in module.inputs or q.name == "out"
        if q.kind != "any" and taken:
            yield Diagnostic("shadowed-name", f"`{q.name}` has a meaning in laws already", q.span, help="quantify another name, such as `k`")
        if q.kind == "any" and q.name != "g":
            yield Diagnostic("shadowed-name", "only streams of gradients may be any, infinite and NaN too", q.span, help="write `for g any`")
        if q.kind != "in" and q.kind != "any" and q.name in module.parameters:
            yield Diagnostic("shadowed-name", f"`{q.name}` is a number, a parameter of `{module.name}`", q.span, help=f"write `for {q.name} in [lo, hi]`")


def _probe(module: Module, law: syntax.Law, parameters: Mapping[str, Constant], shape: tuple[int, ...]) -> list[Diagnostic]:
    """The mistakes of a law that show with a tensor of this shape."""
    facts = Facts(constants={n for n, v in parameters.items() if isinstance(v, (bool, str))})
    for _ in range(MAX_PASSES):
        facts.changed = False
        cx = Context(module, Tensor("weight", shape), facts, parameters, frozenset(), True, {"": 1}, True)
        _walk(cx, law)
        if not facts.changed:
            break
    return cx.diagnostics


def _walk(cx: Context, law: syntax.Law) -> None:
    """One pass over the premise and the claim."""
    module = cx.module
    values: dict[str, Value] = {}
    for name, v in cx.parameters.items():
        fixed = isinstance(v, (bool, str))
        values[name] = Value(
            Const(v if isinstance(v, bool) else 0.0) if fixed else Ref(name, "param", Type(ALL)),
            v if fixed else float(v),
            frozenset() if fixed else frozenset((name,)),
        )
    text = ((syntax.Return(law.premise),) if law.premise is not None else ()) + (syntax.Return(law.claim),)
    claim = syntax.Rule("law", module.rule.parameters, text, span=law.span)
    g = Value(Ref("g", "builtin", GRID))
    instance = Instance(claim, module.unit, "", values, g, False)
    env = Env(module.unit, Sites(claim, module.unit), "", instance, Default(TENSOR), Flag(), g, in_law=True)
    for item in (n for n in inputs_of(module)):
        declare_input(cx, env, item)
    instance.names[-1]["out"] = Slot("local", Value(Ref("out", "value", GRID)), law.span)
    for q in law.quantifiers:
        if q.kind != "any" and q.name not in values:
            instance.names[-1][q.name] = Slot("local", _quantified(cx, q), q.span)
    try:
        for part in (law.premise, law.claim):
            if part is not None:
                value = expression(cx, env, part)
                if not value.type.boolean and not value.poisoned:
                    cx.error(
                        "not-a-condition", "a law claims something true or false, and this is a number", part.span, help="compare it: `norm(out) <= c per all`"
                    )
    except UpdslError as e:
        cx.diagnostics.extend(e.diagnostics)


def _quantified(cx: Context, q: syntax.Quantifier) -> Value:
    """A number, or a square matrix of whatever size its place needs."""
    if q.kind == "in":
        return Value(Ref(q.name, "param", Type(ALL)))
    cx.facts.ties.setdefault(f"{q.name}.cols", f"{q.name}.rows")
    side = cx.dim(f"{q.name}.rows")
    return Value(Ref(q.name, "input", Type(ELEMENT, side, side)))


def inputs_of(module: Module) -> Iterator[syntax.InputItem]:
    """The inputs of the rule and its stages, as declarations."""
    seen: set[str] = set()
    for item in input_items(module.rule, module.unit):
        if item.name not in seen:
            seen.add(item.name)
            yield item
