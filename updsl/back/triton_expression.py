"""Expression → Triton, over names that are given for what it refers to."""

from __future__ import annotations

import re

from updsl.back.kernel_expression import KernelExpressions
from updsl.back.torch_names import Names
from updsl.back.triton_prelude import PRELUDE
from updsl.core.ir import Apply, Const, Expr, joined
from updsl.core.ops import OPS

TYPES = {"float64": "tl.float64", "float32": "tl.float32", "bfloat16": "tl.bfloat16", "float16": "tl.float16", "bool": "tl.int8"}
"""Triton's types of entries in memory, by dtype."""
CALL = re.compile(r"[\w.]+\(.*\)$")
"""A template that needs no brackets around it."""
WORD = {"tl.float64": "f64", "tl.float32": "f32"}
"""What makes a literal of a type."""


LOCALS = "t i j c k i0 j0 at inside ok rows cols numel top bottom left right chunk kind variant group every idle range triton tl M G T R C ALIGNED".split()
RESERVED = frozenset([*LOCALS, *re.findall(r"def (\w+)", PRELUDE), *(f"{table}{n}" for table in ("K", "P", "T") for n in ("", *range(100)))])
"""Names of generated texts that no value may have."""


def fresh_names() -> Names:
    """Of a function."""
    names = Names()
    names.taken |= RESERVED
    return names


class Expressions(KernelExpressions):
    """real: "tl.float32" or "tl.float64"."""

    def number(self, value: float | bool) -> str:
        """With its type: the literals of a call alone would be taken for float32."""
        return f"holds({value})" if isinstance(value, bool) else f"{WORD[self.real]}({literal(value)})"

    def apply(self, e: Apply) -> str:
        match e:
            case Apply("pow", (x, Const(2.0))):
                return f"square({self.as_real(x, True)})"
        op = OPS[e.op]
        call = bool(CALL.match(op.triton))
        bare = not call and not all(isinstance(a, Const) for a in e.args)
        conditions = (0,) if e.op == "select" and not e.type.boolean else tuple(range(len(e.args))) if op.conditions or e.type.boolean else ()
        values = [self.operand(a, bare, call, i in conditions and a.type.boolean) for i, a in enumerate(e.args)]
        if e.op in ("and", "or"):
            values = [f"truth({v})" if is_coarser(a, e) else v for a, v in zip(e.args, values, strict=True)]
        text = op.triton.format(**dict(zip(op.args, values, strict=True)))
        return text if call else f"({text})"

    def operand(self, a: Expr, bare: bool, call: bool, condition: bool) -> str:
        """Of an op: a condition as it is, else a number; bare literals have the type of the other operand."""
        if condition:
            return self.outer(a) if call else self(a)
        if bare and isinstance(a, Const) and not isinstance(a.value, bool) and a.value == a.value and abs(a.value) != float("inf"):
            return repr(float(a.value))
        return self.as_real(a, call)

    def as_real(self, e: Expr, outer: bool = False) -> str:
        """As a number."""
        if e.type.boolean:
            return f"{self(e)}.to({self.real})"
        return self.outer(e) if outer else self(e)

    def stored(self, text: str, dtype: str) -> str:
        """Rounded to a type."""
        return f"({text})" if dtype == "bool" or TYPES[dtype] == self.real else f"{converted(text, TYPES[dtype])}.to({self.real})"


def is_coarser(a: Expr, e: Expr) -> bool:
    """Whether a condition is computed from values of coarser scope than its result's, whatever type it has itself."""
    return isinstance(a, Apply) and (a.type.scope != e.type.scope or joined(*(x.type for x in a.args)).scope != e.type.scope)


def converted(text: str, type_: str) -> str:
    """To a type of entries."""
    return f"bfloat({text})" if type_ == "tl.bfloat16" else f"({text}).to({type_})"


def literal(value: float) -> str:
    if value != value:
        return 'float("nan")'
    return ('float("inf")' if value > 0 else '-float("inf")') if abs(value) == float("inf") else repr(float(value))
