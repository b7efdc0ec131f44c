"""Writes the tables of functions in docs/language.md from the op table: `python docs/write_functions.py`."""

from __future__ import annotations

from pathlib import Path

from updsl.core.ops import OPS, Op

PAGE = Path(__file__).parent / "language.md"
BEGIN, END = "<!-- functions: written by docs/write_functions.py -->\n", "<!-- end of functions -->\n"
KINDS = {
    "elementwise": "Elementwise",
    "reduction": "Reductions, of each cell",
    "selection": "Selection",
    "samples": "Samples",
    "matrix": "Matrix functions",
    "random": "Random draws",
}


def call(op: Op) -> str:
    """The function as a text writes it."""
    more = [f"{s} = 2" if s == "p" else s for s in op.static if s in ("p", "k")]
    return f"`{op.name}({', '.join([*op.args, *more])})`"


def tables() -> str:
    """A table for each kind of function."""
    parts = []
    for kind, title in KINDS.items():
        rows = [f"| {call(op)} | {op.doc.replace('|', chr(92) + '|')} |" for op in OPS.values() if op.kind == kind and op.text == "call"]
        parts.append("\n".join([f"| {title} | |", "|---|---|", *rows]))
    return "\n" + "\n\n".join(parts) + "\n\n"


def written(page: str) -> str:
    """The page with the tables of today."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
