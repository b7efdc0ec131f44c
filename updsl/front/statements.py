"""Rules to bindings: instances, blocks and every statement form. Expressions are in expression.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from updsl.core import ir
from updsl.core.diagnostic import Label, did_you_mean
from updsl.core.ir import Apply, Const, Expr, Ref, Type, joined, on_grid
from updsl.core.scope import ELEMENT, TENSOR
from updsl.core.source import Span
from updsl.front import functions, states, syntax
from updsl.front.context import POISON, Context, Env, Flag, Instance, Slot, Value
from updsl.front.expression import ambiguous, elementwise, expression, is_ambiguous, scope_of
from updsl.front.module import BOTH, BUILTIN_NAMES, FORBIDDEN, FUNCTIONS, Unit, gives_weights, nodes, writes_weights

NEVER = 2**62
GRID = Type(ELEMENT, "rows", "cols")


# --- instances -------------------------------------------------------------------------------------------------------


def apply_rule(cx: Context, env: Env, e: syntax.Node, name: str, arguments: tuple[syntax.Argument, ...], span: Span) -> Value:
    """The rule `name` applied to the flowing value, as an instance with states of its own."""
    found = env.unit.find_rule(name)
    if env.instance is None or env.it is None or found is None:
        return cx.error(
            "fn-not-pure",
            f"a rule, `{name}`, cannot be applied here: nothing flows",
            span,
            help="rules are stages: `g → ema`; here write functions of values only",
        )
    rule, unit = found
    cx.spend(span)
    env.it_read.used = True
    caller = env.instance
    caller.begun = caller.begun or span
    if writes_weights(rule, unit) and not any(e is n for n in final(env.sites.declaration.body)):
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
    inner = Instance(rule, unit, path, parameters, env.it, caller.own_clock or env.guarded or has_clock(rule))
    before = cx.weight
    value = run(cx, Env(unit, cx.sites(rule, unit), path, inner, env.default, env.per_used, env.it, population=env.population, guarded=env.guarded), before)
    caller.subtree.extend(inner.subtree)
    return value


def run(cx: Context, env: Env, weight_before: Expr | None) -> Value:
    """The body of an instance: what it gives, with its `skip`s carried out."""
    instance = env.instance
    assert instance is not None
    states.start_clock(cx, env, instance)
    value = body(cx, env, instance.rule.body)
    if instance.skips:
        value = states.freeze(cx, env, instance, value, weight_before)
    subtree = tuple(instance.subtree)
    if cx.facts.subtrees.get(instance.path, ()) != subtree:
        cx.facts.subtrees[instance.path] = subtree
        cx.facts.changed = True
    return value


def has_clock(rule: syntax.Rule) -> bool:
    """Whether a rule's steps may be undone or restarted, so that its `t` is its own."""
    return any(isinstance(n, syntax.Skip) or (isinstance(n, syntax.Reset) and not n.names) for n in nodes(rule.body))


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
    names = [p.name for p in rule.parameters]
    given: dict[str, syntax.Expr] = {}
    for i, a in enumerate(arguments):
        if isinstance(a.value, syntax.Name) and a.value.id in ("g", "it"):
            cx.error(
                "input-as-argument", f"a rule takes its input by `→`: write `{a.value.id} → {rule.name}`", a.span, help=f"write `{a.value.id} → {rule.name}`"
            )
            return None
        name = a.name or (names[i] if i < len(names) else None)
        if name is None:
            cx.error(
                "too-many-arguments",
                f"`{rule.name}` has {functions._count(len(names)).replace('argument', 'parameter')}",
                a.span,
                help=f"its parameters are {', '.join(f'`{n}`' for n in names) or 'none'}",
            )
            return None
        if name not in names:
            hint = "append `→ weight_decay(0.01)`" if name == "weight_decay" else did_you_mean(name, names)
            cx.error(
                "unknown-parameter",
                f"`{rule.name}` has no parameter `{name}`",
                a.span,
                help=hint or f"its parameters are {', '.join(f'`{n}`' for n in names) or 'none'}",
            )
            return None
        if name in given:
            cx.error("too-many-arguments", f"`{name}` is given twice", a.span, help="give it once, by place or by name")
            return None
        given[name] = a.value
    bound: dict[str, Value] = {}
    defaults = Env(unit, cx.sites(rule, unit), path, None, env.default, env.per_used, arguments=bound)
    for p in rule.parameters:
        if p.name not in given and p.default is None:
            cx.error("missing-argument", f"`{rule.name}` needs `{p.name}`", span, help=f"write `{rule.name}({p.name} = …)`")
            return None
        v = expression(cx, env, given[p.name]) if p.name in given else expression(cx, defaults, p.default)  # type: ignore[arg-type]
        fixed = isinstance(p.default, (syntax.Boolean, syntax.Text))
        if fixed and not v.poisoned:
            known = functions.constant(cx, v, f"the parameter `{p.name}` of `{rule.name}`", given[p.name].span if p.name in given else p.span)
            if known is not None and isinstance(known, str) != isinstance(p.default, syntax.Text):
                return (
                    cx.error(
                        "wrong-kind",
                        f"`{p.name}` of `{rule.name}` is {'a text' if isinstance(p.default, syntax.Text) else 'true or false'}",
                        given[p.name].span,
                    )
                    and None
                )
        elif isinstance(v.static, str):
            return (
                cx.error("wrong-kind", f"`{p.name}` of `{rule.name}` is a number", given[p.name].span if p.name in given else p.span, help="write a number")
                and None
            )
        check_instance_bounds(cx, rule, p, v, given[p.name].span if p.name in given else p.span)
        bound[p.name] = v if v.static is not None and not v.needs else cx.emit(replace(env, path=path, rounds=""), p.name, v, span)
    return bound


def check_instance_bounds(cx: Context, rule: syntax.Rule, p: syntax.Parameter, v: Value, span: Span) -> None:
    """Report a known argument outside of the parameter's bounds."""
    for limit, beyond in ((p.low, lambda x, y: x < y), (p.high, lambda x, y: x > y)):
        if isinstance(limit, syntax.Number) and isinstance(v.static, float) and beyond(v.static, limit.value):
            cx.error(
                "parameter-out-of-bounds",
                f"`{p.name}` of `{rule.name}` is {v.static:g}, outside of its bounds",
                span,
                labels=(Label(p.span, "the bounds"),),
                help="choose a value within them",
            )


# --- blocks ----------------------------------------------------------------------------------------------------------


def body(cx: Context, env: Env, text: syntax.Expr | tuple[syntax.Statement, ...]) -> Value:
    """What a rule's body or an arm gives."""
    if not isinstance(text, tuple):
        return expression(cx, env, text, True)
    weight = cx.weight
    value: Value | None = None
    for i, s in enumerate(text):
        match s:
            case syntax.Return(value=e):
                value = expression(cx, env, e, True)
                cx.returns = cx.returns if gives_weights(e, env.unit) else True
            case syntax.Match():
                value = match_arms(cx, env, s)
            case _:
                statement(cx, env, s)
                continue
        if i + 1 < len(text):
            cx.error(
                "after-return",
                "nothing after this is computed",
                text[i + 1].span,
                labels=(Label(s.span, "the block ends here"),),
                help="move `return` or `match` to the end of the block",
            )
        return value
    if cx.weight is not None and cx.weight is not weight:
        cx.returns = False
        before = weight if weight is not None else Ref("w", "builtin", GRID)
        return elementwise(cx, "sub", [Value(before), Value(cx.weight)], text[-1].span)
    assert env.instance is not None
    if cx.diagnostics:
        return POISON
    return cx.error(
        "no-return",
        f"`{env.instance.rule.name}` gives nothing",
        env.instance.rule.name_span if text else env.instance.rule.span,
        help="end its block with `return …`",
    )


def statement(cx: Context, env: Env, s: syntax.Statement) -> None:
    """One statement that is not the end of a block."""
    match s:
        case syntax.Input(items=items):
            for item in items:
                declare_input(cx, env, item)
        case syntax.Local(name=name, value=e) | syntax.Let(name=name, value=e):
            value = right_side(cx, env, e)
            if new_name(cx, env, name, s.name_span):
                kind = "let" if isinstance(s, syntax.Let) else "local"
                if value.type.window and not in_core_text(cx):
                    value = cx.error(
                        "window-outside", "a window stands only under a reduction", e.span, help="reduce it in the same expression: `median(x → history(9))`"
                    )
                named = value if value.poisoned else cx.emit(env, env.sites.label(s, "value"), value, s.span)
                instance(env).names[-1][name] = Slot(kind, named, s.name_span)
        case syntax.State(items=items):
            for item in items:
                if new_name(cx, env, item.name, item.name_span):
                    states.declare(cx, env, item)
        case syntax.Assign():
            assign(cx, env, s)
        case syntax.RepeatBlock(count=count, body=inner):
            n = functions.whole_number(cx, env, count, "the count of a `repeat`", 0)
            for i in range(1, (n or 0) + 1):
                cx.spend(s.span)
                block(cx, replace(env, rounds=f"{env.rounds}#{i}"), inner)
        case syntax.Every():
            every(cx, env, s)
        case syntax.Reset(names=names):
            states.reset(cx, env, s) if names else states.reset_all(cx, env, s)
        case syntax.Skip(condition=c):
            skip(cx, env, s, c)
        case syntax.Watch(label=label, value=e):
            watch(cx, env, s, label, e)


def instance(env: Env) -> Instance:
    assert env.instance is not None
    return env.instance


def block(cx: Context, env: Env, text: tuple[syntax.Statement, ...]) -> None:
    """A nested block: names set in it end with it."""
    instance(env).names.append({})
    for s in text:
        if isinstance(s, (syntax.State, syntax.Input, syntax.Skip, syntax.Match, syntax.Return)) or (isinstance(s, syntax.Watch) and env.guarded):
            word = type(s).__name__.lower()
            cx.error("misplaced-statement", f"`{word}` cannot stand in this block", s.span, help=f"move `{word}` to the rule's own block")
        else:
            statement(cx, env, s)
    instance(env).names.pop()


def right_side(cx: Context, env: Env, e: syntax.Expr) -> Value:
    """What stands after `=` or `←`."""
    if is_ambiguous(e, env):
        return ambiguous(cx, e.body if isinstance(e, syntax.Per) else e)  # type: ignore[arg-type]
    value = expression(cx, env, e)
    if isinstance(value.static, str) and not value.poisoned:
        return cx.error("text-as-number", "a text is only an argument, a parameter, or compared", e.span, help='compare it here: `mode == "mean"`')
    return value


def in_core_text(cx: Context) -> bool:
    """Whether this is the text of a shown Program, where windows have names."""
    return any(s.type.window and s.init is not None for s in cx.states.values())


def new_name(cx: Context, env: Env, name: str, span: Span) -> bool:
    """Whether a name may be set here; reports what it would hide."""
    slot = instance(env).slot(name)
    if slot:
        what, where = ("assigned once" if slot.kind == "local" else "set"), (Label(slot.span, "here"),)
        help_ = (
            f"write `let {name} = …` there and `{name} ← …` here, or choose another name"
            if slot.kind in ("local", "let")
            else f"write `{name} ← …` to change it"
        )
        cx.error("shadowed-name", f"`{name}` is {what} already", span, labels=where, help=help_)
        return False
    what = None
    if name in instance(env).parameters:
        what = "a parameter"
    elif name in BUILTIN_NAMES or name in FUNCTIONS:
        what = "a built-in name"
    elif name in env.unit.fns or (name.casefold() in env.unit.rules and name not in BOTH):
        what = "declared in this file"
    if what:
        cx.error("shadowed-name", f"`{name}` is {what}", span, help=f"choose another name, such as `{name}_`")
    return what is None


# --- statements ------------------------------------------------------------------------------------------------------


def declare_input(cx: Context, env: Env, item: syntax.InputItem) -> None:
    if not new_name(cx, env, item.name, item.span):
        return
    if item.name in FORBIDDEN:
        cx.error(
            "forbidden-name",
            f"an input cannot be called `{item.name}`: Python could not pass it by name",
            item.span,
            help=f"rename it, for example `{item.name}_`",
        )
        return
    match item.kind:
        case "matrix":
            rows, cols = cx.dim(f"{item.name}.rows"), cx.dim(f"{item.name}.cols")
            t = Type(ELEMENT, rows, cols)
        case "samples":
            t = replace(GRID, samples=True)
        case "per":
            scope = scope_of(cx, env, item.scope) if item.scope else None
            if scope is None:
                return
            t = on_grid(scope, "rows", "cols")
        case _:
            t = GRID
    made = ir.Input(item.name, item.kind, t)
    if cx.inputs.setdefault(item.name, made) != made:
        cx.error("duplicate-name", f"two stages read an input `{item.name}` of different kinds", item.span, help="rename one of the two")
    instance(env).names[-1][item.name] = Slot("input", Value(Ref(item.name, "input", t, span=item.span)), item.span)


def assign(cx: Context, env: Env, s: syntax.Assign) -> None:
    """`name ← value`, of a state, a `let`, or `w`."""
    me = instance(env)
    me.begun = me.begun or s.span
    value = right_side(cx, env, s.value)
    if value.type.window and not in_core_text(cx):
        value = cx.error(
            "window-outside", "a window stands only under a reduction", s.value.span, help="reduce it in the same expression: `median(x → history(9))`"
        )
    if s.name == "w":
        write_weight(cx, env, s, value)
        return
    slot = me.slot(s.name)
    match slot.kind if slot else None:
        case "state":
            states.assign(cx, env, slot, env.sites.label(s, "value"), value, s.value.span)  # type: ignore[arg-type]
        case "let":
            assert slot is not None
            slot.value = (
                value if value.poisoned else replace(cx.emit(env, env.sites.label(s, "value"), value, s.span), static=None if env.guarded else value.static)
            )
        case "local":
            cx.error(
                "assign-unknown",
                f"`{s.name}` was set by `=`, once and for all",
                s.name_span,
                labels=(Label(slot.span, "here"),) if slot else (),
                help=f"write `let {s.name} = …` there",
            )
        case "input":
            cx.error("assign-unknown", f"`{s.name}` is an input", s.name_span, help="give what you compute a name of its own")
        case _:
            what = f"`{s.name}` is a parameter" if s.name in me.parameters else f"there is no state or `let` called `{s.name}`"
            known = [n for b in me.names for n, slot in b.items() if slot.kind in ("state", "let")]
            cx.error("assign-unknown", what, s.name_span, help=did_you_mean(s.name, known) or f"declare it first: `state {s.name} = 0`, or set it once by `=`")


def write_weight(cx: Context, env: Env, s: syntax.Assign, value: Value) -> None:
    t = cx.combine([Value(Ref("w", "builtin", GRID)), value], s.value.span, "`w ←`")
    if value.type.samples:
        cx.error("samples-in-state", "the weight has no samples", s.value.span, help="take `sample_mean(…)` first")
    elif t is not None and states.is_stored(cx, value.expr, "weight", GRID):
        cx.weight = value.expr
    elif t is not None:
        stored = Apply("store", (value.expr,), GRID, ("weight", "w"), span=s.span)
        cx.weight = cx.emit(env, env.sites.label(s, "value"), Value(stored), s.span).expr
    cx.wrote_weight = True


def every(cx: Context, env: Env, s: syntax.Every) -> None:
    """`every n from k:`: what the block changes is, after it, the new value where it ran and the old one where it did not."""
    n = functions.whole_number(cx, env, s.count, "the count of an `every`", 0, infinite=True)
    start = functions.whole_number(cx, env, s.start, "the first step of an `every`", 0, infinite=True) if s.start is not None else 0
    if n is None or start is None:
        return
    never = n in (0, -1)
    if start == -1 or (never and (s.start is None or start == 0)):
        if cx.checking:
            with cx.discarded(env):
                block(cx, replace(env, guarded=True), s.body)
        return
    count = NEVER if never else n
    label = f"{env.path}{env.sites.label(s, 'value')}{env.rounds}"
    outside, watches = cx.block, cx.guarded_watches
    before, weight, clock = dict(cx.current), cx.weight, instance(env).clock
    lets = [(name, slot, slot.value) for b in instance(env).names for name, slot in b.items() if slot.kind == "let"]
    cx.block, cx.guarded_watches = [], []
    block(cx, replace(env, guarded=True), s.body)
    inside, inner_watches = cx.block, cx.guarded_watches
    cx.block, cx.guarded_watches = outside, watches
    yields: list[ir.Yield] = []

    def after(name: str, new: Expr, old: Expr) -> Expr:
        t = joined(new.type, old.type)
        t = replace(t, boolean=new.type.boolean and old.type.boolean)
        yields.append(ir.Yield(f"{label}.{name}", new, old, t))
        return Ref(f"{label}.{name}", "value", t, span=s.span)

    for name, new in list(cx.current.items()):
        old = before.get(name) or Ref(name, "state", cx.states[name].type)
        if new is not old and new != old:
            cx.current[name] = after(name, new, old)
    for name, slot, old_value in lets:
        if slot.value is not old_value and not slot.value.poisoned and cx.combine([slot.value, old_value], s.span, f"`{name}` after this block"):
            slot.value = Value(after(name, slot.value.expr, old_value.expr))
    if cx.weight is not weight and cx.weight is not None:
        cx.weight = after("w", cx.weight, weight or Ref("w", "builtin", GRID))
    if instance(env).clock is not clock:
        instance(env).clock = cx.current[f"{instance(env).path}t"]
    for watch_label in inner_watches:
        cx.watches[watch_label] = after(watch_label, cx.watches[watch_label], Const(0.0))
        if env.guarded:
            cx.guarded_watches.append(watch_label)
    for y in yields:
        states.note_stored(cx, y)
    if yields:
        cx.block.append(ir.Every(label, count, start or count, tuple(inside), tuple(yields), span=s.span))


def skip(cx: Context, env: Env, s: syntax.Skip, c: syntax.Expr) -> None:
    value = expression(cx, env, c)
    if value.poisoned:
        return
    if not value.type.boolean:
        cx.error("not-a-condition", "this is a number, where true or false is needed", c.span, help="compare it: `skip when norm(g) > 5`")
    elif value.type.samples:
        cx.error("samples-in-state", "a step is skipped for all samples or none", c.span, help="take `sample_mean(…)` first")
    else:
        instance(env).skips.append((cx.emit(env, env.sites.label(s, "value"), value, s.span), s.span))


def watch(cx: Context, env: Env, s: syntax.Watch, label: str, e: syntax.Expr) -> None:
    value = right_side(cx, env, e)
    if value.poisoned:
        return
    if not value.type.scope <= TENSOR or value.type.samples or value.type.window:
        cx.error(
            "watch-scope",
            f"a watch is one number for each tensor, or coarser, and this is {cx.describe(value.type)}",
            e.span,
            help="reduce it: `watch x = norm(…)`, or `mean(…) per all`",
        )
        return
    add_watch(cx, env, env.sites.label(s, "watch"), cx.emit(env, env.sites.label(s, "value"), value, s.span))


def add_watch(cx: Context, env: Env, label: str, value: Value) -> None:
    """Let a value be read from outside, under its instance's path."""
    full = env.path + label + env.rounds
    cx.watches[full] = value.expr
    if env.guarded:
        cx.guarded_watches.append(full)


def match_arms(cx: Context, env: Env, s: syntax.Match) -> Value:
    """The first arm whose condition holds for this tensor."""
    writing = [gives_weights(a.body, env.unit) for a in s.arms]
    if any(writing) and not all(writing):
        quiet = s.arms[writing.index(False)]
        cx.error(
            "arms-disagree",
            "some arms of this `match` write w, and this one does not",
            quiet.span,
            labels=(Label(s.arms[writing.index(True)].span, "this one does"),),
            help="let all write, `w ← w - lr*…`, or none",
        )
    taken: syntax.Arm | None = None
    for arm in s.arms:
        if arm.condition is None:
            taken = taken or arm
            continue
        v = expression(cx, env, arm.condition)
        if v.poisoned:
            return POISON
        if not v.type.boolean:
            return cx.error("not-a-condition", "this is a number, where true or false is needed", arm.condition.span, help="compare it: `ndim < 2`")
        holds = functions.constant(cx, v, "the condition of an arm", arm.condition.span)
        if holds is None:
            return POISON
        if holds and taken is None:
            taken = arm
    env.per_used.used = env.it_read.used = True
    for arm in s.arms:
        if arm is not taken and cx.checking:
            with cx.discarded(env):
                arm_value(cx, env, arm)
    if taken is None:
        shape = " × ".join(map(str, cx.tensor.shape)) or "0-dimensional"
        return cx.error("no-arm", f"no arm of this `match` takes `{cx.tensor.name}` ({shape})", s.span, help="end the match with `else: g`, or an arm for it")
    return arm_value(cx, env, taken)


def arm_value(cx: Context, env: Env, arm: syntax.Arm) -> Value:
    population = f"{env.population}/{arm.span.start}"
    cx.populations.add(population)
    me = instance(env)
    me.names.append({})
    me.depth += 1
    value = body(cx, replace(env, population=population, it_read=Flag()), arm.body)
    me.depth -= 1
    me.names.pop()
    return value
