"""Where the texts that updsl is shipped with lie: the grammar, the library's rules, the pages of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent


def folder(name: Literal["grammar", "rules", "docs/errors"]) -> Path:
    """The folder of that name: the checkout's own where updsl runs from one (an editable install holds copies, which go stale), else the wheel's."""
    if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "grammar").is_dir():
        return _CHECKOUT / name
    return _PACKAGE / "data" / name
