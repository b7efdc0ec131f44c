"""States: their declaration, refinement, assignment, reset, the clock of an instance, and what `skip` undoes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from updsl.core import ir
from updsl.core.diagnostic import Label, did_you_mean
from updsl.core.ir import Apply, Const, Expr, Ref, Type, is_shared, joined
from updsl.core.scope import ALL, TENSOR
from updsl.core.source import Span
from updsl.front import expression as expressions
from updsl.front import syntax
from updsl.front.contents import nodes
from updsl.front.context import Context, Default, Env, Flag, Instance, Slot, Value


def declare(cx: Context, env: Env, item: syntax.StateItem) -> None:
    """`state m = init [per scope] [as dtype]`."""
    me = env.instance
    assert me is not None
    init = initial(cx, env, item)
    name = env.path + env.sites.label(item, "state") + env.rounds
    told = (d for d in cx.facts.mistaken.get(name, ()) if d.code != "state-scope")  # what a wrong update makes of a state says nothing of its scope
    cx.diagnostics.extend(d for d in told if d not in cx.diagnostics)
    if init.poisoned:
        mistake(cx, name)
        me.names[-1][item.name] = Slot("state", init, item.name_span, name, me.depth)
        cx.states[name] = ir.State(name, Const(0.0), cx.facts.states.get(name, Type(ALL)), item.dtype, span=item.span)
        return
    known = cx.facts.states.get(name)
    t = joined(init.type, known) if known else init.type
    t = joined(t, Type(TENSOR)) if name in cx.facts.finer else t
    t = replace(t, boolean=init.type.boolean and (known is None or known.boolean))
    learn(cx, name, t)
    closed = is_closed(init.expr)
    cx.states[name] = ir.State(name, cx.settle(init.expr) if closed else Const(0.0), t, item.dtype, span=item.span)
    me.names[-1][item.name] = Slot("state", init, item.name_span, name, me.depth)
    me.subtree.append(name)
    if t.window:
        return
    if not closed:
        first = expressions.elementwise(cx, "eq", [expressions.builtin(cx, env, syntax.Name("t", span=item.span)), Value(Const(1.0), 1.0)], item.span)
        now = expressions.read(cx, name, item)
        store(cx, env, name, env.sites.label(item, "value"), expressions.elementwise(cx, "select", [first, init, now], item.span), item.span)
    if item.scope is not None:
        check_declared_scope(cx, env, item, name)


def mistake(cx: Context, name: str) -> None:
    """Note that an update of this state is wrong. Early passes know too little to tell, so that only the last one counts (elaborate.py)."""
    if name not in cx.facts.mistaken:
        cx.mistaken[name] = tuple(cx.diagnostics)


def check_declared_scope(cx: Context, env: Env, item: syntax.StateItem, name: str) -> None:
    """With `per S` the scope found from the updates must be S."""
    wanted = expressions.scope_of(cx, env, item.scope) if item.scope else None
    found = cx.facts.states[name].scope
    if wanted is not None and found != wanted and not cx.facts.changed and name in cx.facts.assigned and name not in cx.facts.mistaken:
        text = env.sites.declaration.body
        updates = (n for n in nodes(text) if isinstance(n, syntax.Assign) and n.name == item.name)
        resets = (n.condition for n in nodes(text) if isinstance(n, syntax.Reset) and n.condition is not None and any(x.id == item.name for x in n.names))
        cx.error(
            "state-scope",
            f"`{item.name}` is declared `per {wanted}`, and its updates make it {found.one_for_each}",
            item.span,
            labels=(*(Label(n.value.span, "its update") for n in updates), *(Label(c.span, "its reset") for c in resets)),
            help=f"write `mean(…) per {wanted}` in its update, or declare it `per {found}`"
            if wanted < found
            else f"declare it `per {found}`, or without `per`",
        )


def initial(cx: Context, env: Env, item: syntax.StateItem) -> Value:
    """The value of a state's `init`, as of here."""
    for n in nodes(item.init):
        match n:
            case syntax.Name(id=("t" | "batch") as name):
                return cx.error(
                    "state-init",
                    f"the start of a state cannot read `{name}`: it is worked out before the first step",
                    n.span,
                    help="use a number, and `if t == 1 then … else …` in the update",
                )
            case syntax.Name(id=("g" | "it") as name):
                return cx.error(
                    "state-init",
                    f"the start of a state cannot read `{name}`",
                    n.span,
                    help="start from the first value by `if t == 1 then g else m` in the update",
                )
            case syntax.Name(id=name) if env.instance and env.instance.slot(name):
                return cx.error(
                    "state-init",
                    f"the start of a state cannot read `{name}`: it may read `w`, parameters and attributes",
                    n.span,
                    help="use a number, and `if t == 1 then … else …` in the update",
                )
    inner = replace(env, it=None)
    if item.scope is not None:
        scope = expressions.scope_of(cx, env, item.scope)
        if scope is not None:
            inner = replace(inner, default=Default(scope, item.scope.span), per_used=Flag())
    if expressions.is_ambiguous(item.init, env):
        message = "the start of a state has nothing to take a norm of: nothing flows here"
        return cx.error("state-init", message, item.init.span, help="write a number, or the norm of the weight: `norm(w)`")
    value = expressions.expression(cx, inner, item.init)
    if isinstance(value.static, str):
        return cx.error("text-as-number", "a state keeps numbers, and this is a text", item.init.span, help="write a number, such as `0`")
    return value


def is_closed(e: Expr) -> bool:
    """Whether a start can be evaluated before anything else of the step."""
    for n in ir.walk(e):
        match n:
            case Ref(kind="param"):
                continue
            case Ref(kind="builtin", name=name) if name not in ("g", "t", "batch"):
                continue
            case Ref():
                return False
    return True


def learn(cx: Context, name: str, t: Type) -> None:
    """Keep a state's type for the next pass."""
    if cx.facts.states.get(name) != t:
        cx.facts.states[name] = t
        cx.facts.changed = True


def assign(cx: Context, env: Env, slot: Slot, label: str, value: Value, span: Span) -> None:
    """`m ← value`, refining the state's scope and grid."""
    name, old = slot.state, cx.states[slot.state]
    cx.facts.assigned.add(name)
    if value.poisoned:
        mistake(cx, name)
    if value.type.samples:
        cx.error("samples-in-state", "a state keeps no samples", span, help="take `sample_mean(…)` first")
        mistake(cx, name)
        return
    if cx.combine([Value(Ref(name, "state", old.type)), value], span, f"the state `{name}`") is None:
        mistake(cx, name)
        return
    t = joined(old.type, value.type)
    t = replace(t, boolean=old.type.boolean and value.type.boolean)
    me = env.instance
    assert me is not None
    if is_shared(t) and slot.depth < me.depth:
        cx.error(
            "state-in-arm",
            f"`{name}` is one value for several tensors, and this arm would set it for some of them",
            span,
            labels=(Label(slot.span, "declared here"),),
            help="declare it in the arm, or compute it before the `match`",
        )
        return
    learn(cx, name, t)
    cx.states[name] = replace(old, type=t)
    store(cx, env, name, label, value, span)


def store(cx: Context, env: Env, name: str, label: str, value: Value, span: Span) -> None:
    """Round a value to the state's type; from here on the state reads it."""
    e = cx.refined(f"value {env.path}{label}{env.rounds}", value.expr)
    cx.current[name] = cx.emit(env, label, Value(rounded(cx, name, e, span)), span).expr


def rounded(cx: Context, name: str, e: Expr, span: Span) -> Expr:
    """The expression as a value of the state, which it may refine. What is rounded already is not rounded again."""
    state = refine(cx, name, e.type)
    if state.type.window or is_stored(cx, e, state.dtype or "state", state.type):
        return e
    return Apply("store", (e,), state.type, (state.dtype or "state", name), span=span)


def refine(cx: Context, name: str, t: Type) -> ir.State:
    """The state, of a scope and grid that can hold values of this type."""
    state = cx.states[name]
    both = joined(state.type, t)
    if both != replace(state.type, boolean=False):
        learn(cx, name, replace(both, boolean=state.type.boolean and t.boolean))
        cx.states[name] = replace(state, type=cx.facts.states[name])
    return cx.states[name]


def is_stored(cx: Context, e: Expr, dtype: str, t: Type) -> bool:
    """Whether a value has been rounded to this type already."""
    match e:
        case Ref(kind="state", name=name):
            return e.type == t and (cx.states[name].dtype or "state") == dtype
        case Ref(kind="builtin", name="w"):
            return dtype == "weight"
        case Ref(kind="value", name=name):
            return cx.stored.get(name) == (dtype, t)
        case _:
            return False


def note_stored(cx: Context, y: ir.Yield) -> None:
    """What a block leaves is rounded if both its values are."""
    match y.inner:
        case Ref(kind="value", name=name):
            known = cx.stored.get(name)
        case Ref(kind="state", name=name, type=t):
            known = cx.states[name].dtype or "state", t
        case _:
            known = None
    if known and all(is_stored(cx, x, *known) for x in (y.inner, y.outer)):
        cx.stored[y.name] = known


def reset(cx: Context, env: Env, s: syntax.Reset) -> None:
    """`reset a, b [when c]`: from here on these read their start, worked out anew."""
    condition = _condition(cx, env, s)
    me = env.instance
    assert me is not None
    me.begun = me.begun or s.span
    declared = {i.name: i for n in nodes(me.rule.body) if isinstance(n, syntax.State) for i in n.items}
    for n in s.names:
        slot = me.slot(n.id)
        if slot is None or slot.kind != "state":
            known = [x for b in me.names for x, y in b.items() if y.kind == "state"]
            cx.error(
                "assign-unknown",
                f"there is no state `{n.id}` to reset" if slot is None else f"`{n.id}` is no state: it keeps nothing between steps",
                n.span,
                labels=() if slot is None else (Label(slot.span, "set here"),),
                help=did_you_mean(n.id, known) or "name a state; `reset` alone restarts the whole rule",
            )
            continue
        fresh = initial(cx, env, declared[n.id]) if slot.value.poisoned is False else slot.value
        if condition is not None and expressions.is_static(cx, condition):
            fresh = fresh if condition.static else expressions.read(cx, slot.state, s)
        elif condition is not None:
            fresh = expressions.elementwise(cx, "select", [condition, fresh, expressions.read(cx, slot.state, s)], s.span)
        if not fresh.poisoned:
            store(cx, env, slot.state, f"{env.sites.label(s, 'value')}.{n.id}", fresh, s.span)


def reset_all(cx: Context, env: Env, s: syntax.Reset) -> None:
    """`reset`: this instance and all it applies start anew; this step is their first."""
    me = env.instance
    assert me is not None
    if me.begun is not None:
        cx.error(
            "reset-late",
            "`reset` comes after something that it would undo",
            s.span,
            labels=(Label(me.begun, "this is before it"),),
            help="move `reset` up, before every `←` and every rule that is applied",
        )
        return
    condition = _condition(cx, env, s)
    label = f"{env.sites.label(s, 'value')}."
    starts = _own_starts(cx, env, me)
    for name in cx.facts.subtrees.get(me.path, ()):
        known = cx.facts.known.get(name)
        if known is None:
            continue
        state = cx.states.setdefault(name, known)
        now = Value(cx.current.get(name, Ref(name, "state", state.type)))
        fresh = Value(Apply("empty", (), state.type)) if state.type.window else starts[name]() if name in starts else Value(state.init or Const(0.0))
        if name == f"{me.path}t" or name == f"{me.path}t@tensor":
            fresh = Value(Const(1.0))
        if condition is not None and expressions.is_static(cx, condition):
            fresh = fresh if condition.static else now
        elif condition is not None:
            t = joined(condition.type, state.type)
            fresh = Value(Apply("select", (condition.expr, fresh.expr, now.expr), replace(t, boolean=False), span=s.span))
        inner = name.removeprefix(me.path)
        store(
            cx,
            replace(env, rounds=""),
            name,
            label + inner + env.rounds if not inner.endswith("@tensor") else f"{label}{inner.removesuffix('@tensor')}{env.rounds}@tensor",
            fresh,
            s.span,
        )
    if f"{me.path}t" in cx.facts.clocks:
        me.clock = cx.current.get(f"{me.path}t", me.clock)
        keep_clock(cx, me.clock)


def _own_starts(cx: Context, env: Env, me: Instance) -> dict[str, Callable[[], Value]]:
    """How the states that the instance has declared so far start, by state: worked out anew, as of here."""
    declared = {i.name: i for n in nodes(me.rule.body) if isinstance(n, syntax.State) for i in n.items}
    slots = {slot.state: declared[name] for names in me.names for name, slot in names.items() if slot.kind == "state" and not slot.value.poisoned}
    return {state: partial(initial, cx, env, item) for state, item in slots.items()}


def _condition(cx: Context, env: Env, s: syntax.Reset) -> Value | None:
    if s.condition is None:
        return None
    value = expressions.expression(cx, env, s.condition)
    if value.type.samples:
        return cx.error("samples-in-state", "a state is reset for all samples or none", s.condition.span, help="take `sample_mean(…)` first")
    if value.type.window:
        return cx.error("window-outside", "a window stands only under a reduction", s.condition.span, help="reduce it: `any(x → history(9) > 5)`")
    if not value.type.boolean and not value.poisoned:
        cx.error("not-a-condition", "this is a number, where true or false is needed", s.condition.span, help="compare it: `reset m when t > 9`")
    return value if expressions.is_static(cx, value) else cx.emit(env, f"{env.sites.label(s, 'value')}.when", value, s.span)


# --- clocks and skips ------------------------------------------------------------------------------------------------


def start_clock(cx: Context, env: Env, me: Instance) -> None:
    """An instance whose steps may be undone or restarted counts them in a state, if its text reads `t`."""
    name = f"{me.path}t"
    if not me.own_clock or name not in cx.facts.clocks:
        return
    t = joined(cx.facts.states.get(name, Type(ALL)), Type(TENSOR if name in cx.facts.finer else ALL))
    for which, of in ((name, t), (f"{name}@tensor", Type(TENSOR))):
        if which != name and not is_shared(t):
            continue
        learn(cx, which, of)
        start = Const(0.0) if which == name else Apply("spread", (Const(0.0),), of)
        cx.states[which] = ir.State(which, start, of, span=me.rule.span)
        me.subtree.append(which)
        now = expressions.read(cx, which, me.rule)
        suffix = "@tensor" if which != name else ""
        store(cx, replace(env, rounds=""), which, f"t{suffix}", Value(Apply("add", (now.expr, Const(1.0)), of)), me.rule.span)
    me.clock = cx.current[name]
    keep_clock(cx, me.clock)


def keep_clock(cx: Context, clock: Expr | None) -> None:
    """Values of scope tensor or finer read the tensor's own count, which stands beside one of coarser scope as its twin."""
    if isinstance(clock, Ref):
        cx.hosts.add(clock.name)
        if is_shared(clock.type):
            cx.twins[clock.name] = Type(TENSOR)
            cx.hosts.add(f"{clock.name}@tensor")


def freeze(cx: Context, env: Env, me: Instance, out: Value, weight_before: Expr | None) -> Value:
    """Where a `skip` holds, the states are as before the step, w is not written, and out is 0."""
    span = me.skips[0][1]
    condition, always = _skipped(cx, env, me)
    for name in dict.fromkeys(me.subtree):
        now, state = cx.current.get(name), cx.states[name]
        if now is None:
            continue
        if not condition.type.scope <= state.type.scope and not _is_clock(name):
            cx.error(
                "skip-scope",
                f"this condition is {condition.type.scope.one_for_each}, finer than the state `{name}`, {state.type.scope.one_for_each}",
                span,
                labels=(Label(state.span, "the state that it would freeze"),),
                help="reduce the condition: `any(…) per all`",
            )
            continue
        if cx.facts.known.get(name) != state:
            cx.facts.known[name] = state
        old = Ref(name, "state", state.type)
        if always is None:
            t = joined(condition.type, state.type)
            kept = Apply("select", (condition.expr, old, now), replace(t, boolean=state.type.boolean), span=span)
            store(cx, replace(env, rounds=""), name, f"kept.{name.removeprefix(me.path)}", Value(kept), span)
        elif always:
            cx.current[name] = old
    if always is False:
        return out
    if cx.weight is not None and cx.weight is not weight_before:
        before = weight_before or Ref("w", "builtin", cx.weight.type)
        kept = Apply("select", (condition.expr, before, cx.weight), cx.weight.type, span=span)
        stored = Apply("store", (kept,), cx.weight.type, ("weight", "w"), span=span)
        cx.weight = before if always else cx.emit(env, "w.kept", Value(stored), span).expr
    if out.poisoned:
        return out
    return expressions.elementwise(cx, "select", [condition, Value(Const(0.0), 0.0), replace(out, static=None)], span)


def _skipped(cx: Context, env: Env, me: Instance) -> tuple[Value, bool | None]:
    """Where one of the instance's `skip`s holds; and whether that is everywhere or nowhere, if it is known."""
    conditions, span = [c for c, _ in me.skips], me.skips[0][1]
    known = [bool(c.static) for c in conditions if expressions.is_static(cx, c)]
    condition = conditions[0]
    for other in conditions[1:]:
        condition = expressions.elementwise(cx, "or", [condition, other], span)
    if any(known) or len(known) == len(conditions):
        return condition, any(known)
    return cx.emit(env, "skipped", condition, span), None


def _is_clock(name: str) -> bool:
    return name.removesuffix("@tensor").rsplit(".", 1)[-1] == "t"
