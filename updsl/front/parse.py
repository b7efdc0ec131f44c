"""Text → syntax tree."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lark import Lark, Tree
from lark.exceptions import UnexpectedToken
from lark.lexer import Token as End

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.source import Source, Span
from updsl.front.build import Builder
from updsl.front.layout import layout
from updsl.front.syntax import File


@cache
def grammar() -> Lark:
    path = Path(__file__).parents[2] / "grammar" / "updsl.lark"
    return Lark(path.read_text(encoding="utf-8"), parser="lalr", lexer="basic", start="file", keep_all_tokens=True, maybe_placeholders=False)


def parse(source: Source) -> File:
    """The syntax tree of a file. Raises UpdslError with every mistake found."""
    laid = layout(source)
    if laid.errors:
        raise UpdslError(laid.errors)
    parser = grammar().parse_interactive()
    token = None
    try:
        for token in laid.tokens:
            parser.feed_token(token)
        tree = parser.feed_token(End("$END", ""))
    except UnexpectedToken as e:
        place = Span(source, token.start, token.end) if token and e.token is token else Span(source, len(source.text), len(source.text))
        raise UpdslError(Diagnostic("unexpected", f"`{place.text}` does not fit here", place)) from None
    return build(tree, source)


def build(tree: Tree, source: Source) -> File:
    """Leaves first, without recursion."""
    builder = Builder(source)
    done = {}
    for subtree in tree.iter_subtrees():
        done[id(subtree)] = builder.part(subtree.data, [done[id(c)] if isinstance(c, Tree) else c for c in subtree.children])
    return done[id(tree)].node
