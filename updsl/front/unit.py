"""Files and the names that their texts see: what a file declares, what it uses, and what the library adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.ops import OPS
from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.parse import parse

Constant: TypeAlias = float | bool | str

BUILTIN_NAMES = frozenset("g it w lr t rows cols numel ndim name tensors batch pi".split())
FUNCTIONS = frozenset(op.name for op in OPS.values() if op.text == "call") | {"min", "max", "dim", "history"}
BOTH = frozenset(("norm", "rms", "absmax"))
"""Names that are a function and a library rule."""
HOMONYMS = frozenset((("sign", "sign"), ("add_noise", "std")))
"""Rule and name: names of the library that are functions too. The rule `sign` is the function; `std` is the parameter."""
FORBIDDEN = frozenset("params groups grads state backend nonfinite chain names seed".split())
"""Words that a parameter or input may not be, since the Python interface passes them by keyword."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A parsed file. `library` finds a library file by name; `beside` a file beside this one."""

    source: Source
    file: syntax.File
    stem: str
    library: Callable[[str], Unit | None]
    used: Mapping[str, Unit] = field(default_factory=dict)
    sites: dict[int, Any] = field(default_factory=dict)
    """Of each declaration, by id: kept here because its names depend on this file (sites.py)."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the sites: a copy of a declaration has another id."""
        return self.__dict__ | {"sites": {}}

    @cached_property
    def rules(self) -> dict[str, syntax.Rule]:
        return {d.name.casefold(): d for d in self.file.declarations if isinstance(d, syntax.Rule)}

    @cached_property
    def fns(self) -> dict[str, syntax.Fn]:
        return {d.name: d for d in self.file.declarations if isinstance(d, syntax.Fn)}

    def find_rule(self, name: str) -> tuple[syntax.Rule, Unit] | None:
        """The rule that `name` means here: of this file, of a used one, else of the library."""
        folded = name.casefold()
        if folded in self.rules:
            return self.rules[folded], self
        if name in self.fns:
            return None
        for unit in self.used.values():
            if folded in unit.rules:
                return unit.rules[folded], unit
        found = self.library(folded)
        return (found.rules[folded], found) if found and folded in found.rules else None

    def find_fn(self, name: str) -> tuple[syntax.Fn, Unit] | None:
        """The `fn` that `name` means here, of this file or the library."""
        if name in self.fns:
            return self.fns[name], self
        if name.casefold() in self.rules:
            return None
        found = self.library(name.casefold())
        return (found.fns[name], found) if found and name in found.fns else None

    @cached_property
    def main(self) -> syntax.Rule | None:
        """The rule of the file's name, else the last."""
        return self.rules.get(self.stem.casefold()) or next(reversed(self.rules.values()), None)


class Library:
    """The rule files of a folder and its subfolders, by name, each parsed once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._units: dict[str, Unit | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Only what was parsed."""
        return {"folder": self.folder, "_units": dict(self._units)}

    @cached_property
    def files(self) -> dict[str, Path]:
        return {p.stem.casefold(): p for p in sorted(self.folder.glob("*/*.upd"))}

    @cached_property
    def rules(self) -> dict[str, syntax.Rule]:
        """The rules that the files stand for, by name; a file of functions stands for none."""
        units = {name: self.find(name) for name in self.files}
        return {name: unit.main for name, unit in units.items() if unit is not None and unit.main is not None}

    def find(self, name: str) -> Unit | None:
        """The library's file of this name, or None."""
        name = name.casefold()
        if name in self._units:
            return self._units[name]
        if name in self.files:
            path = self.files[name]
            beside = {p.stem: p for p in self.files.values() if p.parent == path.parent}
            self._units[name] = load_unit(_text(path), path.stem, self.find, lambda other: _text(beside[other]) if other in beside else None)
        return self._units.get(name)


def _text(path: Path) -> Source:
    return Source(path.name, path.read_text(encoding="utf-8"))


def load_unit(
    source: Source, stem: str, library: Callable[[str], Unit | None], beside: Callable[[str], Source | None] | None = None, within: tuple[str, ...] = ()
) -> Unit:
    """Parse a file and what it uses. `beside` gives the text of a file beside this one, by name; `within` are the files that are using this one.

    Raises UpdslError on a mistake in any of the texts, a missing file, or files that use each other in a circle.
    """
    file = parse(source)
    used: dict[str, Unit] = {}
    for name in (n for d in file.declarations if isinstance(d, syntax.Use) for n in d.names):
        text = beside(name.id) if beside else None
        if text is None:
            raise UpdslError(
                Diagnostic(
                    "unknown-file",
                    f"there is no file `{name.id}.upd` beside this one",
                    name.span,
                    help=f"delete it: `{name.id}` is a rule of the library" if library(name.id) else "write that file; rules of the library need no `use`",
                )
            )
        if name.id.casefold() in (*within, stem.casefold()):
            raise UpdslError(Diagnostic("use-circle", f"`{name.id}` is already using this file", name.span, help="move what both need into a third file"))
        used[name.id] = load_unit(text, name.id, library, beside, (*within, stem.casefold()))
    return Unit(source, file, stem, library, used)
