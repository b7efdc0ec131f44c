"""The language reference: its rules check, its wrong rules are refused as it says, its Python runs, its tables are those of the op table."""

import importlib.util
import re
from pathlib import Path

import pytest
from test_bad_rules import mistakes

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: ([a-z-]+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("kind", "code", "text"), BLOCKS, ids=[f"{i}-{code or kind}" for i, (kind, code, _) in enumerate(BLOCKS)])
def test_block(kind, code, text, tmp_path, monkeypatch):
    if kind == "python":
        exec(text, {})
        return
    assert kind == "updsl"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.upd").write_text(text, encoding="utf-8")
    found = [d for d in mistakes(tmp_path / "page.upd") if d.severity == "error"]
    assert [d.code for d in found] == ([code] if code else []), found


def test_tables_of_functions_are_those_of_the_op_table():
    spec = importlib.util.spec_from_file_location("write_functions", DOCS / "write_functions.py")
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.written(PAGE) == PAGE, "run docs/write_functions.py"


def test_every_link_leads_somewhere():
    places = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target.removeprefix("#") in places if target.startswith("#") else (DOCS / target).exists(), target
