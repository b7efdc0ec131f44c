"""What is read in training: the source text of Python's own standard library, and, as trouble, binary files of the Python installation."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

NO_TEXT = frozenset(("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"))
MAX_TEXT = 16 << 20
MAX_BINARY = 4 << 20
VALIDATION_SHARE = 10


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on, to validate on, and those that should never have been in a batch of text; `files` counts what each was read from."""

    train: torch.Tensor
    validation: torch.Tensor
    binary: torch.Tensor
    files: dict[str, int]


def read_corpus(library: Path | None = None) -> Corpus:
    """The standard library's text; a file is for validation if its hash says so, so that the split depends on nothing else.

    Raises FileNotFoundError where Python was installed without its sources.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    texts: dict[str, list[bytes]] = {"train": [], "validation": []}
    for content in _contents(_sources(library), MAX_TEXT):
        first = hashlib.sha256(content).digest()[0]
        texts["validation" if first % VALIDATION_SHARE == 0 else "train"].append(content)
    if not all(texts.values()):
        raise FileNotFoundError(f"no source text of Python's standard library in {library}: updsl train reads it to train on")
    binary = list(_contents(_binaries(library), MAX_BINARY))
    files = {kind: len(found) for kind, found in (*texts.items(), ("binary", binary))}
    return Corpus(_bytes(texts["train"]), _bytes(texts["validation"]), _bytes(binary), files)


def _sources(library: Path) -> Iterator[Path]:
    return (p for p in sorted(library.rglob("*.py")) if not NO_TEXT & set(p.relative_to(library).parts))


def _binaries(library: Path) -> Iterator[Path]:
    """Compiled extensions and modules; last the interpreter itself, which is always there."""
    for pattern in ("*.so", "*.pyd", "*.pyc"):
        yield from (p for p in sorted(library.rglob(pattern)) if "site-packages" not in p.parts)
    yield Path(sys.executable).resolve()


def _contents(paths: Iterator[Path], limit: int) -> Iterator[bytes]:
    """What is in the files, in order, until `limit` bytes are read."""
    read = 0
    for path in paths:
        if read >= limit:
            return
        try:
            content = path.read_bytes()[: limit - read]
        except OSError:
            continue
        read += len(content)
        if content:
            yield content


def _bytes(contents: list[bytes]) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)


def batch(source: torch.Tensor, size: int, context: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`size` random windows of `context` bytes, and the bytes that follow each: two tensors (size, context)."""
    starts = torch.randint(len(source) - context, (size, 1), generator=generator)
    windows = source[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
