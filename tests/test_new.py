"""`updsl show`, `list` and `new`: from the library's texts to a rule of one's own."""

import json

import pytest

from updsl.front.files import library, load_module
from updsl.laws.lint import LINTS

RULES = sorted(library().rules)


pytestmark = pytest.mark.usefixtures("here")


def test_a_rule_is_written_under_the_name_that_texts_have_for_it(run, here):
    assert run("new", "ﬁx")[0] == 0
    (here / "user.upd").write_text("use fix\nrule user = g → fix\n")
    assert run("check", "user.upd") == (0, "user.upd: ok\n", "")


def test_list_has_a_line_for_each_rule_under_its_folder(run):
    _, out, _ = run("list")
    folder, listed = "", []
    for line in filter(None, out.split("\n")):
        if line.endswith("/"):
            folder = line.removesuffix("/")
        else:
            name, doc = line.split(maxsplit=1)
            listed.append((folder, name))
            assert load_module(name).doc.startswith(doc)
    assert sorted(listed) == sorted((path.parent.name, name) for name, path in library().files.items() if name in RULES)


@pytest.mark.parametrize("name", ["zclip", "galore_with", "sign"])
def test_show_is_the_text(run, name):
    assert run("show", name) == (0, load_module(name).text.rstrip() + "\n", "")
    assert json.loads(run("show", name, "--format", "json")[1]) == {name: load_module(name).text}


@pytest.mark.parametrize("name", RULES)
def test_a_copy_of_each_rule_checks_and_is_formatted(run, here, name):
    assert run("new", "mine", "--like", name)[0] == 0
    code, out, _ = run("check", "--format", "json", "mine.upd")
    assert code == 0
    assert {d["code"] for d in json.loads(out)["files"][0]["diagnostics"]} <= {"unit-conflict", *LINTS}  # as in the rule itself: test_units.py, test_lint.py
    assert run("fmt", "--check", "mine.upd")[0] == 0
    copy, original = load_module("./mine.upd"), load_module(name)
    assert copy.name == "mine"
    assert (copy.doc, copy.inputs, copy.writes_weights) == (original.doc, original.inputs, original.writes_weights)
    assert [p.default for p in copy.parameters.values()] == [p.default for p in original.parameters.values()]


def test_a_copy_keeps_comments_laws_and_examples(run, here):
    (here / "theirs.upd").write_text(
        "# Before.\nrule theirs(c = 1):  # beside\n    return clip abs > c\n\n# Of the law.\nlaw odd: rule(-g) == -rule(g)\nexample: [3] gives [1]\n"
    )
    assert run("new", "mine.upd", "--like", "./theirs.upd")[0] == 0
    assert (here / "mine.upd").read_text() == (here / "theirs.upd").read_text().replace("theirs", "mine")


def test_a_copy_stands_without_the_files_beside_the_original(run, here):
    (here / "parts").mkdir()
    (here / "parts" / "half.upd").write_text("rule half = g / 2\n\nrule unused = g\n")
    (here / "parts" / "twice.upd").write_text("use half\n\nrule twice(k = 2) = half → scale_by(k)\n")
    assert run("new", "mine", "--like", "parts/twice.upd")[0] == 0
    assert (here / "mine.upd").read_text() == "rule mine(k = 2) = half → scale_by(k)\n\nrule half = g / 2\n"
    assert run("check", "mine.upd")[0] == 0


def test_a_copy_of_a_bare_pipeline_is_called_as_its_file(run, here):
    (here / "line.upd").write_text("norm per column → ema\n")
    assert run("new", "mine", "--like", "./line.upd")[0] == 0
    assert load_module("./mine.upd").name == "mine"


@pytest.mark.parametrize("name", ["norm", "if", "rule", "t", "lr", "a-b", "a b", "1a", "", "x.y", "for", "sqrt"])
def test_names_that_cannot_be(run, here, name):
    code, out, err = run("new", name)
    assert (code, out) == (2, "")
    assert "a rule" in err
    assert not list(here.iterdir())


def test_a_name_that_is_built_in(run, here):
    assert "`w` is a built-in name" in run("new", "w", "--like", "ema")[2]


@pytest.mark.parametrize(
    ("name", "like", "where"),
    [("m", "ema", "state m = 0"), ("x", "zclip", "x = if spike then bound else N"), ("beta", "ema", "rule beta(beta = 0.9, debias = true):")],
)
def test_a_name_that_the_text_uses_for_something_else(run, here, name, like, where):
    code, _, err = run("new", name, "--like", like)
    assert (code, f"its text has a name `{name}` of its own, in `{where}`" in err) == (2, True)
    assert not list(here.iterdir())


def test_nothing_is_overwritten(run, here):
    (here / "mine.upd").write_text("mine, and dear to me")
    code, _, err = run("new", "mine", "--like", "zclip")
    assert (code, "is there already" in err) == (2, True)
    assert (here / "mine.upd").read_text() == "mine, and dear to me"
