"""The map: text → syntax → Module → Programs of the tensor classes → a backend that runs them. The only file that sees every layer below the runtime."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Protocol, runtime_checkable

from updsl.back.cpp_covers import uncovered
from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Frame, Result, RuleState, Tensor
from updsl.core.ir import Program, Ref, roots, walk
from updsl.core.source import Source
from updsl.front.elaborate import Elaborated, elaborate
from updsl.front.files import library, load_module
from updsl.front.module import Module, make_module
from updsl.front.unit import Constant, load_unit
from updsl.middle.share import share

BACKENDS = ("auto", "cpp", "triton", "torch", "inductor", "interpret")
CHOOSE = 'choose "auto", "cpp", "triton", "torch", "inductor" or "interpret"'


class Backend(Protocol):
    """One step of all tensor classes, pure: nothing is changed in place."""

    def step(self, state: RuleState, frame: Frame) -> Result: ...


@runtime_checkable
class InPlace(Backend, Protocol):
    """A backend that can also write `out` into the gradients, new weights into the weights, and states into their own memory.
    It is to forget a state whose arrays are then moved."""

    def steps_in_place(self, frame: Frame) -> bool: ...

    def step_in_place(self, state: RuleState, frame: Frame) -> Result: ...

    def forget(self, state: RuleState) -> None: ...


@dataclass(frozen=True)
class Engine:
    """A rule's Programs for one set of tensors, and what runs them. name: of the backend, never "auto". why: it is torch where kernels might have been."""

    elaborated: Elaborated
    run: Backend
    name: str
    why: str = ""

    def reads_weights(self, tensor: str) -> bool:
        """Whether the Program of this tensor reads or writes w."""
        return self._weights[self.elaborated.class_of[tensor]]

    @cached_property
    def _weights(self) -> tuple[bool, ...]:
        return tuple(p.weight is not None or any(n.kind == "builtin" and n.name == "w" for n in reads(p)) for p in self.elaborated.programs)

    @property
    def source(self) -> dict[str, str]:
        """The generated files, name → text; none of the interpreter."""
        return dict(getattr(self.run, "source", {}))


def from_file(name_or_path: str | PathLike[str]) -> Module:
    """A file, or a library rule's name → its parsed declarations."""
    return load_module(name_or_path)


def from_text(text: str, name: str | None = None) -> Module:
    """A text → its parsed declarations. `name` is what a bare pipeline is called."""
    stem = name or "pipeline"
    return make_module(load_unit(Source(f"<{stem}>", text), stem, library().find))


def to_engine(
    module: Module,
    tensors: Sequence[Tensor],
    params: Mapping[str, Constant],
    overridden: frozenset[str] = frozenset(),
    lr: bool = True,
    backend: str = "auto",
    watches: bool = True,
) -> Engine:
    """Declarations and tensors → Programs → something that runs. `overridden`: the parameters that some group has its own value of; `lr`: whether
    there is a learning rate; `watches`: whether steps give the rule's watches."""
    name = to_backend(backend)
    programs = elaborate(module, tensors, params, overridden, lr)
    programs = replace(programs, programs=tuple(with_what_is_read(p if watches else replace(p, watches=())) for p in programs.programs))
    if name == "interpret":
        from updsl.back.interpret import Interpreter

        return Engine(programs, Interpreter(programs.programs, programs.class_of, tensors), name)
    programs = replace(programs, programs=tuple(share(p) for p in programs.programs))
    given = (programs.programs, programs.class_of, tensors)
    why = no_kernels(programs.programs, name) if name in ("auto", "cpp") else ""
    if name in ("auto", "cpp") and not why:
        from updsl.back.cpp_build import build
        from updsl.back.cpp_exec import CppBackend
        from updsl.middle.sweeps import to_plan

        return Engine(programs, CppBackend(*given, to_plan, build), "cpp")
    if name == "triton" and not (why := no_triton(programs.programs)):
        from updsl.back.triton_exec import TritonBackend
        from updsl.middle.sweeps import to_plan

        return Engine(programs, TritonBackend(*given, to_plan), name)
    from updsl.back.torch_exec import TorchBackend

    return Engine(programs, TorchBackend(*given, compiled=name == "inductor"), "inductor" if name == "inductor" else "torch", why)


def no_kernels(programs: Sequence[Program], backend: str) -> str:
    """Why the programs run in torch, and not in C++ kernels; "" if they can be kernels. Warns, once, if that is for want of a compiler."""
    why = next((f"kernels do not cover {reason}" for reason in map(uncovered, programs) if reason), "")
    if why:
        return why
    from updsl.back.cpp_build import NoCompiler, ready

    try:
        ready()
    except NoCompiler as e:
        warnings.warn(f"rules run in torch, and not in C++ kernels: {e}", stacklevel=2)
        return str(e)
    return ""


def no_triton(programs: Sequence[Program]) -> str:
    """Why the programs run in torch, and not in Triton kernels; "" if they can be. Raises UpdslError where Triton cannot run at all."""
    from updsl.back.triton_covers import uncovered_on_gpu
    from updsl.back.triton_exec import missing

    lacks, install = missing()
    if lacks:
        raise UpdslError(Diagnostic("unknown-backend", f"the backend `triton` cannot run here: {lacks}", help=install))
    return next((f"kernels do not cover {reason}" for reason in map(uncovered_on_gpu, programs) if reason), "")


def with_what_is_read(program: Program) -> Program:
    """Without the inputs that this class of tensors does not read; samples are read for their number too."""
    names = {n.name for n in reads(program) if n.kind == "input"}
    counts = any(n.kind == "builtin" and n.name == "batch" for n in reads(program))
    return replace(program, inputs=tuple(i for i in program.inputs if i.name in names or (counts and i.kind == "samples")))


def reads(program: Program) -> Iterator[Ref]:
    """Every reference of a Program."""
    inits = (s.init for s in program.states if s.init is not None)
    return (n for e in (*roots(program), *inits) for n in walk(e) if isinstance(n, Ref))


def to_backend(backend: str) -> str:
    """The name of a backend as it is; "auto" is what UPDSL_BACKEND names, where that is set. Raises UpdslError if there is none of that name."""
    if backend == "auto":
        backend = os.environ.get("UPDSL_BACKEND", "auto")
    if not isinstance(backend, str):
        raise UpdslError(Diagnostic("unknown-backend", f"a backend is a name, not {backend!r}", help=CHOOSE))
    if backend not in BACKENDS:
        raise UpdslError(Diagnostic("unknown-backend", f"unknown backend `{backend}`", help=did_you_mean(backend, BACKENDS) or CHOOSE))
    return backend
