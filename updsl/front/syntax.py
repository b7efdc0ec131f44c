"""The syntax tree: one frozen class for each construct of the language, each with its span.

Brackets leave no node: the tree has the structure that they gave. Equality ignores spans. Names are NFKC-normalised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from updsl.core.source import NOWHERE, Span


@dataclass(frozen=True, slots=True)
class Node:
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


# --- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number(Node):
    """`3`, `0.9`, `1e-8`, `10%` (value 0.1, percent), `inf`."""

    value: float
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    value: bool


@dataclass(frozen=True, slots=True)
class Text(Node):
    """`"…"`, without its quotes, escapes as written."""

    value: str


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A bare name: a local, a parameter, a built-in (`g it w lr t rows …`), a function or a rule of the flowing value."""

    id: str


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`value` or `name = value`."""

    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`callee(arguments)`; in core text (core/show.py) also `core.push(w, x)` and others, where callee is "core.push"."""

    callee: str
    arguments: tuple[Argument, ...]
    callee_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """op is "-" or "not"."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """op is one of + - * / @ ^ and or, in ASCII."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Compare(Node):
    """`first op₁ x₁ op₂ x₂ …`; an op is one of < <= > >= == != ~, in ASCII."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Transpose(Node):
    """`operand.T`."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class If(Node):
    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Clip(Node):
    """`clip measure op bound`; op is one of > >= < <=."""

    measure: Expr
    op: str
    bound: Expr


@dataclass(frozen=True, slots=True)
class ScopeName(Node):
    """A scope as written: element row column block tensor group all; `size` is the k of `block(k)`."""

    name: str
    size: Expr | None = None


@dataclass(frozen=True, slots=True)
class Per(Node):
    """`body per scope`."""

    body: Expr
    scope: ScopeName


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """`stage₁ → stage₂ → …`, at least two, flattened."""

    stages: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """`repeat count times (body)`."""

    count: Expr
    body: Expr


Expr: TypeAlias = Number | Boolean | Text | Name | Call | Unary | Binary | Compare | Transpose | If | Clip | Per | Pipe | Repeat


# --- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputItem(Node):
    """kind is "stream", "matrix", "samples" or "per" (then `scope` says which)."""

    name: str
    kind: str = "stream"
    scope: ScopeName | None = None


@dataclass(frozen=True, slots=True)
class Input(Node):
    items: tuple[InputItem, ...]


@dataclass(frozen=True, slots=True)
class Local(Node):
    """`name = value`."""

    name: str
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name = value`."""

    name: str
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class StateItem(Node):
    """`name = init [per scope] [as dtype]`; `init` does not hold the `per`."""

    name: str
    init: Expr
    scope: ScopeName | None = None
    dtype: str | None = None
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class State(Node):
    items: tuple[StateItem, ...]


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`name ← value`, of a state, a `let`, or `w`."""

    name: str
    value: Expr
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class RepeatBlock(Node):
    """`repeat count times:` + block."""

    count: Expr
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Every(Node):
    """`every count [from start]:` + block."""

    count: Expr
    start: Expr | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Reset(Node):
    """`reset names [when condition]`; no names: the whole instance."""

    names: tuple[Name, ...]
    condition: Expr | None = None


@dataclass(frozen=True, slots=True)
class Skip(Node):
    """`skip when condition`."""

    condition: Expr


@dataclass(frozen=True, slots=True)
class Watch(Node):
    """`watch label = value`."""

    label: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Arm(Node):
    """`condition: expression` or `condition:` + block; no condition is `else`."""

    condition: Expr | None
    body: Expr | tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Match(Node):
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True)
class Return(Node):
    value: Expr


Statement: TypeAlias = Input | Local | Let | State | Assign | RepeatBlock | Every | Reset | Skip | Watch | Match | Return


# --- declarations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """`name`, `name = default`, `name = default in [low, high]`."""

    name: str
    default: Expr | None = None
    low: Expr | None = None
    high: Expr | None = None


@dataclass(frozen=True, slots=True)
class Rule(Node):
    """`rule name(parameters):` + block, or `= expression` (then `body` is an expression)."""

    name: str
    parameters: tuple[Parameter, ...]
    body: Expr | tuple[Statement, ...]
    doc: str | None = None
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Fn(Node):
    """`fn name(parameters) [about about] = body`."""

    name: str
    parameters: tuple[Parameter, ...]
    body: Expr
    about: Expr | None = None
    name_span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Use(Node):
    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Quantifier(Node):
    """`for name in [low, high]` (kind "in"), `orthogonal`, `permutation`, or `for g any` (kind "any")."""

    name: str
    kind: str
    low: Expr | None = None
    high: Expr | None = None


@dataclass(frozen=True, slots=True)
class Law(Node):
    """`law name(settings): [premise implies] claim [for …]`."""

    name: str
    settings: tuple[Argument, ...]
    premise: Expr | None
    claim: Expr
    quantifiers: tuple[Quantifier, ...] = ()


@dataclass(frozen=True, slots=True)
class Array(Node):
    """`[1, 2]` or `[[1, 2], [3, 4]]`: items are arrays or constant expressions."""

    items: tuple[Array | Expr, ...]


@dataclass(frozen=True, slots=True)
class ExampleSetting(Node):
    """`name = value` of an example: a parameter, or an input with one value for each step (separated by `;`)."""

    name: str
    steps: tuple[Array | Expr, ...]


@dataclass(frozen=True, slots=True)
class Example(Node):
    """`example(settings): given gives expected`, one array for each step."""

    settings: tuple[ExampleSetting, ...]
    given: tuple[Array | Expr, ...]
    expected: tuple[Array | Expr, ...]


Declaration: TypeAlias = Rule | Fn | Use | Law | Example


@dataclass(frozen=True, slots=True)
class File(Node):
    """A file's declarations in order. Laws and examples are about the rule above them."""

    declarations: tuple[Declaration, ...]
