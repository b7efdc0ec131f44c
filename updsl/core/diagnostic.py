"""Diagnostics: what is wrong with a text, where, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from updsl.core.source import NOWHERE, Span

MAX_REPORTED = 50


@dataclass(frozen=True, slots=True)
class Label:
    """A secondary place, with the reason it is shown."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake (or warning).

    `code` is words joined by "-", the name of its page in docs/errors. `message` is lower-case, in the user's terms. `span` is where to edit, `note_here` what stands under
    its carets; `labels` are other places with reasons; `help` is the likely fix, in text that compiles.
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
