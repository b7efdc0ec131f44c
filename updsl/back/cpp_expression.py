"""Expression → C++, over names that are given for what it refers to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from updsl.core.diagnostic import InternalError
from updsl.core.ir import Apply, Const, Expr, Reduce, Ref
from updsl.core.ops import OPS

TYPES = {"float64": "double", "float32": "float", "bfloat16": "bfloat", "float16": "half", "bool": "bool"}
"""C++ types of entries in memory, by dtype."""
CALL = re.compile(r"[\w:]+\(.*\)$")
"""A template that needs no brackets around it."""


class Expressions:
    """refer: a reference → C++. dtypes: of each state, and of "w". real: the type of arithmetic, "real" in sweeps, "double" in stages."""

    def __init__(self, refer: Callable[[Ref], str], dtypes: Mapping[str, str], real: str):
        self.refer, self.dtypes, self.real = refer, dtypes, real

    def __call__(self, e: Expr) -> str:
        match e:
            case Const():
                return self.number(e.value)
            case Ref():
                return self.refer(e)
            case Apply():
                return self.apply(e)
            case Reduce():
                raise InternalError(f"the reduction `{e.op}` has no name")

    def outer(self, e: Expr) -> str:
        """Without brackets around the whole."""
        text = self(e)
        return text[1:-1] if text.startswith("(") and _closes_last(text) else text

    def number(self, value: float | bool) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        text = "NOT_A_NUMBER" if value != value else ("INF" if value > 0 else "-INF") if abs(value) == float("inf") else repr(float(value))
        return text if self.real == "double" else f"real({text})"

    def apply(self, e: Apply) -> str:
        match e:
            case Apply("spread", (x,)):
                return self(x) if x.type.boolean or not e.type.boolean else f"({self(x)} != 0)"
            case Apply("store", (x,), static=(dtype, of)):
                return self.stored(self.outer(x), dtype if dtype in TYPES else self.dtypes[of])
            case Apply("pow", (x, Const(2.0))):
                return f"square({self.as_real(x)})"
            case Apply("select", (c, x, y)) if not e.type.boolean:
                return f"({self(c)} ? {self.as_real(x)} : {self.as_real(y)})"
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


def _closes_last(text: str) -> bool:
    """Whether the bracket that a text begins with is closed by its last character."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i == len(text) - 1
    return False
