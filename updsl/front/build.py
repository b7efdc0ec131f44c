"""A rule of the grammar with what its parts became → a node of the syntax tree."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import PurePath
from unicodedata import normalize

from updsl.core.source import Source, Span
from updsl.front.lex import Token
from updsl.front.syntax import (
    Argument, Arm, Array, Assign, Binary, Boolean, Call, Clip, Compare, Every, Example, ExampleSetting, Expr, File, Fn, If, Input, InputItem, Law, Let, Local, Match, Name,
    Node, Number, Parameter, Per, Pipe, Quantifier, Repeat, RepeatBlock, Reset, Return, Rule, ScopeName, Skip, State, StateItem, Text, Transpose, Unary, Use, Watch,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the tree: `node` is a Node, or a tuple or text for its owner; [start, end) its place, brackets included;
    `form` is "pipe" or "per" for one without brackets."""

    node: object
    start: int
    end: int
    form: str = ""
    depth: int = 0


class Builder:
    """Makes nodes bottom-up, so that no text is too deep for it."""

    def __init__(self, source: Source):
        self.source = source

    def part(self, rule: str, children: list) -> Part:
        start, end = children[0].start, children[-1].end
        node = self.node(rule, children, Span(self.source, start, end))
        return Part(node, start, end, rule if rule in ("pipe", "per") else "")

    def node(self, rule: str, children: list, span: Span) -> object:
        values = [c if isinstance(c, Token) else c.node for c in children]
        if rule == "state_item":
            return self.state_item(children, span)
        for build in (self.expression, self.statement, self.declaration):
            found = build(rule, values, span)
            if found is not None:
                return found
        raise AssertionError(rule)

    def place(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)

    def name(self, token: Token) -> Name:
        return Name(token.text, span=self.place(token))

    # --- expressions ---

    def expression(self, rule: str, values: list, span: Span) -> object:
        match rule, values:
            case "pipe", _:
                return Pipe(tuple(values[::2]), span=span)
            case "per", [body, _, scope]:
                return Per(body, scope, span=span)
            case "scope", [name]:
                return ScopeName(name.text, span=span)
            case "scope", [name, _, size, _]:
                return ScopeName(name.text, size, span=span)
            case "if", [_, condition, _, then, _, otherwise]:
                return If(condition, then, otherwise, span=span)
            case "clip", [_, measure, op, bound]:
                return Clip(measure, op.text, bound, span=span)
            case "infix", [first, *rest]:
                return self.infix(first, rest, span)
            case "prefix", [op, operand]:
                return Unary(op.text, operand, span=span)
            case "compare", [first, *rest]:
                return Compare(first, tuple((op.text, x) for op, x in zip(rest[::2], rest[1::2], strict=True)), span=span)
            case "transpose", [operand, _]:
                return Transpose(operand, span=span)
            case "name", [token]:
                return Name(token.text, span=span)
            case "number", [token]:
                return number(token, span)
            case "boolean", [token]:
                return Boolean(token.text == "true", span=span)
            case "text", [token]:
                return Text(token.text, span=span)
            case "call", [callee, _, *arguments, _]:
                return Call(callee.text, arguments[0] if arguments else (), span=span, callee_span=self.place(callee))
            case "brackets", [_, inner, _]:
                return inner
            case "repeat", [_, count, _, _, body, _]:
                return Repeat(count, body, span=span)
            case "arguments", _:
                return self.list_of(values)
            case "argument", [value]:
                return Argument(None, value, span=span)
            case "argument", [name, _, value]:
                return Argument(name.text, value, span=span)
        return None

    def infix(self, first: Expr, rest: list, span: Span) -> Expr:
        """a op b op c, from the left; of `^` there is one."""
        left = first
        for op, right in zip(rest[::2], rest[1::2], strict=True):
            left = Binary(op.text, left, right, span=replace(span, end=right.span.end))
        return left

    def list_of(self, values: list) -> tuple:
        """The items between commas or semicolons."""
        return tuple(v for v in values if not isinstance(v, Token))

    # --- statements ---

    def statement(self, rule: str, values: list, span: Span) -> object:
        match rule, values:
            case "input", [_, *items, _]:
                return Input(self.list_of(items), span=span)
            case "input_item", [name]:
                return InputItem(name.text, "samples" if name.text == "samples" else "stream", span=span)
            case "input_item", [name, Token(type="PER"), scope]:
                return InputItem(name.text, "per", scope, span=span)
            case "input_item", [name, _, kind]:
                return InputItem(name.text, kind.text, span=span)
            case "local", [name, _, value, _]:
                return Local(name.text, value, span=span, name_span=self.place(name))
            case "let", [_, name, _, value, _]:
                return Let(name.text, value, span=span, name_span=self.place(name))
            case "assign", [name, _, value, _]:
                return Assign(name.text, value, span=span, name_span=self.place(name))
            case "state", [_, *items, _]:
                return State(self.list_of(items), span=span)
            case "repeat_block", [_, count, _, _, body]:
                return RepeatBlock(count, body, span=span)
            case "every", [_, count, _, body]:
                return Every(count, None, body, span=span)
            case "every", [_, count, _, start, _, body]:
                return Every(count, start, body, span=span)
            case "restart", _:
                return Reset((), span=span)
            case "reset", [_, *names, Token(type="WHEN"), condition, _]:
                return Reset(tuple(self.name(n) for n in names if n.type == "NAME"), condition, span=span)
            case "reset", [_, *names, _]:
                return Reset(tuple(self.name(n) for n in names if n.type == "NAME"), span=span)
            case "skip", [_, _, condition, _]:
                return Skip(condition, span=span)
            case "watch", [_, label, _, value, _]:
                return Watch(label.text, value, span=span)
            case "return", [_, value, _]:
                return Return(value, span=span)
            case "match", _:
                return Match(self.list_of(values), span=span)
            case "arm", [condition, _, body, *_]:
                return Arm(condition, body, span=span)
            case "else_arm", [_, _, body, *_]:
                return Arm(None, body, span=span)
            case "block", _:
                return self.list_of(values)
        return None

    def state_item(self, children: list, span: Span) -> StateItem:
        name, _, init, *dtype = children
        scope = None
        value = init.node
        if init.form == "per":
            value, scope = value.body, value.scope
        return StateItem(name.text, value, scope, dtype[1].text if dtype else None, span=span, name_span=self.place(name))

    # --- declarations ---

    def declaration(self, rule: str, values: list, span: Span) -> object:
        match rule, values:
            case "file", _:
                return File(tuple(values), span=span)
            case "pipeline", [body, _]:
                return File((Rule(file_rule_name(self.source), (), body, span=body.span),), span=span)
            case "use", [_, *names]:
                return Use(tuple(self.name(n) for n in names if n.type == "NAME"), span=span)
            case "rule", [_, name, *parameters, Token(type="EQUAL"), value, _]:
                return Rule(name.text, parameters[0] if parameters else (), value, span=span, name_span=self.place(name))
            case "rule", [_, name, *parameters, _, (doc, body)]:
                return Rule(name.text, parameters[0] if parameters else (), body, doc, span=span, name_span=self.place(name))
            case "body", [_, _, Token(type="DOC") as doc, _, *statements]:
                return inspect.cleandoc(doc.text).strip(), self.list_of(statements)
            case "body", _:
                return None, self.list_of(values)
            case "fn", [_, name, parameters, *about, _, body, _]:
                return Fn(name.text, parameters, body, about[0] if about else None, span=span, name_span=self.place(name))
            case "about", [_, about]:
                return about
            case "parameters", _:
                return self.list_of(values)
            case "parameter", [name, *rest]:
                return Parameter(name.text, *(r for r in rest if not isinstance(r, Token)), span=span)
            case "law", [_, name, *rest, _]:
                return self.law(name, rest, span)
            case "settings", [_, arguments, _]:
                return arguments
            case "quantifiers", _:
                return self.list_of(values)
            case "quantifier", [name, kind]:
                return Quantifier(name.text, kind.text, span=span)
            case "quantifier", [name, _, _, low, _, high, _]:
                return Quantifier(name.text, "in", low, high, span=span)
            case "example", [_, *settings, Token(type="COLON"), given, _, expected, _]:
                return Example(settings[0] if settings else (), given, expected, span=span)
            case "example_settings" | "stream", _:
                return self.list_of(values)
            case "example_setting", [name, _, steps]:
                return ExampleSetting(name.text, steps, span=span)
            case "array", _:
                return Array(self.list_of(values), span=span)
        return None

    def law(self, name: Token, rest: list, span: Span) -> Law:
        colon = next(i for i, v in enumerate(rest) if isinstance(v, Token))
        settings = rest[0] if colon else ()
        premise, claim = (rest[colon + 1], rest[colon + 3]) if len(rest) > colon + 2 and isinstance(rest[colon + 2], Token) else (None, rest[colon + 1])
        quantifiers = tuple(q for group in rest if isinstance(group, tuple) and group is not settings for q in group)
        return Law(name.text, settings, premise, claim, quantifiers, span=span)


def number(token: Token, span: Span) -> Number:
    if not token.text.endswith("%"):
        return Number(float(token.text), span=span)
    mantissa, _, exponent = token.text[:-1].lower().partition("e")
    return Number(float(f"{mantissa}e{int(exponent or 0) - 2}"), True, span=span)


def file_rule_name(source: Source) -> str:
    """The name of a bare pipeline's rule: the file's, as a name."""
    stem = normalize("NFKC", PurePath(source.name).stem)
    name = "".join(c if c == "_" or c.isalnum() else "_" for c in stem).strip("_")
    return name if name and not name[0].isdigit() else f"_{name}" if name else "rule_"
