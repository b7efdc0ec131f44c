"""Names of a rule text → Python identifiers in ASCII, distinct within a function."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Hashable

RESERVED = (
    frozenset(keyword.kwlist)
    | frozenset(keyword.softkwlist)
    | {"torch", "math", "reduce", "order", "matrix", "random", "runtime", "float", "int", "True", "False", "None"}
)
MARKS = {"CIRCUMFLEX ACCENT": "hat", "TILDE": "tilde", "MACRON": "bar", "OVERLINE": "bar", "DOT ABOVE": "dot", "DIAERESIS": "ddot", "CARON": "check"}
LONGEST = 60


def to_identifier(name: str) -> str:
    """β1 → beta1, m̂ → m_hat, n' → n_prime, "ema#1.m" → ema_1_m. Not injective: `Names` keeps names apart."""
    words = "".join(_spelled(c) for c in unicodedata.normalize("NFD", name))
    joined = "_".join(w for w in words.split("_") if w)[:LONGEST] or "x"
    return f"x_{joined}" if joined[0].isdigit() else joined


def _spelled(c: str) -> str:
    if c.isascii():
        return c if c.isalnum() else "_prime" if c == "'" else "_"
    words = unicodedata.name(c, "").split(" ")
    if words[0] == "COMBINING":
        mark = " ".join(words[1:])
        return "_" + MARKS.get(mark, "_".join(words[1:]).lower())
    if c.isalpha() and words[0] == "GREEK":
        return words[-1].lower() if "SMALL" in words else words[-1].title()
    return f"_u{ord(c):04x}_"


class Names:
    """Keys (anything hashable) → identifiers; the first wish for an identifier gets it, later ones get a number."""

    def __init__(self) -> None:
        self.given: dict[Hashable, str] = {}
        self.taken: set[str] = set(RESERVED)

    def of(self, key: Hashable, wish: str) -> str:
        """The identifier of a key; made from `wish` when the key is new."""
        if key not in self.given:
            self.given[key] = self.fresh(wish)
        return self.given[key]

    def fresh(self, wish: str) -> str:
        """An identifier like `wish` that nothing else has."""
        first = name = to_identifier(wish)
        count = 1
        while name in self.taken:
            count += 1
            name = f"{first}_{count}"
        self.taken.add(name)
        return name
