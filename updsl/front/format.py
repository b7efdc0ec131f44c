"""A text in the form that `updsl fmt` gives it: the same tokens and comments, other blanks.

Blocks are indented by 4, arrows are `→` and `←`, other symbols ASCII. Blanks stand around operators, but `^` has none, and `*` `/` `@` have them on both
sides or on none, as the author has it. Blanks that align what follows a `:`, or a comment, stay; so do the author's line breaks, and what indents the lines
within brackets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from updsl.core.diagnostic import InternalError
from updsl.core.source import Source
from updsl.front.lex import Token, tokens
from updsl.front.parse import parse

INDENT = 4
OPENING = frozenset(("LPAR", "LSQB"))
CLOSING = frozenset(("RPAR", "RSQB"))
TIGHT_BEFORE = CLOSING | {"COMMA", "COLON", "SEMI", "CARET", "TRANSPOSE"}
TIGHT_AFTER = OPENING | {"CARET"}
AS_WRITTEN = frozenset(("STAR", "SLASH", "AT"))
CALLED = frozenset(("NAME", "CORE", "RULE", "EXAMPLE"))
"""What a bracket that opens an argument list follows."""
OPERANDS = frozenset(("NAME", "NUMBER", "TEXT", "TRUE", "FALSE", "INF", "TRANSPOSE", *CLOSING))
"""What a `-` between two operands follows; after anything else it is a sign."""


def format_source(source: Source) -> str:
    """The formatted text; of a text without a rule, the text itself. Raises UpdslError if it does not parse."""
    raw, _ = tokens(source)
    if all(t.type in ("SPACE", "BREAK", "COMMENT") for t in raw):
        return source.text
    tree = parse(source)
    text = "\n".join(_joined(list(_lines(source.text, raw)))) + "\n"
    if parse(Source(source.name, text)) != tree:
        raise InternalError("formatting would change what the text means")
    return text


@dataclass
class Line:
    """One line of the source: its margin in columns, its tokens (blanks left out), for each the blanks before it, and how many brackets its start is in."""

    margin: int
    tokens: list[Token]
    blanks: list[str]
    depth: int

    @property
    def is_statement(self) -> bool:
        """Whether it begins a statement, and does not go on with one."""
        return bool(self.tokens) and self.depth == 0 and self.tokens[0].type not in ("ARROW", "COMMENT")

    @property
    def is_comment(self) -> bool:
        return bool(self.tokens) and self.tokens[0].type == "COMMENT"


def _lines(text: str, raw: list[Token]) -> Iterator[Line]:
    depth = 0
    line, blank = Line(0, [], [], 0), ""
    for t in raw:
        match t.type:
            case "BREAK":
                yield line
                line, blank = Line(0, [], [], depth), ""
            case "SPACE":
                blank = t.text
            case _:
                if not line.tokens:
                    line.margin = len(blank.expandtabs(8))
                depth += (t.type in OPENING) - (t.type in CLOSING)
                line.tokens.append(Token(t.type, _spelling(text, t), t.start, t.end))
                line.blanks.append(blank)
                blank = ""
    yield line


def _spelling(text: str, t: Token) -> str:
    """Symbols as the language's own spelling, all else as written."""
    written = text[t.start : t.end]
    match t.type:
        case "NAME" | "NUMBER" | "TEXT" | "CORE":
            return written
        case "DOC":
            return written.replace("\r\n", "\n").replace("\r", "\n")
        case "COMMENT":
            return written.rstrip()
        case _:
            return t.text


def _joined(lines: list[Line]) -> Iterator[str]:
    """The lines as they should be, at most one empty one between two others."""
    margins: list[int] = []
    first, gap, begun = Line(0, [], [], 0), False, False
    for i, line in enumerate(lines):
        if not line.tokens:
            gap = begun
            continue
        if gap and line.depth == 0:
            yield ""
        gap, begun = False, True
        if line.is_statement:
            while margins and line.margin < margins[-1]:
                margins.pop()
            if not margins or line.margin > margins[-1]:
                margins.append(line.margin)
            first = line
        level = max(0, len(margins) - 1)
        if line.is_comment and line.depth == 0:
            level = _comment_level(line, margins, lines[i + 1 :])
            yield " " * (INDENT * level) + _text(line)
        elif line.is_statement:
            yield " " * (INDENT * level) + _text(line)
        else:
            yield " " * (INDENT * level + max(line.margin - first.margin, 0 if line.tokens[0].type in CLOSING else INDENT)) + _text(line)


def _comment_level(comment: Line, margins: list[int], rest: list[Line]) -> int:
    """The level of the next statement, but of a block that it ends if the comment stands as far right as that block."""
    following = next((x for x in rest if x.is_statement), None)
    if following is None or not margins:
        return sum(m <= comment.margin for m in margins[1:])
    if following.margin > margins[-1]:
        return len(margins)
    own = sum(m <= comment.margin for m in margins[1:])
    return max(own, sum(m <= following.margin for m in margins[1:]))


def _text(line: Line) -> str:
    """The line's tokens with the blanks that belong between them."""
    out: list[str] = []
    depth = line.depth
    for i, (t, blank) in enumerate(zip(line.tokens, line.blanks, strict=True)):
        if i:
            out.append(_between(line, i, blank, depth))
        depth += (t.type in OPENING) - (t.type in CLOSING)
        out.append(t.text)
    return "".join(out)


def _between(line: Line, i: int, blank: str, depth: int) -> str:
    """The blanks before the i-th token."""
    before, here = line.tokens[i - 1].type, line.tokens[i].type
    if here == "COMMENT":
        return "  " if len(blank) < 2 or "\t" in blank else blank
    if here in TIGHT_BEFORE or before in TIGHT_AFTER:
        return ""
    if before == "COLON" and depth == 0:
        return " " if not blank or "\t" in blank else blank
    if here == "LPAR" and before in CALLED:
        return ""
    if before == "MINUS" and (i < 2 or line.tokens[i - 2].type not in OPERANDS):
        return ""
    if here in AS_WRITTEN:
        return " " if blank or _blank_after(line, i) else ""
    if before in AS_WRITTEN:
        return " " if blank or line.blanks[i - 1] else ""
    return " "


def _blank_after(line: Line, i: int) -> bool:
    return i + 1 < len(line.tokens) and bool(line.blanks[i + 1])
