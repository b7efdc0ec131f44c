"""Values at the edges of the number types, and a Program that applies every elementwise op to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from handmade import GRID, INF, NAN, apply, expr, given, program, value

from updsl.core.ir import Input, Program, State, Type
from updsl.core.ops import OPS, Op

EDGES = [NAN, INF, -INF, 0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1e-160, -1e160, 1.7e308, -1.7e308, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.25, 0.1, 1e17]
EDGES32 = [x for x in EDGES if not 1e38 < abs(x) < INF and not 0 < abs(x) < 1e-37] + [1e-45, -1e-45, 1.2e-38, 3e38, -3e38, 1e-20, 1e19]
ELEMENTWISE = [op for op in OPS.values() if op.kind == "elementwise"]


def every_op(ops: Iterable[Op] = ELEMENTWISE, type_: Type = GRID, kind: str = "stream") -> Program:
    """Each of the ops on the inputs (x, y, z), one state each, so that all results are seen."""
    x, y, z = (given(name, type_) for name in "xyz")
    states, commits, body = [], [], []
    for op in ops:
        operands = [apply("gt", x, y), y, x] if op.name == "select" else [x, y, z]
        if op.name == "average":
            c = apply("clamp", z, 0.0, 1.0)
            operands = [apply("sub", 1.0, c), x, c, y]
        if op.conditions:
            operands = [apply("gt", a, 0) for a in operands]
        e = apply(op.name, *operands[: len(op.args)], type_=replace(type_, boolean=op.boolean))
        body.append((f"x {op.name}", e))
        states.append(State(f"s {op.name}", expr(0), type_))
        commits.append((f"s {op.name}", apply("spread", value(f"x {op.name}", e.type), type_=type_)))
    return program(body, states=states, commits=commits, inputs=[Input(name, kind, type_) for name in "xyz"])


def triples(edges: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of edges, and a third beside it."""
    x = np.array(edges)
    a, b = (y.ravel() for y in np.meshgrid(x, x, indexing="ij"))
    return a, b, np.roll(a, 7)
