"""Text → syntax tree, by the tables that lark makes of the grammar. Every mistake of a text is found in one go."""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Tree
from lark.exceptions import UnexpectedToken
from lark.grammar import Rule
from lark.lexer import TerminalDef
from lark.parsers.lalr_interactive_parser import InteractiveParser

from updsl.core.diagnostic import MAX_REPORTED, Diagnostic, UpdslError
from updsl.core.resources import cache_folder, folder
from updsl.core.source import Source, Span
from updsl.front import syntax
from updsl.front.build import Builder
from updsl.front.layout import DECLARATIONS, Layout
from updsl.front.lex import Token, tokens
from updsl.front.syntax import Expr, File
from updsl.front.unexpected import BLANK, OPERATORS, unexpected


def parse(source: Source) -> File:
    """The syntax tree of a file. Raises UpdslError with every mistake found."""
    return _parse(source, "file")


def parse_law(text: str) -> syntax.Law:
    """The syntax tree of a law alone: `law NAME: claim`, or the claim, with what it ranges over. Raises UpdslError."""
    source = Source("<law>", text if text.split()[:1] == ["law"] else f"law claim: {text.strip()}")
    file = parse(source)
    match file.declarations:
        case (syntax.Law() as law,):
            return law
        case (syntax.Law(), second, *_):
            raise UpdslError(Diagnostic("unexpected", "a second declaration does not fit here", second.span, help="give one law"))
        case _:
            raise UpdslError(Diagnostic("unexpected", "this does not fit here", file.declarations[0].span, help="write a law: `norm(out) <= 1 per all`"))


def parse_expression(source: Source) -> Expr:
    """The syntax tree of an expression alone. Raises UpdslError."""
    return _parse(source, "expr")


def _parse(source: Source, start: str) -> Any:
    raw, errors = tokens(source)
    layout = Layout(source, raw)
    if (not raw and errors) or not layout.run():
        raise UpdslError(errors or layout.errors)
    errors += layout.errors
    terminals = layout.tokens if start == "file" else [t for t in layout.tokens if t.type not in BLANK]
    if not terminals:
        help_ = "a rule file is a pipeline such as `norm per column → ema`, or declares `rule NAME: …`"
        raise UpdslError(errors or Diagnostic("no-rule", "no rule here", Span(source, 0, 0), help=help_))
    feeder = Feeder(source, terminals, start)
    tree = feeder.run()
    errors += feeder.errors
    builder = Builder(source)
    node = builder.build(tree) if tree is not None else None
    errors += builder.errors
    if errors:
        raise UpdslError(list(dict.fromkeys(errors)))
    return node


# --- the tables ------------------------------------------------------------------------------------------------------


@cache
def tables() -> Lark:
    """The grammar's LALR tables, kept in the user's cache directory: making them takes longer than all the rest of a check."""
    text = (folder("grammar") / "updsl.lark").read_text(encoding="utf-8")
    key = hashlib.sha256(repr((text, lark.__version__, sys.version_info[:3])).encode()).hexdigest()
    file = cache_folder() / f"grammar-{key[:32]}.tables"
    try:
        digest, _, data = file.read_bytes().partition(b"\n")
        if digest.decode() == hashlib.sha256(data).hexdigest():
            return Lark._load_from_dict(*marshal.loads(data))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError):
        pass
    made = Lark(text, parser="lalr", lexer="basic", start=["file", "expr"], keep_all_tokens=True, maybe_placeholders=False)
    keep(file, marshal.dumps(made.memo_serialize([TerminalDef, Rule])))
    return made


def keep(file: Path, data: bytes) -> None:
    """Write the file whole or not at all; where that cannot be done, do without."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        os.replace(part, file)
    except OSError:
        pass


# --- tokens to tree --------------------------------------------------------------------------------------------------

HEADERS = {"RULE": "RULE NAME COLON NEWLINE", "EVERY": "EVERY INF COLON NEWLINE", "REPEAT": "EVERY INF COLON NEWLINE", "MATCH": "MATCH COLON NEWLINE"}
"""By the first word of a line that opens a block: a line that stands in for it where it is wrong, so that its block can still be read."""


def feed(parser: InteractiveParser, token: Any) -> Any:
    """The tree, after the last token; lark asks no more of a token than its type."""
    return parser.feed_token(token)


class Feeder:
    """Feeds tokens to the parser. A line that does not fit is reported once and another read in its place, so that what follows is still understood."""

    def __init__(self, source: Source, terminals: list[Token], start: str):
        self.source, self.start = source, start
        self.tokens = [*terminals, Token("$END", "", len(source.text), len(source.text))]
        self.parser = tables().parse_interactive(start=start)
        self.errors: list[Diagnostic] = []
        self.ignored: set[int] = set()
        self.failed = False
        """Whether another line was read in place of the last one."""

    def run(self) -> Tree | None:
        """The tree, or None if that of a text with mistakes would say nothing."""
        i, tree = 0, None
        while i < len(self.tokens) and len(self.errors) < MAX_REPORTED:
            stop = i
            if self.tokens[i].type not in ("INDENT", "DEDENT", "$END"):
                stop = next(k for k in range(i, len(self.tokens)) if self.tokens[k].type in ("NEWLINE", "$END"))
            before, k = self.parser.copy(deepcopy_values=False), i
            if any(t.type == "ERROR" for t in self.tokens[i:stop]):
                i = self.in_its_place(before, i, stop)
                continue
            try:
                for k in range(i, stop + 1):
                    if k not in self.ignored:
                        tree = feed(self.parser, self.tokens[k])
                self.failed = False
                i = stop + 1
            except UnexpectedToken:
                i = self.wrong(before, i, k, stop)
        return tree

    def wrong(self, before: InteractiveParser, i: int, k: int, stop: int) -> int:
        """tokens[k] of the line i to stop does not fit. Where to go on."""
        self.parser = before.copy(deepcopy_values=False)
        for t in self.tokens[i:k]:
            feed(self.parser, t)
        fits, kind = self.parser.accepts(), self.tokens[k].type
        if not (self.failed and kind in ("INDENT", "DEDENT")):
            self.errors.append(unexpected(self.source, self.tokens, k, fits))
        if self.start == "expr" or fits == {"$END"} or kind == "$END":
            return len(self.tokens)
        if "INDENT" in fits and k == i:
            return self.without_block(i)
        if kind == "INDENT":
            return self.indented(k)
        if kind == "DEDENT" and "RETURN" in fits:
            self.feed("RETURN INF NEWLINE", i)
            return i
        return self.in_its_place(before, i, stop)

    def without_block(self, i: int) -> int:
        """The line before i opens a block, and there is none. Lines that could have been meant as that block are passed over."""
        self.feed("INDENT", i)
        if "DEDENT" not in self.parser.accepts():
            self.feed("RETURN INF NEWLINE", i)
        self.feed("DEDENT", i)
        return i if self.tokens[i].type in self.parser.accepts() else self.next_declaration(i)

    def indented(self, i: int) -> int:
        """A block that no line opens: passed over below a line that did not fit or if it goes on with that line, else read as part of the block around it."""
        depth, close = 1, i
        while depth:
            close += 1
            depth += (self.tokens[close].type == "INDENT") - (self.tokens[close].type == "DEDENT")
        if self.failed or self.tokens[i + 1].type in OPERATORS:
            return close + 1
        self.ignored.add(close)
        return i + 1

    def in_its_place(self, before: InteractiveParser, i: int, stop: int) -> int:
        """Read another line in place of that from i to stop. Where to go on."""
        self.parser, self.failed = before, True
        fits = before.accepts()
        first, opens = self.tokens[i].type, stop + 1 < len(self.tokens) and self.tokens[stop + 1].type == "INDENT"
        no_body = all(t.type != "EQUAL" for t in self.tokens[i:stop]) or self.tokens[stop - 1].type == "COLON"
        if opens and no_body and first in HEADERS and HEADERS[first].split()[0] in fits:
            self.feed(HEADERS[first], i)
        elif "RETURN" in fits:
            self.feed("RETURN INF NEWLINE", i)
        elif "USE" in fits:
            self.feed("USE NAME NEWLINE", i)
            if first not in DECLARATIONS:
                return self.next_declaration(stop + 1)
        elif "INF" in fits:
            self.feed("INF COLON NEWLINE" if opens else "INF COLON INF NEWLINE", i)
        return stop + 1

    def next_declaration(self, i: int) -> int:
        """Where the next declaration begins, or the block ends that i is in."""
        depth = 0
        while self.tokens[i].type != "$END" and (depth or self.tokens[i].type not in DECLARATIONS | {"DEDENT"}):
            depth += (self.tokens[i].type == "INDENT") - (self.tokens[i].type == "DEDENT")
            i += 1
        return i

    def feed(self, types: str, i: int) -> None:
        at = self.tokens[i].start
        for t in types.split():
            feed(self.parser, Token(t, t.lower(), at, at))
