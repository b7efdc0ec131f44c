"""docs/rules/ is what its script writes, and its links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from updsl import pipeline
from updsl.front.files import library, load_module

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("write_gallery", ROOT / "docs" / "write_gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(gallery):
    written = gallery.pages()
    found = {p.name: p.read_text(encoding="utf-8") for p in gallery.GALLERY.iterdir()}
    stale = sorted(n for n in written.keys() | found.keys() if written.get(n) != found.get(n))
    assert not stale, "run `make docs`"


def test_every_rule_is_in_it_and_in_its_folder(gallery):
    index = (gallery.GALLERY / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL))
    assert set(sections) == {p.parent.name for p in library().files.values()}
    for name in library().rules:
        assert f"[{name}]({name}.md)" in sections[library().files[name].parent.name]


def test_a_page_says_what_there_is_to_say(gallery):
    page = gallery.page(load_module("sophia"))
    parts = "Text Formula Parameters Inputs State Laws Examples Conformance Citation".split()
    assert re.findall(r"^## (\w+)", page, re.MULTILINE) == parts
    assert load_module("sophia").text.strip() in page
    assert "| `rho` | `0.04` |  | yes |" in page
    assert "| `hessian_gradient` | a tensor of the gradient's shape for each parameter |" in page
    assert "8 bytes per parameter, for a 1024 × 512 matrix" in page
    assert "2.5 bytes per parameter" in gallery.page(load_module("galore"))
    assert "[arXiv:2305.14342](https://arxiv.org/abs/2305.14342)" in page
    assert "| `bits` | `4` | 1 to 4 | yes |" in gallery.page(load_module("quest_mask"))
    assert "| `nesterov` | `false` |  | no, constant |" in gallery.page(load_module("sgd"))


@pytest.mark.parametrize("name", sorted(library().rules))
def test_every_page_is_whole(gallery, name):
    """Text, formula, parameters, bytes of state, laws, an example or inputs, and what the rule was compared with: a number of an error."""
    module, page = load_module(name), (gallery.GALLERY / f"{name}.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]}
    assert {"Text", "Formula", "State", "Laws", "Conformance"} <= set(sections)
    assert module.text.strip() in sections["Text"]
    assert all(f"| `{p}` |" in sections["Parameters"] for p in module.parameters)
    assert all(f"| `{i}` |" in sections["Inputs"] for i in module.inputs)
    assert re.search(r"bytes per parameter|keeps nothing|[Nn]o state|None", sections["State"])
    assert sections["Laws"].count("law ") >= 2
    assert "Examples" in sections or module.inputs
    assert re.search(rf"`{name}` .*\| (0|\d+e-\d+) \|", sections["Conformance"])


def test_every_link_leads_somewhere(gallery):
    for page in gallery.GALLERY.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (gallery.GALLERY / target).exists(), f"{page.name}: {target}"


def test_conformance_is_the_rule_s_own_lines(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "CONFORMANCE", tmp_path / "conformance.md")
    assert gallery.conformance("adam") == "Not compared with other code."
    gallery.CONFORMANCE.write_text("| file | rule |\n|---|---|\n| a | `adam` |\n| b | `adamw` |\n\n| rule | error |\n|---|---|\n| `adam` | 0 |\n")
    assert gallery.conformance("adam").split("\n\n")[1:] == ["| file | rule |\n|---|---|\n| a | `adam` |", "| rule | error |\n|---|---|\n| `adam` | 0 |"]


def test_no_markup_of_a_text_is_obeyed(gallery):
    text = '"""<script>alert(1)</script> [a](b) *x* _y_ |\n\n# no head `code` snake_case."""\n```` ```` ~~~'
    module = pipeline.from_text("rule r:\n    " + text.split("\n````")[0] + "\n    return g\n")
    assert gallery.prose(module.doc) == r"\<script\>alert(1)\</script\> \[a\](b) \*x\* \_y\_ \|" + "\n\n" + r"\# no head `code` snake_case."
    assert gallery.fenced("", "````") == "`````\n````\n`````"
