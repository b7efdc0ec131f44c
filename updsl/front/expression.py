"""Expressions to values: names, operators, choice, scopes and pipelines. Functions are in functions.py, rules in statements.py."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from updsl.core.diagnostic import Label
from updsl.core.ir import GRID, Apply, Const, Reduce, Ref, Type
from updsl.core.ops import OPS, REDUCTIONS
from updsl.core.scope import ALL, ELEMENT, GROUP, NAMED, TENSOR, Scope, block
from updsl.core.source import Span
from updsl.front import clip, functions, instances, matrix, regex, syntax
from updsl.front.contents import gives_weights, nodes
from updsl.front.context import POISON, Context, Default, Env, Flag, Value
from updsl.front.sites import Sites
from updsl.front.statics import COMPARISONS, INFIX, fold
from updsl.front.suggest import look_alike, suggestion
from updsl.front.unit import BOTH, BUILTIN_NAMES, FUNCTIONS


def expression(cx: Context, env: Env, e: syntax.Expr, whole: bool = False) -> Value:
    """The value of an expression. `whole`: it is a whole stage, or all that a rule, arm, return or repeat gives."""
    match e:
        case syntax.Number(value=v):
            return Value(Const(float(v), span=e.span), float(v))
        case syntax.Boolean(value=v):
            return Value(Const(v, span=e.span), v)
        case syntax.Text(value=v):
            return Value(Const(0.0, span=e.span), v)
        case syntax.Name():
            return name(cx, env, e, whole).at(e.span)
        case syntax.Call():
            return functions.call(cx, env, e, whole)
        case syntax.Unary(op=op, operand=x):
            return operate(cx, env, "neg" if op == "-" else "not", [x], e.span)
        case syntax.Binary(op="@", left=a, right=b):
            return matrix.matmul(cx, expression(cx, env, a), expression(cx, env, b), e.span)
        case syntax.Binary(op=op, left=a, right=b):
            return operate(cx, env, INFIX[op], [a, b], e.span)
        case syntax.Compare():
            return compare(cx, env, e)
        case syntax.Transpose(operand=x):
            return matrix.transpose(cx, expression(cx, env, x), e.span)
        case syntax.If():
            return choose(cx, env, e, whole)
        case syntax.Clip():
            return clip.clip(cx, env, e)
        case syntax.Per():
            return per(cx, env, e, whole)
        case syntax.Pipe(stages=stages):
            return pipe(cx, env, stages)
        case syntax.Repeat():
            return repeat(cx, env, e)


# --- names -----------------------------------------------------------------------------------------------------------


def name(cx: Context, env: Env, e: syntax.Name, whole: bool) -> Value:
    """A bare name: what the block calls so, else a built-in, else a rule or function applied to the flowing value."""
    if env.instance is None and e.id in env.arguments:
        return env.arguments[e.id]
    if env.instance is not None:
        if slot := env.instance.slot(e.id):
            return read(cx, slot.state, e) if slot.kind == "state" else slot.value
        if e.id in env.instance.parameters:
            return env.instance.parameters[e.id]
    if e.id in BUILTIN_NAMES:
        return builtin(cx, env, e)
    if env.sites.applies_rule(e, whole):
        return instances.apply_rule(cx, env, e, e.id, (), e.span)
    if e.id in BOTH and (whole or e.id not in FUNCTIONS):
        return ambiguous(cx, e)
    if e.id in FUNCTIONS or env.unit.find_fn(e.id):
        return functions.call(cx, env, syntax.Call(e.id, (), span=e.span, callee_span=e.span), False, site=e)
    return unknown_name(cx, env, e)


def ambiguous(cx: Context, e: syntax.Name) -> Value:
    return cx.error(
        "rule-or-function", f"`{e.id}` alone could be the number or the rule", e.span, help=f"write `{e.id}(it)` for the number, `it → {e.id}` for the rule"
    )


def is_ambiguous(e: syntax.Expr, env: Env) -> bool:
    """A bare `norm`, `rms` or `absmax` (up to its `per`)."""
    if isinstance(e, syntax.Per):
        return is_ambiguous(e.body, env)
    return isinstance(e, syntax.Name) and e.id in BOTH and e.id not in env.sites.locals and e.id not in env.sites.parameters


def read(cx: Context, state: str, e: syntax.Node) -> Value:
    """A state as of here."""
    now = cx.current.get(state)
    return Value(now if now is not None else Ref(state, "state", cx.states[state].type, span=e.span), poisoned=state in cx.facts.mistaken)


def unknown_name(cx: Context, env: Env, e: syntax.Name) -> Value:
    if e.id in env.sites.locals:
        return cx.error(
            "used-before-set",
            f"`{e.id}` has no value here: it gets one further down, or in a block that has ended",
            e.span,
            help="move the line that sets it up to before this one",
        )
    if env.instance is None:
        message, seen = f"unknown name `{e.id}`: a `fn` sees its parameters and functions only", [*env.arguments, *FUNCTIONS, *env.unit.fns]
    elif env.in_law and e.id in Sites(cx.module.rule, cx.module.unit).locals:
        message = f"`{e.id}` is inside of `{cx.module.name}`, which a law sees from outside"
        return cx.error("unknown-name", message, e.span, help=f"say it of `out`, or write out what `{e.id}` is")
    else:
        own = [*env.instance.parameters, *(n for b in env.instance.names for n in b)]
        message, seen = (
            f"unknown name or stage `{e.id}`",
            [*own, *BUILTIN_NAMES, *FUNCTIONS, "clip", *env.unit.rules, *env.unit.fns, *functions.library_names(env.unit)],
        )
    otherwise = (f"make it a parameter of `{cx.module.name}`, or let the law range over it: `for {e.id} in [lo, hi]`",) if env.in_law else ()
    help_ = suggestion(e.id, seen, *otherwise)
    return cx.error("unknown-name", message, e.span, notes=look_alike(e.id), help=help_)


def builtin(cx: Context, env: Env, e: syntax.Name) -> Value:
    """`g it w lr t rows cols numel ndim name tensors batch pi`."""
    if e.id == "pi":
        return Value(Const(math.pi, span=e.span), math.pi)
    instance = env.instance
    if instance is None:
        return cx.error(
            "fn-not-pure", f"a `fn` cannot read `{e.id}`", e.span, help=f"make it a parameter: `fn {env.sites.declaration.name}(…, x)`, and hand `{e.id}` over"
        )
    match e.id:
        case "g":
            if env.it is not None and env.it.expr == instance.g.expr:
                env.it_read.used = True
            return replace(instance.g, static=None)
        case "it":
            env.it_read.used = True
            return env.it or POISON
        case "w":
            return Value(cx.weight if cx.weight is not None else Ref("w", "builtin", GRID, span=e.span))
        case "lr":
            if not cx.lr:
                return cx.error(
                    "no-learning-rate",
                    "this rule reads `lr`, and its caller supplies none",
                    e.span,
                    help="hand over `lr=…`, or make it a parameter of the rule",
                )
            return Value(Ref("lr", "builtin", Type(GROUP), span=e.span))
        case "t":
            if instance.own_clock and instance.clock is None and f"{instance.path}t" not in cx.facts.clocks:
                cx.facts.clocks.add(f"{instance.path}t")
                cx.facts.changed = True
            return Value(instance.clock if instance.clock is not None else Ref("t", "builtin", Type(ALL), span=e.span))
        case "batch":
            if "samples" not in cx.module.inputs.values():
                return cx.error(
                    "no-samples", "`batch` is the number of samples, and this rule has none", e.span, help="write `input samples` first in the rule's block"
                )
            return Value(Ref("batch", "builtin", Type(ALL), span=e.span))
        case "tensors":
            cx.counted = True
            ones = Apply("spread", (Const(1.0),), Type(TENSOR))
            value = cx.emit(env, env.sites.label(e, "value"), Value(Reduce("sum", (ones,), ALL, Type(ALL), span=e.span)), e.span)
            return replace(value, static=float(cx.counts.get(env.population, 1)))
        case "name":
            return Value(Const(0.0, span=e.span), cx.name)
        case "ndim":
            return Value(Ref("ndim", "builtin", Type(TENSOR), span=e.span), float(len(cx.tensor.shape)))
    return attribute(cx, e.id, instance.g.type, e.span)


def attribute(cx: Context, which: str, grid: Type, span: Span) -> Value:
    """`rows`, `cols` or `numel` of a value's grid; of a number 1."""
    if which == "numel":
        rows, cols = attribute(cx, "rows", grid, span), attribute(cx, "cols", grid, span)
        if grid.scope == ELEMENT and (grid.rows, grid.cols) in (("rows", "cols"), ("cols", "rows")):
            return Value(Ref("numel", "builtin", Type(TENSOR), span=span), float(cx.tensor.numel))
        return elementwise(cx, "mul", [rows, cols], span)
    d = cx.dim(grid.rows if which == "rows" else grid.cols)
    size = 1 if d is None else cx.size(d)
    if d in ("rows", "cols"):
        return Value(Ref(str(d), "builtin", Type(TENSOR), span=span), float(size or 0))
    if size is not None:
        return Value(Apply("spread", (Const(float(size)),), Type(TENSOR), span=span), float(size))
    source, part = str(d).rsplit(".", 1)
    return Value(Apply(part, (Ref(source, "input", cx.inputs[source].type),), Type(TENSOR), span=span))


# --- operators -------------------------------------------------------------------------------------------------------


def operate(cx: Context, env: Env, op: str, operands: list[syntax.Expr], span: Span) -> Value:
    return elementwise(cx, op, [expression(cx, env, x) for x in operands], span)


def elementwise(cx: Context, op: str, values: list[Value], span: Span) -> Value:
    """An elementwise op of the table, folded where its operands are known."""
    row = OPS[op]
    for v in values:
        if isinstance(v.static, str):
            help_ = 'texts compare with `==`, `!=` and `~`: `mode == "mean"`'
            return cx.error("text-as-number", "this is a text, where a number is needed", v.expr.span, help=help_)
    if row.conditions:
        for v in values:
            if not v.type.boolean and not v.poisoned:
                return cx.error("not-a-condition", "this is a number, where true or false is needed", v.expr.span, help="compare it: `x > 0`, `x != 0`")
    t = cx.combine(values, span, f"`{_shown(op)}`")
    if t is None:
        return POISON
    boolean = all(v.type.boolean for v in values[1:]) if op == "select" else row.boolean
    if boolean != t.boolean:
        t = replace(t, boolean=boolean)
    static, needs = None, frozenset()
    if op != "select" and all(v.static is not None for v in values):
        static = fold(op, *(v.static for v in values if not isinstance(v.static, str) and v.static is not None))
        needs = frozenset[str]().union(*(v.needs for v in values))
    return Value(Apply(op, tuple(v.expr for v in values), t, span=span), static, needs, any(v.poisoned for v in values))


@cache
def _shown(op: str) -> str:
    text = OPS[op].text
    for mark in ("{x}", "{y}", "{c}"):
        text = text.replace(mark, "")
    return op if text in ("call", "") else text.strip()


def compare(cx: Context, env: Env, e: syntax.Compare) -> Value:
    """A chain of comparisons: all of them hold."""
    left, result = expression(cx, env, e.first), None
    for op, right_text in e.rest:
        right = expression(cx, env, right_text)
        one = _compare(cx, op, left, right, e.first.span.to(right_text.span), right_text)
        result = one if result is None else elementwise(cx, "and", [result, one], e.span)
        left = right
    assert result is not None
    return result


def _compare(cx: Context, op: str, a: Value, b: Value, span: Span, right: syntax.Expr) -> Value:
    if a.poisoned or b.poisoned:
        return Value(Const(False), poisoned=True)
    needs = a.needs | b.needs
    if op == "~":
        if not isinstance(a.static, str) or not isinstance(b.static, str):
            return cx.error("text-as-number", "`~` searches a text for a pattern", span, help='write `name ~ "pattern"`')
        if isinstance(right, syntax.Text) or b.static:
            mistake = regex.mistake(b.static)
            if mistake:
                return cx.error(
                    "bad-pattern",
                    f"this pattern cannot be used: {mistake}",
                    right.span,
                    help="use literals, `.`, classes, `* + ? {m,n}`, `|`, groups, `^ $ \\d \\w \\s`",
                )
        if a.static == cx.name:  # else it is no question about the tensor
            cx.predicates.add(("~", b.static))
        found = regex.search(b.static, a.static)
        return Value(Const(found, span=span), found, needs)
    if isinstance(a.static, str) or isinstance(b.static, str):
        if not (isinstance(a.static, str) and isinstance(b.static, str)) or op not in ("==", "!="):
            return cx.error("text-as-number", "a text compares with a text, by `==`, `!=` or `~`", span, help='write `mode == "mean"`')
        if cx.name in (a.static, b.static):
            cx.predicates.update({("==", a.static), ("==", b.static)})
        holds = (a.static == b.static) == (op == "==")
        return Value(Const(holds, span=span), holds, needs)
    return elementwise(cx, COMPARISONS[op], [a, b], span)


def choose(cx: Context, env: Env, e: syntax.If, whole: bool) -> Value:
    """`if c then a else b`: of a static condition only the taken branch exists, else both are evaluated and selected by entry."""
    condition = expression(cx, env, e.condition)
    if isinstance(condition.static, str) or (not condition.type.boolean and not condition.poisoned):
        return cx.error("not-a-condition", "this is no condition", e.condition.span, help="compare it: `x > 0`, `x != 0`")
    for branch in () if whole and is_static(cx, condition) else (e.then, e.otherwise):
        if is_ambiguous(branch, env):
            return ambiguous(cx, branch.body if isinstance(branch, syntax.Per) else branch)  # type: ignore[arg-type]
    if is_static(cx, condition):
        taken, other = (e.then, e.otherwise) if condition.static else (e.otherwise, e.then)
        env.it_read.used = env.it_read.used or may_read(env, other)
        env.per_used.used = env.per_used.used or may_reduce(env, other)
        if cx.to_look_at(other):
            with cx.discarded(env):
                expression(cx, replace(env, population=cx.population(env, other)), other, whole)
        return expression(cx, replace(env, population=cx.population(env, taken)), taken, whole)
    for branch in (e.then, e.otherwise):
        if gives_weights(branch, env.unit):
            return cx.error(
                "writes-weights-inside",
                "this branch writes the weights, and both branches of such an `if` are evaluated, whatever the condition",
                branch.span,
                help="choose what is written: `w ← w - lr*(if c then a else b)`; an `if` on attributes or constants may have such a branch",
            )
    then, otherwise = expression(cx, env, e.then), expression(cx, env, e.otherwise)
    if then.poisoned != otherwise.poisoned:
        return replace(then if otherwise.poisoned else otherwise, poisoned=True)
    return elementwise(cx, "select", [condition, then, otherwise], e.span)


def may_reduce(env: Env, tree: object) -> bool:
    """Whether text that is not taken could take a default scope: it holds a reduction, or applies a rule or function of texts."""
    for n in nodes(tree):
        word = n.id if isinstance(n, syntax.Name) else n.callee if isinstance(n, syntax.Call) else ""
        if word in REDUCTIONS or word == "largest" or (word and word not in FUNCTIONS and (env.unit.find_rule(word) or env.unit.find_fn(word))):
            return True
    return False


def may_read(env: Env, tree: object) -> bool:
    """Whether text that is not taken could read the flowing value: by name, by a stage, or by a function without its first argument."""
    for n in nodes(tree):
        match n:
            case syntax.Name(id=name) if name in ("it", "g") or (name not in BUILTIN_NAMES and (name in FUNCTIONS or env.sites.applies_rule(n, True))):
                return True
            case syntax.Call(callee=name, arguments=arguments) if env.sites.applies_rule(n, True) or all(a.name for a in arguments):
                return True
            case syntax.Clip() | syntax.Repeat():
                return True
    return False


def is_static(cx: Context, v: Value) -> bool:
    """Whether literals, attributes and constant parameters decide the value."""
    return v.static is not None and v.needs <= cx.facts.constants


# --- scopes and pipelines --------------------------------------------------------------------------------------------


def scope_of(cx: Context, env: Env, s: syntax.ScopeName) -> Scope | None:
    """The scope that a text names."""
    if s.name != "block":
        return NAMED[s.name]
    k = functions.whole_number(cx, env, s.size, "the size of a block", 1) if s.size is not None else None
    return block(k) if k else None


def per(cx: Context, env: Env, e: syntax.Per, whole: bool) -> Value:
    """`X per S`: X with default scope S."""
    scope = scope_of(cx, env, e.scope)
    if scope is None:
        return POISON
    used = Flag()
    value = expression(cx, replace(env, default=Default(scope, e.span), per_used=used), e.body, whole)
    if not used.used and not value.poisoned and not applies_own_rule(env, e.body):
        return cx.error(
            "per-unused",
            f"nothing here takes the scope `{scope}`",
            e.scope.span,
            labels=(Label(e.body.span, "no reduction in this takes its scope"),),
            help=f"delete the `per`, or put it behind the reduction that it is meant for, in brackets: `(norm(g) per {scope})`",
        )
    return value


def bracketed(cx: Context, before: syntax.Expr, stage: syntax.Per) -> None:
    """`norm(g) → ema per all` meant `(norm(g) per all) → ema`: say so."""
    last = cx.diagnostics[-1] if cx.diagnostics else None
    texts = [x.span.text for x in (before, stage.scope, stage.body)]
    if last is not None and last.code == "per-unused" and last.span == stage.scope.span and sum(map(len, texts)) < 80 and not isinstance(before, syntax.Per):
        cx.diagnostics[-1] = replace(last, help=f"write `({texts[0]} per {texts[1]}) → {texts[2]}`")


def applies_own_rule(env: Env, e: syntax.Expr) -> bool:
    """Whether this is a rule of the file itself, whose text the author sees: it may stand under a `per` that it does not take."""
    return isinstance(e, (syntax.Name, syntax.Call)) and (e.id if isinstance(e, syntax.Name) else e.callee).casefold() in env.unit.rules


def pipe(cx: Context, env: Env, stages: tuple[syntax.Expr, ...]) -> Value:
    """`a → b`: evaluate a, bind it to `it`, evaluate b."""
    value = POISON
    for i, stage in enumerate(stages):
        if i:
            env = replace(env, it=cx.emit(env, env.sites.label(stages[i - 1], "flow"), value, stages[i - 1].span), it_read=Flag())
        value = expression(cx, env, stage, True)
        if i and isinstance(stage, syntax.Per):
            bracketed(cx, stages[i - 1], stage)
        if i and not env.it_read.used and not value.poisoned:
            return cx.error(
                "stage-ignores-input",
                "this stage does not read the value that flows into it",
                stage.span,
                help="let it read `it`, as in `→ it / norm`; or drop what stands before `→`" if i == 1 else "let it read `it`, as in `→ it / norm`",
            )
    return value


def repeat(cx: Context, env: Env, e: syntax.Repeat) -> Value:
    """The pipeline composed with itself; each round has instances of its own."""
    n = functions.whole_number(cx, env, e.count, "the count of a `repeat`", 0)
    if n is None:
        return POISON
    env.it_read.used = True
    value = env.it or POISON
    for i in range(1, n + 1):
        inner = replace(env, it_read=Flag(), rounds=f"{env.rounds}#{i}")
        inner = replace(inner, it=cx.emit(inner, env.sites.label(e.body, "flow"), value, e.span))
        cx.spend(e.span)
        value = expression(cx, inner, e.body, True)
    return value
