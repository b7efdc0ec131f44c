"""Rules to bindings: instances, blocks and every statement form. Expressions are in expression.py."""

from __future__ import annotations

import keyword
from dataclasses import replace

from updsl.core import ir
from updsl.core.diagnostic import Label, did_you_mean
from updsl.core.ir import GRID, Apply, Const, Expr, Ref, Type, is_shared, joined, on_grid
from updsl.core.scope import ELEMENT, TENSOR
from updsl.core.source import Span
from updsl.front import arms, functions, states, syntax
from updsl.front import expression as expressions
from updsl.front.contents import gives_weights
from updsl.front.context import POISON, Context, Env, Instance, Slot, Value, is_host
from updsl.front.unit import BOTH, BUILTIN_NAMES, FORBIDDEN, FUNCTIONS

NEVER = 2**62


def body(cx: Context, env: Env, text: syntax.Expr | tuple[syntax.Statement, ...]) -> Value:
    """What a rule's body or an arm gives."""
    if not isinstance(text, tuple):
        return expressions.expression(cx, env, text, True)
    weight = cx.weight
    value: Value | None = None
    for i, s in enumerate(text):
        if isinstance(s, syntax.Input) and (text is not instance(env).rule.body or not all(isinstance(x, syntax.Input) for x in text[:i])):
            cx.error("misplaced-statement", "`input` comes before all else of a rule", s.span, help="move it to the first line of the rule's block")
        match s:
            case syntax.Return(value=e):
                value = expressions.expression(cx, env, e, True)
                cx.returns = cx.returns if gives_weights(e, env.unit) else True
            case syntax.Match():
                value = arms.choose(cx, env, s)
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
        return expressions.elementwise(cx, "sub", [Value(before), Value(cx.weight)], text[-1].span)
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
            if not new_name(cx, env, name, s.name_span):
                instance(env).names[-1].setdefault(name, Slot("local", POISON, s.name_span))
            else:
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
                else:
                    instance(env).names[-1].setdefault(item.name, Slot("local", POISON, item.name_span))
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
    if expressions.is_ambiguous(e, env):
        return expressions.ambiguous(cx, e.body if isinstance(e, syntax.Per) else e)  # type: ignore[arg-type]
    value = expressions.expression(cx, env, e)
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
    declared = env.sites.declaration
    parameter = next((p for p in declared.parameters if p.name == name), None)
    rule = env.unit.rules.get(name.casefold()) if name not in BOTH else None
    other = env.unit.fns.get(name) or rule
    if name in BUILTIN_NAMES or name in FUNCTIONS:
        what, where = "a built-in name", None
    elif parameter is not None or name in instance(env).parameters:
        what, where = "a parameter", parameter.span if parameter is not None else None
    elif other is not None:
        what, where = f"a {'rule' if other is rule else 'function'} of this file", other.name_span
    else:
        return True
    labels = () if where is None else (Label(where, "declared here"),)
    cx.error("shadowed-name", f"`{name}` is {what}", span, labels=labels, help=f"choose another name, such as `{name}_`")
    return False


# --- statements ------------------------------------------------------------------------------------------------------


def declare_input(cx: Context, env: Env, item: syntax.InputItem) -> None:
    if not new_name(cx, env, item.name, item.span):
        return
    if item.name in FORBIDDEN or keyword.iskeyword(item.name):
        instance(env).names[-1][item.name] = Slot("input", POISON, item.span)
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
            scope = expressions.scope_of(cx, env, item.scope) if item.scope else None
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
            assign_unknown(cx, me, s)


def assign_unknown(cx: Context, me: Instance, s: syntax.Assign) -> None:
    """`name ← …` of what is neither a state nor a `let`."""
    known = [n for b in me.names for n, slot in b.items() if slot.kind in ("state", "let")]
    if s.name in me.parameters or s.name in BUILTIN_NAMES:
        what = "a parameter, which is set from outside" if s.name in me.parameters else "a built-in name"
        cx.error("assign-unknown", f"`{s.name}` is {what}", s.name_span, help=f"give what you compute a name of its own: `{s.name}_ = …`")
        return
    help_ = did_you_mean(s.name, known) or f"declare it above: `state {s.name} = 0` if it is kept between steps, `let {s.name} = …` if not"
    cx.error("assign-unknown", f"there is no state or `let` called `{s.name}`", s.name_span, help=help_)
    me.names[0].setdefault(s.name, Slot("let", POISON, s.name_span))


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
        if cx.to_look_at(s):
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
        new, old = (cx.refined(f"value {label}.{name}", e) for e in (new, old))
        t = joined(new.type, old.type)
        t = replace(t, boolean=new.type.boolean and old.type.boolean)
        yields.append(ir.Yield(f"{label}.{name}", new, old, t))
        if is_host(new, cx.hosts) and is_host(old, cx.hosts):
            cx.hosts.add(f"{label}.{name}")
        twin = cx.twin(f"{label}.{name}", new, old) if is_shared(t) and name not in cx.current else None  # a clock's own twin is a state beside it
        if twin:
            inner, outer = twin
            yields.append(ir.Yield(f"{label}.{name}@tensor", inner, outer, replace(t, scope=TENSOR)))
        return Ref(f"{label}.{name}", "value", t, span=s.span)

    for name, new in list(cx.current.items()):
        old = before.get(name) or Ref(name, "state", cx.states[name].type)
        if new is not old and new != old:
            cx.current[name] = after(name, new, old)
            states.refine(cx, name, cx.current[name].type)
    for name, slot, old_value in lets:
        if slot.value is not old_value and not slot.value.poisoned and cx.combine([slot.value, old_value], s.span, f"`{name}` after this block"):
            slot.value = Value(after(name, slot.value.expr, old_value.expr))
    if cx.weight is not weight and cx.weight is not None:
        cx.weight = after("w", cx.weight, weight or Ref("w", "builtin", GRID))
    if instance(env).clock is not clock:
        instance(env).clock = cx.current[f"{instance(env).path}t"]
        states.keep_clock(cx, instance(env).clock)
    for watch_label in inner_watches:
        cx.watches[watch_label] = after(watch_label, cx.watches[watch_label], Const(0.0))
        if env.guarded:
            cx.guarded_watches.append(watch_label)
    for y in yields:
        states.note_stored(cx, y)
    if yields:
        cx.block.append(ir.Every(label, count, start or count, tuple(inside), tuple(yields), span=s.span))


def skip(cx: Context, env: Env, s: syntax.Skip, c: syntax.Expr) -> None:
    value = expressions.expression(cx, env, c)
    if value.poisoned:
        return
    if not value.type.boolean:
        cx.error("not-a-condition", "this is a number, where true or false is needed", c.span, help="compare it: `skip when norm(g) > 5`")
    elif value.type.window:
        cx.error("window-outside", "a window stands only under a reduction", c.span, help="reduce it: `any(x → history(9) > 5)`")
    elif value.type.samples:
        cx.error("samples-in-state", "a step is skipped for all samples or none", c.span, help="take `sample_mean(…)` first")
    else:
        named = value if expressions.is_static(cx, value) else cx.emit(env, env.sites.label(s, "value"), value, s.span)
        instance(env).skips.append((named, s.span))


def watch(cx: Context, env: Env, s: syntax.Watch, label: str, e: syntax.Expr) -> None:
    first = instance(env).watches.setdefault(label, s)
    if first is not s:
        labels, help_ = (Label(first.span, "the first of this name"),), f"choose another name, such as `{label}_`"
        cx.error("duplicate-name", f"two watches are called `{label}`, and a name reads one", s.span, labels=labels, help=help_)
    value = right_side(cx, env, e)
    if value.poisoned:
        return
    if not value.type.scope <= TENSOR or value.type.samples or value.type.window:
        has = "one value for each sample" if value.type.samples else "a window in time" if value.type.window else value.type.scope.one_for_each
        help_ = "take `sample_mean(…)` first" if value.type.samples else "reduce it: `watch x = norm(…)`, or `mean(…) per all`"
        cx.error("watch-scope", f"a watch is one number for each tensor, or coarser, and this is {has}", e.span, help=help_)
        return
    add_watch(cx, env, env.sites.label(s, "watch"), cx.emit(env, env.sites.label(s, "value"), value, s.span))


def add_watch(cx: Context, env: Env, label: str, value: Value) -> None:
    """Let a value be read from outside, under its instance's path."""
    full = env.path + label + env.rounds
    cx.watches[full] = value.expr
    if env.guarded:
        cx.guarded_watches.append(full)
