"""What a rule's text needs beside it: the rules and functions that it applies and that no name of the library stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.contents import applied, nodes
from updsl.front.lex import tokens
from updsl.front.module import Module
from updsl.front.sites import Sites
from updsl.front.unit import FUNCTIONS, HOMONYMS, Unit

Declared: TypeAlias = tuple[syntax.Rule | syntax.Fn, Unit]


def companions(module: Module) -> list[Declared]:
    """The rules of the module's own and of used files that its rule applies, and all functions in force, each once, in order of use."""
    found: dict[int, Declared] = {id(module.rule): (module.rule, module.unit)}
    waiting: list[Declared] = [(module.rule, module.unit)]
    while waiting:
        for declaration, unit in _needed(*waiting.pop(0)):
            if id(declaration) not in found:
                found[id(declaration)] = (declaration, unit)
                waiting.append((declaration, unit))
    return list(found.values())[1:]


def _needed(declaration: syntax.Rule | syntax.Fn, unit: Unit) -> Iterator[Declared]:
    if isinstance(declaration, syntax.Rule):
        yield from ((rule, home) for _, rule, home in applied(declaration, unit) if not _in_library(rule, home))
    sites = Sites(declaration, unit)
    for node in nodes(declaration.body):
        name = getattr(node, "id", None) or getattr(node, "callee", None)
        if name and name not in FUNCTIONS and name not in sites.locals and name not in sites.parameters and (found := unit.find_fn(name)):
            yield found


def _in_library(declaration: syntax.Rule | syntax.Fn, home: Unit) -> bool:
    """Whether the declaration's name means it everywhere."""
    found = home.library(declaration.name)
    return found is not None and found.source.text == home.source.text


def started_like(module: Module, name: str) -> str:
    """The module's text as that of a rule called `name`: it stands without the files that it used, and keeps comments, laws and examples."""
    brought = [d for d, home in companions(module) if home is not module.unit and not _in_library(d, home)]
    text = module.text
    for span, replacement in sorted(_edits(module, name), key=lambda edit: -edit[0][0]):
        text = text[: span[0]] + replacement + text[span[1] :]
    return "\n\n".join([text.strip("\n"), *(d.span.text.strip() for d in brought)]) + "\n"


def _edits(module: Module, name: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Places of the text and what to write there: the rule's name, nothing for `use`, and another name for a parameter that only this rule may have."""
    span = module.rule.name_span
    if span.start < span.end:
        yield (span.start, span.end), name
    for d in module.unit.file.declarations:
        if isinstance(d, syntax.Use):
            yield (d.span.start, d.span.end), ""
    only_here = {p for p in module.parameters if (module.name, p) in HOMONYMS}
    for token in tokens(Source("", module.text))[0] if only_here else ():
        if token.type == "NAME" and token.text in only_here:
            yield (token.start, token.end), f"{token.text}_"
