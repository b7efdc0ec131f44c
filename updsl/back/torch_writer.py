"""The body of a generated function as it is written: its arguments, lines and names, and how a value of one type is made one of another.

Numbers come in three kinds: literals; what depends on no tensor ("host": parameters, lr, t and what is computed from them), in float64; and the rest
("tensor"), in the compute dtype `real`. A host value is cast where it meets a tensor value, unless torch's own promotion (a number without dimensions never
widens a tensor with some) does the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from updsl.back.torch_names import Names
from updsl.core.ir import NUMBER, Dim, Program, Type, is_shared
from updsl.core.scope import ELEMENT

Kind = Literal["literal", "host", "tensor"]
ATOM, UNARY = 9, 8
RANKS = {"*": 7, "/": 7, "+": 6, "-": 6, "&": 4, "|": 3, "<": 1, "<=": 1, ">": 1, ">=": 1, "==": 1, "!=": 1}
"""How tightly Python's operators bind."""
DTYPES = {"float64": "torch.float64", "float32": "torch.float32", "bfloat16": "torch.bfloat16", "float16": "torch.float16"}


@dataclass(frozen=True, slots=True)
class Arg:
    """What a function is given: a stream, a state, a parameter, a value of an earlier piece, a size, …; the executor looks it up by these three."""

    kind: str
    name: str = ""
    type: Type | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """A rendered expression. `type` describes its shape exactly; flat: without dimensions; rank: how tightly its outermost operator binds; count: of a
    window, how many slots are filled."""

    text: str
    type: Type
    kind: Kind
    flat: bool = False
    rank: int = ATOM
    depth: int = 0
    count: str = ""
    value: float | bool = 0.0

    @property
    def bracketed(self) -> str:
        return self.within(ATOM)

    def within(self, rank: int) -> str:
        """The text, in brackets if it binds less tightly than `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about the value of a binding of another piece."""

    kind: Kind
    flat: bool


def literal(value: float | bool) -> Code:
    if isinstance(value, bool):
        return Code(str(bool(value)), replace(NUMBER, boolean=True), "literal", flat=True, value=bool(value))
    value = float(value)
    text = repr(value) if math.isfinite(value) else "math.nan" if math.isnan(value) else "math.inf" if value > 0 else "-math.inf"
    return Code(text, NUMBER, "literal", flat=True, rank=UNARY if text[0] == "-" else ATOM, value=value)


@dataclass
class Writer:
    """The body of one function. `local`: of a class of tensors; else of a group or of the model. `known`: bindings of earlier pieces. `full`: names of
    full-size values. `counts`: names of whole numbers from 1 on. `subject`: what lines without a name of their own are called after."""

    local: bool
    program: Program
    known: Mapping[str, Known]
    names: Names = field(default_factory=Names)
    args: dict[Arg, str] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    bound: dict[str, Code] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    counts: set[str] = field(default_factory=set)
    subject: str = "x"

    # --- names -------------------------------------------------------------------------------------------------------

    def arg(self, kind: str, name: str = "", type_: Type | None = None, wish: str = "") -> str:
        """The identifier of an argument; it becomes one at its first use."""
        key = Arg(kind, name, type_)
        if key not in self.args:
            self.args[key] = self.names.fresh(wish or name or kind)
        return self.args[key]

    def stream(self, kind: str, name: str, wish: str) -> str:
        """The identifier of a full-size argument, cast to the compute dtype."""
        fresh = Arg(kind, name) not in self.args
        text = self.arg(kind, name, wish=wish)
        if fresh:
            self.head.append(f"{text} = {text}.to({self.real})")
            self.full.add(text)
        return text

    @property
    def real(self) -> str:
        return self.arg("real")

    @property
    def device(self) -> str:
        return self.arg("device")

    def line(self, wish: str, text: str, comment: str = "") -> str:
        """A statement; gives the name of its value."""
        name = self.names.fresh(wish)
        self.lines.append(f"{name} = {text}" + (f"  # {comment}" if comment else ""))
        return name

    def named(self, c: Code, wish: str = "") -> Code:
        """The same value by name."""
        if c.kind == "literal" or c.text.isidentifier():
            return c
        name = self.line(wish or self.subject, c.text)
        if c.type.scope == ELEMENT:
            self.full.add(name)
        return replace(c, text=name, rank=ATOM, depth=0)

    def call(self, function: str, *args: str) -> str:
        return f"{function}({', '.join(a for a in args if a)})"

    # --- sizes -------------------------------------------------------------------------------------------------------

    def size(self, dim: Dim | None) -> str:
        if isinstance(dim, int):
            return str(dim)
        return self.arg("size", str(dim))

    def cells(self, t: Type) -> list[str]:
        match t.scope.name:
            case "element":
                return [self.size(t.rows), self.size(t.cols)]
            case "row":
                return [self.size(t.rows), "1"]
            case "column":
                return ["1", self.size(t.cols)]
            case "block":
                return [f"-(-{self.size(t.rows)} * {self.size(t.cols)} // {t.scope.size})", "1"]
            case _:
                return ["1", "1"]

    def shape(self, t: Type) -> str:
        """All dimensions of a value of this type."""
        samples = [self.arg("sample count", wish="samples")] if t.samples else []
        time = [str(t.window)] if t.window else []
        dims = [self.arg("stack"), *samples, *time, *self.cells(t)] if self.local else [*samples, *time]
        return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"

    @property
    def time_axis(self) -> int:
        return -3 if self.local else -1

    # --- one type to another -----------------------------------------------------------------------------------------

    def aligned(self, c: Code, want: Type) -> Code:
        """c with the dimensions of `want`, those along which it is constant with size 1."""
        have = c.type
        text, rank = c.text, c.rank
        if c.flat:
            return c
        if have.scope.size and want.scope == ELEMENT:
            text, rank = self.call("runtime.from_blocks", text, str(have.scope.size), *self.cells(want)), ATOM
        suffix = ""
        if want.samples and not have.samples and self.local:
            suffix += ".unsqueeze(1)"
        count = f"{c.count}{suffix}" if c.count else ""
        if want.window and not have.window:
            suffix += f".unsqueeze({self.time_axis})"
        if suffix:
            text, rank = f"{text if rank == ATOM else f'({text})'}{suffix}", ATOM
        scope = want.scope if have.scope.size and want.scope == ELEMENT else have.scope
        grid = want if scope != have.scope else have
        here = replace(have, scope=scope, rows=grid.rows, cols=grid.cols)
        return replace(c, text=text, rank=rank, count=count, type=here)

    def spread(self, c: Code, want: Type) -> Code:
        """c with exactly the shape of `want`."""
        have = c.type
        c = self.numeric(c) if have.boolean and not want.boolean else c
        same = (have.scope, have.samples, bool(have.window)) == (want.scope, want.samples, bool(want.window))
        if (same and not c.flat) or (c.flat and c.kind != "literal" and is_shared(want) and not want.samples and not want.window):
            return replace(c, type=replace(want, window=have.window))
        c = self.tensor(self.aligned(c, want))
        if is_shared(want) and not want.samples and not want.window:
            return replace(c, type=want)
        count = f"{c.count}.expand({self.shape(replace(want, samples=False, window=1))})" if c.count else ""
        whole = replace(want, window=have.window if c.count else want.window)
        return replace(c, text=f"{c.bracketed}.expand({self.shape(whole)})", rank=ATOM, type=whole, flat=False, count=count)

    def numeric(self, c: Code) -> Code:
        """A boolean as 0 or 1."""
        if not c.type.boolean:
            return c
        number = replace(c.type, boolean=False)
        if c.kind == "literal":
            return literal(float(c.value))
        return replace(c, text=f"{c.bracketed}.to({'torch.float64' if c.kind == 'host' else self.real})", rank=ATOM, type=number)

    def cast(self, c: Code) -> Code:
        """A host value in the compute dtype."""
        if c.kind != "host" or c.type.boolean:
            return replace(c, kind="tensor") if c.kind == "host" else c
        return replace(c, text=f"{c.bracketed}.to({self.real})", rank=ATOM, kind="tensor")

    def tensor(self, c: Code, kind: Kind = "host") -> Code:
        """A literal as a tensor without dimensions: in float64, or in the compute dtype if it stands for a tensor value."""
        if c.kind != "literal":
            return c
        dtype = "torch.bool" if c.type.boolean else "torch.float64" if kind == "host" else self.real
        return replace(c, text=self.call("runtime.number", c.text, dtype, self.device), rank=ATOM, kind="tensor" if kind == "tensor" else "host")
