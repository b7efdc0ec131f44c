"""A rule's Programs for tensors of every kind that its text tells apart, without a model: of several shapes, and of names that its patterns match or do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Tensor
from updsl.core.ir import Program
from updsl.front import regex
from updsl.front.elaborate import PROBES, Walked, deep_recursion, probed
from updsl.front.module import Module
from updsl.front.unit import Constant

NAMES = ("weight", "x", "0")
"""Names that most patterns do not match."""


def programs_of(module: Module, parameters: Mapping[str, Constant]) -> list[Program]:
    """The different Programs of a rule; shapes and names that it cannot be used for are left out. Raises UpdslError if there is none that it can."""
    found: dict[Program, None] = {}
    mistakes: tuple[Diagnostic, ...] = ()
    for walked in _walks(module, parameters):
        if walked.program is not None:
            found.setdefault(walked.program)
        else:
            mistakes = mistakes or walked.diagnostics
    if not found:
        raise UpdslError(list(mistakes))
    return list(found)


def tensors_of(module: Module, parameters: Mapping[str, Constant]) -> list[Tensor]:
    """A tensor of each name and shape that the rule can be used for."""
    return list(by_tensor(module, parameters))


def by_tensor(module: Module, parameters: Mapping[str, Constant], names: Sequence[str] = ()) -> dict[Tensor, Program]:
    """A tensor of each name and shape that the rule can be used for, with its Program; of these names too."""
    return {t: walked.program for t, walked in walks_of(module, parameters, names).items() if walked.program is not None}


def _walks(module: Module, parameters: Mapping[str, Constant]) -> list[Walked]:
    return list({id(w): w for w in walks_of(module, parameters).values()}.values())


def walks_of(module: Module, parameters: Mapping[str, Constant], names: Sequence[str] = ()) -> dict[Tensor, Walked]:
    """What walking the text for each of these tensors found."""
    constants = {n for n in module.parameters if isinstance(parameters[n], (bool, str))}
    found: dict[Tensor, Walked] = {}
    asked: set[tuple[str, str]] = set()
    names = list(dict.fromkeys((NAMES[0], *names)))
    with deep_recursion():
        for name in names:  # grows: an arm that is taken may ask for more names
            of_any_shape = None
            for shape in PROBES:
                tensor = Tensor(name, shape)
                walked = of_any_shape or probed(module, tensor, parameters, constants)
                of_any_shape = None if walked.of_shape or walked.warned_of_shape or walked.capped else walked
                found[tensor] = walked
                for predicate in sorted(walked.predicates - asked):
                    asked.add(predicate)
                    names += [n for n in _answers(predicate) if n not in names]
    return found


def _answers(predicate: tuple[str, str]) -> list[str]:
    """A name for which the text's question has the answer yes, and one for no, as far as there are any."""
    op, text = predicate
    if op == "==":
        return [text] if text else []
    yes = regex.example(text)
    no = next((n for n in NAMES if not regex.search(text, n)), None)
    return [n for n in (yes, no) if n]
