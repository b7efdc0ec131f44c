"""A text's own functions: the body of a `fn`, or what it is about, over its arguments."""

from __future__ import annotations

from dataclasses import replace

from updsl.front import expression as expressions
from updsl.front import functions, syntax
from updsl.front.context import POISON, Context, Env, Value
from updsl.front.sites import sites_of
from updsl.front.unit import Unit


def apply(cx: Context, env: Env, e: syntax.Call, site: syntax.Node, fn: syntax.Fn, unit: Unit, about: bool = False) -> Value:
    """The body of a `fn` (or its `about`) over the arguments, under the caller's default scope."""
    inner = _inside(cx, env, e, site, fn, unit)
    if inner is None:
        env.per_used.used = True
        return POISON
    body = fn.about if about and fn.about is not None else fn.body
    with cx.applying(f"`{fn.name}` is called here", e.span):
        return expressions.expression(cx, replace(inner, path=inner.path + ("about." if about else "")), body)


def _inside(cx: Context, env: Env, e: syntax.Call, site: syntax.Node, fn: syntax.Fn, unit: Unit) -> Env | None:
    cx.spend(e.span)
    if fn.name in env.calls:
        cx.error("rule-circle", f"the function `{fn.name}` calls itself", e.span, help="a `fn` cannot call itself; `repeat` in a rule repeats")
        return None
    if len(env.calls) > 64:
        cx.error("too-large", "functions are nested more than 64 deep", e.span, help="compute in steps, in locals of the rule")
        return None
    names = [p.name for p in fn.parameters]
    required = next((i for i, p in enumerate(fn.parameters) if i and p.default is not None), len(names))
    given = functions.bind(cx, e, names, required)
    if given is None:
        return None
    label = env.sites.label(site, "value", fn.name)
    prefix = f"{label}{env.rounds}."
    arguments: dict[str, Value] = {}
    inner = Env(
        unit,
        sites_of(fn, unit),
        env.path + prefix,
        None,
        env.default,
        env.per_used,
        arguments=arguments,
        population=env.population,
        guarded=env.guarded,
        calls=(*env.calls, fn.name),
    )
    for i, p in enumerate(fn.parameters):
        if p.name in given:
            v = expressions.expression(cx, env, given[p.name])
        elif i == 0:
            v = functions.subject(cx, env, given, p.name, e.span)
        elif p.default is not None:
            v = expressions.expression(cx, inner, p.default)
        else:
            cx.error("missing-argument", f"`{fn.name}` needs `{p.name}`", e.span, help=f"write `{fn.name}({', '.join(names)})`")
            return None
        arguments[p.name] = v if v.static is not None else cx.emit(inner, p.name, v, e.span)
    return inner
