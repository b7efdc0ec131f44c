"""A rule of the grammar with what its parts became → a node of the syntax tree."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from unicodedata import category, normalize

from updsl.core.diagnostic import Diagnostic, InternalError, did_you_mean
from updsl.core.source import Source, Span
from updsl.front import syntax
from updsl.front.lex import MAX_NAME, RESERVED, Token, number_value

MAX_DEPTH = 200
"""Of a statement's tree: a sum of n terms is n deep."""
MAX_STAGES = 256

SCOPES = ("element", "row", "column", "block", "tensor", "group", "all")
TYPES = ("float32", "bfloat16", "float16", "float64")
INPUT_KINDS = ("matrix", "samples")
QUANTIFIERS = ("orthogonal", "permutation")


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the tree: `node` is a syntax.Node, or what its owner takes apart; [start, end) is its place, brackets included.

    form: "pipe" or "per" where one stands without brackets, "open" for an `if` whose `then` branch has one, so that another after it could belong to either.
    """

    node: Any
    start: int
    end: int
    form: str = ""
    depth: int = 0


class Builder:
    """Makes nodes from the leaves up, without recursion, so that no tree is too deep for it. `errors` is what the grammar cannot tell."""

    def __init__(self, source: Source):
        self.source = source
        self.errors: list[Diagnostic] = []
        self.too_deep = False
        self.streams: list[syntax.Call] = []
        """Calls of `rule(…)` that no law has been found around."""

    def build(self, tree: Any) -> Any:
        """The node of a lark tree."""
        done: dict[int, Part] = {}
        for t in tree.iter_subtrees():
            done[id(t)] = self.part(t.data, [c if isinstance(c, Token) else done[id(c)] for c in t.children])
        for call in self.streams:
            message = "`rule(…)`, the rule run on another stream, stands only in a law"
            self.error("stream-outside-law", message, call.callee_span, help="write what is claimed of the rule below it: `law odd: rule(-g) == -rule(g)`")
        return done[id(tree)].node

    def part(self, rule: str, children: list) -> Part:
        start, end = children[0].start, children[-1].end
        span = Span(self.source, start, end)
        parts = [c for c in children if isinstance(c, Part)]
        depth = max((p.depth for p in parts), default=0) + (len(children) // 2 if rule == "infix" else rule not in ("brackets", "arguments"))
        if depth > MAX_DEPTH and not self.too_deep:
            self.too_deep = True
            self.error("too-deep", f"this is more than {MAX_DEPTH} operations inside one another", span, help="give parts of it names: `x = …`")
        if rule in ("pipe", "per"):
            self.check_open(rule, parts)
        form = rule if rule in ("pipe", "per") else "open" if rule == "if" and any(p.form in ("pipe", "per", "open") for p in parts[1:]) else ""
        return Part(self.node(rule, children, span), start, end, form, depth)

    def check_open(self, rule: str, parts: list[Part]) -> None:
        """After an `if` whose `then` branch has an `→` or a `per` without brackets there is no telling what another one belongs to."""
        for p in parts[:-1]:
            if p.form == "open":
                sign = "→" if rule == "pipe" else "per"
                message = f"this `if` has an `→` or a `per` in its `then` branch, and a `{sign}` comes after it: does the branch take that, or the whole `if`?"
                self.error("brackets-needed", message, p.node.span, help="put brackets around the branch, `if c then (a → b) else d`, or around the whole `if`")

    def error(self, code: str, message: str, span: Span, **more: Any) -> None:
        self.errors.append(Diagnostic(code, message, span, **more))

    def node(self, rule: str, children: list, span: Span) -> Any:
        values = [c if isinstance(c, Token) else c.node for c in children]
        match rule:
            case "infix":
                return self.infix(children)
            case "state_item":
                return self.state_item(children, span)
        for build in (self.expression, self.statement, self.declaration):
            found = build(rule, values, span)
            if found is not None:
                return found
        raise InternalError(f"the grammar's rule {rule} makes no node")

    def place(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)

    def name(self, token: Token) -> syntax.Name:
        return syntax.Name(token.text, span=self.place(token))

    def word(self, token: Token, choices: tuple[str, ...], code: str, what: str) -> str:
        """One of a few words that are reserved only here."""
        if token.text not in choices:
            shown = " or ".join(p for p in (", ".join(f"`{c}`" for c in choices[:-1]), f"`{choices[-1]}`") if p).replace("`block`", "`block(k)`")
            near = did_you_mean(token.text, choices)
            ranges = "write `for k in [lo, hi]` for numbers, `for q orthogonal` or `for p permutation` for matrices"
            help_ = near or (ranges if code == "unknown-quantifier" else f"write {shown}")
            self.error(code, f"unknown {what} `{token.text}`", self.place(token), notes=(f"here fits {shown}",) if near else (), help=help_)
        return token.text

    def scope(self, name: Token, size: syntax.Expr | None, span: Span) -> syntax.ScopeName:
        word = self.word(name, SCOPES, "unknown-scope", "scope")
        if word == "block" and size is None:
            self.error("block-size", "a block has a length", span, help="write `block(64)`, for runs of 64 consecutive entries")
        elif word in SCOPES and word != "block" and size is not None:
            self.error("block-size", f"`{word}` has no size", span, help=f"write `{word}`; runs of k consecutive entries are `block(k)`")
        return syntax.ScopeName(word, size, span=span)

    # --- expressions ---

    def expression(self, rule: str, values: list, span: Span) -> Any:
        match rule, values:
            case "pipe", _:
                if len(values) // 2 >= MAX_STAGES:
                    self.error("too-many-stages", f"this pipeline has more than {MAX_STAGES} stages", span, help="name a part of it: `rule part = …`")
                return syntax.Pipe(tuple(values[::2]), span=span)
            case "per", [body, _, scope]:
                return syntax.Per(body, scope, span=span)
            case "scope", [name]:
                return self.scope(name, None, span)
            case "scope", [name, _, size, _]:
                return self.scope(name, size, span)
            case "if", [_, condition, _, then, _, otherwise]:
                return syntax.If(condition, then, otherwise, span=span)
            case "clip", [_, measure, op, bound]:
                return syntax.Clip(measure, op.text, bound, span=span)
            case "prefix", [op, operand]:
                return syntax.Unary(op.text, operand, span=span)
            case "compare", [first, *rest]:
                return syntax.Compare(first, tuple((op.text, x) for op, x in zip(rest[::2], rest[1::2], strict=True)), span=span)
            case "transpose", [operand, _]:
                return syntax.Transpose(operand, span=span)
            case "name", [token]:
                return syntax.Name(token.text, span=span)
            case "number", [token]:
                return syntax.Number(number_value(token.text), token.text.endswith("%"), span=span)
            case "boolean", [token]:
                return syntax.Boolean(token.text == "true", span=span)
            case "text", [token]:
                return syntax.Text(token.text, span=span)
            case "call", [callee, _, *arguments, _]:
                return self.call(callee, arguments[0] if arguments else (), span)
            case "brackets", [_, inner, _]:
                return inner
            case "repeat", [_, count, _, _, body, _]:
                return syntax.Repeat(count, body, span=span)
            case "arguments", _:
                return self.list_of(values)
            case "argument", [value]:
                return syntax.Argument(None, value, span=span)
            case "argument", [name, _, value]:
                return syntax.Argument(name.text, value, span=span)
        return None

    def infix(self, children: list) -> syntax.Expr:
        """a op b op c, from the left; of `^` there is one."""
        first, *rest = children
        left = first.node
        for op, right in zip(rest[::2], rest[1::2], strict=True):
            left = syntax.Binary(op.text, left, right.node, span=Span(self.source, first.start, right.end))
        return left

    def call(self, callee: Token, arguments: tuple[syntax.Argument, ...], span: Span) -> syntax.Call:
        found = syntax.Call(callee.text, arguments, span=span, callee_span=self.place(callee))
        if callee.type == "RULE":
            self.streams.append(found)
        return found

    def list_of(self, values: list) -> tuple:
        """The items between commas or semicolons."""
        return tuple(v for v in values if not isinstance(v, Token))

    # --- statements ---

    def statement(self, rule: str, values: list, span: Span) -> Any:
        match rule, values:
            case "input", [_, *items, _]:
                return syntax.Input(self.list_of(items), span=span)
            case "input_item", [name]:
                return syntax.InputItem(name.text, "samples" if name.text == "samples" else "stream", span=span)
            case "input_item", [name, Token(type="PER"), scope]:
                return syntax.InputItem(name.text, "per", scope, span=span)
            case "input_item", [name, _, kind]:
                return syntax.InputItem(name.text, self.word(kind, INPUT_KINDS, "unknown-input-kind", "kind of input"), span=span)
            case "local", [name, _, value, _]:
                return syntax.Local(name.text, value, span=span, name_span=self.place(name))
            case "let", [_, name, _, value, _]:
                return syntax.Let(name.text, value, span=span, name_span=self.place(name))
            case "assign", [name, _, value, _]:
                return syntax.Assign(name.text, value, span=span, name_span=self.place(name))
            case "state", [_, *items, _]:
                return syntax.State(self.list_of(items), span=span)
            case "repeat_block", [_, count, _, _, body]:
                return syntax.RepeatBlock(count, body, span=span)
            case "every", [_, count, _, body]:
                return syntax.Every(count, None, body, span=span)
            case "every", [_, count, _, start, _, body]:
                return syntax.Every(count, start, body, span=span)
            case "restart", [_, Token(type="WHEN"), condition, _]:
                return syntax.Reset((), condition, span=span)
            case "restart", _:
                return syntax.Reset((), span=span)
            case "reset", [_, *names, Token(type="WHEN"), condition, _]:
                return syntax.Reset(tuple(self.name(n) for n in names if n.type == "NAME"), condition, span=span)
            case "reset", [_, *names, _]:
                return syntax.Reset(tuple(self.name(n) for n in names if n.type == "NAME"), span=span)
            case "skip", [_, _, condition, _]:
                return syntax.Skip(condition, span=span)
            case "watch", [_, label, _, value, _]:
                return syntax.Watch(label.text, value, span=span)
            case "return", [_, value, _]:
                return syntax.Return(value, span=span)
            case "match", _:
                return syntax.Match(self.list_of(values), span=span)
            case "arm", [condition, _, body, *_]:
                return syntax.Arm(condition, body, span=span)
            case "else_arm", [_, _, body, *_]:
                return syntax.Arm(None, body, span=span)
            case "block", _:
                return self.list_of(values)
        return None

    def state_item(self, children: list, span: Span) -> syntax.StateItem:
        name, _, init, *dtype = children
        scope = None
        value = init.node
        if init.form == "per":
            value, scope = value.body, value.scope
        type_ = self.word(dtype[1], TYPES, "unknown-type", "type") if dtype else None
        return syntax.StateItem(name.text, value, scope, type_, span=span, name_span=self.place(name))

    # --- declarations ---

    def declaration(self, rule: str, values: list, span: Span) -> Any:
        match rule, values:
            case "file", _:
                return syntax.File(tuple(values), span=span)
            case "pipeline", [body, _]:
                return syntax.File((syntax.Rule(file_rule_name(self.source), (), body, span=body.span),), span=span)
            case "use", [_, *names]:
                return syntax.Use(tuple(self.name(n) for n in names if n.type == "NAME"), span=span)
            case "rule", [_, name, *parameters, Token(type="EQUAL"), value, _]:
                return syntax.Rule(name.text, parameters[0] if parameters else (), value, span=span, name_span=self.place(name))
            case "rule", [_, name, *parameters, _, (doc, body)]:
                return syntax.Rule(name.text, parameters[0] if parameters else (), body, doc, span=span, name_span=self.place(name))
            case "body", [_, _, Token(type="DOC") as doc, _, *statements]:
                return inspect.cleandoc(doc.text).strip(), self.list_of(statements)
            case "body", _:
                return None, self.list_of(values)
            case "fn", [_, name, parameters, *about, _, body, _]:
                return syntax.Fn(name.text, parameters, body, about[0] if about else None, span=span, name_span=self.place(name))
            case "about", [_, about]:
                return about
            case "parameters", _:
                return self.list_of(values)
            case "parameter", [name, *rest]:
                return syntax.Parameter(name.text, *(r for r in rest if not isinstance(r, Token)), span=span)
            case "law", [_, name, *rest, _]:
                return self.law(name, rest, span)
            case "settings", [_, arguments, _]:
                return arguments
            case "quantifiers", _:
                return self.list_of(values)
            case "quantifier", [name, kind]:
                choices = ("any",) if name.text == "g" else QUANTIFIERS
                return syntax.Quantifier(name.text, self.word(kind, choices, "unknown-quantifier", "kind of values"), span=span)
            case "quantifier", [name, _, _, low, _, high, _]:
                return syntax.Quantifier(name.text, "in", low, high, span=span)
            case "example", [_, *settings, Token(type="COLON"), given, _, expected, _]:
                return syntax.Example(settings[0] if settings else (), given, expected, span=span)
            case "example_settings" | "stream", _:
                return self.list_of(values)
            case "example_setting", [name, _, steps]:
                return syntax.ExampleSetting(name.text, steps, span=span)
            case "array", _:
                return syntax.Array(self.list_of(values), span=span)
        return None

    def law(self, name: Token, rest: list, span: Span) -> syntax.Law:
        colon = next(i for i, v in enumerate(rest) if isinstance(v, Token))
        settings = rest[0] if colon else ()
        for a in settings:
            if a.name is None:
                self.error("setting-without-name", "a setting of a law names the parameter that it sets", a.span, help="write `law late(warmup = 2): …`")
        premise, claim, quantifiers = None, *rest[colon + 1 : colon + 2], rest[colon + 2 :]
        if quantifiers and isinstance(quantifiers[0], Token):
            premise, claim, quantifiers = claim, quantifiers[1], quantifiers[2:]
        self.streams = [c for c in self.streams if not span.start <= c.span.start < span.end]
        return syntax.Law(name.text, settings, premise, claim, tuple(q for group in quantifiers for q in group), span=span)


def file_rule_name(source: Source) -> str:
    """The name of a bare pipeline's rule: the file's, as a name."""
    stem = normalize("NFKC", PurePath(source.name).stem)
    name = "".join(c if c == "_" or c.isalpha() or category(c) == "Nd" else "_" for c in stem)[:MAX_NAME].strip("_")
    return f"rule_{name}" if not name or name[0].isdigit() or name in RESERVED else name
