"""Identities: each a small function of one node, of the same meaning, whose cost is never more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from updsl.core.ir import Apply, Binding, Const, Expr, Program, Reduce, Ref, Statement, Type, bindings, rewrite
from updsl.core.scope import COLUMN, ELEMENT, ROW, TENSOR
from updsl.middle.flat import Programs, is_joint_root, tidy, with_roots

SIZES = {ROW: "cols", COLUMN: "rows", TENSOR: "numel"}
"""How many entries a cell has."""


def mean_of_choice(e: Expr) -> Expr:
    """mean(if c then 1 else 0) → count(c) / n, for the n entries of a cell."""
    match e:
        case Reduce("mean", (Apply("select", (c, Const(1.0), Const(0.0)), type=t),), scope) if scope in SIZES and t.scope == ELEMENT == c.type.scope:
            return Apply("div", (Reduce("count", (c,), scope, e.type, span=e.span), Ref(SIZES[scope], "builtin", Type(TENSOR))), e.type)
        case _:
            return e


def sum_of_choice(e: Expr) -> Expr:
    """sum(if c then 1 else 0) → count(c)."""
    match e:
        case Reduce("sum", (Apply("select", (c, Const(1.0), Const(0.0)), type=t),), scope) if c.type.scope == t.scope:
            return Reduce("count", (c,), scope, e.type, span=e.span)
        case _:
            return e


def average(e: Expr) -> Expr:
    """β·m + (1 - β)·x → average(β, m, 1 - β, x)."""
    match e:
        case Apply("add", (a, b)):
            for first, second in ((a, b), (b, a)):
                for (beta, m), (c, x) in product(_factors(first), _factors(second)):
                    if _is_rest(c, beta):
                        return Apply("average", (beta, m, c, x), e.type, span=e.span)
    return e


def _factors(e: Expr) -> tuple[tuple[Expr, Expr], ...]:
    """Of a product, each with the other."""
    match e:
        case Apply("mul", (x, y)):
            return (x, y), (y, x)
        case _:
            return ()


def _is_rest(c: Expr, beta: Expr) -> bool:
    """Whether c is 1 - β."""
    match c, beta:
        case Const(float(x)), Const(float(y)):
            return 1.0 - x == y
        case Apply("sub", (Const(1.0), y)), _:
            return y == beta
        case _:
            return False


IDENTITIES: tuple[Callable[[Expr], Expr], ...] = (mean_of_choice, sum_of_choice)


def averaged(program: Program) -> Program:
    """The program with every moving average as one op."""

    def of(s: Statement) -> Statement:
        return replace(s, expr=rewrite(s.expr, average)) if isinstance(s, Binding) else replace(s, body=tuple(map(of, s.body)))

    after = replace(program, body=tuple(map(of, program.body)), commits=tuple((name, rewrite(e, average)) for name, e in program.commits))
    return program if after == program else after


def simplified(programs: Programs) -> Programs:
    """The Programs with every identity applied, leaves first."""

    def step(e: Expr) -> Expr:
        for identity in IDENTITIES:
            e = identity(e)
        return e

    def of(p: Program) -> Program:
        p = replace(p, body=tuple(replace(b, expr=rewrite(b.expr, step)) for b in bindings(p.body)))
        return with_roots(p, lambda r: r.expr if is_joint_root(r) else rewrite(r.expr, step))

    return tidy({c: of(p) for c, p in programs.items()})
