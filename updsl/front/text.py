"""Syntax tree → its one canonical text: parse(to_text(f)) == f. Brackets stand only where the tree needs them."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import assert_never

from updsl.front import syntax
from updsl.front.syntax import Declaration, Expr, Statement

PIPE, PER, CHOICE, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, POSTFIX, ATOM = range(13)
"""How tightly an expression holds together, loosest first."""

INFIX = {
    "or": (OR, " or "), "and": (AND, " and "), "+": (SUM, " + "), "-": (SUM, " - "),
    "*": (PRODUCT, "*"), "/": (PRODUCT, " / "), "@": (PRODUCT, " @ "), "^": (POWER, "^"),
}  # fmt: skip
INDENT = "    "


def to_text(node: syntax.File | Declaration | Statement | syntax.ScopeName | syntax.Array | Expr) -> str:
    """The text of a file or declaration, of a statement, each ending its line, or of an expression."""
    match node:
        case syntax.File(declarations=declarations):
            return "".join(_apart(a, b) + "\n".join(_declaration(b)) + "\n" for a, b in zip((None, *declarations), declarations, strict=False))
        case syntax.Rule() | syntax.Fn() | syntax.Use() | syntax.Law() | syntax.Example():
            return "\n".join(_declaration(node)) + "\n"
        case (
            syntax.Input() | syntax.Local() | syntax.Let() | syntax.State() | syntax.Assign() | syntax.RepeatBlock() | syntax.Every()
            | syntax.Reset() | syntax.Skip() | syntax.Watch() | syntax.Match() | syntax.Return()
        ):  # fmt: skip
            return "\n".join(_statement(node)) + "\n"
        case syntax.ScopeName():
            return _scope(node)
        case syntax.Array():
            return _datum(node)
        case _:
            return _text(node, PIPE)


def number_text(value: float, percent: bool = False) -> str:
    """The shortest decimal that is read as the value."""
    if math.isinf(value):
        return "inf"
    exact = Decimal(repr(float(value))).scaleb(2 if percent else 0).normalize()
    text = format(exact, "f") if -5 < exact.adjusted() < 17 else format(exact, "e").replace("e+", "e")
    return f"{text}%" if percent else text


# --- expressions -----------------------------------------------------------------------------------------------------


def _text(e: Expr, within: int) -> str:
    """The expression's text, in brackets if what is around it holds together more tightly than it does."""
    own, text = _bare(e)
    return text if own >= within else f"({text})"


def _bare(e: Expr) -> tuple[int, str]:
    match e:
        case syntax.Number(value=value, percent=percent):
            return (ATOM if value >= 0 else SIGN), number_text(value, percent)
        case syntax.Boolean(value=value):
            return ATOM, str(value).lower()
        case syntax.Text(value=value):
            return ATOM, f'"{value}"'
        case syntax.Name(id=name):
            return ATOM, name
        case syntax.Call(callee=callee, arguments=arguments):
            return ATOM, f"{callee}({_arguments(arguments)})"
        case syntax.Repeat(count=count, body=body):
            return ATOM, f"repeat {_text(count, PIPE)} times ({_text(body, PIPE)})"
        case syntax.Transpose(operand=operand):
            return POSTFIX, f"{_text(operand, POSTFIX)}.T"
        case syntax.Unary(op="-", operand=operand):
            return SIGN, f"-{_text(operand, SIGN)}"
        case syntax.Unary(op=op, operand=operand):
            return NOT, f"{op} {_text(operand, NOT)}"
        case syntax.Binary(op="^", left=left, right=right):
            signed = isinstance(right, syntax.Unary) and right.op == "-"
            return POWER, f"{_text(left, POSTFIX)}^{_text(right, SIGN if signed else POWER)}"
        case syntax.Binary(op=op, left=left, right=right):
            level, sign = INFIX[op]
            return level, f"{_text(left, level)}{sign}{_text(right, level + 1)}"
        case syntax.Compare(first=first, rest=rest):
            return COMPARE, " ".join([_text(first, SUM), *(f"{op} {_text(x, SUM)}" for op, x in rest)])
        case syntax.If(condition=condition, then=then, otherwise=otherwise):
            return CHOICE, f"if {_text(condition, PIPE)} then {_text(then, CHOICE)} else {_text(otherwise, CHOICE)}"
        case syntax.Clip(measure=measure, op=op, bound=bound):
            return CHOICE, f"clip {_text(measure, SUM)} {op} {_text(bound, SUM)}"
        case syntax.Per(body=body, scope=scope):
            return PER, f"{_text(body, CHOICE)} per {_scope(scope)}"
        case syntax.Pipe(stages=stages):
            return PIPE, " → ".join([_text(s, PER) for s in stages])
        case _:
            assert_never(e)


def _scope(scope: syntax.ScopeName) -> str:
    return scope.name if scope.size is None else f"{scope.name}({_text(scope.size, PIPE)})"


def _arguments(arguments: tuple[syntax.Argument, ...]) -> str:
    return ", ".join([_text(a.value, PIPE) if a.name is None else f"{a.name} = {_text(a.value, PIPE)}" for a in arguments])


def _datum(d: syntax.Array | Expr) -> str:
    return f"[{', '.join([_datum(i) for i in d.items])}]" if isinstance(d, syntax.Array) else _text(d, PIPE)


def _stream(steps: tuple[syntax.Array | Expr, ...]) -> str:
    return "; ".join([_datum(s) for s in steps])


# --- statements ------------------------------------------------------------------------------------------------------


def _block(statements: tuple[Statement, ...]) -> list[str]:
    return [INDENT + line for s in statements for line in _statement(s)]


def _statement(s: Statement) -> list[str]:
    """The lines of a statement."""
    match s:
        case syntax.Input(items=items):
            return [f"input {', '.join([_input_item(i) for i in items])}"]
        case syntax.Local(name=name, value=value):
            return [f"{name} = {_text(value, PIPE)}"]
        case syntax.Let(name=name, value=value):
            return [f"let {name} = {_text(value, PIPE)}"]
        case syntax.State(items=items):
            return [f"state {', '.join([_state_item(i) for i in items])}"]
        case syntax.Assign(name=name, value=value):
            return [f"{name} ← {_text(value, PIPE)}"]
        case syntax.RepeatBlock(count=count, body=body):
            return [f"repeat {_text(count, PIPE)} times:", *_block(body)]
        case syntax.Every(count=count, start=start, body=body):
            return [f"every {_text(count, PIPE)}{f' from {_text(start, PIPE)}' if start is not None else ''}:", *_block(body)]
        case syntax.Reset(names=names, condition=condition):
            when = f" when {_text(condition, PIPE)}" if condition is not None else ""
            return [f"reset {', '.join([n.id for n in names])}".rstrip() + when]
        case syntax.Skip(condition=condition):
            return [f"skip when {_text(condition, PIPE)}"]
        case syntax.Watch(label=label, value=value):
            return [f"watch {label} = {_text(value, PIPE)}"]
        case syntax.Match(arms=arms):
            return ["match:", *(INDENT + line for arm in arms for line in _arm(arm))]
        case syntax.Return(value=value):
            return [f"return {_text(value, PIPE)}"]
        case _:
            assert_never(s)


def _input_item(i: syntax.InputItem) -> str:
    if i.scope is not None:
        return f"{i.name} per {_scope(i.scope)}"
    return i.name if i.kind == "stream" or (i.kind, i.name) == ("samples", "samples") else f"{i.name} as {i.kind}"


def _state_item(i: syntax.StateItem) -> str:
    per = f" per {_scope(i.scope)}" if i.scope is not None else ""
    return f"{i.name} = {_text(i.init, CHOICE)}{per}{f' as {i.dtype}' if i.dtype else ''}"


def _arm(arm: syntax.Arm) -> list[str]:
    condition = "else" if arm.condition is None else _text(arm.condition, PIPE)
    return [f"{condition}:", *_block(arm.body)] if isinstance(arm.body, tuple) else [f"{condition}: {_text(arm.body, PIPE)}"]


# --- declarations ----------------------------------------------------------------------------------------------------


def _apart(a: syntax.Declaration | None, b: syntax.Declaration) -> str:
    """An empty line, but not above laws and examples, which stand right below their rule."""
    return "" if a is None or isinstance(b, syntax.Law | syntax.Example) else "\n"


def _declaration(d: syntax.Declaration) -> list[str]:
    match d:
        case syntax.Use(names=names):
            return [f"use {', '.join([n.id for n in names])}"]
        case syntax.Rule(name=name, parameters=parameters, body=tuple() as body, doc=doc):
            return [f"rule {name}{_parameters(parameters)}:", *(doc_lines(doc, INDENT) if doc is not None else []), *_block(body)]
        case syntax.Rule(name=name, parameters=parameters, body=body):
            assert not isinstance(body, tuple)
            return [f"rule {name}{_parameters(parameters)} = {_text(body, PIPE)}"]
        case syntax.Fn(name=name, parameters=parameters, body=body, about=about):
            centre = f" about {_text(about, PIPE)}" if about is not None else ""
            return [f"fn {name}{_parameters(parameters) or '()'}{centre} = {_text(body, PIPE)}"]
        case syntax.Law(name=name, settings=settings, premise=premise, claim=claim, quantifiers=quantifiers):
            head = f"law {name}({_arguments(settings)})" if settings else f"law {name}"
            where = f" for {', '.join([_quantifier(q) for q in quantifiers])}" if quantifiers else ""
            return [f"{head}: {f'{_text(premise, PIPE)} implies ' if premise is not None else ''}{_text(claim, PIPE)}{where}"]
        case syntax.Example(settings=settings, given=given, expected=expected):
            head = f"example({', '.join([f'{s.name} = {_stream(s.steps)}' for s in settings])})" if settings else "example"
            return [f"{head}: {_stream(given)} gives {_stream(expected)}"]
        case _:
            assert_never(d)


def _parameters(parameters: tuple[syntax.Parameter, ...]) -> str:
    return f"({', '.join([_parameter(p) for p in parameters])})" if parameters else ""


def _parameter(p: syntax.Parameter) -> str:
    default = f" = {_text(p.default, PIPE)}" if p.default is not None else ""
    bounds = f" in [{_text(p.low, PIPE)}, {_text(p.high, PIPE)}]" if p.low is not None and p.high is not None else ""
    return p.name + default + bounds


def _quantifier(q: syntax.Quantifier) -> str:
    return f"{q.name} in [{_text(q.low, PIPE)}, {_text(q.high, PIPE)}]" if q.low is not None and q.high is not None else f"{q.name} {q.kind}"


def doc_lines(doc: str, margin: str) -> list[str]:
    """Documentation as it stands in a block; the quotes that end it have a line of their own if it has several."""
    if "\n" not in doc:
        return [f'{margin}"""{doc}{" " if doc.endswith(chr(34)) else ""}"""']
    first, *rest = doc.split("\n")
    return [f'{margin}"""{first}', *(f"{margin}{line}".rstrip() for line in rest), f'{margin}"""']
