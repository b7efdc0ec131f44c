"""What the Triton kernels cover."""

from __future__ import annotations

from collections.abc import Iterator

from updsl.back.cpp_covers import uncovered
from updsl.core.ir import Apply, Program, roots, walk
from updsl.core.ops import OPS


def uncovered_on_gpu(program: Program) -> str:
    """What of the program the kernels do not cover, in words; "" if nothing."""
    return uncovered(program) or next(_ops(program), "")


def _ops(program: Program) -> Iterator[str]:
    for e in roots(program):
        for n in walk(e):
            if isinstance(n, Apply) and OPS[n.op].kind == "elementwise" and not OPS[n.op].triton:
                yield f"`{n.op}`"
