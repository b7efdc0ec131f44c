"""Text → syntax tree → text: every construct, how tightly each holds together, what is said of mistakes of form, and that nothing else can happen."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import texts
import trees
from data.conformance import load
from hypothesis import given
from hypothesis import strategies as st

from updsl.core.diagnostic import UpdslError
from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.lex import FOREIGN, RESERVED, SYMBOLS
from updsl.front.parse import parse, parse_expression
from updsl.front.syntax import Argument, Binary, Call, Clip, If, Name, Number, Per, Pipe, Rule, ScopeName, Unary
from updsl.front.text import number_text, to_text

FRONT = Path(__file__).parents[1] / "updsl" / "front"
CONFORMANCE = [c["text"] for c in (*load.points(), *load.programs())]
BAD_SYNTAX_FILE = Path(__file__).parent / "data" / "bad_syntax.json"
BAD_SYNTAX = json.loads(BAD_SYNTAX_FILE.read_text(encoding="utf-8"))
"""Each text with what is said of its mistakes. `python tests/test_parse.py` writes down what is said now, to be read before it is committed."""


def file(text: str) -> syntax.File:
    return parse(Source("a.upd", text))


def expression(text: str) -> syntax.Expr:
    return parse_expression(Source("a.upd", text))


def refused(text: str) -> list:
    with pytest.raises(UpdslError) as caught:
        file(text)
    return caught.value.diagnostics


def codes(text: str) -> list[str]:
    return [d.code for d in refused(text)]


def said(d) -> str:
    notes = "".join(f" | {n}" for n in d.notes)
    return f"{d.code} {d.line}:{d.column} «{d.span.text}» {d.message}{notes}{f' | help: {d.help}' if d.help else ''}"


# --- texts there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*texts.FILES, texts.LAWS, texts.EVERY_STATEMENT])
def test_texts_of_the_language_parse_and_print(text):
    tree = file(text)
    assert file(to_text(tree)) == tree


def test_texts_of_the_conformance_suite_parse_and_print():
    for text in CONFORMANCE:
        tree = file(text)
        assert file(to_text(tree)) == tree


@given(trees.files)
def test_a_tree_prints_as_text_that_parses_to_it(tree):
    text = to_text(tree)
    assert file(text) == tree
    assert to_text(file(text)) == text


@given(trees.expressions)
def test_an_expression_prints_as_text_that_parses_to_it(tree):
    assert expression(to_text(tree)) == tree


@pytest.mark.parametrize("part", [s for d in file(texts.EVERY_STATEMENT).declarations if isinstance(d, Rule) for s in d.body])
def test_a_statement_prints_alone(part):
    block = "".join(f"    {line}\n" for line in to_text(part).splitlines())
    assert file(f"rule r:\n{block}").declarations[0].body == (part,)


@given(st.floats(1e-30, 1e30), st.booleans())
def test_a_number_is_printed_to_the_last_bit(value, percent):
    read = expression(number_text(value, percent))
    assert read == Number(value, percent)


# --- expressions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("-x^2", "-(x^2)"),
        ("2^-x^y", "2^(-(x^y))"),
        ("a^b^c", "a^(b^c)"),
        ("a - b - c", "(a - b) - c"),
        ("a / b * c @ d", "((a / b) * c) @ d"),
        ("-a*b", "(-a)*b"),
        ("a + b*c", "a + (b*c)"),
        ("a*-b", "a*(-b)"),
        ("-x.T^2", "-((x.T)^2)"),
        ("f(x).T", "(f(x)).T"),
        ("a + b < c", "(a + b) < c"),
        ("not a < b", "not (a < b)"),
        ("not a and b or c", "((not a) and b) or c"),
        ("a or b and c", "a or (b and c)"),
        ("if a or b then c else d + e", "if (a or b) then c else (d + e)"),
        ("if a then b else if c then d else e", "if a then b else (if c then d else e)"),
        ("if a then if b then c else d else e", "if a then (if b then c else d) else e"),
        ("clip norm + 1 > 2*c", "clip (norm + 1) > (2*c)"),
        ("if a then clip z > 1 else clip z > 2", "if a then (clip z > 1) else (clip z > 2)"),
        ("a + b per row", "(a + b) per row"),
        ("clip norm > c per all", "(clip norm > c) per all"),
        ("not a per row", "(not a) per row"),
        ("a → b per row → c", "a → (b per row) → c"),
        ("if a then b else c per row", "(if a then b else c) per row"),
        ("if a per row then b per row else c", "if (a per row) then (b per row) else c"),
        ("if a then b → c else d", "if a then (b → c) else d"),
        ("a → if c then b else d → e", "a → (if c then b else d) → e"),
        ("f(a → b, x = c per row)", "f((a → b), x = (c per row))"),
        ("x @ x.T + 1", "(x @ (x.T)) + 1"),
    ],
)
def test_precedence(text, meant):
    assert expression(text) == expression(meant)


def test_comparisons_chain():
    assert expression("a < b <= c == d ~ e") == syntax.Compare(Name("a"), (("<", Name("b")), ("<=", Name("c")), ("==", Name("d")), ("~", Name("e"))))
    assert expression("a < b < c") != expression("(a < b) < c")


def test_pipelines_are_flat_unless_brackets_say_otherwise():
    assert expression("a → b → c") == Pipe((Name("a"), Name("b"), Name("c")))
    assert expression("a → (b → c)") == Pipe((Name("a"), Pipe((Name("b"), Name("c")))))


def test_the_headline_is_a_rule_of_the_files_name():
    body = Pipe((Per(Name("norm"), ScopeName("column")), Clip(Name("z"), ">", Number(2.5)), Name("EMA")))
    for text in ("norm per column → clip z > 2.5 → EMA\n", "norm per column -> clip z>2.5 -> EMA", "norm per column\n  |> clip z > 2.5\n\n  # then\n  → EMA"):
        assert parse(Source("rules/my-rule.upd", text)) == syntax.File((Rule("my_rule", (), body),))


@pytest.mark.parametrize(("name", "rule"), [("8bit.upd", "rule_8bit"), ("match.upd", "rule_match"), ("ϵ².upd", "ε2"), ("-.upd", "rule_")])
def test_a_files_name_becomes_a_name(name, rule):
    assert parse(Source(name, "norm")).declarations[0].name == rule
    assert file(f"rule {rule} = g").declarations[0].name == rule


@pytest.mark.parametrize(
    ("symbol", "ascii"),
    [("→", "->"), ("→", "|>"), ("≤", "<="), ("≥", ">="), ("≠", "!="), ("·", "*"), ("×", "*"), ("−", "-"), ("＋", "+"), ("（a）+", "(a)+")],
)
def test_symbols_have_ascii_spellings(symbol, ascii):
    assert expression(f"a {symbol} b") == expression(f"a {ascii} b")


def test_names_fold_and_keep_their_marks():
    assert expression("ϵ + β₁ + m̂ + ｇ + n″") == expression("ε + β1 + m̂ + g + n''")
    assert expression("rule_ + rulek92 + ifx") == expression("(rule_ + rulek92) + ifx")
    assert expression("row + matrix + samples + each + float32 + any") is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.9", 0.9), ("1e-8", 1e-8), ("2.5E+3", 2500), ("10%", 0.1), ("0.7%", 0.007), ("1e1%", 0.1), ("inf", float("inf")), ("０.５", 0.5)],
)
def test_numbers(text, value):
    assert expression(text) == Number(value, text.endswith("%"))


def test_calls():
    assert expression("f()") == Call("f", ())
    assert expression("f(x, p = 1,)") == Call("f", (Argument(None, Name("x")), Argument("p", Number(1))))
    assert expression("core.push(w, x)").callee == "core.push"


def test_places_are_those_of_the_source():
    source = Source("a.upd", "﻿rule ｒ:\r\n\tm̂ = ﬁ*(a  +\r\n\t  (b - c))\r\n")
    local = parse(source).declarations[0].body[0]
    assert (local.name, local.name_span.text, local.name_span.line, local.name_span.column) == ("m̂", "m̂", 2, 2)
    assert local.value == Binary("*", Name("fi"), Binary("+", Name("a"), Binary("-", Name("b"), Name("c"))))
    assert local.value.span.text == "ﬁ*(a  +\r\n\t  (b - c))"
    assert (local.value.left.span.text, local.value.right.right.span.text) == ("ﬁ", "b - c")


def test_left_operands_of_a_chain_begin_at_their_brackets():
    chain = expression("(a) + b - c")
    assert (chain.span.text, chain.left.span.text) == ("(a) + b - c", "(a) + b")


# --- lines and blocks ------------------------------------------------------------------------------------------------


def test_lines_join_in_brackets_and_before_arrows():
    assert file("rule r(\n    a = 1,  # one\n\n  b = 2\n):\n    x = (g\n+ 1)\n    return x\n      → norm\n  # between\n→ ema\n") == file(
        "rule r(a = 1, b = 2):\n    x = g + 1\n    return x → norm → ema"
    )


@pytest.mark.parametrize(
    "text", ["rule r:\r\n\treturn g\r\n", "rule r:\r  return g", "\ufeffrule r:\n        return g", "    rule r:\n      return g\n    # end"]
)
def test_line_ends_tabs_and_margins(text):
    assert file(text) == file("rule r:\n    return g\n")


def test_documentation_is_dedented():
    doc = file('rule r:\n    """E[g²], "quoted".\n\n      more\n    end\n    """\n    return g').declarations[0].doc
    assert doc == 'E[g²], "quoted".\n\n  more\nend'


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [(text, expected) for text, *expected in BAD_SYNTAX], ids=[repr(case[0])[:50] for case in BAD_SYNTAX])
def test_what_is_said_of_a_mistake(text, expected):
    assert [said(d) for d in refused(text)] == expected


def test_every_code_of_the_parser_has_a_text():
    called = [
        node
        for name in ("lex", "layout", "build", "parse", "unexpected")
        for node in ast.walk(ast.parse((FRONT / f"{name}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    ]
    raised = {
        a.value
        for node in called
        if getattr(node.func, "attr", getattr(node.func, "id", "")) in ("error", "make", "Diagnostic", "word")
        for a in node.args
        if isinstance(a, ast.Constant) and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)+|unexpected|superscript|indentation|documentation", str(a.value))
    }
    shown = {e.split()[0] for _, *expected in BAD_SYNTAX for e in expected}
    assert raised <= shown | {"file-too-large", "too-many-tokens", "too-deep", "too-many-stages"}
    assert len(raised) > 25


def test_five_mistakes_are_reported_in_order():
    """T16"""
    found = refused("rule a = )\nrule b = clp(\nrule c = g²\nrule d = if g then 1\nrule e per = g\n")
    assert [d.line for d in found] == [1, 2, 3, 4, 5]
    assert len(refused("rule a = 2 g\n" * 80)) == 50


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("g" * (64 * 1024 + 1), "file-too-large"),
        ("γ" * (32 * 1024 + 1), "file-too-large"),
        ("\0" * 10**7, "file-too-large"),
        ("g\n" * 20_001, "too-many-tokens"),
        ("rule r = " + "(" * 65 + "g" + ")" * 65, "too-deep"),
        ("rule r = " + "(" * 30_000, "too-many-tokens"),
        ("rule r = " + "[(" * 9_000, "too-deep"),
        ("rule r = " + "-" * 15_000 + "g", "too-deep"),
        ("rule r = g" + ".T" * 15_000, "too-deep"),
        ("rule r = " + "not " * 9_000 + "g", "too-deep"),
        ("rule r = " + "^".join("g" * 1_000), "too-deep"),
        ("rule r = " + "+".join("g" * 1_000), "too-deep"),
        ("rule r = " + "if g > 0 then g else " * 300 + "g", "too-deep"),
        ("rule r:\n" + "".join(" " * (i + 1) + "every 2:\n" for i in range(70)), "too-deep"),
        ("norm" + " → norm" * 256, "too-many-stages"),
        ("rule " + "n" * 65 + " = g", "name-too-long"),
        ("rule r = " + "9" * 5000, "number-out-of-range"),
        ("rule r = -6e2534", "number-out-of-range"),
    ],
    ids=range(18),
)
def test_caps(text, code):
    """T9, T11, T12"""
    assert codes(text) == [code]


def test_what_the_caps_allow():
    assert file("norm" + " → norm" * 255)
    assert file("rule r = " + "(" * 64 + "g" + ")" * 64)
    deep = file("rule r = " + "+".join("g" * 190))
    assert file(to_text(deep)) == deep
    assert hash(deep) == hash(file(to_text(deep)))
    assert "Binary" in repr(deep)


ALPHABET = [
    *SYMBOLS,
    *FOREIGN,
    *RESERVED,
    *"g x it norm row 0.9 10% 1e 3".split(),
    '"a"',
    '"""',
    '"',
    ".T",
    "\n",
    "\n    ",
    "\n\t",
    " ",
    "#",
    "\0",
    "\udc80",
    "\u200b",
    "\xa0",
    "²",
    "½",
    "m̂",
]


def parsed_or_refused(text: str) -> syntax.File | list:
    try:
        return file(text)
    except UpdslError as e:
        return e.diagnostics


@given(st.lists(st.sampled_from(ALPHABET), max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    found = parsed_or_refused(text)
    if isinstance(found, list):
        assert found
        assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", d.code) and 0 <= d.span.start <= d.span.end <= len(text) for d in found)
        assert str(UpdslError(found)).encode()
    else:
        assert file(to_text(found)) == found


@given(st.sampled_from([*CONFORMANCE, *texts.FILES]), st.randoms(use_true_random=False))
def test_any_change_of_a_rule_is_parsed_or_refused(text, random):
    pieces = re.findall(r"\s+|\w+|[^\w\s]+", text)
    for _ in range(random.randint(1, 5)):
        i, j = random.randrange(len(pieces)), random.randrange(len(pieces))
        pieces[i] = random.choice(["", pieces[i] * 2, pieces[j], random.choice(ALPHABET)])
    assert parsed_or_refused("".join(pieces))


# --- the tables ------------------------------------------------------------------------------------------------------

PARSE = "from updsl.core.source import Source; from updsl.front.parse import parse; parse(Source('a', 'norm per column → ema'))"


def is_whole(kept: bytes) -> bool:
    digest, _, data = kept.partition(b"\n")
    return hashlib.sha256(data).hexdigest().encode() == digest and len(data) > 10_000


def run(cache: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "LOCALAPPDATA"} | {"XDG_CACHE_HOME": str(cache)}
    subprocess.run([sys.executable, "-c", PARSE], check=True, env=environment, cwd=FRONT.parents[1], capture_output=True)


def test_tables_are_kept_and_made_anew_where_they_are_spoilt(tmp_path):
    run(tmp_path)
    (kept,) = (tmp_path / "updsl").iterdir()
    made = kept.read_bytes()
    assert is_whole(made)
    run(tmp_path)
    assert kept.read_bytes() == made
    for spoilt in (b"", b"\n", made[:-1], b"0" * 64 + made[64:], made[:70] + b"x" + made[71:]):
        kept.write_bytes(spoilt)
        run(tmp_path)
        assert [p.name for p in (tmp_path / "updsl").iterdir()] == [kept.name]
        assert is_whole(kept.read_bytes())


def test_tables_do_without_a_cache(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    run(blocked)
    assert blocked.read_text() == ""


def test_the_tree_is_of_the_documented_classes():
    assert expression("if not a then -b else c") == If(Unary("not", Name("a")), Unary("-", Name("b")), Name("c"))


def written_down(x: str) -> str:
    """As JSON, with escapes only for what cannot be seen."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(x, ensure_ascii=False))


if __name__ == "__main__":
    rows = [",\n   ".join(map(written_down, (text, *map(said, refused(text))))) for text, *_ in BAD_SYNTAX]
    BAD_SYNTAX_FILE.write_text("[\n" + ",\n".join(f"  [{row}]" for row in rows) + "\n]\n", encoding="utf-8")
