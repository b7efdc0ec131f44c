"""Text → tokens: symbols, names, numbers, texts. Names and texts are folded by NFKC; positions are those of the source."""

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

SYMBOLS = {
    **dict.fromkeys(("→", "->", "|>"), ("ARROW", "→")),
    **dict.fromkeys(("←", "<-"), ("ASSIGN", "←")),
    **dict.fromkeys(("≤", "<="), ("ORDER", "<=")),
    **dict.fromkeys(("≥", ">="), ("ORDER", ">=")),
    **dict.fromkeys(("≠", "!="), ("EQUALITY", "!=")),
    **dict.fromkeys(("·", "×", "*"), ("STAR", "*")),
    **dict.fromkeys(("−", "-"), ("MINUS", "-")),
    "<": ("ORDER", "<"), ">": ("ORDER", ">"), "==": ("EQUALITY", "=="), "~": ("EQUALITY", "~"), "=": ("EQUAL", "="),
    "+": ("PLUS", "+"), "/": ("SLASH", "/"), "@": ("AT", "@"), "^": ("CARET", "^"),
    "(": ("LPAR", "("), ")": ("RPAR", ")"), "[": ("LSQB", "["), "]": ("RSQB", "]"),
    ",": ("COMMA", ","), ":": ("COLON", ":"), ";": ("SEMI", ";"),
}  # fmt: skip
"""Each symbol as written: its terminal, and the one spelling of what it means."""

FOREIGN = {
    "**": "a power is written `^`",
    "&&": "write `and`",
    "&": "write `and`",
    "||": "write `or`",
    "|": "write `or`; the arrow of a pipeline is `→`, `->` or `|>`",
    "!": "write `not`",
    "//": "write `floor(a / b)`; a comment begins with `#`",
    "%": "write `mod(a, b)`; in a percentage the sign follows the number at once, `10%`",
    ":=": "write `x = …` for a local, `m ← …` for a new value of a state",
    "+=": "write `m ← m + …`",
    "-=": "write `m ← m - …`",
    "*=": "write `m ← m * …`",
    "/=": "write `m ← m / …`",
    "===": "write `==`",
    "!==": "write `!=`",
    "<>": "write `!=`",
    "=>": "write `>=` to compare, `→` for a pipeline, `implies` in a law",
    "{": "write `(`; a block is indented, below a line that ends in `:`",
    "}": "write `)`; a block ends where its indentation does",
    "\\": "lines join inside brackets, and a line that begins with `→` continues the one before",
    "?": "write `if c then a else b`",
    "'": "a text stands in double quotes; a prime follows its name at once, `n'`",
    "÷": "write `/`",
    "√": "write `sqrt(x)`",
    "∧": "write `and`",
    "∨": "write `or`",
    "¬": "write `not`",
    "⊤": "write `x.T`",
    "∞": "write `inf`",
    "‖": "write `norm(x)`",
    "∑": "write `sum(x)`",
    "’": "a prime is written `'`, and a text stands in double quotes",
    "‘": "a text stands in double quotes",
    "“": 'a text stands in straight double quotes, `"`',
    "”": 'a text stands in straight double quotes, `"`',
    "–": "write `-`",
    "—": "write `-`",
    "⇒": "write `→`",
    "⟶": "write `→`",
    "⟵": "write `←`",
    "⇐": "write `←`",
    "∗": "write `*`",
    "⋅": "write `*`",
}
"""What other languages and papers write, and what to write here."""

_PRIMES = "'′″‴⁗"
_STANDING = "".join(c for c in (*SYMBOLS, *FOREIGN) if len(c) == 1 and not c.isascii())
_FULL_WIDTH = "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_INSIDE = rf"(?:\w|[^\x00-\x7f\s{_STANDING}{_PRIMES}{_FULL_WIDTH}])"
"""A character of a name, or one that stands for nothing: `Lexer.name` tells them apart, and says of the latter what they are."""


def _any_of(symbols: list[str]) -> str:
    return "|".join(re.escape(s) for s in sorted(symbols, key=len, reverse=True))


_TOKEN = re.compile(
    rf"""
    (?P<doc>\"\"\"(?:[^"]|"(?!\"\"))*\"\"\")
  | (?P<open_doc>\"\"\".*)
  | (?P<text>"(?:[^"\\\r\n]|\\[^\r\n])*")
  | (?P<open_text>"(?:[^"\\\r\n]|\\[^\r\n])*\\?)
  | (?P<comment>\#[^\r\n]*)
  | (?P<newline>\r\n?|\n)
  | (?P<space>[ \t]+)
  | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?%?)
  | (?P<core>core\.(?:push|empty|spread|store)(?!\w))
  | (?P<name>{_INSIDE}+[{_PRIMES}]*)
  | (?P<transpose>\.T(?!\w))
  | (?P<foreign>{_any_of([s for s in FOREIGN if len(s) > 1])})
  | (?P<symbol>{_any_of(list(SYMBOLS))})
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_SURROGATE = re.compile("[\ud800-\udfff]+")
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks that leave nothing on paper."""


@dataclass(frozen=True, slots=True)
class Token:
    """`type` is a terminal of the grammar, or COMMENT, SPACE, BREAK (the end of a line), ERROR (what has been reported); `text` is what is meant
    (folded); [start, end) is its place in the source."""

    type: str
    text: str
    start: int
    end: int


def code_point(c: str) -> str:
    """How messages name a character."""
    name = unicodedata.name(c, "")
    return f"U+{ord(c):04X}{f' ({name.lower()})' if name else ''}"


def is_invisible(c: str) -> bool:
    """Whether the character cannot be seen, or is seen as something else: control, direction, zero width, a blank that is no space."""
    return unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") or bool(_IGNORABLE.match(c))


def tokens(source: Source) -> tuple[list[Token], list[Diagnostic]]:
    """All tokens in order, comments, blanks and line ends among them, and what is wrong with the characters."""
    size = len(source.text)
    if size > MAX_BYTES or (size > MAX_BYTES // 4 and len(source.text.encode("utf-8", "surrogatepass")) > MAX_BYTES):
        start = Source(source.name, source.text[:80].split("\n")[0])
        message = f"this file holds more than {MAX_BYTES // 1024} KiB"
        return [], [Diagnostic("file-too-large", message, Span(start, 0, 0), help="a rule is a page of text; split the file, and `use` its parts")]
    lexer = Lexer(source)
    lexer.run()
    return lexer.tokens, lexer.errors


class Lexer:
    def __init__(self, source: Source):
        self.source = source
        self.tokens: list[Token] = []
        self.errors: list[Diagnostic] = []

    def run(self) -> None:
        text = self.source.text
        at, count = 1 if text.startswith("\ufeff") else 0, 0
        for m in _TOKEN.finditer(text, at):
            kind = m.lastgroup
            assert kind is not None
            count += kind not in ("comment", "space", "newline")
            if count > MAX_TOKENS:
                self.tokens.clear()
                self.errors = [
                    Diagnostic("too-many-tokens", f"this file holds more than {MAX_TOKENS:,} words and symbols", Span(self.source, m.start(), m.start()))
                ]
                return
            self.one(kind, m.group(), m.start())
        for m in _SURROGATE.finditer(text):
            if not any(e.span.start <= m.start() < e.span.end for e in self.errors):
                self.not_utf8(m.group(), m.start())

    def add(self, type_: str, text: str, start: int, end: int) -> None:
        self.tokens.append(Token(type_, text, start, end))

    def error(self, code: str, message: str, start: int, end: int, help_: str | None, token: tuple[int, int] | None = None) -> None:
        """Report [start, end); an ERROR token stands for the whole `token`."""
        self.errors.append(Diagnostic(code, message, Span(self.source, start, end), help=help_))
        self.add("ERROR", "", *(token or (start, end)))

    def one(self, kind: str, text: str, start: int) -> None:
        end = start + len(text)
        match kind:
            case "comment" | "space":
                self.add(kind.upper(), text, start, end)
            case "newline":
                self.add("BREAK", "\n", start, end)
            case "doc":
                self.add("DOC", text[3:-3].replace("\r\n", "\n").replace("\r", "\n"), start, end)
            case "text":
                self.add("TEXT", unicodedata.normalize("NFKC", text[1:-1]), start, end)
            case "open_doc":
                self.error("open-text", 'this documentation has no closing `"""`', start, start + 3, 'end it with `"""`', (start, end))
            case "open_text":
                escaped = "a quote after a backslash is part of the text; a backslash alone is written `\\\\`" if '\\"' in text else f'write `{text.rstrip()}"`'
                self.error("open-text", "this text has no closing quote on its line", start, end, escaped)
            case "number":
                self.number(text, start, end)
            case "core":
                self.add("CORE", text, start, end)
            case "name":
                self.name(text, start, end)
            case "transpose":
                self.add("TRANSPOSE", ".T", start, end)
            case "foreign":
                self.error("unknown-symbol", f"`{text}` is not a symbol of the language", start, end, FOREIGN[text])
            case "symbol":
                self.add(*SYMBOLS[text], start, end)
            case _:
                self.other(text, start)

    def number(self, text: str, start: int, end: int) -> None:
        """A number must be ASCII once folded, short, and 0 or of ordinary size."""
        folded = unicodedata.normalize("NFKC", text)
        digits = re.split("[eE]", folded.rstrip("%"))[0]
        if not folded.isascii():
            self.error("number-form", "the digits of a number are 0 to 9", start, end, None)
        elif len(text) > MAX_NUMBER:
            help_ = f"{text[:12]}… has {len(text)} characters; 17 digits say all that a number can hold"
            self.error("number-out-of-range", f"number out of range: it has more than {MAX_NUMBER} characters", start, end, help_)
        elif digits.strip("0.") and not SMALLEST <= number_value(folded) <= LARGEST:
            help_ = "write `inf` for no limit" if number_value(folded) > LARGEST else "write `0`"
            self.error("number-out-of-range", f"number out of range: its magnitude is not between {SMALLEST:g} and {LARGEST:g}", start, end, help_)
        else:
            self.add("NUMBER", folded, start, end)

    def name(self, text: str, start: int, end: int) -> None:
        folded = unicodedata.normalize("NFKC", text).replace("′", "'")
        before = self.tokens[-1] if self.tokens else None
        touching = before is not None and before.end == start
        if (text.isascii() or self.is_name(text, folded, start)) and self.is_apart(folded, before if touching else None, start, end):
            if len(folded) > MAX_NAME:
                self.error("name-too-long", f"this name has {len(folded)} characters; a name has at most {MAX_NAME}", start, end, "choose a shorter name")
            else:
                self.add(folded.upper() if folded in RESERVED else "NAME", folded, start, end)

    def is_name(self, text: str, folded: str, start: int) -> bool:
        """Whether the characters make up a name; else the first that does not is reported."""
        token = (start, start + len(text))
        for i, c in enumerate(text):
            at = start + i
            if "\ud800" <= c <= "\udfff":
                self.not_utf8(c, at, token)
            elif is_invisible(c):
                self.invisible(c, at, token)
            elif is_superscript(c):
                self.superscript(text, i, at, token)
            elif c not in _PRIMES and not all(_is_word(f, first=i == 0 and k == 0) for k, f in enumerate(unicodedata.normalize("NFKC", c))):
                help_ = FOREIGN.get(c) or "a name begins with a letter or `_`, goes on with letters, digits, `_` and combining marks, and may end in primes"
                self.error("unknown-symbol", f"`{c}` {code_point(c)} is not a symbol of the language, and no part of a name", at, at + 1, help_, token)
            else:
                continue
            return False
        return True

    def is_apart(self, folded: str, before: Token | None, start: int, end: int) -> bool:
        """Whether a name does not run into what stands before it: a number, or a primed name."""
        if before is None or before.type not in ("NUMBER", "NAME", "TRANSPOSE"):
            return True
        if before.type == "NUMBER":
            plain = folded[0].isalpha() and before.text != "0" and folded[0] not in "eE"
            digits = before.text + folded.replace("_", "")
            other = f"write `{digits}`" if digits.isdigit() else "a number is written `3`, `0.9`, `1e-8` or `10%`"
            help_ = f"a product is written `{before.text}*{folded}`; a name begins with a letter, `{folded}{before.text}`" if plain else other
            self.error("number-form", f"`{before.text}{folded}` is neither a number nor a name", before.start, end, help_, (start, end))
        else:
            primed = (before.text + folded).replace("'", "") + "'"
            self.error("unknown-symbol", "a prime ends its name", start, end, f"write a space, or put the prime at the end: `{primed}`")
        return False

    def not_utf8(self, text: str, start: int, token: tuple[int, int] | None = None) -> None:
        first = ord(text[0])
        what = f"byte 0x{first - 0xDC00:02X}" if 0xDC80 <= first <= 0xDCFF else f"U+{first:04X}"
        self.error("not-utf8", f"this is not UTF-8: {what}", start, start + len(text), "save the file as UTF-8", token)

    def invisible(self, c: str, start: int, token: tuple[int, int] | None = None) -> None:
        blank = unicodedata.category(c) == "Zs"
        message = f"{code_point(c)} is a blank that is no space" if blank else f"{code_point(c)} cannot be seen"
        self.error("invisible-character", message, start, start + 1, "write a space" if blank else "delete it", token)

    def superscript(self, text: str, i: int, start: int, token: tuple[int, int]) -> None:
        """`g²`: what is raised stands before, what it is raised to are all superscripts from here."""
        raised = re.match(r".(?:[⁰¹²³⁴-⁹⁺⁻]*)", text[i:], re.DOTALL)
        assert raised is not None
        power = unicodedata.normalize("NFKC", raised.group()).replace("−", "-")
        base = unicodedata.normalize("NFKC", text[:i]) or "x"
        help_ = f"write `{base}.T`" if power == "T" else f"write `{base}^{power}`"
        self.error("superscript", f"`{raised.group()}` is a superscript", start, start + len(raised.group()), help_, token)

    def other(self, text: str, start: int) -> None:
        folded = unicodedata.normalize("NFKC", text)
        if "\ud800" <= text <= "\udfff":
            self.not_utf8(text, start)
        elif folded in SYMBOLS:
            self.add(*SYMBOLS[folded], start, start + 1)
        elif is_invisible(text):
            self.invisible(text, start)
        elif text == ".":
            self.dot(start)
        else:
            named = bool(self.tokens) and self.tokens[-1].type == "NAME" and self.tokens[-1].end == start
            letters = "a name is made of letters, digits, `_` and combining marks" if named and not text.isascii() else None
            help_ = "; ".join(h for h in (FOREIGN.get(folded), letters) if h) or None
            self.error("unknown-symbol", f"`{text}` is not a symbol of the language", start, start + 1, help_)

    def dot(self, start: int) -> None:
        after = re.match(r"\d+", self.source.text[start + 1 : start + 1 + MAX_NUMBER])
        before = self.tokens[-1] if self.tokens and self.tokens[-1].end == start else None
        line = self.source.text.rfind("\n", 0, start) + 1
        if re.match(r"[ \t]*use\b", self.source.text[line : line + 80]):
            self.path_used(line, start)
        elif before is not None and before.type == "NUMBER":
            self.error("number-form", "a digit stands after the point of a number", start, start + 1, f"write `{before.text}`")
        elif after:
            self.error("number-form", "a digit stands before the point of a number", start, start + 1, f"write `0.{after.group()}`")
        else:
            self.error("unknown-symbol", "`.` is not a symbol of the language", start, start + 1, "the transpose is written `x.T`")

    def path_used(self, line: int, start: int) -> None:
        """`use ../other`, `use other.upd`: one report for the line."""
        if any(e.span.start >= line for e in self.errors):
            self.add("ERROR", "", start, start + 1)
        else:
            self.error(
                "unknown-symbol",
                "`use` takes names of files beside this one: no folders, no `.upd`",
                start,
                start + 1,
                "write `use other` for the file other.upd in this folder",
            )


def is_superscript(c: str) -> bool:
    """A raised digit or sign, or the raised T: they say a power or a transpose, and folding would make a name of them."""
    return c == "ᵀ" or (unicodedata.decomposition(c).startswith("<super>") and not unicodedata.category(c).startswith("L"))


def _is_word(c: str, first: bool) -> bool:
    category = unicodedata.category(c)
    return c == "_" or category[0] == "L" or (not first and (category == "Nd" or category[0] == "M"))


def number_value(text: str) -> float:
    """The number nearest to what is written: 10% is 0.1."""
    if not text.endswith("%"):
        return float(text)
    mantissa, _, exponent = text[:-1].lower().partition("e")
    return float(f"{mantissa}e{int(exponent or 0) - 2}")
