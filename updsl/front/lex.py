"""Text → tokens: symbols, names, numbers, texts, comments. Names are folded by NFKC; positions are those of the source."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from updsl.core.diagnostic import Diagnostic
from updsl.core.source import Source, Span

MAX_BYTES = 64 * 1024
MAX_TOKENS = 20_000
MAX_NAME = 64
MAX_NUMBER = 64
LARGEST, SMALLEST = 1e30, 1e-30

RESERVED = frozenset(
    "rule fn law example use per if then else and or not clip for implies gives in repeat times every from let state as "
    "input match skip when watch reset return about true false inf".split()
)

KINDS = {
    **dict.fromkeys(("→", "->", "|>"), ("ARROW", "→")),
    **dict.fromkeys(("←", "<-"), ("ASSIGN", "←")),
    **dict.fromkeys(("≤", "<="), ("ORDER", "<=")),
    **dict.fromkeys(("≥", ">="), ("ORDER", ">=")),
    **dict.fromkeys(("≠", "!="), ("EQUALITY", "!=")),
    **dict.fromkeys(("·", "×", "*"), ("STAR", "*")),
    **dict.fromkeys(("−", "-"), ("MINUS", "-")),
    "<": ("ORDER", "<"), ">": ("ORDER", ">"), "==": ("EQUALITY", "=="), "~": ("EQUALITY", "~"), "=": ("EQUAL", "="),
    "+": ("PLUS", "+"), "/": ("SLASH", "/"), "@": ("AT", "@"), "^": ("CARET", "^"), ".T": ("TRANSPOSE", ".T"),
    "(": ("LPAR", "("), ")": ("RPAR", ")"), "[": ("LSQB", "["), "]": ("RSQB", "]"),
    ",": ("COMMA", ","), ":": ("COLON", ":"), ";": ("SEMI", ";"),
}  # fmt: skip
"""Each symbol as written: its terminal, and the symbol that all of its spellings mean."""

FOREIGN = {
    "**": "a power is written `^`",
    "&&": "write `and`",
    "&": "write `and`",
    "||": "write `or`",
    "|": "write `or`, or `|>` for the arrow of a pipeline",
    "!": "write `not`",
    "//": "write `floor(a / b)`; a comment begins with `#`",
    "%": "write `mod(a, b)`; a percentage is written without a space, `10%`",
    ":=": "write `=` for a local, `←` for a new value of a state",
    "+=": "write `m ← m + …`",
    "-=": "write `m ← m - …`",
    "*=": "write `m ← m * …`",
    "/=": "write `m ← m / …`",
    "===": "write `==`",
    "!==": "write `!=`",
    "<>": "write `!=`",
    "=>": "write `>=` to compare, `→` for a pipeline",
    "{": "write `(`",
    "}": "write `)`",
    "\\": "lines join inside brackets, and a line that begins with `→` continues the one before",
    "?": "write `if c then a else b`",
    "$": "a name is letters, digits and `_`",
    "`": "a name stands without quotes",
    "'": "a text stands in double quotes; a prime follows a name at once",
    "÷": "write `/`",
    "√": "write `sqrt(x)`",
    "∧": "write `and`",
    "∨": "write `or`",
    "¬": "write `not`",
    "⊤": "write `x.T`",
    "∞": "write `inf`",
    "’": "a prime is written `'`",
    "‘": "a text stands in double quotes",
    "“": 'a text stands in straight double quotes, `"`',
    "”": 'a text stands in straight double quotes, `"`',
    "–": "write `-`",
    "—": "write `-`",
    "⇒": "write `→`",
    "⟶": "write `→`",
    "➜": "write `→`",
    "⟵": "write `←`",
    "⇐": "write `←`",
    "∗": "write `*`",
    "⋅": "write `*`",
    "∥": "write `norm(x)`",
}
"""What other languages write, and what to write here."""

_SYMBOL = "|".join(re.escape(s) for s in sorted(KINDS, key=len, reverse=True) if s != ".T")
_FOREIGN = "|".join(re.escape(s) for s in sorted(FOREIGN, key=len, reverse=True) if len(s) > 1)
_FULL_WIDTH = "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e"
_PRIMES = "'′″‴⁗"
_INSIDE = rf"(?:\w|[^\x00-\x7f\s→←≤≥≠·×−{_PRIMES}{_FULL_WIDTH}])"
"""A character that a name may hold, and every one that stands for nothing: those are sorted out once the name is known."""

_TOKEN = re.compile(
    rf"""
    (?P<doc>\"\"\"(?:(?!\"\"\").)*\"\"\")
  | (?P<text>"(?:[^"\\\r\n]|\\[^\r\n])*")
  | (?P<comment>\#[^\r\n]*)
  | (?P<newline>\r\n?|\n)
  | (?P<space>[ \t]+)
  | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?%?)
  | (?P<core>history\.(?:push|empty)(?!\w))
  | (?P<name>{_INSIDE}+[{_PRIMES}]*)
  | (?P<transpose>\.T(?!\w))
  | (?P<foreign>{_FOREIGN})
  | (?P<symbol>{_SYMBOL})
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """`type` is a terminal of the grammar, `text` what is meant (folded), [start, end) where it stands in the source."""

    type: str
    text: str
    start: int
    end: int


def too_large(source: Source) -> Diagnostic | None:
    """What to say of a text that is too large to be looked at."""
    if len(source.text) <= MAX_BYTES // 4 or len(source.text.encode("utf-8", "surrogatepass")) <= MAX_BYTES:
        return None
    return Diagnostic("file-too-large", f"this file holds more than {MAX_BYTES // 1024} KiB", Span(source, 0, 0), help="a rule file is text of a few pages; split it, and `use` its parts")


class Lexer:
    """The tokens of a source in order, comments, line ends and blanks among them, and what is wrong with its characters."""

    def __init__(self, source: Source):
        self.source = source
        self.tokens: list[Token] = []
        self.errors: list[Diagnostic] = []
        self.count = 0

    def run(self) -> None:
        text = self.source.text
        at = 1 if text.startswith("\ufeff") else 0
        while at < len(text) and self.count <= MAX_TOKENS:
            m = _TOKEN.match(text, at)
            assert m is not None and m.lastgroup is not None
            self.one(m.lastgroup, m.group(), at)
            at = m.end()

    def error(self, code: str, message: str, start: int, end: int, **more) -> None:
        self.errors.append(Diagnostic(code, message, Span(self.source, start, end), **more))

    def add(self, type_: str, text: str, start: int, end: int) -> None:
        self.count += type_ not in ("COMMENT", "SPACE")
        self.tokens.append(Token(type_, text, start, end))

    def one(self, group: str, text: str, start: int) -> None:
        end = start + len(text)
        match group:
            case "comment" | "space" | "newline":
                self.add(group.upper(), text, start, end)
            case "doc":
                self.add("DOC", text[3:-3], start, end)
            case "text":
                self.add("TEXT", unicodedata.normalize("NFKC", text[1:-1]), start, end)
            case "number":
                self.number(text, start)
            case "core":
                self.add("NAME", text, start, end)
            case "name":
                self.name(text, start)
            case "symbol" | "transpose":
                self.add(*KINDS[text], start, end)
            case "foreign":
                self.error("unknown-symbol", f"`{text}` is not a symbol of the language", start, end, help=FOREIGN[text])
                self.add("ERROR", text, start, end)
            case _:
                self.other(text, start)

    def number(self, text: str, start: int) -> None:
        self.add("NUMBER", unicodedata.normalize("NFKC", text), start, start + len(text))

    def name(self, text: str, start: int) -> None:
        folded = unicodedata.normalize("NFKC", text).replace("′", "'")
        end = start + len(text)
        self.add(folded.upper() if folded in RESERVED else "NAME", folded, start, end)

    def other(self, text: str, start: int) -> None:
        folded = unicodedata.normalize("NFKC", text)
        if folded in KINDS:
            self.add(*KINDS[folded], start, start + 1)
            return
        self.error("unknown-symbol", f"`{text}` is not a symbol of the language", start, start + 1, help=FOREIGN.get(folded))
        self.add("ERROR", text, start, start + 1)
