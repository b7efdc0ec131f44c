"""What the Triton kernels cover."""

from __future__ import annotations

from collections.abc import Iterator

from updsl.back.cpp_covers import is_foreign, uncovered
from updsl.core.ir import Apply, Expr, Program, roots, walk
from updsl.core.ops import OPS


def uncovered_on_gpu(program: Program) -> str:
    """What of the program the kernels do not cover, in words; "" if nothing."""
    return uncovered(program) or next(_ops(program), "")


def is_foreign_on_gpu(n: Expr) -> bool:
    """Whether the Triton kernels do not cover this node, whatever its operands."""
    return is_foreign(n) or any(True for _ in _of_op(n))


def _ops(program: Program) -> Iterator[str]:
    for e in roots(program):
        for n in walk(e):
            yield from _of_op(n)


def _of_op(n: Expr) -> Iterator[str]:
    if isinstance(n, Apply) and OPS[n.op].kind == "elementwise" and not OPS[n.op].triton:
        yield f"`{n.op}`"
