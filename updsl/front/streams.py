"""Values that come from outside of today's gradient: random draws, and windows of what was."""

from __future__ import annotations

from dataclasses import replace

from updsl.core.ir import Apply, Ref, State, Type, is_shared, of_each_tensor
from updsl.core.ops import OPS
from updsl.core.scope import ELEMENT, NAMED
from updsl.front import expression as expressions
from updsl.front import functions, syntax
from updsl.front.context import POISON, Context, Env, Value

MAX_WINDOW_CELLS = 10**9


def draw(cx: Context, env: Env, e: syntax.Call, site: syntax.Node) -> Value:
    """A random draw: a value for each entry of the flowing value's grid, of an n × m matrix, or one number (`each = tensor`, `each = all`)."""
    if env.instance is None or env.it is None:
        return cx.error(
            "fn-not-pure",
            f"{env.place} cannot draw at random",
            e.span,
            help="draw in the rule, and hand the draw over" if env.instance is None else "draw in the update: `if t == 1 then gaussian(1) else m`",
        )
    names = list(OPS[e.callee].args)
    each = next((a for a in e.arguments if a.name == "each"), None)
    rest = [a for a in e.arguments if a is not each]
    sizes = [a.value for a in rest if a.name is None][len(names) :]
    if len(sizes) not in (0, 2) or (each and sizes):
        return cx.error(
            "too-many-arguments",
            f"`{e.callee}` takes {', '.join(names)}, and then either `each = …` or two sizes",
            e.span,
            help=f"write `{e.callee}({', '.join(names)}, 4, 4)` for a 4 × 4 matrix",
        )
    kept = [a for a in rest if a.name is not None or a.value not in sizes]
    given = functions.bind(cx, replace(e, arguments=tuple(kept)), names, len(names))
    if given is None or names[0] not in given:
        return (
            POISON
            if given is None
            else cx.error("missing-argument", f"`{e.callee}` needs `{names[0]}`", e.span, help=f"write `{e.callee}({', '.join(names)})`")
        )
    values = [expressions.expression(cx, env, given[n]) for n in names]
    env.it_read.used = True
    if any(isinstance(v.static, str) for v in values):
        return cx.error("text-as-number", f"`{e.callee}` takes numbers, and this is a text", e.span, help=f"write `{e.callee}({', '.join(names)})` of numbers")
    if each:
        where = each.value.id if isinstance(each.value, (syntax.Name,)) else getattr(each.value, "name", "")
        if where not in ("tensor", "all"):
            return cx.error(
                "unknown-parameter",
                "`each` is `tensor` or `all`",
                each.span,
                help="write `each = tensor` for one number a tensor, `each = all` for one in the whole model",
            )
        grid = Type(NAMED[where])
    elif sizes:
        n, m = (functions.whole_number(cx, env, s, "the size of a draw", 1) for s in sizes)
        if n is None or m is None:
            return POISON
        grid = Type(ELEMENT, n, m)
    else:
        grid = replace(env.it.type, samples=False, boolean=False, window=0)
    t = cx.combine([Value(Ref("grid", "builtin", grid)), *values], e.span, f"`{e.callee}`")
    if t is None:
        return POISON
    if t.scope != grid.scope or t.samples or t.window:
        return cx.error("scope-mismatch", f"the scale of `{e.callee}` is finer than the draw", e.span, help="multiply a unit draw: `x * gaussian(1)`")
    label = env.sites.label(site, "value")
    key = env.path + label + env.rounds
    return cx.emit(env, label, Value(Apply(e.callee, tuple(v.expr for v in values), replace(t, boolean=e.callee == "bernoulli"), (key,), span=e.span)), e.span)


def window(cx: Context, env: Env, e: syntax.Call, site: syntax.Node) -> Value:
    """`x → history(n)`: today's value put into a window of the last n."""
    if env.instance is None or env.it is None:
        return cx.error("fn-not-pure", f"{env.place} keeps no history", e.span, help="write `x → history(n)` in the rule, and hand the window over")
    given = functions.bind(cx, e, ["n"], 1)
    if given is None or "n" not in given:
        return (
            POISON if given is None else cx.error("missing-argument", "`history` needs the number of steps it keeps", e.span, help="write `x → history(100)`")
        )
    n = functions.whole_number(cx, env, given["n"], "the length of a `history`", 1)
    x = env.it
    env.it_read.used = True
    if n is None or x.poisoned:
        return POISON
    if x.type.samples:
        return cx.error("samples-in-state", "a `history` keeps no samples", e.span, help="take `sample_mean(…)` first: `sample_mean(x) → history(n)`")
    if x.type.window:
        return cx.error("window-outside", "a `history` keeps no windows", e.span, help="reduce it over time first: `mean(x → history(9)) → history(9)`")
    cells = (cx.size(x.type.rows) or 1) * (cx.size(x.type.cols) or 1)
    if n * cells > MAX_WINDOW_CELLS:
        return cx.error(
            "too-large", f"this `history` keeps {n:,} × {cells:,} values", e.span, help="shorten it, or keep a reduced value: `norm(it) → history(n)`"
        )
    name, label = env.path + env.sites.label(site, "state") + env.rounds, env.sites.label(site, "value")
    if name in cx.facts.finer or f"value {env.path}{label}{env.rounds}" in cx.facts.finer or (name in cx.facts.states and not is_shared(cx.facts.states[name])):
        x = replace(x, expr=of_each_tensor(x.expr))
    t = replace(x.type, window=n, boolean=False)
    cx.states[name] = State(name, None, t, span=e.span)
    env.instance.subtree.append(name)
    before = cx.current.get(name, Ref(name, "state", t, span=e.span))
    pushed = cx.emit(env, label, Value(Apply("push", (before, x.expr), t, span=e.span)), e.span)
    cx.current[name] = pushed.expr
    return pushed
