"""What is wrong with a rule file: its text, and its examples."""

from __future__ import annotations

from updsl.core.diagnostic import Diagnostic
from updsl.front import syntax
from updsl.front.elaborate import check_text
from updsl.front.module import Module


def check_module(module: Module) -> tuple[list[str], list[Diagnostic]]:
    """The names of the file's laws, and every mistake found in it."""
    laws = [d.name for d in module.unit.file.declarations if isinstance(d, syntax.Law)]
    mistakes, _ = check_text(module, {name: p.default for name, p in module.parameters.items() if p.default is not None})
    return laws, mistakes
