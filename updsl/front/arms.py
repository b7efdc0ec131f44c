"""`match`: which arm a tensor takes, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from updsl.core.diagnostic import Label
from updsl.core.frame import Tensor
from updsl.front import expression as expressions
from updsl.front import functions, statements, syntax
from updsl.front.contents import gives_weights
from updsl.front.context import POISON, Context, Env, Flag, Value


def choose(cx: Context, env: Env, s: syntax.Match) -> Value:
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
        v = expressions.expression(cx, env, arm.condition)
        if v.poisoned:
            return POISON
        if not v.type.boolean:
            return cx.error("not-a-condition", "this is a number, where true or false is needed", arm.condition.span, help="compare it: `ndim < 2`")
        holds = functions.constant(cx, v, "the condition of an arm", arm.condition.span)
        if holds is None:
            return POISON
        if holds and taken is None:
            taken = arm
    env.it_read.used = env.it_read.used or any(expressions.may_read(env, arm.body) for arm in s.arms)
    env.per_used.used = env.per_used.used or any(expressions.may_reduce(env, arm.body) for arm in s.arms)
    for arm in s.arms:
        if arm is not taken and cx.to_look_at(arm):
            with cx.discarded(env):
                value_of(cx, env, arm)
    if taken is None:
        return cx.error("no-arm", not_taken([cx.tensor]), s.span, help="end the match with `else: g`, or an arm for it")
    return value_of(cx, env, taken)


def not_taken(tensors: Sequence[Tensor]) -> str:
    """That no arm takes these, the first few by name."""
    first = [f"`{t.name}` ({' × '.join(map(str, t.shape)) or '0-dimensional'})" for t in tensors[:3]]
    more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return f"no arm of this `match` takes {', '.join(first)}{more}"


def value_of(cx: Context, env: Env, arm: syntax.Arm) -> Value:
    population = cx.population(env, arm)
    me = statements.instance(env)
    me.names.append({})
    me.depth += 1
    value = statements.body(cx, replace(env, population=population, it_read=Flag()), arm.body)
    me.depth -= 1
    me.names.pop()
    return value
