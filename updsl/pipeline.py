"""The map: text → syntax → Module → Programs of the tensor classes → a backend that runs them. The only file that sees every layer below the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Protocol

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Frame, Result, RuleState, Tensor
from updsl.core.source import Source
from updsl.front.elaborate import Elaborated, elaborate
from updsl.front.files import library, load_module
from updsl.front.module import Constant, Module, load_unit, make_module

BACKENDS = ("torch", "inductor", "interpret")
LATER = ("cpp", "triton")
"""Backends of later versions."""


class Backend(Protocol):
    """One step of all tensor classes, pure: nothing is changed in place."""

    def step(self, state: RuleState, frame: Frame) -> Result: ...


@dataclass(frozen=True)
class Engine:
    """A rule's Programs for one set of tensors, and what runs them. name: of the backend, never "auto"."""

    elaborated: Elaborated
    run: Backend
    name: str

    @property
    def source(self) -> dict[str, str]:
        """The generated files, name → text; none of the interpreter."""
        return dict(getattr(self.run, "source", {}))


def from_file(name_or_path: str | PathLike[str]) -> Module:
    """A file, or a library rule's name → its parsed declarations."""
    return load_module(name_or_path)


def from_text(text: str, name: str | None = None) -> Module:
    """A text → its parsed declarations. `name` is what a bare pipeline is called."""
    stem = name or "rule"
    return make_module(load_unit(Source(f"<{stem}>", text), stem, library().find))


def to_engine(
    module: Module, tensors: Sequence[Tensor], params: Mapping[str, Constant], overridden: frozenset[str] = frozenset(), lr: bool = True,
    backend: str = "auto", watches: bool = True,
) -> Engine:
    """Declarations and tensors → Programs → something that runs. `overridden`: the parameters that some group has its own value of; `lr`: whether
    there is a learning rate; `watches`: whether steps give the rule's watches."""
    name = to_backend(backend)
    programs = elaborate(module, tensors, params, overridden, lr)
    if not watches:
        programs = replace(programs, programs=tuple(replace(p, watches=()) for p in programs.programs))
    if name == "interpret":
        from updsl.back.interpret import Interpreter

        return Engine(programs, Interpreter(programs.programs, programs.class_of, tensors), name)
    from updsl.back.torch_source import TorchBackend

    return Engine(programs, TorchBackend(programs.programs, programs.class_of, tensors, inductor=name == "inductor"), name)


def to_backend(backend: str) -> str:
    """What "auto" stands for ("torch"), or the backend's own name. Raises UpdslError if there is none of that name."""
    if backend in LATER:
        raise UpdslError(Diagnostic("unknown-backend", f"the backend `{backend}` is not built in this version", help='choose "torch" or "inductor"'))
    if backend != "auto" and backend not in BACKENDS:
        help_ = did_you_mean(backend, BACKENDS) or 'choose "auto", "torch", "inductor" or "interpret"'
        raise UpdslError(Diagnostic("unknown-backend", f"unknown backend `{backend}`", help=help_))
    return "torch" if backend == "auto" else backend
