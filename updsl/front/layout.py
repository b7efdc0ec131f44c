"""Lines and blocks: tokens of a text → tokens of the grammar, with NEWLINE, INDENT and DEDENT."""

from __future__ import annotations

from dataclasses import dataclass, field

from updsl.core.diagnostic import Diagnostic
from updsl.core.source import Source, Span
from updsl.front.lex import Lexer, Token

BLANK = frozenset(("SPACE", "COMMENT", "NEWLINE"))


@dataclass
class Layout:
    """The tokens of the grammar."""

    source: Source
    tokens: list[Token] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)

    def run(self, raw: list[Token]) -> None:
        depth, indents, fresh, margin = 0, [0], True, 0
        for i, token in enumerate(raw):
            if token.type == "NEWLINE":
                if not depth and not fresh and not self.continued(raw, i):
                    self.mark("NEWLINE")
                    fresh = True
                if fresh:
                    margin = 0
            elif token.type == "SPACE":
                if fresh:
                    margin = len(token.text.expandtabs(8))
            elif token.type != "COMMENT":
                if fresh:
                    self.indent(indents, margin)
                    fresh = False
                depth += (token.type in ("LPAR", "LSQB")) - (token.type in ("RPAR", "RSQB"))
                self.tokens.append(token)
        if not fresh:
            self.mark("NEWLINE")
        self.indent(indents, 0)

    def mark(self, type_: str) -> None:
        at = self.tokens[-1].end if self.tokens else 0
        self.tokens.append(Token(type_, "", at, at))

    def continued(self, raw: list[Token], i: int) -> bool:
        following = next((t for t in raw[i:] if t.type not in BLANK), None)
        return following is not None and following.type == "ARROW"

    def indent(self, indents: list[int], margin: int) -> None:
        if margin > indents[-1]:
            indents.append(margin)
            self.mark("INDENT")
        while margin < indents[-1]:
            indents.pop()
            self.mark("DEDENT")


def layout(source: Source) -> Layout:
    lexer = Lexer(source)
    lexer.run()
    result = Layout(source, errors=lexer.errors)
    result.run(lexer.tokens)
    return result
