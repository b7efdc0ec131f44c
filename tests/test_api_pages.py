"""The pages of errors in how the Python interface is called: each shows a call, exactly what it says, and the repaired call."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
import torch

import updsl
from updsl.core.resources import folder

SOURCES = [path for pattern in ("runtime/*.py", "integrations/*.py", "pipeline.py") for path in sorted(Path(updsl.__file__).parent.glob(pattern))]
OF_TEXTS = {"unknown-parameter", "parameter-out-of-bounds"}
"""Codes that mistakes in texts share."""
OF_RANKS = {"rank-refuses", "rank-missing"}
"""What takes several ranks: tests/test_shards.py tries these pages."""


def codes() -> set[str]:
    """The codes of every Diagnostic that the runtime makes."""
    calls = [n for path in SOURCES for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return {n.args[0].value for n in calls if n.func.id == "Diagnostic" and isinstance(n.args[0], ast.Constant)} - OF_TEXTS - OF_RANKS


@pytest.mark.parametrize("code", sorted(codes()))
def test_the_page_of_an_error_is_right(code: str) -> None:
    page = (folder("docs/errors") / f"{code}.md").read_text(encoding="utf-8")
    title, *_ = page.splitlines()
    call, message, repaired = (textwrap.dedent(block).strip() for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE))
    assert title == f"# {code}"
    with pytest.raises(updsl.UpdslError) as raised:
        exec(call, {})
    assert raised.value.diagnostics[0].code == code
    assert str(raised.value).strip() == message
    exec(repaired, {})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
