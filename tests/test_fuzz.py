"""No text gives anything but success or UpdslError, within the suite's timeout: words of good rules left out, doubled, swapped and exchanged, and rubbish."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updsl.core.diagnostic import UpdslError, render_all
from updsl.core.source import Source
from updsl.front.files import library
from updsl.front.lex import tokens
from updsl.front.unit import load_unit
from updsl.laws.check import unit_mistakes

CONFORMANCE = Path(__file__).parent / "data" / "conformance" / "points.json"
WORDS = """g it w lr t rows cols numel ndim name tensors batch pi norm mean std z ema adam adamw clip if then else and or not repeat times every from
    state let watch reset skip when match return input samples as matrix per row column tensor group all element block history gaussian each largest 0 1 2.5
    10% 1e-8 inf true false "head" + - * / @ ^ .T ( ) [ ] , : = ← → < >= == ~ rule fn law example gives implies for use about x m""".split()


@cache
def texts() -> tuple[str, ...]:
    """The texts of the library and of the conformance suite."""
    cases = json.loads(CONFORMANCE.read_text(encoding="utf-8"))
    return tuple(f.read_text(encoding="utf-8") for f in library().files.values()) + tuple(c["text"] for kind in ("points", "errors") for c in cases[kind])


@cache
def words(text: str) -> tuple[str, ...]:
    """The text in pieces: words, symbols, blanks, line ends."""
    found = tokens(Source("<text>", text))[0]
    return tuple(text[t.start : t.end] for t in found)


def pieces(kind: str) -> st.SearchStrategy[str]:
    """A word of the language, or one of another rule."""
    return st.sampled_from(WORDS) if kind == "word" else st.sampled_from(texts()).flatmap(lambda t: st.sampled_from(words(t)))


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """A good text with one to four words changed."""
    parts = list(words(draw(st.sampled_from(texts()))))
    for _ in range(draw(st.integers(1, 4))):
        i, j = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        match draw(st.sampled_from(("delete", "double", "swap", "insert", "replace", "indent"))):
            case "delete" if len(parts) > 1:
                del parts[i]
            case "double":
                parts.insert(i, parts[i])
            case "swap":
                parts[i], parts[j] = parts[j], parts[i]
            case "insert":
                parts.insert(i, f" {draw(pieces('word'))} ")
            case "replace":
                parts[i] = draw(pieces(draw(st.sampled_from(("word", "other")))))
            case "indent":
                parts.insert(i, draw(st.sampled_from(("\n", "\n    ", "\n\t", "    "))))
    return "".join(parts)


def survives(text: str) -> None:
    """Reading and checking the text succeeds, or says what is wrong in words that can be printed."""
    try:
        unit = load_unit(Source("<text>", text), "fuzz", library().find)
        shown = render_all(unit_mistakes(unit))
    except UpdslError as e:
        shown = str(e)
    shown.encode("utf-8")


@settings(max_examples=400)
@given(mutants())
def test_mutated_rules(text):
    survives(text)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_bytes(data):
    survives(data.decode("utf-8", "surrogateescape"))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*WORDS, "\n", "\n    ", " "]), max_size=60))
def test_words(found):
    survives(" ".join(found))


@pytest.mark.nightly
@settings(max_examples=20_000)
@given(mutants())
def test_many_mutated_rules(text):
    survives(text)
