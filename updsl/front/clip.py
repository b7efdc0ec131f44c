"""`clip measure > bound`, built into the language: the shrinking, its centre, and its watch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from updsl.core.diagnostic import Label
from updsl.core.ir import Apply, Const, Reduce, Type
from updsl.core.scope import TENSOR
from updsl.front import expression as expressions
from updsl.front import fns, statements, syntax
from updsl.front.contents import nodes
from updsl.front.context import POISON, Context, Env, Value
from updsl.front.unit import FUNCTIONS, Unit


def centred(env: Env, e: syntax.Expr) -> tuple[syntax.Call, syntax.Fn, Unit] | None:
    """The call of a `fn` with `about`, if this is one."""
    match e:
        case syntax.Name(id=name) if not (env.instance and (env.instance.slot(name) or name in env.instance.parameters)):
            as_call = syntax.Call(name, (), span=e.span, callee_span=e.span)
        case syntax.Call(callee=name):
            as_call = e
        case _:
            return None
    if name in FUNCTIONS and name not in env.unit.fns:
        return None
    found = env.unit.find_fn(name)
    return (as_call, *found) if found and found[0].about is not None else None


def clip(cx: Context, env: Env, e: syntax.Clip) -> Value:
    """`clip m > τ`: it ↦ c + (it − c)·τ/m where m > τ, else it; `<` alike. A cell where m is 0 or NaN stays."""
    if env.instance is None or env.it is None:
        return cx.error("fn-not-pure", f"{env.place} holds no `clip`: it computes from its parameters only", e.span, help="write `x → clip …` in the rule")
    label = env.sites.label(e, "value")
    env.it_read.used = True
    centre = centred(env, e.measure)
    if centre is None:
        for inner in _inside(env, e.measure):
            return cx.error(
                "centre-inside", "a function with `about` inside a larger measure has no centre", inner.span, help="clip by the function alone: `clip z > 2.5`"
            )
    measure = expressions.expression(cx, env, e.measure)
    bound = expressions.expression(cx, env, e.bound)
    if measure.poisoned or bound.poisoned or env.it.poisoned:
        return POISON
    if env.it.type.window or measure.type.window or bound.type.window:
        return cx.error("window-outside", "a window stands only under a reduction", e.span, help="clip before the `history`: `clip … → history(9)`")
    if not bound.type.scope <= measure.type.scope:
        return cx.error(
            "scope-mismatch",
            "the bound of this clip is finer than its measure",
            e.bound.span,
            note_here=bound.type.scope.one_for_each,
            labels=(Label(e.measure.span, measure.type.scope.one_for_each),),
            help="compare entries, `clip abs > …`, or make the bound one number, such as `norm(…)`",
        )
    if bound.static is not None and not isinstance(bound.static, (bool, str)) and bound.static < 0 and bound.needs <= cx.facts.constants:
        return cx.error("negative-bound", "the bound of a clip is negative", e.bound.span, help="a measure is shrunk to its bound: write a bound of 0 or more")
    m = cx.emit(env, f"{label}.measure", measure, e.measure.span)
    if bound.static is None or bound.needs:
        bound = cx.emit(env, f"{label}.bound", expressions.elementwise(cx, "maximum", [bound, Value(Const(0.0), 0.0)], e.bound.span), e.bound.span)
    beyond = expressions.elementwise(cx, "gt" if e.op[0] == ">" else "lt", [m, bound], e.span)
    if e.op[0] == "<":
        beyond = expressions.elementwise(cx, "and", [beyond, expressions.elementwise(cx, "ne", [m, Value(Const(0.0), 0.0)], e.span)], e.span)
    beyond = cx.emit(env, f"{label}.beyond", beyond, e.span)
    factor = cx.emit(env, f"{label}.factor", expressions.elementwise(cx, "div", [bound, m], e.span), e.span)
    watch_share(cx, env, e, label, beyond)
    flowing = env.it
    if centre and _of_flowing(env, centre[0], centre[1]):
        c = cx.emit(
            env,
            f"{label}.centre",
            fns.apply(cx, replace(env, path=f"{env.path}{label}."), centre[0], e.measure, centre[1], centre[2], about=True),
            e.measure.span,
        )
        moved = expressions.elementwise(
            cx, "add", [c, expressions.elementwise(cx, "mul", [expressions.elementwise(cx, "sub", [flowing, c], e.span), factor], e.span)], e.span
        )
    else:
        moved = expressions.elementwise(cx, "mul", [flowing, factor], e.span)
    return expressions.elementwise(cx, "select", [beyond, moved, flowing], e.span)


def _of_flowing(env: Env, e: syntax.Call, fn: syntax.Fn) -> bool:
    """Whether the function's first argument is the flowing value."""
    first = next((a.value for a in e.arguments if a.name in (None, fn.parameters[0].name)), None)
    if first is None:
        return True
    return isinstance(first, syntax.Name) and (
        first.id == "it" or (first.id == "g" and env.instance is not None and env.it is not None and env.it.expr == env.instance.g.expr)
    )


def _inside(env: Env, e: syntax.Expr) -> Iterator[syntax.Node]:
    for n in nodes(e):
        if isinstance(n, (syntax.Name, syntax.Call)) and centred(env, n):
            yield n


def watch_share(cx: Context, env: Env, e: syntax.Clip, label: str, beyond: Value) -> None:
    """The clip's own watch: the share of cells that it changed, for each tensor (for a measure of coarser scope 0 or 1)."""
    share = expressions.elementwise(cx, "select", [beyond, Value(Const(1.0), 1.0), Value(Const(0.0), 0.0)], e.span)
    if share.type.samples:
        share = Value(Apply("sample_mean", (share.expr,), replace(share.type, samples=False)))
    if TENSOR < share.type.scope:
        share = Value(Reduce("mean", (share.expr,), TENSOR, Type(TENSOR)))
    statements.add_watch(cx, env, env.sites.label(e, "watch"), cx.emit(env, label, share, e.span))
