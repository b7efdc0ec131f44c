"""Matrix products, transposes and the matrix functions of the table: what they need of grids, and the grid that they give."""

from __future__ import annotations

from dataclasses import replace

from updsl.core.ir import Apply, Expr, Type
from updsl.core.scope import COLUMN, ELEMENT, ROW, TENSOR
from updsl.core.source import NOWHERE, Span
from updsl.front import expression as expressions
from updsl.front import functions, syntax
from updsl.front.context import POISON, Context, Env, Value


def as_matrix(cx: Context, v: Value, span: Span) -> Value | None:
    """The value with one number for each entry of its grid; None after reporting that it has no grid."""
    if v.poisoned:
        return None
    if v.type.window or v.type.rows is None or v.type.cols is None:
        cx.error(
            "not-a-matrix",
            f"this needs a matrix, and is {'a window in time' if v.type.window else v.type.scope.one_for_each}",
            span if v.expr.span is NOWHERE else v.expr.span,
            help="use it on `g` or another value with one number for each entry",
        )
        return None
    if v.type.scope == ELEMENT:
        return v
    return Value(Apply("spread", (v.expr,), replace(v.type, scope=ELEMENT), span=span))


def matmul(cx: Context, a: Value, b: Value, span: Span) -> Value:
    x, y = as_matrix(cx, a, span), as_matrix(cx, b, span)
    if x is None or y is None:
        return POISON
    if not cx.agree(x.type.cols, y.type.rows):
        return cx.error(
            "grid-mismatch",
            f"`@` needs as many columns on its left as rows on its right, and they are {cx.grid(x.type)} and {cx.grid(y.type)}",
            span,
            help="transpose one of them: `x.T`",
        )
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


def apply(cx: Context, env: Env, e: syntax.Call, values: list[Value], given: dict[str, syntax.Expr]) -> Value:
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
        return cx.error("grid-mismatch", f"`{e.callee}` needs a square matrix, and this is {cx.grid(x.type)}", e.span, help="use `x @ x.T` or `x.T @ x`")
    match e.callee:
        case "left_basis" | "right_basis":
            k = functions.whole_number(cx, env, given["k"], "the rank of a basis", 1)
            if k is None:
                return POISON
            k = k if least is None else min(k, least)
            result, static = replace(result, rows=rows if e.callee == "left_basis" else cols, cols=k), (k,)
        case "orthonormal" if cx.size(rows) is not None and cx.size(cols) is not None and (cx.size(rows) or 0) < (cx.size(cols) or 0):
            result = replace(result, cols=rows)
        case "matrix_power":
            if not values[1].type.scope <= TENSOR:
                return cx.error(
                    "scope-mismatch",
                    f"the exponent of a matrix is one number, and this is {values[1].type.scope.one_for_each}",
                    given["a"].span,
                    help="write a number, such as `-1/4`",
                )
            args = (x.expr, values[1].expr)
        case "solve":
            b = as_matrix(cx, values[1], e.span)
            if b is None:
                return POISON
            if not cx.agree(cols, b.type.rows):
                return cx.error(
                    "grid-mismatch",
                    f"`solve(a, b)` needs as many rows in b as in a, and they are {cx.grid(x.type)} and {cx.grid(b.type)}",
                    e.span,
                    help="transpose one of them: `x.T`",
                )
            args, result = (x.expr, b.expr), replace(b.type, samples=x.type.samples or b.type.samples, boolean=False)
        case "trace":
            result = Type(TENSOR, samples=x.type.samples)
        case "diag":
            result = Type(ROW, rows, None, samples=x.type.samples)
        case "rows" | "cols":
            return expressions.attribute(cx, e.callee, x.type, e.span)
    return Value(Apply(e.callee, args, result, static, span=e.span))
