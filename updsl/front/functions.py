"""Calls: the functions of the table, a text's own `fn`s, `clip`, windows, draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from updsl.core.diagnostic import Label, did_you_mean
from updsl.core.ir import Apply, Const, Expr, Reduce, Ref, State, Type, is_shared, on_grid
from updsl.core.ops import OPS
from updsl.core.scope import ALL, COLUMN, ELEMENT, NAMED, ROW, TENSOR, Scope
from updsl.core.source import Span
from updsl.front import expression as expressions
from updsl.front import statements, syntax
from updsl.front.context import POISON, Context, Env, Reduction, Value
from updsl.front.module import FUNCTIONS, Unit

MAX_WINDOW_CELLS = 10**9
MATRIX = frozenset(op.name for op in OPS.values() if op.kind == "matrix" and op.text == "call")


def call(cx: Context, env: Env, e: syntax.Call, whole: bool, site: syntax.Node | None = None) -> Value:
    """`name(arguments)`: a rule in a stage, a `fn`, or a function. `site`: the node whose label names the result."""
    site = site or e
    if env.sites.applies_rule(e, whole):
        return statements.apply_rule(cx, env, e, e.callee, e.arguments, e.callee_span)
    own = env.unit.fns.get(e.callee)
    if e.callee in FUNCTIONS and own is None or e.callee.startswith("history."):
        return function(cx, env, e, site)
    found = env.unit.find_fn(e.callee)
    if found:
        return apply_fn(cx, env, e, site, *found)
    is_local = env.instance is not None and (env.instance.slot(e.callee) or e.callee in env.instance.parameters) or e.callee in env.arguments
    if is_local:
        return cx.error("not-a-function", f"`{e.callee}` is a value: it takes no arguments", e.span, help=f"write `{e.callee}` alone, or `{e.callee} * (…)`")
    choices = [*FUNCTIONS, *env.unit.rules, *env.unit.fns, *library_names(env.unit)]
    return cx.error("unknown-function", f"unknown function or rule `{e.callee}`", e.callee_span, help=suggestion(e.callee, choices))


def library_names(unit: Unit) -> list[str]:
    """Names of the library's files, for suggestions."""
    owner = getattr(unit.library, "__self__", None)
    return list(owner.files) if owner is not None else []


def suggestion(name: str, choices: list[str]) -> str | None:
    return did_you_mean(name, [*choices, "clip"])


# --- arguments -------------------------------------------------------------------------------------------------------


def bind(cx: Context, e: syntax.Call, names: list[str], required: int) -> dict[str, syntax.Expr] | None:
    """Arguments by parameter name; None after reporting. The first of `names` may be left out: it is the flowing value."""
    given: dict[str, syntax.Expr] = {}
    positional = [a for a in e.arguments if a.name is None]
    named = [a for a in e.arguments if a.name is not None]
    if len(positional) > len(names):
        cx.error("too-many-arguments", f"`{e.callee}` takes {_count(len(names))}, not {len(positional)}", e.span, help=f"its arguments are `{e.callee}({', '.join(names)})`")
        return None
    for n, a in zip(names, positional, strict=False):
        given[n] = a.value
    for a in named:
        assert a.name is not None
        if a.name not in names:
            cx.error("unknown-parameter", f"`{e.callee}` has no argument `{a.name}`", a.span, help=did_you_mean(a.name, names) or f"its arguments are `{e.callee}({', '.join(names)})`")
            return None
        if a.name in given:
            cx.error("too-many-arguments", f"`{a.name}` is given twice", a.span, help="give it once, by place or by name")
            return None
        given[a.name] = a.value
    if positional and names and names[0] not in given:
        given[names[0]] = positional[0].value
    missing = next((n for n in names[1:required] if n not in given), None)
    if missing or (names and names[0] not in given and positional):
        cx.error("missing-argument", f"`{e.callee}` needs `{missing or names[0]}`", e.span, help=f"write `{e.callee}({', '.join(names[:required])})`, or name all but the first: `{e.callee}({missing} = …)`")
        return None
    return given


def _count(n: int) -> str:
    return "no arguments" if n == 0 else "one argument" if n == 1 else f"{n} arguments"


def subject(cx: Context, env: Env, given: dict[str, syntax.Expr], first: str, span: Span) -> Value:
    """The first argument, or the flowing value where it is left out."""
    if first in given:
        return expressions.expression(cx, env, given[first])
    if env.it is None:
        return cx.error("fn-not-pure", "in a `fn` nothing flows: a function needs its first argument", span, help="write it, such as `mean(x)`")
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
        cx.error("not-a-count", f"{what} must be a whole number{'' if least < 1 else f' of at least {least}'}, not {n if isinstance(n, (bool, str)) else format(n, 'g')}", e.span, help="write a number such as `5`")
        return None
    return int(n)


def constant(cx: Context, v: Value, what: str, span: Span) -> float | bool | str | None:
    """A value that must be known when the rule is compiled; the parameters it needs become constant. None after reporting."""
    if v.static is None:
        cx.error("not-constant", f"{what} must be a constant: it is fixed when the rule is compiled", span, help="use literals, attributes such as `rows`, and parameters")
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
        case "history" | "history.push" | "history.empty":
            return window(cx, env, e, site)
        case "gaussian" | "uniform" | "bernoulli":
            return draw(cx, env, e, site)
    op = OPS[e.callee]
    names = [*op.args, *(s for s in op.static if s in ("p", "k"))]
    given = bind(cx, e, names, len(names) - (e.callee == "norm"))
    if given is None:
        return POISON
    values = [subject(cx, env, given, names[0], e.span)] + [expressions.expression(cx, env, given[n]) for n in op.args[1:] if n in given]
    if any(v.poisoned for v in values) and op.kind != "elementwise":
        env.per_used.used = True
        return POISON
    match op.kind:
        case "elementwise":
            return expressions.elementwise(cx, e.callee, values, e.span)
        case "reduction":
            p = constant(cx, expressions.expression(cx, env, given["p"]), "the p of a norm", given["p"].span) if "p" in given else 2.0
            static = () if e.callee != "norm" else (float(p) if p is not None and not isinstance(p, str) else 2.0,)
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
            return matrix(cx, env, e, values, given)
    raise AssertionError(op.kind)


def reduce(cx: Context, env: Env, op: str, values: list[Value], static: tuple, span: Span, site: syntax.Node) -> Value:
    """A reduction: of a window over time, else to the default scope."""
    if OPS[op].conditions and not values[0].type.boolean:
        return cx.error("not-a-condition", f"`{op}` counts where a condition holds, and this is a number", values[0].expr.span, help=f"compare it: `{op}(x > 0)`")
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
    if len(values) > len(operands) and not values[-1].type.scope <= over:
        return cx.error("scope-mismatch", f"the last argument of `{op}` is finer than the cells that are reduced", values[-1].expr.span, help="make it one number, or one for each cell")
    cx.reductions.append(Reduction(span, op, over, None if t.window else env.default.span))
    value = Value(Reduce(op, args, over, result, static, span=span))
    return cx.emit(env, env.sites.label(site, "value"), value, span) if is_shared(result) else value


def target(cx: Context, env: Env, t: Type, op: str, span: Span) -> Scope | None:
    """The scope that a reduction of a value of type t has here; None after reporting that it has none."""
    env.per_used.used = True
    scope = env.default.scope
    if scope < t.scope:
        return scope
    origin = (Label(env.default.span, "this `per` gives its scope"),) if env.default.span else ()
    comes = "comes from this `per`" if origin else "is the default, `per tensor`"
    if t.scope <= TENSOR and scope == TENSOR or t.scope == scope or t.scope <= scope:
        message, help_ = f"`{op}` reduces to one value for each {scope}, but this is {t.scope.one_for_each} already", "for a clip of a number write `min(it, c)`; to reduce further write `per` a coarser scope, such as `per all`"
    else:
        message, help_ = f"`{op}` cannot reduce {t.scope.one_for_each} to {scope.one_for_each}", f"reduce to a scope that {t.scope} refines, such as `per tensor`"
    cx.error("reduction-scope", message, span, note_here=f"its scope {comes}" if not origin else "", labels=origin, help=help_)
    return None


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
        return cx.error("no-dimension", f"`{cx.tensor.name}` has {len(shape)} dimensions, and no dimension {i:g}", e.span, help="guard it: `if ndim > 1 then dim(1) else 1`")
    return Value(Ref(f"dim({int(i)})", "builtin", Type(TENSOR), span=e.span), float(shape[int(i)]))


def draw(cx: Context, env: Env, e: syntax.Call, site: syntax.Node) -> Value:
    """A random draw: a value for each entry of the flowing value's grid, of an n × m matrix, or one number (`each = tensor`, `each = all`)."""
    if env.instance is None or env.it is None:
        return cx.error("fn-not-pure", "a `fn` cannot draw at random", e.span, help="draw in the rule, and hand the draw over")
    names = list(OPS[e.callee].args)
    each = next((a for a in e.arguments if a.name == "each"), None)
    rest = [a for a in e.arguments if a is not each]
    sizes = [a.value for a in rest if a.name is None][len(names):]
    if len(sizes) not in (0, 2) or each and sizes:
        return cx.error("too-many-arguments", f"`{e.callee}` takes {', '.join(names)}, and then either `each = …` or two sizes", e.span, help=f"write `{e.callee}({', '.join(names)}, 4, 4)` for a 4 × 4 matrix")
    kept = [a for a in rest if a.name is not None or a.value not in sizes]
    given = bind(cx, replace(e, arguments=tuple(kept)), names, len(names))
    if given is None or names[0] not in given:
        return POISON if given is None else cx.error("missing-argument", f"`{e.callee}` needs `{names[0]}`", e.span, help=f"write `{e.callee}({', '.join(names)})`")
    values = [expressions.expression(cx, env, given[n]) for n in names]
    env.it_read.used = True
    if each:
        where = each.value.id if isinstance(each.value, (syntax.Name,)) else getattr(each.value, "name", "")
        if where not in ("tensor", "all"):
            return cx.error("unknown-parameter", "`each` is `tensor` or `all`", each.span, help="write `each = tensor` for one number a tensor, `each = all` for one in the whole model")
        grid = Type(NAMED[where])
    elif sizes:
        n, m = (whole_number(cx, env, s, "the size of a draw", 1) for s in sizes)
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
        return cx.error("fn-not-pure", "a `fn` keeps no history", e.span, help="write `x → history(n)` in the rule, and hand the window over")
    given = bind(cx, e, ["n"], 1)
    if given is None or "n" not in given:
        return POISON if given is None else cx.error("missing-argument", "`history` needs the number of steps it keeps", e.span, help="write `x → history(100)`")
    n = whole_number(cx, env, given["n"], "the length of a `history`", 1)
    x = env.it
    env.it_read.used = True
    if n is None or x.poisoned:
        return POISON
    if x.type.samples or x.type.window:
        return cx.error("scope-mismatch", "a `history` keeps no samples and no windows", e.span, help="reduce first: `sample_mean(x) → history(n)`")
    cells = (cx.size(x.type.rows) or 1) * (cx.size(x.type.cols) or 1)
    if n * cells > MAX_WINDOW_CELLS:
        return cx.error("too-large", f"this `history` keeps {n:,} × {cells:,} values", e.span, help="shorten it, or keep a reduced value: `norm(it) → history(n)`")
    name = env.path + env.sites.label(site, "state") + env.rounds
    t = replace(x.type, window=n, boolean=False)
    cx.states[name] = State(name, None, t, span=e.span)
    env.instance.subtree.append(name)
    before = cx.current.get(name, Ref(name, "state", t, span=e.span))
    pushed = cx.emit(env, env.sites.label(site, "value"), Value(Apply("push", (before, x.expr), t, span=e.span)), e.span)
    cx.current[name] = pushed.expr
    return pushed


# --- matrices --------------------------------------------------------------------------------------------------------


def as_matrix(cx: Context, v: Value, span: Span) -> Value | None:
    """The value with one number for each entry of its grid; None after reporting that it has no grid."""
    if v.poisoned:
        return None
    if v.type.window or v.type.rows is None or v.type.cols is None:
        cx.error("not-a-matrix", f"this needs a matrix, and is {cx.describe(v.type)}", span if v.expr.span.source.name == "<nowhere>" else v.expr.span, help="use it on `g` or another value with one number for each entry")
        return None
    if v.type.scope == ELEMENT:
        return v
    return Value(Apply("spread", (v.expr,), replace(v.type, scope=ELEMENT), span=span))


def matmul(cx: Context, a: Value, b: Value, span: Span) -> Value:
    x, y = as_matrix(cx, a, span), as_matrix(cx, b, span)
    if x is None or y is None:
        return POISON
    if not cx.agree(x.type.cols, y.type.rows):
        return cx.error("grid-mismatch", f"`@` needs as many columns on its left as rows on its right: {cx.describe(x.type)}, and {cx.describe(y.type)}", span, help="transpose one of them: `x.T`")
    t = Type(ELEMENT, cx.dim(x.type.rows), cx.dim(y.type.cols), samples=x.type.samples or y.type.samples)
    return Value(Apply("matmul", (x.expr, y.expr), t, span=span))


def transpose(cx: Context, v: Value, span: Span) -> Value:
    t = v.type
    match t.scope.name:
        case "element":
            flipped = replace(t, rows=t.cols, cols=t.rows)
        case "row":
            flipped = replace(t, scope=COLUMN, rows=None, cols=t.rows)
        case "column":
            flipped = replace(t, scope=ROW, rows=t.cols, cols=None)
        case "block":
            return cx.error("not-a-matrix", "blocks have no transpose", span, help="transpose before reducing per block")
        case _:
            return v
    return Value(Apply("transpose", (v.expr,), flipped, span=span), poisoned=v.poisoned)


def matrix(cx: Context, env: Env, e: syntax.Call, values: list[Value], given: dict[str, syntax.Expr]) -> Value:
    """A matrix function of the table."""
    x = as_matrix(cx, values[0], e.span)
    if x is None:
        return POISON
    rows, cols = cx.dim(x.type.rows), cx.dim(x.type.cols)
    result = replace(x.type, boolean=False)
    static: tuple = ()
    args: tuple[Expr, ...] = (x.expr,)
    least = min((n for n in (cx.size(rows), cx.size(cols)) if n is not None), default=None)
    square = e.callee in ("matrix_power", "solve")
    if square and not cx.agree(rows, cols):
        return cx.error("grid-mismatch", f"`{e.callee}` needs a square matrix, and this is {cx.describe(x.type)}", e.span, help="use `x @ x.T` or `x.T @ x`")
    match e.callee:
        case "left_basis" | "right_basis":
            k = whole_number(cx, env, given["k"], "the rank of a basis", 1)
            if k is None:
                return POISON
            k = k if least is None else min(k, least)
            result, static = replace(result, rows=rows if e.callee == "left_basis" else cols, cols=k), (k,)
        case "orthonormal" if cx.size(rows) is not None and cx.size(cols) is not None and (cx.size(rows) or 0) < (cx.size(cols) or 0):
            result = replace(result, cols=rows)
        case "matrix_power":
            if not values[1].type.scope <= TENSOR:
                return cx.error("scope-mismatch", "the exponent of a matrix is one number", e.span, help="write a number, such as `-1/4`")
            args = (x.expr, values[1].expr)
        case "solve":
            b = as_matrix(cx, values[1], e.span)
            if b is None:
                return POISON
            if not cx.agree(cols, b.type.rows):
                return cx.error("grid-mismatch", f"`solve(a, b)` needs as many rows in b as in a: {cx.describe(x.type)}, and {cx.describe(b.type)}", e.span)
            args, result = (x.expr, b.expr), replace(b.type, samples=x.type.samples or b.type.samples, boolean=False)
        case "trace":
            result = Type(TENSOR, samples=x.type.samples)
        case "diag":
            result = Type(ROW, rows, None, samples=x.type.samples)
        case "rows" | "cols":
            return expressions.attribute(cx, e.callee, x.type, e.span)
    return Value(Apply(e.callee, args, result, static, span=e.span))


# --- fn and clip -----------------------------------------------------------------------------------------------------


def apply_fn(cx: Context, env: Env, e: syntax.Call, site: syntax.Node, fn: syntax.Fn, unit: Unit, about: bool = False) -> Value:
    """The body of a `fn` (or its `about`) over the arguments, under the caller's default scope."""
    inner = _fn_env(cx, env, e, site, fn, unit)
    if inner is None:
        env.per_used.used = True
        return POISON
    body = fn.about if about and fn.about is not None else fn.body
    return expressions.expression(cx, replace(inner, path=inner.path + ("about." if about else "")), body)


def _fn_env(cx: Context, env: Env, e: syntax.Call, site: syntax.Node, fn: syntax.Fn, unit: Unit) -> Env | None:
    cx.spend(e.span)
    if fn.name in env.calls:
        cx.error("rule-circle", f"the function `{fn.name}` calls itself", e.span, help="a `fn` cannot call itself; `repeat` in a rule repeats")
        return None
    if len(env.calls) > 64:
        cx.error("too-large", "functions are nested more than 64 deep", e.span, help="compute in steps, in locals of the rule")
        return None
    names = [p.name for p in fn.parameters]
    required = next((i for i, p in enumerate(fn.parameters) if i and p.default is not None), len(names))
    given = bind(cx, e, names, required)
    if given is None:
        return None
    label = env.sites.label(site, "value") if (("value", id(site)) in env.sites._labels) else fn.name
    prefix = f"{label}{env.rounds}."
    arguments: dict[str, Value] = {}
    inner = Env(unit, cx.sites(fn, unit), env.path + prefix, None, env.default, env.per_used, arguments=arguments, population=env.population, guarded=env.guarded, calls=(*env.calls, fn.name))
    for i, p in enumerate(fn.parameters):
        if p.name in given:
            v = expressions.expression(cx, env, given[p.name])
        elif i == 0:
            v = subject(cx, env, given, p.name, e.span)
        elif p.default is not None:
            v = expressions.expression(cx, inner, p.default)
        else:
            cx.error("missing-argument", f"`{fn.name}` needs `{p.name}`", e.span, help=f"write `{fn.name}({', '.join(names)})`")
            return None
        arguments[p.name] = v if v.static is not None else cx.emit(inner, p.name, v, e.span)
    return inner


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
        return cx.error("fn-not-pure", "a `fn` has nothing to clip: nothing flows in it", e.span, help="write `x → clip …` in the rule")
    label = env.sites.label(e, "value")
    env.it_read.used = True
    centre = centred(env, e.measure)
    if centre is None:
        for inner in _inside(env, e.measure):
            return cx.error("centre-inside", "a function with `about` inside a larger measure has no centre", inner.span, help="clip by the function alone: `clip z > 2.5`")
    measure = expressions.expression(cx, env, e.measure)
    bound = expressions.expression(cx, env, e.bound)
    if measure.poisoned or bound.poisoned or env.it.poisoned:
        return POISON
    if not bound.type.scope <= measure.type.scope:
        return cx.error("scope-mismatch", "the bound of this clip is finer than its measure", e.bound.span, note_here=cx.describe(bound.type),
                        labels=(Label(e.measure.span, cx.describe(measure.type)),), help="compare entries, `clip abs > …`, or make the bound one number, such as `norm(…)`")
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
        c = cx.emit(env, f"{label}.centre", apply_fn(cx, replace(env, path=f"{env.path}{label}."), centre[0], e.measure, centre[1], centre[2], about=True), e.measure.span)
        moved = expressions.elementwise(cx, "add", [c, expressions.elementwise(cx, "mul", [expressions.elementwise(cx, "sub", [flowing, c], e.span), factor], e.span)], e.span)
    else:
        moved = expressions.elementwise(cx, "mul", [flowing, factor], e.span)
    return expressions.elementwise(cx, "select", [beyond, moved, flowing], e.span)


def _of_flowing(env: Env, e: syntax.Call, fn: syntax.Fn) -> bool:
    """Whether the function's first argument is the flowing value."""
    first = next((a.value for a in e.arguments if a.name in (None, fn.parameters[0].name)), None)
    if first is None:
        return True
    return isinstance(first, syntax.Name) and (first.id == "it" or first.id == "g" and env.instance is not None and env.it is not None and env.it.expr == env.instance.g.expr)


def _inside(env: Env, e: syntax.Expr) -> Iterator[syntax.Node]:
    from updsl.front.module import nodes

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


