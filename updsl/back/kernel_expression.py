"""What the expressions of kernels have in common: over names that are given for what an expression refers to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from updsl.back.kernel_kind import WIDTHS
from updsl.core.diagnostic import InternalError
from updsl.core.ir import Apply, Const, Expr, Reduce, Ref


class KernelExpressions(ABC):
    """refer: a reference → text. dtypes: of each state, and of "w". real: the type of arithmetic."""

    def __init__(self, refer: Callable[[Ref], str], dtypes: Mapping[str, str], real: str):
        self.refer, self.dtypes, self.real = refer, dtypes, real

    def __call__(self, e: Expr) -> str:
        match e:
            case Const():
                return self.number(e.value)
            case Ref():
                return self.refer(e)
            case Apply("spread", (x,)):
                return self(x) if x.type.boolean or not e.type.boolean else f"({self(x)} != 0)"
            case Apply("store", (x,), static=(dtype, of)):
                return self.stored(self.outer(x), dtype if dtype in WIDTHS else self.dtypes[of])
            case Apply():
                return self.apply(e)
            case Reduce():
                raise InternalError(f"the reduction `{e.op}` has no name")

    def outer(self, e: Expr) -> str:
        """Without brackets around the whole."""
        text = self(e)
        return text[1:-1] if text.startswith("(") and _closes_last(text) else text

    @abstractmethod
    def number(self, value: float | bool) -> str:
        """A literal."""

    @abstractmethod
    def apply(self, e: Apply) -> str:
        """An op of the table."""

    @abstractmethod
    def stored(self, text: str, dtype: str) -> str:
        """Rounded to a type."""


def _closes_last(text: str) -> bool:
    """Whether the bracket that a text begins with is closed by its last character."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i == len(text) - 1
    return False
