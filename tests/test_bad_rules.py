"""Every file of bad_rules is refused with exactly the message beside it.

A first line `# for x=3x4, lr=none, overridden=k` says what the rule is used with, for mistakes that only show then: tensors by their sizes, no learning rate,
parameters that a group overrides. `pytest tests/test_bad_rules.py --rewrite` writes the messages anew.
"""

import re
from collections.abc import Collection
from pathlib import Path

import pytest

from updsl.core.diagnostic import Diagnostic, UpdslError, render_all
from updsl.core.frame import Tensor
from updsl.front.elaborate import elaborate
from updsl.front.files import load_module
from updsl.laws.check import check_file, defaults
from updsl.laws.lint import LOUD

FOLDER = Path(__file__).parent / "bad_rules"
FILES = sorted(p for p in FOLDER.glob("*.upd") if not p.name.startswith("_"))


def mistakes(file: Path, lints: Collection[str] = LOUD) -> list[Diagnostic]:
    """What `updsl check` says of the file, with these lints, or what using it for the tensors of its first line says."""
    use = re.match(r"# for (.*)", file.read_text(encoding="utf-8", errors="replace"))
    if use is None:
        try:
            return check_file(file.name, lints)
        except UpdslError as e:
            return e.diagnostics
    given = dict(pair.split("=") for pair in use.group(1).split(", "))
    lr, overridden = given.pop("lr", None) != "none", frozenset(given.pop("overridden", "").split())
    tensors = [Tensor(name, tuple(int(d) for d in shape.split("x") if d)) for name, shape in given.items()]
    try:
        module = load_module(file.name)
        elaborate(module, tensors, defaults(module), overridden, lr)
    except UpdslError as e:
        return e.diagnostics
    return []


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_message(file, monkeypatch, request):
    monkeypatch.chdir(FOLDER)
    found = mistakes(file)
    shown = render_all(found) + "\n"
    expected = file.with_suffix(".txt")
    if request.config.getoption("rewrite"):
        expected.write_text(shown, encoding="utf-8")
    assert found
    assert shown == expected.read_text(encoding="utf-8")


def test_the_folder_is_whole():
    assert {p.stem for p in FILES} == {p.stem for p in FOLDER.glob("*.txt")}
    assert len(FILES) >= 100
