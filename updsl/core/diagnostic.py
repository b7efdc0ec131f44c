"""Diagnostics: what is wrong with a text, where, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from unicodedata import combining, east_asian_width

from updsl.core.source import NOWHERE, Source, Span

MAX_REPORTED = 50
TAB = 4
MAX_COLUMNS = 160
"""A longer source line is shown in part, around its first mark."""


@dataclass(frozen=True, slots=True)
class Label:
    """A secondary place, with the reason it is shown."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake (or warning).

    `code` is words joined by "-", the name of its page in docs/errors. `message` is lower-case, in the user's terms. `span` is where to edit, `note_here`
    what stands beside its carets; `labels` are other places with reasons; `help` is the likely fix, in text that compiles.
    """

    code: str
    message: str
    span: Span = NOWHERE
    note_here: str = ""
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: str = "error"

    @property
    def file(self) -> str | None:
        return None if self.span is NOWHERE else self.span.source.name

    @property
    def line(self) -> int | None:
        return None if self.span is NOWHERE else self.span.line

    @property
    def column(self) -> int | None:
        return None if self.span is NOWHERE else self.span.column


class UpdslError(Exception):
    """A mistake of the user's: in a rule text, or in how the API is called. `diagnostics` says what and where."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]):
        found = [diagnostics] if isinstance(diagnostics, Diagnostic) else list(diagnostics)
        self.diagnostics: list[Diagnostic] = sorted(found, key=_order)[:MAX_REPORTED]
        super().__init__(render_all(self.diagnostics))


class InternalError(Exception):
    """A mistake of ours: an invariant of updsl does not hold. Please report it with the rule text."""

    def __init__(self, message: str):
        super().__init__(f"internal error in updsl (please report it with the rule text): {message}")


def _order(d: Diagnostic) -> tuple[str, int, int]:
    return (d.span.source.name, d.span.start, d.span.end)


def nearest(name: str, choices: Iterable[str], limit: int = 1) -> list[str]:
    """The names most like `name`, best first, none that is far off."""
    by_folded = {c.casefold(): c for c in choices}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=limit, cutoff=0.6)
    return [by_folded[f] for f in found]


def did_you_mean(name: str, choices: Iterable[str]) -> str | None:
    """Help text naming the nearest choice, or None."""
    found = nearest(name, choices)
    return f"did you mean `{found[0]}`?" if found else None


# --- as text ---------------------------------------------------------------------------------------------------------


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    """Each as `render` gives it, an empty line between."""
    return "\n\n".join(render(d) for d in diagnostics)


def render(d: Diagnostic) -> str:
    """Header, place, marked source lines, notes, help: what a terminal shows. Without a final line end."""
    lines = [f"{d.severity}[{d.code}]: {printable(d.message)}"]
    marks = [] if d.span is NOWHERE else [_Mark(d.span, d.note_here, "^"), *(_Mark(x.span, x.text, "-") for x in d.labels if x.span is not NOWHERE)]
    gutter = " " * max((len(str(m.span.line)) for m in marks), default=1)
    sources = list(dict.fromkeys(m.span.source for m in marks))
    for source in sources:
        here = [m for m in marks if m.span.source is source]
        arrow = "-->" if source is sources[0] else ":::"
        lines += [f"{gutter}{arrow} {printable(source.name)}:{here[0].span.line}:{here[0].span.column}", f"{gutter} |"]
        lines += _excerpt(source, here, gutter)
    if marks:
        lines.append(f"{gutter} |")
    extra = [*(("note", n) for n in d.notes), *([("help", d.help)] if d.help else []), ("more", f"updsl explain {d.code}")]
    for word, text in extra:
        first, *rest = text.split("\n")
        lines += [f"{gutter} = {word}: {printable(first)}", *(f"{gutter}         {printable(line)}".rstrip() for line in rest)]
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text with every character that a terminal would not show as itself (control, direction, lone surrogate) as an escape."""
    return text if text.isprintable() else "".join(_shown(c) for c in text)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A span, what stands beside its underline, and the underline's character."""

    span: Span
    text: str
    line: str


def _shown(c: str) -> str:
    code = ord(c)
    if c.isprintable():
        return c
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _columns(c: str) -> int:
    """How many columns of a terminal a printable character takes."""
    if combining(c) or "\ufe00" <= c <= "\ufe0f":
        return 0
    return 2 if east_asian_width(c) in "WF" else 1


def _layout(text: str) -> tuple[str, list[int]]:
    """A source line as shown, and the column (from 0) at which each of its characters begins, and at which the last one ends."""
    shown, widths, at = [], [], 0
    for c in text:
        piece = " " * (TAB - at % TAB) if c == "\t" else _shown(c)
        width = sum(map(_columns, piece))
        shown.append(piece)
        widths.append(width)
        at += width
    return "".join(shown), [0, *accumulate(widths)]


def _excerpt(source: Source, marks: list[_Mark], gutter: str) -> list[str]:
    """The marked lines in order, each with its underlines; lines between are left out."""
    lines = []
    for number in sorted({m.span.line for m in marks}):
        text, underlines = _underlined(source, number, [m for m in marks if m.span.line == number])
        lines.append(f"{number:>{len(gutter)}} | {text}".rstrip())
        lines += [f"{gutter} | {u}" for u in underlines]
    return lines


def _underlined(source: Source, number: int, marks: list[_Mark]) -> tuple[str, list[str]]:
    """A source line as shown, and the lines under it. A span of several lines is marked to the end of its first."""
    raw = source.lines[number - 1]
    offset = source.line_starts[number - 1]
    first = min(max(0, marks[0].span.start - offset), len(raw))
    cut = max(0, first - MAX_COLUMNS // 3) if len(raw) > MAX_COLUMNS else 0
    kept = raw[cut : cut + MAX_COLUMNS]
    text, starts = _layout(kept)
    lead = "…" if cut else ""
    places = []
    for m in marks:
        begin = min(max(0, m.span.start - offset - cut), len(kept))
        end = min(max(begin, m.span.end - offset - cut), len(kept.rstrip()))
        left = starts[begin] + len(lead)
        places.append((left, max(left + 1, starts[max(begin, end)] + len(lead)), m))
    return f"{lead}{text}{'…' if cut + len(kept) < len(raw) else ''}", _underlines(places)


def _underlines(places: list[tuple[int, int, _Mark]]) -> list[str]:
    """One line of underlines, the text of the last mark beside it; then the other texts, each under its mark, from right to left."""
    row = [" "] * max(right for _, right, _ in places)
    for left, right, m in sorted(places, key=lambda p: p[2].line == "^"):
        row[left:right] = m.line * (right - left)
    texts = sorted(((left, right, printable(m.text)) for left, right, m in places if m.text), key=lambda p: p[:2])
    beside = ""
    if texts and texts[-1][1] == len(row):
        beside = " " + texts.pop()[2]
    lines = ["".join(row) + beside]
    while texts:
        left, _, text = texts.pop()
        bars = [" "] * left
        for other, _, _ in texts:
            bars[other : other + 1] = "|" if other < left else []
        lines.append("".join(bars) + text)
    return lines


# --- for machines ----------------------------------------------------------------------------------------------------


def to_json(d: Diagnostic) -> dict:
    """The diagnostic as plain data; lines and columns from 1, the end exclusive."""
    return {
        "severity": d.severity,
        "code": d.code,
        "message": d.message,
        **_place(d.span),
        "note": d.note_here,
        "labels": [{**_place(x.span), "text": x.text} for x in d.labels],
        "notes": list(d.notes),
        "help": d.help,
    }


def _place(span: Span) -> dict:
    if span is NOWHERE:
        return dict.fromkeys(("file", "line", "column", "end_line", "end_column"))
    end_line, end_column = span.source.position(span.end)
    return {"file": span.source.name, "line": span.line, "column": span.column, "end_line": end_line, "end_column": end_column}


def to_github(d: Diagnostic) -> str:
    """A workflow command of GitHub Actions, which shows the diagnostic beside its line."""
    place = {k: v for k, v in (("file", d.file), ("line", d.line), ("col", d.column), ("title", d.code)) if v is not None}
    properties = ",".join(f"{k}={_github_escape(str(v), ',:')}" for k, v in place.items())
    text = "\n".join([d.message, *([d.note_here] if d.note_here else []), *d.notes, *([f"help: {d.help}"] if d.help else [])])
    return f"::{'error' if d.severity == 'error' else 'warning'} {properties}::{_github_escape(text)}"


def _github_escape(text: str, also: str = "") -> str:
    escaped = "".join(f"%{ord(c):02X}" if c in "%\r\n" + also else c for c in text)
    return escaped.encode("utf-8", "backslashreplace").decode()
