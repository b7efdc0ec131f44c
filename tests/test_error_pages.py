"""Every code that a mistake can have has a page, which shows a mistake, exactly what is said of it, and the mended text: all three are tried.

Pages of how the Python interface is called are tried in test_api_pages.py, those of the command line in test_cli.py.
"""

import ast
import re
import textwrap
from collections.abc import Collection
from pathlib import Path

import pytest
from test_bad_rules import mistakes

import updsl
from updsl.core.diagnostic import UpdslError, render_all
from updsl.core.resources import folder
from updsl.laws.lint import LINTS

PAGES = folder("docs/errors")
CODE = re.compile(r"[a-z]+(-[a-z0-9]+)*")
REPORTS = ("Diagnostic", "Lint", "error", "word")
"""The functions that make a mistake; an argument of theirs is its code. In unexpected.py it is `make`, too, which elsewhere makes other things."""
COMMAND_LINE = {"unreadable-file", "unknown-rule"}


def codes(package: Path, only: str = "**/*.py") -> set[str]:
    """Every code that the package's files write down: the argument that says which mistake it is."""
    found = set()
    for file in package.glob(only):
        for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            place = 2 if name == "word" else 0
            if (name in REPORTS or (name == "make" and file.name == "unexpected.py")) and len(call.args) > place:
                found |= {c.value for c in ast.walk(call.args[place]) if isinstance(c, ast.Constant) and isinstance(c.value, str) and CODE.fullmatch(c.value)}
    return found


PACKAGE = Path(updsl.__file__).parent
OF_CALLS = codes(PACKAGE, "runtime/*.py") | codes(PACKAGE, "pipeline.py") | codes(PACKAGE, "integrations/*.py")
ALL = codes(PACKAGE) | COMMAND_LINE
OF_TEXTS = sorted((codes(PACKAGE, "front/*.py") | codes(PACKAGE, "laws/**/*.py")) - COMMAND_LINE)


def test_every_code_has_a_page_and_every_page_a_code():
    assert {p.stem for p in PAGES.glob("*.md")} == ALL


def test_texts_and_calls_are_told_apart():
    assert set(OF_TEXTS) | OF_CALLS | COMMAND_LINE == ALL


def blocks(page: str) -> list[str]:
    """The indented blocks of a page."""
    return [textwrap.dedent(b).strip("\n") + "\n" for b in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE)]


def said_of(text: str, where: Path, lints: Collection[str] = ()) -> str:
    """What is said of a rule text in a file mine.upd, with these lints, or of a call."""
    if text.startswith("import updsl"):
        try:
            exec(text, {})
        except UpdslError as e:
            return str(e)
        return ""
    (where / "mine.upd").write_text(text, encoding="utf-8")
    return render_all(mistakes(where / "mine.upd", lints))


@pytest.mark.parametrize("code", OF_TEXTS)
def test_page(code, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    file = PAGES / f"{code}.md"
    page = file.read_text(encoding="utf-8")
    bad, message, mended = blocks(page)
    lints = LINTS if code in LINTS else ()
    said = said_of(bad, tmp_path, lints)
    if request.config.getoption("rewrite"):
        page = page.replace(textwrap.indent(message, "    "), textwrap.indent(said + "\n", "    "))
        file.write_text(page, encoding="utf-8")
        message = said + "\n"
    assert page.startswith(f"# {code}\n")
    assert f"[{code}]" in said.splitlines()[0]
    assert said + "\n" == message
    assert said_of(mended, tmp_path, lints) == ""
