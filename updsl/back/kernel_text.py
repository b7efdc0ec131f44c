"""Lines of generated texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

DEPTH = "    "


def indented(lines: Iterable[str], depth: int = 1) -> Iterator[str]:
    """Further to the right, but for directives (#…), which stand at the margin."""
    return (f"{DEPTH * depth}{line}" if line and not line.startswith("#") else line for line in lines)
