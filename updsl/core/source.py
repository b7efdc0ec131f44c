"""Source and Span: a text, and places in it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Source:
    """A text with the name it is shown under (a path, or "<text>")."""

    name: str
    text: str

    @cached_property
    def line_starts(self) -> list[int]:
        starts = [0]
        for i, c in enumerate(self.text):
            if c == "\n":
                starts.append(i + 1)
        return starts

    @cached_property
    def lines(self) -> list[str]:
        return [line.removesuffix("\r") for line in self.text.split("\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of `offset`, both from 1; columns count characters of the source."""
        line = bisect_right(self.line_starts, offset) - 1
        return line + 1, offset - self.line_starts[line] + 1


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open range [start, end) of characters of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def __reduce__(self) -> str | tuple:
        """A copy of NOWHERE is NOWHERE."""
        return "NOWHERE" if self is NOWHERE else (Span, (self.source, self.start, self.end))

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of the other."""
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))


NOWHERE = Span(Source("<nowhere>", ""), 0, 0)
