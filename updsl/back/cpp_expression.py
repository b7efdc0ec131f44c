"""Expression → C++, over names that are given for what it refers to."""

from __future__ import annotations

import re

from updsl.back.kernel_expression import KernelExpressions
from updsl.core.ir import Apply, Const, Expr
from updsl.core.ops import OPS

TYPES = {"float64": "double", "float32": "float", "bfloat16": "bfloat", "float16": "half", "bool": "bool"}
"""C++ types of entries in memory, by dtype."""
CALL = re.compile(r"[\w:]+\(.*\)$")
"""A template that needs no brackets around it."""


class Expressions(KernelExpressions):
    """real: "real" in sweeps, "double" in stages."""

    def number(self, value: float | bool) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        text = "NOT_A_NUMBER" if value != value else ("INF" if value > 0 else "-INF") if abs(value) == float("inf") else repr(float(value))
        return text if self.real == "double" else f"real({text})"

    def apply(self, e: Apply) -> str:
        match e:
            case Apply("pow", (x, Const(2.0))):
                return f"square({self.as_real(x)})"
            case Apply("select", (c, x, y)):
                of = self if e.type.boolean else self.as_real
                return f"({self(c)} ? {of(x)} : {of(y)})"
        op = OPS[e.op]
        values = [self(a) if a.type.boolean and (op.boolean or op.conditions) else self.as_real(a) if not op.conditions else self(a) for a in e.args]
        text = op.cpp.format(**dict(zip(op.args, values, strict=True)))
        return text if CALL.match(op.cpp) else f"({text})"

    def as_real(self, e: Expr) -> str:
        """As a number."""
        return f"{self.real}({self(e)})" if e.type.boolean else self(e)

    def stored(self, text: str, dtype: str) -> str:
        """Rounded to a type."""
        if dtype == "bool":
            return f"bool({text})"
        return f"{self.real}(load(store<{TYPES[dtype]}>({text})))"
