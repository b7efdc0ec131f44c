"""`updsl fmt`: same meaning, same comments, and a second run changes nothing."""

import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from updsl.core.diagnostic import UpdslError
from updsl.core.resources import folder
from updsl.core.source import Source
from updsl.front.format import format_source
from updsl.front.lex import tokens
from updsl.front.parse import parse
from updsl.front.text import to_text

RULES = sorted(folder("rules").glob("*/*.upd"))


def formatted(text: str) -> str:
    return format_source(Source("a.upd", text))


def comments(text: str) -> list[str]:
    return [text[t.start : t.end].rstrip() for t in tokens(Source("a.upd", text))[0] if t.type == "COMMENT"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("norm per column->clip z>2.5->EMA", "norm per column → clip z > 2.5 → EMA\n"),
        ("norm   per\tcolumn |> ema( 0.9,debias=false )  ", "norm per column → ema(0.9, debias = false)\n"),
        ("rule a=g*2", "rule a = g*2\n"),
        ("rule a=g *2", "rule a = g * 2\n"),
        ("rule a=- g ^ - 2", "rule a = -g^-2\n"),
        ("rule a=(1 -g)-1", "rule a = (1 - g) - 1\n"),
        ("rule a=if -g>0 then -g else not (g>1)", "rule a = if -g > 0 then -g else not (g > 1)\n"),
        ("rule a=clip norm (it)<=3 per all", "rule a = clip norm(it) <= 3 per all\n"),
        ("rule a=g.T", "rule a = g.T\n"),
        ("rule a = (g·2 − 1) ≤ 3 × g", "rule a = (g*2 - 1) <= 3 * g\n"),
        ("rule a = repeat 3 times(sign)", "rule a = repeat 3 times (sign)\n"),
        ("rule a:\r\n\tstate m=0\r\n\r\n\r\n\r\n\tm<-g\r\n\treturn m", "rule a:\n    state m = 0\n\n    m ← g\n    return m\n"),
        ("rule a:\n  match:\n    ndim<2:   sign\n    else:     norm", "rule a:\n    match:\n        ndim < 2:   sign\n        else:     norm\n"),
        ("rule a:\n  x = norm(\n     g)\n  return g", "rule a:\n    x = norm(\n        g)\n    return g\n"),
        ("rule a = g\n  -> sign\n   -> norm", "rule a = g\n    → sign\n    → norm\n"),
        ("rule a(k=1)=sign\nexample (k=1):[1];[ -1 ]gives [1]; [-1]", "rule a(k = 1) = sign\nexample(k = 1): [1]; [-1] gives [1]; [-1]\n"),
        ("\ufeffsign\n\n\n", "sign\n"),
    ],
)
def test_the_form(text, expected):
    assert formatted(text) == expected
    assert formatted(expected) == expected


def test_comments_stay_where_they_belong():
    text = """# about the file
rule a:   # the rule
  # before the first statement
  state m=0 #state
      # of no block
  every 2:
     m <- g
     # last of the block
  # after the block
  return (m
     # within brackets
     +1)
# the end"""
    assert (
        formatted(text)
        == """# about the file
rule a:   # the rule
    # before the first statement
    state m = 0  #state
    # of no block
    every 2:
        m ← g
        # last of the block
    # after the block
    return (m
        # within brackets
        + 1)
# the end
"""
    )


def test_documentation_stays_as_it_is():
    text = 'rule a:\n  """First.\n\n     Second:  two  blanks.  """\n  return g'
    assert formatted(text) == 'rule a:\n    """First.\n\n     Second:  two  blanks.  """\n    return g\n'


@pytest.mark.parametrize("text", ["", "# nothing here", "\n\n  # a\n"])
def test_a_text_without_a_rule_is_left_alone(text):
    assert formatted(text) == text


def test_a_text_that_does_not_parse_is_refused():
    with pytest.raises(UpdslError):
        formatted("rule a = (g")


@pytest.mark.parametrize("path", RULES, ids=lambda p: p.stem)
def test_the_library_is_formatted(path):
    text = path.read_text(encoding="utf-8")
    assert formatted(text) == text


ASCII = {"→": "->", "←": "<-"}


@st.composite
def respaced(draw: st.DrawFn) -> tuple[str, str]:
    """A library rule, and the same tokens with other blanks, margins, spellings, line ends, comments."""
    text = draw(st.sampled_from(RULES)).read_text(encoding="utf-8")
    unit, end = draw(st.sampled_from(["\t", " ", "   "])), draw(st.sampled_from(["\n", "\r\n", "\n\n\n"]))
    out, at_start, depth = [], True, 0
    for t in tokens(Source("a.upd", text))[0]:
        written = text[t.start : t.end]
        depth += (t.type in ("LPAR", "LSQB")) - (t.type in ("RPAR", "RSQB"))
        match t.type:
            case "BREAK":
                out.append(draw(st.sampled_from(["", "", "  ", "  # x"])) + (end if depth == 0 else "\n"))
                at_start = True
                continue
            case "SPACE" if at_start:
                out.append(unit * (len(written) // 4))
            case "SPACE":
                out.append(draw(st.sampled_from([" ", "  ", "\t"])))
            case _:
                out.append(ASCII.get(written, written) if draw(st.booleans()) else written)
        at_start = False
    return text, "".join(out)


@given(respaced())
def test_a_second_run_changes_nothing_and_nothing_is_lost(texts):
    text, other = texts
    once = formatted(other)
    assert formatted(once) == once
    assert comments(once) == comments(other)
    assert parse(Source("a.upd", once)) == parse(Source("a.upd", text))


@given(trees.files)
def test_what_a_tree_prints_as_is_formatted(tree):
    text = to_text(tree)
    assert formatted(text) == text
