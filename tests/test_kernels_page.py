"""What docs/kernels.md shows runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "kernels.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_its_python_runs_from_top_to_bottom() -> None:
    torch.compiler.reset()
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    here: dict[str, object] = {}
    for block in blocks:
        exec(block, here)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (DOCS / target).exists(), target
