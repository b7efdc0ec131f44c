"""The calls that only the text of a shown Program has (core/show.py): they name what the language's sugar makes."""

from __future__ import annotations

from updsl.core.ir import GRID, Apply, Const, Type, joined, on_grid
from updsl.core.scope import ALL, NAMED
from updsl.front import expression as expressions
from updsl.front import functions, states, syntax
from updsl.front.context import POISON, Context, Env, Value


def call(cx: Context, env: Env, e: syntax.Call) -> Value:
    """`core.empty(n)`, `core.push(window, x)`, `core.average(b, m, c, x)`, `core.spread(x, scope)`, `core.store(x, state)`."""
    arguments = [a.value for a in e.arguments]
    match e.callee, arguments:
        case "core.empty", [n]:
            length = functions.whole_number(cx, env, n, "the length of a window", 1)
            return POISON if length is None else Value(Apply("empty", (), Type(ALL, window=length), span=e.span))
        case "core.empty", [n, like]:
            window = expressions.expression(cx, env, like)
            return window if window.poisoned else Value(Apply("empty", (), window.type, span=e.span))
        case "core.push", [w, x]:
            window, value = expressions.expression(cx, env, w), expressions.expression(cx, env, x)
            if window.poisoned or value.poisoned or not window.type.window:
                return (
                    POISON if window.type.window else cx.error("not-a-window", "`core.push` puts a value into a window", e.span, help="write `x → history(n)`")
                )
            t = joined(window.type, value.type)
            return Value(Apply("push", (window.expr, value.expr), t, span=e.span))
        case "core.spread", [x, syntax.Name(id=scope)] if scope in NAMED:
            value = expressions.expression(cx, env, x)
            t = on_grid(NAMED[scope], value.type.rows, value.type.cols, samples=value.type.samples)
            known = value.static if isinstance(value.expr, Const) else None
            return Value(Apply("spread", (value.expr,), t, span=e.span), known, poisoned=value.poisoned)
        case "core.average", [_, _, _, _]:
            values = [expressions.expression(cx, env, a) for a in arguments]
            if any(v.poisoned for v in values):
                return POISON
            return Value(Apply("average", tuple(v.expr for v in values), joined(*(v.type for v in values)), span=e.span))
        case "core.store", [x, syntax.Name(id=name)] if env.instance is not None:
            return _store(cx, env, e, expressions.expression(cx, env, x), name)
    return cx.error(
        "unknown-function", f"`{e.callee}` is not written so", e.span, help="this belongs to the text of a shown Program: write the rule without it"
    )


def _store(cx: Context, env: Env, e: syntax.Call, value: Value, name: str) -> Value:
    if value.poisoned:
        return POISON
    if name == "w":
        return Value(Apply("store", (value.expr,), GRID, ("weight", "w"), span=e.span))
    slot = env.instance.slot(name) if env.instance else None
    if slot is None or slot.kind != "state":
        return cx.error("assign-unknown", f"there is no state `{name}`", e.span)
    return Value(states.rounded(cx, slot.state, value.expr, e.span))
