"""Calls: the functions of the table, a text's own `fn`s, `clip`, windows, draws."""

from __future__ import annotations

from dataclasses import replace

from updsl.core.diagnostic import Diagnostic, Label, did_you_mean
from updsl.core.ir import GRID, Apply, Reduce, Ref, Type, is_shared, on_grid
from updsl.core.ops import OPS
from updsl.core.scope import ROW, TENSOR, Scope
from updsl.core.source import Span
from updsl.front import core_text, fns, instances, matrix, streams, suggest, syntax
from updsl.front import expression as expressions
from updsl.front.context import POISON, Context, Env, Reduction, Value
from updsl.front.unit import FUNCTIONS, Unit


def call(cx: Context, env: Env, e: syntax.Call, whole: bool, site: syntax.Node | None = None) -> Value:
    """`name(arguments)`: a rule in a stage, a `fn`, or a function. `site`: the node whose label names the result."""
    site = site or e
    if env.sites.applies_rule(e, whole):
        return instances.apply_rule(cx, env, e, e.callee, e.arguments, e.callee_span)
    if e.callee == "rule" and env.in_law:
        return apply_to_stream(cx, env, e)
    own = env.unit.fns.get(e.callee)
    if e.callee.startswith("core."):
        return core_text.call(cx, env, e)
    if e.callee in FUNCTIONS and own is None:
        return function(cx, env, e, site)
    hidden = e.callee in env.sites.locals or e.callee in env.sites.parameters
    found = None if hidden else env.unit.find_fn(e.callee)
    if found:
        return fns.apply(cx, env, e, site, *found)
    if hidden:
        return cx.error("not-a-function", f"`{e.callee}` is a value: it takes no arguments", e.span, help=f"write `{e.callee}` alone, or `{e.callee} * (…)`")
    choices = [*FUNCTIONS, *env.unit.rules, *env.unit.fns, *library_names(env.unit)]
    notes, help_ = suggest.look_alike(e.callee), suggest.suggestion(e.callee, choices)
    return cx.error("unknown-function", f"unknown function or rule `{e.callee}`", e.callee_span, notes=notes, help=help_)


def library_names(unit: Unit) -> list[str]:
    """Names of the library's files, for suggestions."""
    owner = getattr(unit.library, "__self__", None)
    return list(owner.files) if owner is not None else []


def apply_to_stream(cx: Context, env: Env, e: syntax.Call) -> Value:
    """`rule(stream)`: what the rule gives on another stream."""
    if len(e.arguments) != 1 or e.arguments[0].name:
        return cx.error("missing-argument", "`rule` takes one stream: `rule(k*g)`", e.span, help="write `rule(-g)`, `rule(rule(g))`")
    stream = expressions.expression(cx, env, e.arguments[0].value)
    if stream.poisoned:
        return POISON
    if not (cx.agree(stream.type.rows, "rows") and cx.agree(stream.type.cols, "cols")) or stream.type.samples:
        return cx.error(
            "grid-mismatch",
            f"the stream of `rule(…)` is {cx.grid(stream.type)}, and gradients are {cx.grid(GRID)}",
            e.arguments[0].span,
            help="give a stream of the gradient's own grid",
        )
    return Value(Ref("out", "value", GRID, span=e.span))


# --- arguments -------------------------------------------------------------------------------------------------------


def bind(cx: Context, e: syntax.Call, names: list[str], required: int) -> dict[str, syntax.Expr] | None:
    """Arguments by parameter name; None after reporting. The first of `names` may be left out: it is the flowing value."""
    given: dict[str, syntax.Expr] = {}
    positional = [a for a in e.arguments if a.name is None]
    named = [a for a in e.arguments if a.name is not None]
    if len(positional) > len(names):
        cx.error(
            "too-many-arguments",
            f"`{e.callee}` takes {counted(len(names))}, not {len(positional)}",
            e.span,
            help=f"its arguments are `{e.callee}({', '.join(names)})`",
        )
        return None
    for n, a in zip(names, positional, strict=False):
        given[n] = a.value
    for a in named:
        assert a.name is not None
        if a.name not in names:
            cx.error(
                "unknown-parameter",
                f"`{e.callee}` has no argument `{a.name}`",
                a.span,
                help=did_you_mean(a.name, names) or f"its arguments are `{e.callee}({', '.join(names)})`",
            )
            return None
        if a.name in given:
            cx.error("too-many-arguments", f"`{a.name}` is given twice", a.span, help="give it once, by place or by name")
            return None
        given[a.name] = a.value
    if positional and names and names[0] not in given:
        given[names[0]] = positional[0].value
    missing = next((n for n in names[1:required] if n not in given), None)
    if missing or (names and names[0] not in given and positional):
        cx.error(
            "missing-argument",
            f"`{e.callee}` needs `{missing or names[0]}`",
            e.span,
            help=f"write `{e.callee}({', '.join(names[:required])})`, or name all but the first: `{e.callee}({missing} = …)`",
        )
        return None
    return given


def counted(n: int) -> str:
    return "no arguments" if n == 0 else "one argument" if n == 1 else f"{n} arguments"


def subject(cx: Context, env: Env, given: dict[str, syntax.Expr], first: str, span: Span) -> Value:
    """The first argument, or the flowing value where it is left out."""
    if first in given:
        return expressions.expression(cx, env, given[first])
    if env.it is None:
        return cx.error("fn-not-pure", f"in {env.place} nothing flows: a function needs its first argument", span, help="write it, such as `mean(x)`")
    env.it_read.used = True
    return env.it


def whole_number(cx: Context, env: Env, e: syntax.Expr, what: str, least: int, infinite: bool = False) -> int | None:
    """A constant whole number ≥ least; -1 stands for `inf` where that may be. None after reporting."""
    v = expressions.expression(cx, env, e)
    if v.poisoned:
        return None
    n = constant(cx, v, what, e.span)
    if n is None:
        return None
    if infinite and n == float("inf"):
        return -1
    if isinstance(n, (bool, str)) or n != n or n in (float("inf"), float("-inf")) or n != int(n) or n < least:
        cx.error(
            "not-a-count",
            f"{what} must be a whole number{'' if least < 1 else f' of at least {least}'}, not {n if isinstance(n, (bool, str)) else format(n, 'g')}",
            e.span,
            help="write a number such as `5`",
        )
        return None
    return int(n)


def constant(cx: Context, v: Value, what: str, span: Span) -> float | bool | str | None:
    """A value that must be known when the rule is compiled; the parameters it needs become constant. None after reporting."""
    if v.static is None:
        cx.error(
            "not-constant",
            f"{what} must be a constant: it is fixed when the rule is compiled",
            span,
            help="use literals, attributes such as `rows`, and parameters: nothing that depends on `g`, states, `t` or `lr`",
        )
        return None
    clash = next(iter(v.needs & cx.overridden), None)
    if clash:
        cx.error("constant-in-group", f"{what} uses `{clash}`, which a parameter group overrides", span, help=f"give `{clash}` one value for the whole rule")
        return None
    if not v.needs <= cx.facts.constants:
        cx.facts.constants |= v.needs
        cx.facts.changed = True
    return v.static


# --- the table's functions -------------------------------------------------------------------------------------------


def function(cx: Context, env: Env, e: syntax.Call, site: syntax.Node) -> Value:
    """A call of a built-in function."""
    match e.callee:
        case "min" | "max" if len(e.arguments) > 1:
            if any(a.name for a in e.arguments):
                return cx.error("unknown-parameter", f"`{e.callee}` takes its arguments by place", e.span, help=f"write `{e.callee}(a, b)`")
            values = [expressions.expression(cx, env, a.value) for a in e.arguments]
            result = values[0]
            for v in values[1:]:
                result = expressions.elementwise(cx, "minimum" if e.callee == "min" else "maximum", [result, v], e.span)
            return result
        case "dim":
            return dimension(cx, env, e)
        case "history":
            return streams.window(cx, env, e, site)
        case "gaussian" | "uniform" | "bernoulli":
            return streams.draw(cx, env, e, site)
    op = OPS[e.callee]
    names = [*op.args, *(s for s in op.static if s in ("p", "k"))]
    given = bind(cx, e, names, len(names) - (e.callee == "norm"))
    if given is None:
        return POISON
    values = [subject(cx, env, given, names[0], e.span)] + [expressions.expression(cx, env, given[n]) for n in op.args[1:] if n in given]
    text = next((v for v in values if isinstance(v.static, str)), None)
    if text is not None:
        env.per_used.used = True
        message, help_ = f"`{e.callee}` takes numbers, and this is a text", 'texts compare with `==`, `!=` and `~`: `mode == "mean"`'
        return cx.error("text-as-number", message, text.expr.span, help=help_)
    if any(v.poisoned for v in values) and op.kind != "elementwise":
        env.per_used.used = True
        return POISON
    match op.kind:
        case "elementwise":
            return expressions.elementwise(cx, e.callee, values, e.span)
        case "reduction":
            static = (order(cx, env, given),) if e.callee == "norm" else ()
            if None in static:
                return POISON
            return reduce(cx, env, e.callee, values, static, e.span, site)
        case "selection":
            percent = isinstance(given["k"], syntax.Number) and given["k"].percent
            return select_largest(cx, env, values, percent, e.span, site)
        case "samples":
            x = values[0]
            if not x.type.samples:
                return cx.error("no-samples", f"`{e.callee}` needs a value for each sample", e.span, help="it is for what is computed from `input samples`")
            return Value(Apply(e.callee, (x.expr,), replace(x.type, samples=False, boolean=False), span=e.span))
        case "matrix":
            return matrix.apply(cx, env, e, values, given)
    raise AssertionError(op.kind)


def order(cx: Context, env: Env, given: dict[str, syntax.Expr]) -> float | None:
    """The p of a norm; None after reporting that it is no constant number."""
    if "p" not in given:
        return 2.0
    v = expressions.expression(cx, env, given["p"])
    p = None if v.poisoned else constant(cx, v, "the p of a norm", given["p"].span)
    if isinstance(p, str):
        cx.error(
            "text-as-number", "the p of a norm is a number, and this is a text", given["p"].span, help="write a number, such as `norm(x, p = 1)`, or `inf`"
        )
        return None
    return None if p is None else float(p)


def reduce(cx: Context, env: Env, op: str, values: list[Value], static: tuple, span: Span, site: syntax.Node) -> Value:
    """A reduction: of a window over time, else to the default scope."""
    if OPS[op].conditions and not values[0].type.boolean:
        return cx.error(
            "not-a-condition", f"`{op}` counts where a condition holds, and this is a number", values[0].expr.span, help=f"compare it: `{op}(x > 0)`"
        )
    operands = values if op in ("dot", "cosine") else values[:1]
    t = cx.combine(operands, span, f"`{op}`")
    if t is None:
        return POISON
    args = tuple(v.expr for v in values)
    if t.window:
        over = t.scope
        result = replace(t, window=0, boolean=OPS[op].boolean)
    else:
        over = target(cx, env, t, op, span)
        if over is None:
            return POISON
        result = on_grid(over, t.rows, t.cols, samples=t.samples, boolean=OPS[op].boolean)
    if op == "quantile" and isinstance(q := values[-1].static, float) and not 0 <= q <= 1:
        return cx.error(
            "parameter-out-of-bounds",
            f"`quantile` takes a share between 0 and 1, and this is {q:g}",
            span,
            help=f"write `{q:g}%`" if 2 <= q <= 100 else "write a number from 0 to 1, or from `0%` to `100%`",
        )
    if len(values) > len(operands) and not values[-1].type.scope <= over:
        return cx.error(
            "scope-mismatch",
            f"the last argument of `{op}` is finer than the cells that are reduced",
            values[-1].expr.span,
            help="make it one number, or one for each cell",
        )
    cx.reductions.append(Reduction(span, op, over, None if t.window else env.default.span))
    label = env.sites.label(site, "value")
    value = Value(Reduce(op, args, over, result, static, span=span))
    return cx.emit(env, label, value, span) if is_shared(result) else value


def target(cx: Context, env: Env, t: Type, op: str, span: Span) -> Scope | None:
    """The scope that a reduction of a value of type t has here; None after reporting that it has none."""
    env.per_used.used = True
    scope = env.default.scope
    if scope < t.scope:
        if cx.checking and scope == ROW and len(cx.tensor_of_warning.shape) < 2 and (t.rows, t.cols) == ("rows", "cols"):
            warn_row_of_vector(cx, env, op, span)
        return scope
    origin = (Label(env.default.span, "this `per` gives its scope"),) if env.default.span else ()
    comes = "comes from this `per`" if origin else "is the default, `per tensor`"
    if (t.scope <= TENSOR and scope == TENSOR) or t.scope == scope or t.scope <= scope:
        message, help_ = (
            f"`{op}` reduces to {scope.one_for_each}, but this is {t.scope.one_for_each} already",
            "for a clip of a number write `min(it, c)`; to reduce further write `per` a coarser scope, such as `per all`",
        )
    else:
        message, help_ = (
            f"`{op}` cannot reduce {t.scope.one_for_each} to {scope.one_for_each}",
            f"reduce to a scope that {t.scope} refines, such as `per tensor`",
        )
    cx.error("reduction-scope", message, span, note_here=f"its scope {comes}" if not origin else "", labels=origin, help=help_)
    return None


def warn_row_of_vector(cx: Context, env: Env, op: str, span: Span) -> None:
    """A row of a 1-D tensor is one entry: `norm per row` makes it ±1."""
    cx.diagnostics.append(
        Diagnostic(
            "row-of-vector",
            f"on a tensor of one dimension, such as a bias, a row is one entry: this `{op}` is of that entry alone",
            env.default.span or span,
            help="guard it: `if ndim > 1 then … else …`, or route by `match`; nothing to do if every tensor is a matrix",
            severity="warning",
        )
    )


def select_largest(cx: Context, env: Env, values: list[Value], percent: bool, span: Span, site: syntax.Node) -> Value:
    x, k = values
    over = target(cx, env, x.type, "largest", span)
    if over is None:
        return POISON
    if not k.type.scope <= over:
        return cx.error("scope-mismatch", "the count of `largest` is finer than its cells", k.expr.span, help="make it one number, or one for each cell")
    cx.reductions.append(Reduction(span, "largest", over, env.default.span))
    value = Value(Apply("largest", (x.expr, k.expr), replace(x.type, boolean=True), (over, percent), span=span))
    return cx.emit(env, env.sites.label(site, "value"), value, span) if is_shared(Type(over)) else value


def dimension(cx: Context, env: Env, e: syntax.Call) -> Value:
    if env.instance is None:
        return cx.error("fn-not-pure", "a `fn` cannot read `dim`", e.span, help="make it a parameter of the `fn`")
    if len(e.arguments) != 1 or e.arguments[0].name:
        return cx.error("missing-argument", "`dim` takes one number: `dim(0)` is the first size, `dim(-1)` the last", e.span, help="write `dim(0)`")
    v = expressions.expression(cx, env, e.arguments[0].value)
    i = None if v.poisoned else constant(cx, v, "the index of `dim`", e.span)
    if i is None:
        return POISON
    shape = cx.tensor.shape
    if not isinstance(i, float) or i != int(i) or not -len(shape) <= i < len(shape):
        return cx.error(
            "no-dimension", f"`{cx.tensor.name}` has {len(shape)} dimensions, and no dimension {i:g}", e.span, help="guard it: `if ndim > 1 then dim(1) else 1`"
        )
    return Value(Ref(f"dim({int(i)})", "builtin", Type(TENSOR), span=e.span), float(shape[int(i)]))
