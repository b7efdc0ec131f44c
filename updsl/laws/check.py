"""What is wrong with a rule file: its text, and its examples."""

from __future__ import annotations

from os import PathLike

from updsl.core.diagnostic import Diagnostic
from updsl.front import syntax
from updsl.front.elaborate import check_text
from updsl.front.files import open_unit
from updsl.front.module import declaration_mistakes, make_module


def check_file(name_or_path: str | PathLike[str]) -> tuple[list[str], list[Diagnostic]]:
    """The names of the file's laws, and every mistake found in it. Raises UpdslError where there is nothing to check.

    A file that only declares functions stands for no rule; its declarations are checked.
    """
    unit = open_unit(name_or_path)
    if unit.main is None and unit.fns:
        return [], list(declaration_mistakes(unit))
    module = make_module(unit)
    laws = [d.name for d in unit.file.declarations if isinstance(d, syntax.Law)]
    mistakes, _ = check_text(module, {name: p.default for name, p in module.parameters.items() if p.default is not None})
    return laws, mistakes
