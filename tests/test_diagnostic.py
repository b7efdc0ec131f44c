"""Diagnostics as text: the exact form, and that no text can break it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updsl.core.diagnostic import MAX_COLUMNS, Diagnostic, Label, UpdslError, did_you_mean, nearest, render, to_github, to_json
from updsl.core.source import Source, Span


def span(source: Source, text: str, after: str = "") -> Span:
    start = source.text.index(text, source.text.index(after))
    return Span(source, start, start + len(text))


RULE = Source(
    "rules/mine.upd",
    "rule mine:\n  state v = 0\n  # second moment\n  v ← 0.999*v + 0.001*g^2\n\n  return clip norm > 3*sqrt(v)\n",
)
MISMATCH = Diagnostic(
    "scope-mismatch",
    "the bound of this clip is finer than its measure",
    span(RULE, "3*sqrt(v)"),
    "one value for each entry, but `norm` is one for each tensor",
    labels=(Label(span(RULE, "v ← 0.999*v + 0.001*g^2"), "one value for each entry"), Label(span(RULE, "norm"), "")),
    help="compare entries, `clip abs > 3*sqrt(v)`, or one number, `clip norm > 3*norm(sqrt(v))`",
)


def test_the_form():
    assert render(MISMATCH) == (
        "error[scope-mismatch]: the bound of this clip is finer than its measure\n"
        " --> rules/mine.upd:6:22\n"
        "  |\n"
        "4 |   v ← 0.999*v + 0.001*g^2\n"
        "  |   ----------------------- one value for each entry\n"
        "6 |   return clip norm > 3*sqrt(v)\n"
        "  |               ----   ^^^^^^^^^ one value for each entry, but `norm` is one for each tensor\n"
        "  |\n"
        "  = help: compare entries, `clip abs > 3*sqrt(v)`, or one number, `clip norm > 3*norm(sqrt(v))`\n"
        "  = more: updsl explain scope-mismatch"
    )


def test_a_diagnostic_without_a_place():
    d = Diagnostic("unknown-parameter", "no parameter `x`", severity="warning", notes=("it has\n`beta`",))
    assert render(d) == "warning[unknown-parameter]: no parameter `x`\n  = note: it has\n          `beta`\n  = more: updsl explain unknown-parameter"


def test_texts_of_one_line_stand_under_their_marks():
    source = Source("a.upd", "clip norm > g")
    d = Diagnostic("c", "m", span(source, "clip"), "this clip", labels=(Label(span(source, "norm"), "a tensor's"), Label(span(source, "g", ">"), "an entry's")))
    assert render(d).split("\n")[3:7] == [
        "1 | clip norm > g",
        "  | ^^^^ ----   - an entry's",
        "  | |    a tensor's",
        "  | this clip",
    ]


def test_a_label_in_another_file():
    here, there = Source("a.upd", "use b\ng → b(1)"), Source("b.upd", "rule b = sgd")
    d = Diagnostic("c", "m", span(here, "b(1)"), labels=(Label(span(there, "b", "b ="), "declared here"),))
    assert render(d).split("\n")[1:-1] == [
        " --> a.upd:2:5",
        "  |",
        "2 | g → b(1)",
        "  |     ^^^^",
        " ::: b.upd:1:6",
        "  |",
        "1 | rule b = sgd",
        "  |      - declared here",
        "  |",
    ]


@pytest.mark.parametrize(
    ("text", "marked", "shown", "under"),
    [
        ("\tx", "x", "    x", "    ^"),
        ("ab\tx", "x", "ab  x", "    ^"),
        ("m̂ x", "x", "m̂ x", "  ^"),
        ("漢字 x", "x", "漢字 x", "     ^"),
        ("漢字", "漢字", "漢字", "^^^^"),
        ("\x1b[31m x", "x", "\\x1b[31m x", "         ^"),
        ("\udc80 x", "x", "\\udc80 x", "       ^"),
        ("\u202e", "\u202e", "\\u202e", "^^^^^^"),
        ("a\nb", "a\nb", "a", "^"),
        ("ab", "", "ab", "^"),
        ("x\r\n", "x", "x", "^"),
    ],
)
def test_carets_stand_under_what_they_mark(text, marked, shown, under):
    source = Source("a.upd", text)
    start = text.index(marked)
    lines = render(Diagnostic("c", "m", Span(source, start, start + len(marked)))).split("\n")
    assert lines[3:5] == [f"1 | {shown}", f"  | {under}"]


def test_the_end_of_a_text():
    source = Source("a.upd", "x = (1\n")
    lines = render(Diagnostic("c", "m", Span(source, 7, 7), "expected `)`")).split("\n")
    assert lines[1:5] == [" --> a.upd:2:1", "  |", "2 |", "  | ^ expected `)`"]


def test_a_long_line_is_shown_around_its_mark():
    source = Source("a.upd", "x" * 5000 + "!" + "y" * 5000)
    lines = render(Diagnostic("c", "m", Span(source, 5000, 5001), "here")).split("\n")
    shown, under = lines[3], lines[4]
    assert len(shown) <= MAX_COLUMNS + 6
    assert shown[4] == shown[-1] == "…"
    assert shown[under.index("^")] == "!"


def test_the_gutter_is_as_wide_as_the_largest_number():
    source = Source("a.upd", "\n" * 99 + "b")
    d = Diagnostic("c", "m", Span(source, 99, 100), labels=(Label(Span(source, 8, 8), "blank"),))
    assert render(d).split("\n")[1:-2] == ["   --> a.upd:100:1", "    |", "  9 |", "    | - blank", "100 | b", "    | ^"]


def test_errors_are_in_the_order_of_the_text():
    later, sooner = (Diagnostic("c", "m", Span(RULE, i, i + 1)) for i in (9, 3))
    error = UpdslError([later, sooner])
    assert error.diagnostics == [sooner, later]
    assert str(error) == f"{render(sooner)}\n\n{render(later)}"


def test_nearest_names():
    assert nearest("emma", ["ema", "sgd"]) == ["ema"]
    assert did_you_mean("clp", ["clip", "sgd"]) == "did you mean `clip`?"
    assert did_you_mean("qqqq", ["clip", "sgd"]) is None


def test_json_says_all_and_survives():
    data = to_json(MISMATCH)
    assert (data["file"], data["line"], data["column"], data["end_line"], data["end_column"]) == ("rules/mine.upd", 6, 22, 6, 31)
    assert data["labels"][0]["text"] == "one value for each entry"
    assert json.loads(json.dumps(data)) == data


def test_github_form():
    source = Source("a,b.upd", "x")
    d = Diagnostic("code", "100% wrong\nindeed", Span(source, 0, 1), help="fix it")
    assert to_github(d) == "::error file=a%2Cb.upd,line=1,col=1,title=code::100%25 wrong%0Aindeed%0Ahelp: fix it"


@given(text=st.text(st.characters()), data=st.data())
def test_any_text_renders(text, data):
    source = Source("a.upd", text)
    places = st.lists(st.integers(0, len(text)), min_size=2, max_size=2).map(sorted)
    (a, b), (c, d) = data.draw(places), data.draw(places)
    diagnostic = Diagnostic("c", text, Span(source, a, b), text, labels=(Label(Span(source, c, d), text),), notes=(text,), help=text)
    shown = render(diagnostic)
    assert all(line.isprintable() for line in shown.split("\n"))
    shown.encode()
    to_github(diagnostic).encode()
