"""Rule files on disk: read with care, found by path or by a name of the library."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.resources import folder
from updsl.core.source import Source
from updsl.front.lex import MAX_BYTES
from updsl.front.module import Module, make_module
from updsl.front.unit import Library, Unit, load_unit

SUFFIX = ".upd"
UNREADABLE = "unreadable-file"
UNKNOWN = "unknown-rule"
FOLDER = "it is a folder"


@cache
def library() -> Library:
    """The rules that updsl is shipped with."""
    return Library(folder("rules"))


def load_module(name_or_path: str | os.PathLike[str]) -> Module:
    """The rule that a file stands for, given the file's path (with a folder or the ending .upd) or a name of the library."""
    return make_module(open_unit(name_or_path))


def open_unit(name_or_path: str | os.PathLike[str]) -> Unit:
    """The parsed file of that path or name."""
    text = os.fspath(name_or_path)
    if is_path(text):
        return read_unit(Path(text))
    unit = library().find(text)
    if unit is None and os.path.isdir(text):
        raise UpdslError(_unreadable(Path(text), FOLDER))
    if unit is None:
        help = f"`{text}` is a file here: write `{os.path.join('.', text)}`" if os.path.isfile(text) else did_you_mean(text, library().files)
        raise UpdslError(Diagnostic(UNKNOWN, f"the library has no rule `{text}`", help=help or "`updsl list` shows its rules; a file is given by its path"))
    return unit


def is_path(text: str) -> bool:
    """Whether a name is a path rather than a name of the library."""
    return text.endswith(SUFFIX) or os.sep in text or "/" in text


def read_unit(path: Path) -> Unit:
    """The parsed file, with the files beside it that it uses."""
    source = read_source(path)
    return load_unit(source, path.stem, library().find, beside(path))


def beside(path: Path) -> Callable[[str], Source | None]:
    """The texts of the files beside `path`, by name; None for one that is not there, or that a link takes elsewhere."""
    home = path.resolve().parent

    def find(name: str) -> Source | None:
        other = path.parent / f"{name}{SUFFIX}"
        if other.resolve().parent != home or not other.is_file():
            return None
        return read_source(other)

    return find


def read_source(path: Path) -> Source:
    """The text of a regular file. A byte that is no UTF-8 becomes a lone surrogate, which the parser refuses at its place.

    Raises UpdslError for what cannot be read, and never waits: not for a pipe either.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(FOLDER if stat.S_ISDIR(mode) else "it is no regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise UpdslError(_unreadable(path, getattr(error, "strerror", None) or str(error))) from None
    return Source(str(path), content.decode("utf-8-sig", "surrogateescape"))


def _unreadable(path: Path, why: str) -> Diagnostic:
    inside = sorted(path.glob(f"*{SUFFIX}")) if why == FOLDER else []
    help = f"give the path of a rule file, such as {inside[0] if inside else 'rules/mine.upd'}"
    return Diagnostic(UNREADABLE, f"cannot read `{path}`: {why[:1].lower()}{why[1:]}", help=help)
