"""Where a step would store what is already there: a number for each tensor tells, and its last sweep is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from updsl.core.ir import Apply, Binding, Const, Expr, Program, Ref, Type
from updsl.core.scope import TENSOR
from updsl.core.straight import local_roots
from updsl.middle.flat import Programs, changing
from updsl.middle.lift import ONE, is_full, is_streamed

CONDITION = Type(TENSOR, boolean=True)
NAME = "(idle)"


def with_idle(programs: Programs) -> tuple[Programs, Mapping[int, str]]:
    """The Programs with a binding that says where `out` is g itself, and its name, for the classes that give nothing else for each entry."""
    found = {c: e for c, p in programs.items() if (e := condition(p)) is not None}
    made = {c: replace(p, body=(*p.body, Binding(NAME, found[c]))) if c in found else p for c, p in programs.items()}
    return made, dict.fromkeys(found, NAME)


def condition(program: Program) -> Expr | None:
    """Where c·g, g / c, or a choice of these and g, is g: where c is 1. None where that is never known."""
    meant = {b.name: b.expr for b in program.body if isinstance(b, Binding) and is_full(b.expr)}

    def same(e: Expr) -> Expr | None:
        match e:
            case Ref("g", "builtin"):
                return Const(True)
            case Ref(name, "value") if name in meant:
                return same(meant[name])
            case Apply("mul" | "div", (x, c)) if is_number(c):
                return both(Apply("eq", (c, ONE), CONDITION), same(x))
            case Apply("mul", (c, x)) if is_number(c):
                return both(Apply("eq", (c, ONE), CONDITION), same(x))
            case Apply("select", (c, x, y)) if is_number(c):
                a, b = same(x) or Const(False), same(y) or Const(False)
                return None if Const(False) == a == b else Apply("select", (c, a, b), CONDITION)
            case _:
                return None

    stored = [r for r in changing(local_roots(program)) if is_streamed(r)]
    found = same(stored[0].expr) if [r.role for r in stored] == ["out"] else None
    return None if found == Const(True) else found


def is_number(e: Expr) -> bool:
    """For each tensor, or for several."""
    return e.type.scope <= TENSOR


def both(a: Expr, b: Expr | None) -> Expr | None:
    return None if b is None else a if b == Const(True) else Apply("and", (a, b), CONDITION)
