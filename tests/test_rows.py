"""Every line of the contract of `attach`, and every row of the fault tables of training, has a test that carries its id in its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROWS = {"c": 15, "l": 16, "x": 11}
"""Letter → how many there are: C1–C15 of the contract, L1–L16 of parameters and lifecycle, X1–X11 of several ranks."""
IDS = [f"{letter}{n}" for letter, last in ROWS.items() for n in range(1, last + 1)]

AWAITED = set("L9 L10 L16 X4 X7".split())
"""Those whose tests have not come yet, or do not carry their ids. To be emptied; nothing may be added."""


def names_in(source: str) -> Iterator[str]:
    """Names of the test functions, those in classes among them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node.name


def ids_of(name: str) -> set[str]:
    """The ids that a name carries, each between underscores: `test_c9_l6_an_error_…` carries two."""
    return set(re.findall(r"(?<=_)[a-z]\d+(?=_|$)", name))


def missing(sources: list[str]) -> set[str]:
    found = {i for source in sources for name in names_in(source) for i in ids_of(name)}
    return {i.upper() for i in IDS if i not in found}


def test_every_row_has_a_test() -> None:
    assert missing([path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")]) - AWAITED == set()


def test_a_missing_row_is_seen() -> None:
    source = "class TestAll:\n    def test_c3_found(self): ...\ndef l2_no_test(): ...\ndef test_of_c30_and_l1(): ...\n"
    assert set(map(str.upper, IDS)) - missing([source]) == {"C3", "L1"}
