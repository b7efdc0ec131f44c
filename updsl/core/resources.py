"""Where the texts that updsl is shipped with lie: the grammar, the library's rules, the pages of errors; and where what can be made again is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent


def folder(name: Literal["grammar", "rules", "docs/errors"]) -> Path:
    """The folder of that name: the checkout's own where updsl runs from one (an editable install holds copies, which go stale), else the wheel's."""
    if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "grammar").is_dir():
        return _CHECKOUT / name
    return _PACKAGE / "data" / name


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again: UPDSL_CACHE, or the usual place."""
    if own := os.environ.get("UPDSL_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".cache").absolute() / "updsl"
