"""What people get wrong in a rule, as edits of its text: each mutation is a function from a node of the syntax tree to the edits that it offers there.

An edit keeps the author's text but for one place, so that a variant is a text that somebody might have written, and its diff is one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from updsl.core.source import Span
from updsl.front import syntax
from updsl.front.contents import nodes

SMALL = 1e-3
"""A number of at most this, or a name that says so, is an ε."""
REDUCTIONS = {"mean": "sum", "sum": "mean", "norm": "absmax", "absmax": "norm", "rms": "norm", "std": "rms", "min": "max", "max": "min", "median": "mean"}
SCOPES = {"row": "column", "column": "row", "tensor": "all", "all": "tensor", "group": "tensor"}
OPPOSITE = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "==": "!=", "!=": "=="}
EDGE = {">": ">=", ">=": ">", "<": "<=", "<=": "<"}
SPELLINGS = {"≤": "<=", "≥": ">=", "≠": "!=", "−": "-"}


@dataclass(frozen=True)
class Edit:
    """`new` in the place of this part of the text."""

    start: int
    end: int
    new: str


Mutation: TypeAlias = Callable[[syntax.Node], Iterator[Edit]]


def drop_epsilon(node: syntax.Node) -> Iterator[Edit]:
    """x + ε → x + 0, max(x, ε) → max(x, 0)."""
    match node:
        case syntax.Binary("+", left, right):
            yield from (at(x.span, "0") for x in (left, right) if is_small(x))
        case syntax.Call("max", arguments):
            yield from (at(a.value.span, "0") for a in arguments if is_small(a.value))


def swap_stages(node: syntax.Node) -> Iterator[Edit]:
    """a → b becomes b → a."""
    if isinstance(node, syntax.Pipe):
        for (a, b), (c, d) in pairwise(stages(node)):
            text = node.span.source.text
            yield Edit(a, d, text[c:d] + text[b:c] + text[a:b])


def drop_stage(node: syntax.Node) -> Iterator[Edit]:
    """a → b → c becomes a → c. A `g` in front is what the stages are given anyway."""
    if isinstance(node, syntax.Pipe):
        places = stages(node)
        if node.stages[0] != syntax.Name("g"):
            yield Edit(places[0][0], places[1][0], "")
        for before, here in pairwise(places):
            yield Edit(before[1], here[1], "")


def flip_sign(node: syntax.Node) -> Iterator[Edit]:
    """a + b ↔ a - b, -a → a."""
    match node:
        case syntax.Binary("+" | "-" as op, left, right):
            yield from between(left.span, right.span, op, "-" if op == "+" else "+")
        case syntax.Unary("-", operand):
            yield Edit(node.span.start, operand.span.start, "")


def turn_scope(node: syntax.Node) -> Iterator[Edit]:
    """per row ↔ per column, per tensor ↔ per all."""
    match node:
        case syntax.ScopeName(name) if name in SCOPES:
            yield at(node.span, SCOPES[name])


def complement(node: syntax.Node) -> Iterator[Edit]:
    """β ↔ 1 - β, on either side of an average."""
    match node:
        case syntax.Binary("-", syntax.Number(1.0), syntax.Name(b)):
            yield at(node.span, b)
        case syntax.Binary(
            "+", syntax.Binary("*", syntax.Name(b) as left, _), syntax.Binary("*", syntax.Binary("-", syntax.Number(1.0), syntax.Name(c)), _)
        ) if b == c:
            yield at(left.span, f"(1 - {b})")


def turn_comparison(node: syntax.Node) -> Iterator[Edit]:
    """> ↔ <, >= ↔ <=, == ↔ !=, in `clip` too."""
    for a, op, b in comparisons(node):
        if op in OPPOSITE:
            yield from between(a.span, b.span, op, OPPOSITE[op])


def move_edge(node: syntax.Node) -> Iterator[Edit]:
    """t > n → t >= n and t > n + 1, of steps, which are whole numbers; in other comparisons the two sides are hardly ever equal."""
    if isinstance(node, syntax.Compare):
        for a, op, b in comparisons(node):
            if op in EDGE and any(isinstance(n, syntax.Name) and n.id == "t" for n in nodes((a, b))):
                yield from between(a.span, b.span, op, EDGE[op])
                yield Edit(b.span.end, b.span.end, " + 1")


def change_constant(node: syntax.Node) -> Iterator[Edit]:
    """A number twice as large; 0 → 1. No ε: it is dropped, and twice an ε is as good."""
    match node:
        case syntax.Number(value, percent) if value != float("inf") and not is_small(node):
            yield at(node.span, "1" if value == 0 else f"{200 * value:.15g}%" if percent else repr(2 * value).removesuffix(".0"))


def swap_extreme(node: syntax.Node) -> Iterator[Edit]:
    """min ↔ max, of several numbers."""
    match node:
        case syntax.Call("min" | "max" as callee, (_, _, *_)):
            yield at(node.callee_span, "max" if callee == "min" else "min")


def drop_debias(node: syntax.Node) -> Iterator[Edit]:
    """x / (1 - β^t) → x; and what is given as true or false the other way."""
    match node:
        case syntax.Binary("/", left, syntax.Binary("-", syntax.Number(1.0), syntax.Binary("^", _, _))):
            yield Edit(left.span.end, closing(node.span), "")
        case syntax.Boolean(value):
            yield at(node.span, "false" if value else "true")


def swap_reduction(node: syntax.Node) -> Iterator[Edit]:
    """mean ↔ sum, norm ↔ absmax, …"""
    match node:
        case syntax.Call(callee, arguments) if callee in REDUCTIONS and (len(arguments) < 2 or callee not in ("min", "max")):
            yield at(node.callee_span, REDUCTIONS[callee])
        case syntax.Name(name) if name in REDUCTIONS:
            yield at(node.span, REDUCTIONS[name])


def swap_logic(node: syntax.Node) -> Iterator[Edit]:
    """and ↔ or, not x → x, the branches of an `if` that asks for no comparison."""
    match node:
        case syntax.Binary("and" | "or" as op, left, right):
            yield from between(left.span, right.span, op, "or" if op == "and" else "and")
        case syntax.Unary("not", operand):
            yield Edit(node.span.start, operand.span.start, "")
        case syntax.If(condition, then, otherwise) if not isinstance(condition, syntax.Compare):
            (a, b), (c, d) = (extent(x.span) for x in (then, otherwise))
            text = node.span.source.text
            yield Edit(a, d, f"({text[c:d]}){text[b:c]}({text[a:b]})")


def never(node: syntax.Node) -> Iterator[Edit]:
    """`skip` and `reset` that never happen."""
    match node:
        case syntax.Skip(condition):
            yield at(condition.span, "false")
        case syntax.Reset(_, condition):
            yield Edit(node.span.end, node.span.end, " when false") if condition is None else at(condition.span, "false")


def stale(node: syntax.Node) -> Iterator[Edit]:
    """In a block: what a local was made from, where a state takes the local; and the local, where it takes what that was made from."""
    match node:
        case syntax.Rule(_, _, tuple(body)):
            locals_ = [s for s in body if isinstance(s, syntax.Local)]
            made = {s.name: s for s in locals_ if is_made_of_g(s.value)}
            for s in body:
                for n in nodes(s.value) if isinstance(s, syntax.Assign) and s.name != "w" else ():
                    if isinstance(n, syntax.Name) and n.id in made:
                        yield at(n.span, "g")
                    elif isinstance(n, syntax.Name) and n.id == "g":
                        yield from (at(n.span, name) for name, d in made.items() if d.span.end <= s.span.start)


MUTATIONS: tuple[Mutation, ...] = (
    drop_epsilon,
    swap_stages,
    drop_stage,
    flip_sign,
    turn_scope,
    complement,
    turn_comparison,
    move_edge,
    change_constant,
    swap_extreme,
    drop_debias,
    swap_reduction,
    swap_logic,
    never,
    stale,
)


def edits(tree: object) -> Iterator[tuple[Mutation, Edit]]:
    """Every edit of a part of a rule. Where a text asks only whether a norm is 0, or finite, the largest magnitude has the same answer."""
    asked: set[int] = set()
    for node in nodes(tree):
        match node:
            case syntax.Call("isfinite", (syntax.Argument(_, measure),)) | syntax.Compare(measure, (("==" | "!=", syntax.Number(0.0)),)):
                asked.add(id(measure.body if isinstance(measure, syntax.Per) else measure))
        for mutation in MUTATIONS:
            if mutation is not swap_reduction or id(node) not in asked:
                yield from ((mutation, e) for e in mutation(node))


# --- places ----------------------------------------------------------------------------------------------------------


def at(span: Span, new: str) -> Edit:
    return Edit(span.start, span.end, new)


def between(left: Span, right: Span, op: str, new: str) -> Iterator[Edit]:
    """Another operator between two operands, as it is spelled there."""
    text = left.source.text
    spellings = [op, *(s for s, ascii_ in SPELLINGS.items() if ascii_ == op)]
    found = re.search("|".join(map(re.escape, spellings)), text[left.end : right.start])
    if found:
        yield Edit(left.end + found.start(), left.end + found.end(), new)


def extent(span: Span) -> tuple[int, int]:
    """From where to where an operand goes, with its own brackets."""
    text = span.source.text
    start, end = span.start, span.end
    while True:
        a, b = start - 1, end
        while a >= 0 and text[a].isspace():
            a -= 1
        while b < len(text) and text[b].isspace():
            b += 1
        if a < 0 or b >= len(text) or text[a] != "(" or text[b] != ")":
            return start, end
        start, end = a, b + 1


def stages(pipe: syntax.Pipe) -> list[tuple[int, int]]:
    return [extent(s.span) for s in pipe.stages]


def closing(span: Span) -> int:
    """The end of an operation whose last operand's brackets its span may leave out."""
    text, depth = span.source.text, 0
    for c in text[span.start : span.end]:
        depth += (c == "(") - (c == ")")
    end = span.end
    while depth > 0 and end < len(text):
        depth += (text[end] == "(") - (text[end] == ")")
        end += 1
    return end


def comparisons(node: syntax.Node) -> Iterator[tuple[syntax.Expr, str, syntax.Expr]]:
    match node:
        case syntax.Compare(first, rest):
            for a, (op, b) in zip((first, *(x for _, x in rest)), rest, strict=False):
                yield a, op, b
        case syntax.Clip(measure, op, bound):
            yield measure, op, bound


def is_small(e: syntax.Expr) -> bool:
    match e:
        case syntax.Number(value):
            return 0 < value <= SMALL
        case syntax.Name(name):
            return name.startswith(("eps", "ε"))
    return False


def is_made_of_g(e: syntax.Expr) -> bool:
    """Whether it is `g` changed, and not a number that is read off it."""
    match e:
        case syntax.Name("g"):
            return True
        case syntax.If(_, then, otherwise):
            return is_made_of_g(then) or is_made_of_g(otherwise)
        case syntax.Binary("*" | "/" | "+" | "-", left, right):
            return is_made_of_g(left) or is_made_of_g(right)
        case syntax.Pipe((first, *_)):
            return is_made_of_g(first)
        case syntax.Call(callee, (argument, *rest)):
            return isinstance(argument.value, syntax.Name) and argument.value.id == "g" and (callee not in REDUCTIONS or bool(rest))
    return False
