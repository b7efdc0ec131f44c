"""updsl: update rules of optimizers as short texts, checked, compiled and plugged into any torch optimizer.

Names are loaded when they are first used: importing updsl imports neither torch nor SymPy nor Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from updsl.core.diagnostic import UpdslError

if TYPE_CHECKING:
    from updsl.explanation import explain
    from updsl.properties import canonical_hash, check, equivalent, lint, units
    from updsl.runtime.compiled import compile
    from updsl.runtime.flat import flatten
    from updsl.runtime.optimizer import Optimizer, optimizer
    from updsl.runtime.rule import Rule, library, load, parse
    from updsl.runtime.transform import attach

__version__ = "0.1.0"

HOMES = {
    "load": "updsl.runtime.rule",
    "parse": "updsl.runtime.rule",
    "library": "updsl.runtime.rule",
    "Rule": "updsl.runtime.rule",
    "explain": "updsl.explanation",
    "check": "updsl.properties",
    "lint": "updsl.properties",
    "units": "updsl.properties",
    "equivalent": "updsl.properties",
    "canonical_hash": "updsl.properties",
    "compile": "updsl.runtime.compiled",
    "flatten": "updsl.runtime.flat",
    "attach": "updsl.runtime.transform",
    "Optimizer": "updsl.runtime.optimizer",
    "optimizer": "updsl.runtime.optimizer",
}
"""Public name → the module it lives in."""

__all__ = [
    "load",
    "parse",
    "library",
    "Rule",
    "explain",
    "check",
    "lint",
    "units",
    "equivalent",
    "canonical_hash",
    "compile",
    "flatten",
    "attach",
    "Optimizer",
    "optimizer",
    "UpdslError",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'updsl' has no attribute {name!r}")
    value = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
