"""What the kernels cover: constructs that they do not are run by torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from updsl.back.cpp_reduce import is_power
from updsl.core.ir import Apply, Expr, Program, Reduce, Ref, Type, joined, roots, walk
from updsl.core.ops import OPS
from updsl.core.scope import ELEMENT, Scope

WORDS = {
    "matrix": "matrix functions (`{}`)",
    "selection": "`{}`",
    "samples": "per-sample gradients",
    "random": "random draws (`{}`)",
}


def uncovered(program: Program) -> str:
    """What of the program the kernels do not cover, in words; "" if nothing."""
    return next(_reasons(program), "")


def is_foreign(n: Expr) -> bool:
    """Whether kernels do not cover this node, whatever its operands: torch computes it between sweeps."""
    return any(True for _ in _of_node(n))


def foreign(programs: Iterable[Program]) -> str:
    """The foreign constructs of programs, in words."""
    return ", ".join(dict.fromkeys(reason for p in programs for e in roots(p) for n in walk(e) for reason in _of_node(n)))


def _reasons(program: Program) -> Iterator[str]:
    inits = [s.init for s in program.states if s.init is not None]
    scopes: set[Scope] = {s.type.scope for s in program.states} | {i.type.scope for i in program.inputs}
    for i in program.inputs:
        if i.kind in ("samples", "matrix"):
            yield "per-sample gradients" if i.kind == "samples" else f"the matrix input `{i.name}`"
    for t in (*(s.type for s in program.states), *(i.type for i in program.inputs)):
        yield from _of_type(t)
    for e in roots(program):
        for n in walk(e):
            yield from _of_node(n)
            scopes |= {n.type.scope} | ({n.scope} if isinstance(n, Reduce) else set())
    for e in inits:
        scopes |= {n.type.scope for n in walk(e)}
    blocks = {s for s in scopes if s.size}
    if len(blocks) > 1 or (blocks and {"row", "column"} & {s.name for s in scopes}):
        yield "blocks beside rows, columns or other blocks"


def _of_node(n: Expr) -> Iterator[str]:
    yield from _of_type(n.type)
    match n:
        case Apply(op=op) if OPS[op].kind in WORDS:
            yield WORDS[OPS[op].kind].format(op)
        case Apply(op="push" | "empty"):
            yield "windows (`history`)"
        case Reduce(op="median" | "quantile" as op):
            yield f"`{op}`"
        case Reduce(args=(x, y)) if ELEMENT not in (x.type.scope, y.type.scope) and joined(x.type, y.type).scope == ELEMENT:
            yield f"`{n.op}` of values for rows and values for columns"
        case Reduce() if is_power(n):
            yield f"norms of p = {n.static[0]:g}"
        case Reduce() if any(a.type.window for a in n.args):
            yield "windows (`history`)"
        case Ref("batch", "builtin"):
            yield "per-sample gradients"


def _of_type(t: Type) -> Iterator[str]:
    if t.samples:
        yield "per-sample gradients"
    if t.window:
        yield "windows (`history`)"
    if t.scope == ELEMENT and (t.rows, t.cols) not in (("rows", "cols"), (None, None)):
        yield "values on a grid of their own"
    if t.scope.name in ("row", "column") and (t.rows or "rows", t.cols or "cols") != ("rows", "cols"):
        yield "values on a grid of their own"
