"""Tokens of a text → terminals of the grammar: lines join inside brackets and before an arrow, indentation becomes INDENT and DEDENT."""

from __future__ import annotations

from updsl.core.diagnostic import Diagnostic, Label
from updsl.core.source import Source, Span
from updsl.front.lex import Token

MAX_NESTING = 64
"""Of brackets, and of blocks."""

OPENING = {"LPAR": "RPAR", "LSQB": "RSQB"}
CLOSING = {"RPAR": "LPAR", "RSQB": "LSQB"}
BRACKET = {"LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]"}
DECLARATIONS = frozenset("RULE FN LAW EXAMPLE USE".split())
NEVER_INSIDE = frozenset("FN LAW EXAMPLE USE LET STATE INPUT MATCH SKIP WATCH RESET RETURN EVERY".split())
"""Words that begin a line, and never stand inside brackets."""


class Layout:
    """`tokens` are the terminals, `errors` what is wrong with brackets and indentation. A line with an ERROR token has been reported."""

    def __init__(self, source: Source, raw: list[Token]):
        self.source = source
        self.raw = [t for t in raw if t.type != "COMMENT"]
        self.tokens: list[Token] = []
        self.errors: list[Diagnostic] = []
        self.open: list[Token] = []
        self.margins: list[str] = []
        self.margin: str | None = ""
        """The blanks that begin this line; None once it has a token."""

    def run(self) -> bool:
        """Whether all of the text has been laid out: not if it is nested too deeply."""
        for i, token in enumerate(self.raw):
            if token.type == "BREAK":
                self.line_end(i)
            elif token.type == "SPACE":
                if self.margin is not None:
                    self.margin = token.text
            else:
                if self.margin is not None:
                    self.line_start(i)
                    self.margin = None
                if token.type == "COLON" and self.open:
                    self.unclosed()
                if token.type in OPENING:
                    self.open.append(token)
                elif token.type in CLOSING:
                    token = self.closed(token)
                self.tokens.append(token)
            if len(self.open) > MAX_NESTING or len(self.margins) > MAX_NESTING:
                what = "brackets" if len(self.open) > MAX_NESTING else "blocks"
                help_ = "give the inner parts names: `x = …`" if self.open else "move the inner blocks into a rule of their own"
                self.error("too-deep", f"more than {MAX_NESTING} {what} inside one another", token.start, token.end, help=help_)
                return False
        self.finish()
        return True

    def finish(self) -> None:
        if self.open:
            self.unclosed()
        if self.margin is None:
            self.add("NEWLINE")
        for _ in self.margins[1:]:
            self.add("DEDENT")

    def error(self, code: str, message: str, start: int, end: int, **more) -> None:
        self.errors.append(Diagnostic(code, message, Span(self.source, start, end), **more))

    def add(self, type_: str, before: Token | None = None) -> None:
        """A token that no character stands for: after the last one, or in the place of the one that it stands before."""
        at = self.tokens[-1].end if self.tokens else 0
        self.tokens.append(Token(type_, "", before.start, before.end) if before else Token(type_, "", at, at))

    def line_end(self, i: int) -> None:
        if self.open and self.starts_anew(i):
            self.unclosed()
        if self.margin is None and not self.open and not self.is_continued(i):
            self.add("NEWLINE")
            self.margin = ""
        elif self.margin is not None:
            self.margin = ""

    def is_continued(self, i: int) -> bool:
        """Whether the next line that holds something begins with an arrow."""
        following = next((t for t in self.raw[i:] if t.type not in ("BREAK", "SPACE")), None)
        return following is not None and following.type == "ARROW"

    def line_start(self, i: int) -> None:
        """INDENT or DEDENT, if this line's margin is another one than that of the line before."""
        margin, token = self.margin or "", self.raw[i]
        if not self.margins:
            self.margins.append(margin)
        elif margin == self.margins[-1]:
            pass
        elif margin.startswith(self.margins[-1]):
            self.margins.append(margin)
            self.add("INDENT", token)
        elif margin in self.margins:
            self.dedent(margin)
        else:
            self.misplaced(margin, token)

    def misplaced(self, margin: str, token: Token) -> None:
        """Report a margin that is no block's. The line is read as part of the block before it, a declaration as one."""
        if not self.margins[-1].startswith(margin):
            start, message, help_ = token.start - len(margin), "tabs and spaces are mixed in the margins of this block", "indent by spaces alone"
        elif len(margin) < len(self.margins[0]):
            start, message, help_ = token.start, "this line begins to the left of the first one", "let all declarations begin in one column"
        else:
            columns = " or ".join(str(len(m) + 1) for m in self.margins)
            start, message, help_ = token.start, "this line begins in no column of the blocks around it", f"begin it in column {columns}"
        self.error("indentation", message, start, token.end, help=help_)
        if token.type in DECLARATIONS:
            self.dedent(self.margins[0])

    def dedent(self, margin: str) -> None:
        while self.margins[-1] != margin:
            self.margins.pop()
            self.add("DEDENT")

    # --- brackets ---

    def closed(self, token: Token) -> Token:
        """The closing bracket, or an ERROR if it closes nothing."""
        if self.open and CLOSING[token.type] == self.open[-1].type:
            self.open.pop()
            return token
        shown = BRACKET[token.type]
        if self.open:
            opened = self.open.pop()
            label = Label(self.span(opened), "opened here")
            wanted = BRACKET[OPENING[opened.type]]
            self.error("stray-bracket", f"`{shown}` does not close `{BRACKET[opened.type]}`", token.start, token.end, labels=(label,), help=f"write `{wanted}`")
        else:
            self.error("stray-bracket", f"`{shown}` closes nothing", token.start, token.end, help=f"delete it, or add `{BRACKET[CLOSING[token.type]]}` before")
        return Token("ERROR", "", token.start, token.end)

    def unclosed(self) -> None:
        """Report the innermost open bracket after the last character, and end its line."""
        opened, last = self.open[-1], self.tokens[-1]
        wanted = "".join(BRACKET[OPENING[t.type]] for t in reversed(self.open))
        label = Label(self.span(opened), "opened here")
        self.error("open-bracket", f"`{BRACKET[opened.type]}` is not closed", last.end, last.end, labels=(label,), help=f"add `{wanted}`")
        self.add("ERROR")
        self.open.clear()

    def span(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)

    def starts_anew(self, i: int) -> bool:
        """Whether the line after this break begins as no line inside brackets does: one of them has been left open."""
        match [t.type for t in self.raw[i + 1 : i + 5] if t.type != "SPACE"]:
            case [first, *_] if first in NEVER_INSIDE:
                return True
            case ["RULE", "NAME", *_] | ["NAME", "ASSIGN", *_]:
                return True
        return False
