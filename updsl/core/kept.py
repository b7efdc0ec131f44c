"""Values that take long to make, kept in the user's cache folder for the processes to come.

A file is SHA-256(key, value) and the pickled value: it is whole and the right one, or is made again. The key says what a value depends on: what it is made
of, this Python, and the files of updsl itself, so that none outlives a change of them.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from updsl.core.resources import cache_folder, folder

Value = TypeVar("Value")

MOST = 64
"""So many values a process keeps: one that makes more is trying texts out."""
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, EOFError, pickle.UnpicklingError)
UNWRITABLE = (OSError, TypeError, AttributeError, RecursionError, pickle.PicklingError)

_kept: set[Path] = set()


def kept(kind: str, of: Any, make: Callable[[], Value]) -> Value:
    """What `make` gives, or gave in an earlier process. of: what the value is made of, said in full by its repr."""
    stamp = fingerprint()
    if stamp is None:
        return make()
    try:
        key = hashlib.sha256(repr((kind, of, stamp)).encode("utf-8", "surrogatepass")).digest()
    except RecursionError:  # an expression as deep as texts may make them
        return make()
    file = cache_folder() / f"{kind}-{key.hex()[:32]}.kept"
    with suppress(*UNREADABLE):
        if is_ours(file.parent) and is_ours(file):
            seal, data = split(file.read_bytes())
            if seal == sealed(key, data):
                return pickle.loads(data)
    made = make()
    if len(_kept) < MOST:
        with suppress(*UNWRITABLE):
            write(file, key, pickle.dumps(made, pickle.HIGHEST_PROTOCOL))
            _kept.add(file)
    return made


def split(content: bytes) -> tuple[bytes, bytes]:
    """The seal, and what it is of."""
    return content[:32], content[32:]


def sealed(key: bytes, data: bytes) -> bytes:
    return hashlib.sha256(key + data).digest()


def write(file: Path, key: bytes, data: bytes) -> None:
    """The file, whole or not at all. Raises OSError where that cannot be done."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{file.stem}.{secrets.token_hex(8)}")
    try:
        part.write_bytes(sealed(key, data) + data)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether only this user, root and their group may change it: what is loaded runs as this user."""
    found = path.stat()
    return not hasattr(os, "geteuid") or (found.st_uid in (0, os.geteuid()) and not found.st_mode & stat.S_IWOTH)


@cache
def fingerprint() -> str | None:
    """Of this Python, and of updsl's code, grammar and rules, by the sizes and times of their files; None where they are no files."""
    try:
        files = [file for root in (Path(__file__).parents[1], folder("grammar"), folder("rules")) for file in sorted(files_in(str(root)))]
    except OSError:
        return None
    return hashlib.sha256(repr((sys.version, files)).encode("utf-8", "surrogatepass")).hexdigest()


def files_in(root: str) -> Iterator[tuple[str, int, int]]:
    """Path, time of the last change, and size of every file below."""
    for entry in os.scandir(root):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from files_in(entry.path)
        else:
            found = entry.stat()
            yield entry.path, found.st_mtime_ns, found.st_size
