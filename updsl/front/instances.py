"""Rules applied: an instance of a rule at one place of its caller, its parameters, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from updsl.core.diagnostic import Label, did_you_mean
from updsl.core.ir import Expr
from updsl.core.source import Span
from updsl.front import expression as expressions
from updsl.front import functions, statements, states, syntax
from updsl.front.context import POISON, Context, Env, Instance, Value
from updsl.front.sites import sites_of
from updsl.front.unit import Unit


def apply_rule(cx: Context, env: Env, e: syntax.Node, name: str, arguments: tuple[syntax.Argument, ...], span: Span) -> Value:
    """The rule `name` applied to the flowing value, as an instance with states of its own."""
    found = env.unit.find_rule(name)
    if env.instance is None or env.it is None or found is None:
        return cx.error(
            "fn-not-pure",
            f"{env.place} applies no rules, and `{name}` is one",
            span,
            help=f"apply it in the rule, `g → {name}`, and hand the result over"
            if env.instance is None
            else "use a number, parameters, `w` and functions of these",
        )
    rule, unit = found
    if env.in_law:
        help_ = "write `rule(stream)` for the rule above, and functions of values"
        return cx.error("rule-in-law", f"a law applies no rules but its own, and `{name}` is one", span, help=help_)
    cx.spend(span)
    env.it_read.used = True
    caller = env.instance
    caller.begun = caller.begun or span
    if sites_of(rule, unit).writes_weights and not any(e is n for n in final(env.sites.declaration.body)):
        return cx.error(
            "writes-weights-inside",
            f"`{rule.name}` writes the weights, and is not the last stage",
            span,
            help=f"let it be the last: `… → {rule.name}`, as a whole body, arm or `return`",
        )
    path = f"{env.path}{env.sites.label(e, 'rule')}{env.rounds}."
    parameters = bind_parameters(cx, env, rule, unit, arguments, span, path)
    if parameters is None:
        env.per_used.used = True
        return POISON
    if env.it.type.window:
        return cx.error("window-outside", "a window stands only under a reduction", span, help="reduce it over time first: `median(x → history(9)) → …`")
    inner = Instance(rule, unit, path, parameters, env.it, caller.own_clock or env.guarded or sites_of(rule, unit).has_clock)
    before = cx.weight
    with cx.applying(f"`{rule.name}` is applied here", span):
        value = run(cx, Env(unit, sites_of(rule, unit), path, inner, env.default, env.per_used, env.it, population=env.population, guarded=env.guarded), before)
    caller.subtree.extend(inner.subtree)
    return value


def run(cx: Context, env: Env, weight_before: Expr | None) -> Value:
    """The body of an instance: what it gives, with its `skip`s carried out."""
    instance = env.instance
    assert instance is not None
    states.start_clock(cx, env, instance)
    value = statements.body(cx, env, instance.rule.body)
    if instance.skips:
        value = states.freeze(cx, env, instance, value, weight_before)
    subtree = tuple(instance.subtree)
    if cx.facts.subtrees.get(instance.path, ()) != subtree:
        cx.facts.subtrees[instance.path] = subtree
        cx.facts.changed = True
    return value


def final(body: syntax.Expr | tuple[syntax.Statement, ...]) -> list[syntax.Node]:
    """The stages that a body ends in: where a rule that writes the weights may stand."""
    match body:
        case tuple():
            last = body[-1] if body else None
            match last:
                case syntax.Match(arms=arms):
                    return [n for a in arms for n in final(a.body)]
                case syntax.Return(value=value):
                    return final(value)
            return []
        case syntax.Pipe(stages=stages):
            return final(stages[-1])
        case syntax.Per(body=inner):
            return final(inner)
        case syntax.If(then=then, otherwise=otherwise):
            return final(then) + final(otherwise)
        case _:
            return [body]


def bind_parameters(
    cx: Context, env: Env, rule: syntax.Rule, unit: Unit, arguments: tuple[syntax.Argument, ...], span: Span, path: str
) -> Mapping[str, Value] | None:
    """A rule's parameters from its arguments and defaults; None after reporting."""
    given = _arguments(cx, rule, arguments)
    if given is None:
        return None
    bound: dict[str, Value] = {}
    defaults = Env(unit, sites_of(rule, unit), path, None, env.default, env.per_used, arguments=bound)
    for p in rule.parameters:
        text = given.get(p.name, p.default)
        if text is None:
            cx.error("missing-argument", f"`{rule.name}` needs `{p.name}`", span, help=f"write `{rule.name}({p.name} = …)`")
            return None
        v = expressions.expression(cx, env if p.name in given else defaults, text)
        if v.type.window and not v.poisoned:
            message = "a window stands only under a reduction, and cannot be an argument of a rule"
            cx.error("window-outside", message, text.span, help="reduce it first: `median(x → history(9))`")
            return None
        if not _of_kind(cx, rule, p, v, text.span):
            return None
        check_instance_bounds(cx, defaults, rule, p, v, text.span)
        bound[p.name] = v if v.static is not None and not v.needs else cx.emit(replace(env, path=path, rounds=""), p.name, v, span)
    return bound


def _arguments(cx: Context, rule: syntax.Rule, arguments: tuple[syntax.Argument, ...]) -> dict[str, syntax.Expr] | None:
    """Arguments by parameter name; None after reporting."""
    names = [p.name for p in rule.parameters]
    listed = ", ".join(f"`{n}`" for n in names) or "none"
    given: dict[str, syntax.Expr] = {}
    for i, a in enumerate(arguments):
        if isinstance(a.value, syntax.Name) and a.value.id in ("g", "it"):
            message = f"a rule takes its input by `→`: write `{a.value.id} → {rule.name}`"
            cx.error("input-as-argument", message, a.span, help=f"write `{a.value.id} → {rule.name}`")
            return None
        name = a.name or (names[i] if i < len(names) else None)
        if name is None:
            many = functions.counted(len(names)).replace("argument", "parameter")
            cx.error("too-many-arguments", f"`{rule.name}` has {many}, and this is one more", a.span, help=f"its parameters are {listed}")
            return None
        if name not in names:
            hint = "append `→ weight_decay(0.01)`" if name == "weight_decay" else did_you_mean(name, names)
            cx.error("unknown-parameter", f"`{rule.name}` has no parameter `{name}`", a.span, help=hint or f"its parameters are {listed}")
            return None
        if name in given:
            cx.error("too-many-arguments", f"`{name}` is given twice", a.span, help="give it once, by place or by name")
            return None
        given[name] = a.value
    return given


def _of_kind(cx: Context, rule: syntax.Rule, p: syntax.Parameter, v: Value, span: Span) -> bool:
    """Whether the value is of the parameter's kind: a text, true or false (both constant), or a number. Reports where it is not."""
    if v.poisoned:
        return True
    name = f"`{p.name}` of `{rule.name}`"
    match p.default:
        case syntax.Text():
            if not isinstance(v.static, str):
                cx.error("wrong-kind", f"{name} is a text", span, help='write a text in quotes, such as `"mean"`')
                return False
            return functions.constant(cx, v, f"the parameter {name}", span) is not None
        case syntax.Boolean():
            if isinstance(v.static, str) or not v.type.boolean:
                cx.error("wrong-kind", f"{name} is true or false", span, help="write `true`, `false`, or a condition of constants")
                return False
            return functions.constant(cx, v, f"the parameter {name}", span) is not None
    if isinstance(v.static, str):
        cx.error("wrong-kind", f"{name} is a number", span, help="write a number, such as `0.9`")
        return False
    return True


def check_instance_bounds(cx: Context, defaults: Env, rule: syntax.Rule, p: syntax.Parameter, v: Value, span: Span) -> None:
    """Report a known argument outside of the parameter's bounds."""
    if p.low is None or p.high is None or not isinstance(v.static, float):
        return
    low, high = (expressions.expression(cx, defaults, x).static for x in (p.low, p.high))
    if isinstance(low, float) and isinstance(high, float) and not low <= v.static <= high:
        message = f"`{p.name}` of `{rule.name}` is {v.static:g}, outside of its bounds [{low:g}, {high:g}]"
        cx.error("parameter-out-of-bounds", message, span, labels=(Label(p.span, "the bounds"),), help=f"choose a value from {low:g} to {high:g}")
