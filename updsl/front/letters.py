"""Names and texts as LaTeX: the literature's letters where a name has one, upright words elsewhere, and nothing that LaTeX would obey."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from unicodedata import combining, normalize
from unicodedata import name as unicode_name

from updsl.core.diagnostic import printable

ACCENTS = {
    "\u0300": "grave", "\u0301": "acute", "\u0302": "hat", "\u0303": "tilde", "\u0304": "bar", "\u0306": "breve", "\u0307": "dot", "\u0308": "ddot",
    "\u030c": "check", "\u20d7": "vec",
}  # fmt: skip
GREEK = frozenset("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega".split())
LIKE_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
"""Greek letters that LaTeX has no command for."""
OWN = {"eps": r"\epsilon", "lr": r"\eta", "inf": r"\infty", "l": r"\ell", "ς": r"\varsigma", "Υ": r"\Upsilon"}
ESCAPES = {c: f"\\{c}" for c in "{}_%#&$"} | {"\\": r"\backslash{}", "^": r"\wedge{}", "~": r"\sim{}", " ": r"\ ", '"': "''", "`": "'", "-": r"\text{-}"}


def symbols(names: Iterable[str]) -> dict[str, str]:
    """Each name's LaTeX; of names that would look alike (`eps` and `ε`) the one written in ASCII is a word."""
    made = {n: symbol(n) for n in names}
    count = Counter(made.values())
    own = Counter(s for n, s in made.items() if not n.isascii())
    return {n: s if count[s] == 1 or (own[s] == 1 and not n.isascii()) else word(n) for n, s in made.items()}


def symbol(name: str) -> str:
    """`beta1` and `β1` as β₁, `m̂` as m with a hat, `z_max` as z with an index, `n'` with its prime, `max_norm` as a word."""
    body = name.rstrip("'")
    primes = name[len(body) :]
    head, underscore, rest = body.partition("_")
    stem = head.rstrip("0123456789")
    letter = _letter(stem)
    if not stem or (underscore and (letter is None or not rest)):
        return word(body) + primes
    below = ",".join(filter(None, (head[len(stem) :], rest if rest.isdecimal() else word(rest) if rest else "")))
    return (letter or word(stem)) + (f"_{{{below}}}" if below else "") + primes


def _letter(stem: str) -> str | None:
    """One letter, perhaps with accents, or the name of a Greek one; None for a word."""
    if stem in OWN:
        return OWN[stem]
    if stem in GREEK:
        return f"\\{stem}"
    letter, *marks = normalize("NFD", stem) or " "
    if not all(m in ACCENTS for m in marks):
        return None
    text = OWN.get(letter) or _greek(letter) or (letter if letter.isascii() and letter.isalpha() else None)
    for mark in marks if text else ():
        text = f"\\{ACCENTS[mark]}{{{text}}}"
    return text


def _greek(letter: str) -> str | None:
    if letter in LIKE_LATIN:
        return f"\\mathrm{{{LIKE_LATIN[letter]}}}"
    found = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicode_name(letter, ""))
    command = found and {"LAMDA": "lambda"}.get(found[2], found[2].lower())
    if not found or command not in GREEK:
        return None
    return f"\\{command if found[1] == 'SMALL' else command.capitalize()}"


def word(text: str) -> str:
    """Upright; every character that means something to LaTeX is escaped, and what cannot be seen is spelled out."""
    return f"\\mathrm{{{escaped(text)}}}"


def escaped(text: str) -> str:
    shown = printable(normalize("NFC", text))
    return "".join(ESCAPES.get(c, c if c.isalnum() or combining(c) or c in ".,:;!?()[]/|+*=<>@'" else f"\\text{{{c}}}") for c in shown)


def quoted(text: str) -> str:
    """A text in quotes."""
    return f"\\text{{“}}{word(text)}\\text{{”}}"


def number(text: str) -> str:
    """`1e-8` as a power of ten, `10%` with its sign, `inf` as ∞; other numbers as they are."""
    if text == "inf":
        return OWN["inf"]
    mantissa, _, exponent = text.removesuffix("%").partition("e")
    power = f"10^{{{exponent}}}" if exponent else ""
    shown = power if power and mantissa == "1" else f"{mantissa} \\cdot {power}" if power else mantissa
    return shown + (r"\%" if text.endswith("%") else "")
