"""Programs: what a rule does to one class of tensors, as named bindings in order.

A Program is a pure function (states, inputs) ↦ (states', out, new weight, watches) in single-assignment form. It is elaborated for a
class of tensors: those that take the same `match` arms, static branches and grid relations. What the IR means:

- Every expression has a Type: the scope of its cells, the grid they lie on, and whether it has a sample dimension or is a window in time.
- A tensor of shape (d0, d1, …) is a d0 × (d1·…) matrix, a 1-D tensor n × 1, a 0-D tensor 1 × 1.
- `Apply` combines its arguments cell by cell at the coarsest scope that refines them (matrix functions work on the grid instead).
- `Reduce` runs over the *cells* of its operand: the indices that the operand's scope has and `scope` lacks; a window (type.window) over time instead.
- A binding of scope group or all, and a reduction to one, is *shared*: it runs over all tensors whose Programs have a binding of that name
  ("all tensors that the text is evaluated for"), and is evaluated once. `schedule.py` puts the Programs of several classes in one order.
- Arithmetic: NaN in gives NaN out, except in comparisons (false), `isfinite`, and the branch of `select` not taken.
- What depends on no tensor (parameters, literals, lr, t) is computed in float64, the rest in the gradient's compute type
  (float32 for 16-bit gradients). `store` rounds to the type of a state or of the weight; nothing else rounds.
- States read with `Ref(kind="state")` have the value before the step; `commits` gives their values after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Literal, TypeAlias

from updsl.core.scope import ALL, ELEMENT, TENSOR, Scope
from updsl.core.source import NOWHERE, Span

Dim: TypeAlias = str | int
"""A size of a grid: "rows" or "cols" (of the parameter's matrix), "P.rows" or "P.cols" (of a matrix input P), or a number."""


@dataclass(frozen=True, slots=True)
class Type:
    """scope: of the cells. rows, cols: the grid; None where the cells do not depend on it (a value per row has rows only; block has both).
    samples: has a leading dimension of samples. window: length of the window in time, 0 for none. boolean: true or false."""

    scope: Scope
    rows: Dim | None = None
    cols: Dim | None = None
    samples: bool = False
    window: int = 0
    boolean: bool = False


GRID = Type(ELEMENT, "rows", "cols")
"""One value for each entry of the parameter: of g, w and streams."""
NUMBER = Type(ALL)
CONDITION = Type(ALL, boolean=True)

Kind: TypeAlias = Literal["value", "state", "param", "input", "builtin"]


@dataclass(frozen=True, slots=True)
class Const:
    """A literal number or boolean. of: the literal that a name stands for, where this is a use of the name."""

    value: float | bool
    of: Const | None = field(default=None, compare=False, repr=False, kw_only=True)
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        return CONDITION if isinstance(self.value, bool) else NUMBER


@dataclass(frozen=True, slots=True)
class Ref:
    """A binding ("value"), a state before the step, a parameter, an input stream, or a builtin:
    `g w lr t batch rows cols numel ndim dim(i)`. `t` of type scope all counts the steps of the run that were not skipped by the caller's policy;
    of scope tensor, those of the tensor."""

    name: str
    kind: Kind
    type: Type
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Apply:
    """An op of the table in ops.py. `static` holds its compile-time arguments (see the op's row)."""

    op: str
    args: tuple[Expr, ...]
    type: Type
    static: tuple = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Reduce:
    """`op` ("sum", "norm", …) of args over the indices that they have and `scope` lacks, or over time if they are windows."""

    op: str
    args: tuple[Expr, ...]
    scope: Scope
    type: Type
    static: tuple = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


Expr: TypeAlias = Const | Ref | Apply | Reduce


@dataclass(frozen=True, slots=True)
class Binding:
    """name = expr. Reductions to group or all stand alone: such a Reduce is the whole of a binding's expr (its args have none inside)."""

    name: str
    expr: Expr
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Yield:
    """After a guarded block `name` is `inner` (a value of the block) if the block ran, else `outer` (one from before it); both have `type`, once spread."""

    name: str
    inner: Expr
    outer: Expr
    type: Type


@dataclass(frozen=True, slots=True)
class Every:
    """The body runs only on steps start, start + count, … of the run (counted from 1); nothing of it is computed on others. `name` identifies its place.
    Classes may differ in its count and start; a shared value that it yields is of classes in which they are the same."""

    name: str
    count: int
    start: int
    body: tuple[Statement, ...]
    yields: tuple[Yield, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)

    def is_due(self, run: int) -> bool:
        """Whether the block runs on this step of the run."""
        return run >= self.start and (run - self.start) % self.count == 0


Statement: TypeAlias = Binding | Every


@dataclass(frozen=True, slots=True)
class State:
    """A value kept between steps. `init` holds only literals, parameters, `w`, `lr` and attributes, and is evaluated at the first step of its cell
    (at a tensor's first step for a scope of tensor or finer), before anything else. `dtype` is None for the default: float32 for 16-bit
    gradients, else the gradient's. A window (type.window = n) starts empty and has no init."""

    name: str
    init: Expr | None
    type: Type
    dtype: str | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Input:
    """A stream handed over at every step. kind: "stream" (shape of g), "samples" (batch leading), "matrix" (own grid),
    "per" (one value for each cell of type.scope)."""

    name: str
    kind: str
    type: Type


@dataclass(frozen=True, slots=True)
class Watch:
    """A number read from outside: label = expr, of scope tensor or coarser."""

    label: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Program:
    """What one step does to a class of tensors. `weight` is the new weight (None: the rule does not write w); `returns` says whether
    the text gives `out` itself (else, in a rule that writes w, out is w before − w after). `out` may be coarser than an entry: it is spread; None: this is a
    part of a step, that gives neither."""

    name: str
    inputs: tuple[Input, ...]
    states: tuple[State, ...]
    body: tuple[Statement, ...]
    commits: tuple[tuple[str, Expr], ...]
    out: Expr | None
    weight: Expr | None
    returns: bool
    watches: tuple[Watch, ...]


def returned(program: Program) -> list[Expr]:
    """What the text gives as `out`, if it gives one."""
    return [] if program.out is None or not (program.returns or program.weight is None) else [program.out]


def is_shared(type_: Type) -> bool:
    """One value for a group or the whole model, evaluated once for all tensors."""
    return not type_.scope.indices - {"G"}


def is_joint(e: Expr) -> bool:
    """Needs the cells of all tensors of a group or of the model: of a shared type, or `largest` over group or all. Such a `largest` stands alone, as shared
    reductions do: it is the whole of a binding's expr."""
    match e:
        case Apply("largest", static=(Scope() as scope, *_)) if not scope.indices - {"G"}:
            return True
        case _:
            return is_shared(e.type)


def of_each_tensor(e: Expr) -> Expr:
    """A value of several tensors as one of each tensor."""
    return Apply("spread", (e,), replace(e.type, scope=TENSOR)) if is_shared(e.type) else e


def joined(*types: Type) -> Type:
    """The type of what combines values of these types cell by cell: the coarsest scope that refines all, on the grid that they share."""
    scope, rows, cols = ALL, None, None
    for t in types:
        scope = scope | t.scope
        rows = t.rows if rows is None else rows
        cols = t.cols if cols is None else cols
    return on_grid(scope, rows, cols, samples=any(t.samples for t in types), window=max((t.window for t in types), default=0))


def on_grid(scope: Scope, rows: Dim | None, cols: Dim | None, **more) -> Type:
    """A type of this scope, with only the sizes that its cells depend on."""
    has_rows = "i" in scope.indices or bool(scope.size)
    has_cols = "j" in scope.indices or bool(scope.size)
    return Type(scope, rows if has_rows else None, cols if has_cols else None, **more)


def children(e: Expr) -> tuple[Expr, ...]:
    return e.args if isinstance(e, (Apply, Reduce)) else ()


def rebuild(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same node over other arguments; the same object if they are the same."""
    if not isinstance(e, (Apply, Reduce)) or all(map(is_, args, e.args)):
        return e
    return Apply(e.op, args, e.type, e.static, span=e.span) if isinstance(e, Apply) else Reduce(e.op, args, e.scope, e.type, e.static, span=e.span)


def rewrite(e: Expr, step: Callable[[Expr], Expr]) -> Expr:
    """`step` applied to every node, leaves first."""
    return step(rebuild(e, tuple([rewrite(a, step) for a in e.args])) if isinstance(e, (Apply, Reduce)) else e)


def walk(e: Expr) -> Iterator[Expr]:
    """Every node, leaves first."""
    found: list[Expr] = []

    def add(n: Expr) -> None:
        if isinstance(n, (Apply, Reduce)):
            for a in n.args:
                add(a)
        found.append(n)

    add(e)
    return iter(found)


def bindings(statements: tuple[Statement, ...]) -> Iterator[Binding]:
    """Every binding in order, those of guarded blocks included."""
    for s in statements:
        match s:
            case Binding():
                yield s
            case Every(body=body):
                yield from bindings(body)


def blocks(statements: tuple[Statement, ...]) -> Iterator[str]:
    """The names of all blocks."""
    for s in statements:
        if isinstance(s, Every):
            yield s.name
            yield from blocks(s.body)


def roots(program: Program) -> Iterator[Expr]:
    """Every expression of the program that is no init: bindings, yields, commits, watches, out, weight."""

    def of(statements: tuple[Statement, ...]) -> Iterator[Expr]:
        for s in statements:
            match s:
                case Binding(expr=e):
                    yield e
                case Every(body=body, yields=yields):
                    yield from of(body)
                    for y in yields:
                        yield from (y.inner, y.outer)

    yield from of(program.body)
    yield from (e for _, e in program.commits)
    yield from (w.expr for w in program.watches)
    yield from (e for e in (program.out, program.weight) if e is not None)
