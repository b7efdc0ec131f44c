"""The map: text → syntax → Module → Programs of the tensor classes → a backend that runs them. The only file that sees every layer below the runtime."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from os import PathLike
from typing import Any, Protocol, runtime_checkable

from updsl.back.cpp_covers import foreign, is_foreign, uncovered
from updsl.back.triton_covers import is_foreign_on_gpu, uncovered_on_gpu
from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Frame, Result, RuleState, Tensor
from updsl.core.ir import Apply, Expr, Program, Reduce, Ref, blocks, is_joint, roots, walk
from updsl.core.kept import kept
from updsl.core.ranks import Cut, is_of_ranks
from updsl.core.source import Source
from updsl.front.elaborate import Elaborated, check_text, elaborate
from updsl.front.files import is_path, library, load_module
from updsl.front.module import Module, make_module
from updsl.front.unit import Constant, Unit, load_unit
from updsl.middle.flat import flat
from updsl.middle.parts import Part, parts
from updsl.middle.rewrite import averaged
from updsl.middle.shard import shard
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

    def returns(self, tensor: str) -> bool:
        """Whether the Program of this tensor says what becomes of its gradient."""
        return self._returns[self.elaborated.class_of[tensor]]

    @cached_property
    def _returns(self) -> tuple[bool, ...]:
        return tuple(p.weight is None or p.returns for p in self.elaborated.programs)

    @cached_property
    def _weights(self) -> tuple[bool, ...]:
        return tuple(p.weight is not None or any(n.kind == "builtin" and n.name == "w" for n in reads(p)) for p in self.elaborated.programs)

    @property
    def source(self) -> dict[str, str]:
        """The generated files, name → text; none of the interpreter."""
        return dict(getattr(self.run, "source", {}))


def from_file(name_or_path: str | PathLike[str]) -> Module:
    """A file, or a library rule's name → its parsed declarations."""
    name = os.fspath(name_or_path)
    return load_module(name) if is_path(name) else kept("rule", (name,), lambda: load_module(name))


def from_text(text: str, name: str | None = None) -> Module:
    """A text → its parsed declarations. `name` is what a bare pipeline is called."""
    stem = name or "pipeline"
    return kept("rule", (stem, text), lambda: make_module(load_unit(Source(f"<{stem}>", text), stem, library().find)))


def constants_of(module: Module, params: Mapping[str, Constant]) -> frozenset[str]:
    """The parameters that are fixed when a rule is compiled. Raises UpdslError for mistakes of the text, with these values, that show without tensors."""

    def make() -> frozenset[str]:
        mistakes, constants = check_text(module, params)
        if any(d.severity == "error" for d in mistakes):
            raise UpdslError(mistakes)
        return constants

    return kept("constants", (module.name, texts(module.unit), dict(params)), make)


def texts(unit: Unit) -> tuple:
    """All that a rule is made of, but for the library: its file, and those that it uses."""
    return unit.source.name, unit.source.text, unit.stem, tuple(map(texts, unit.used.values()))


def to_engine(
    module: Module,
    tensors: Sequence[Tensor],
    params: Mapping[str, Constant],
    overridden: frozenset[str] = frozenset(),
    lr: bool = True,
    backend: str = "auto",
    watches: bool = True,
    device: str = "cpu",
) -> Engine:
    """Declarations and tensors → Programs → something that runs. `overridden`: the parameters that some group has its own value of; `lr`: whether
    there is a learning rate; `watches`: whether steps give the rule's watches; `device`: the kind that "auto" chooses for. Raises UpdslError where Triton is
    asked for and cannot run."""
    name = to_backend(backend)

    def programs_of(shared: bool) -> Elaborated:
        made = elaborate(module, tensors, params, overridden, lr)
        watched = [p if watches else replace(p, watches=()) for p in made.programs]
        return replace(made, programs=tuple(map(prepared if shared else with_what_is_read, watched)))

    if name == "interpret":
        from updsl.back.interpret import Interpreter

        programs = programs_of(shared=False)
        return Engine(programs, Interpreter(programs.programs, programs.class_of, tensors), name)
    emitter = EMITTERS.get(device if name == "auto" else name)
    if name == "triton" and (lacks := no_triton()):
        raise UpdslError(Diagnostic("unknown-backend", f"the backend `triton` cannot run here: {lacks}", help='choose "auto", or what runs here'))
    if emitter is not None:
        of = module.name, texts(module.unit), dict(params), sorted(overridden), lr, watches, [(t.name, t.shape) for t in tensors]
        programs, lacks, between = kept(f"{emitter.name}-programs", of, lambda: emitter.with_cover(programs_of(shared=True)))
        why = lacks or emitter.cannot()
        if why and not lacks:
            warn_once(f"rules run in torch, and not in {emitter.title} kernels: {why}")
        if not why:
            return Engine(programs, emitter.backend(programs.programs, programs.class_of, tensors, between), emitter.name, between or "")
    else:
        programs = programs_of(shared=True)
        why = f"there are no kernels for {device}" if name == "auto" else ""
    given = (programs.programs, programs.class_of, tensors)
    from updsl.back.torch_exec import TorchBackend

    return Engine(programs, TorchBackend(*given, compiled=name == "inductor"), "inductor" if name == "inductor" else "torch", why)


@dataclass(frozen=True)
class Emitter:
    """What writes kernels, and what it covers: whole programs, or nodes of them. kernels: Programs, classes and tensors → what runs
    them. cannot: why it cannot run here at all."""

    name: str
    title: str
    kernels: Callable[..., Any]
    cannot: Callable[[], str]
    uncovered: Callable[[Program], str]
    is_foreign: Callable[[Expr], bool]

    def with_cover(self, programs: Elaborated) -> tuple[Elaborated, str, str | None]:
        """With what it lacks for them, and what torch computes between sweeps."""
        lacks = self.lacks(programs.programs)
        return programs, lacks, None if lacks else self.between(programs.programs)

    def lacks(self, programs: Sequence[Program]) -> str:
        """Why the programs run in torch, and not in kernels; "" if they can be kernels, with torch between sweeps."""
        if not any(map(self.uncovered, programs)):
            return ""
        of = dict(enumerate(programs))
        everything = frozenset((c, block) for c, p in of.items() for block in blocks(p.body))
        left = (self.uncovered(p) for part in self.to_parts(of, everything) if part.kernels for p in part.programs.values())
        return next((f"kernels do not cover {reason}" for reason in left if reason), "")

    def between(self, programs: Sequence[Program]) -> str | None:
        """What torch computes between sweeps, in words; None where kernels cover all."""
        if not any(map(self.uncovered, programs)):
            return None
        words = foreign(programs)
        return words and f"torch computes {words} between sweeps"

    def to_parts(self, programs: Mapping[int, Program], running: frozenset[tuple[int, str]]) -> tuple[Part, ...]:
        return parts(flat(programs, running), self.is_foreign)

    def backend(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor], between: str | None) -> Backend:
        """Kernels alone, where they cover all."""
        if between is None:
            return self.kernels(programs, class_of, tensors)
        from updsl.back.kernel_hybrid import HybridBackend

        return HybridBackend(programs, class_of, tensors, self.to_parts, self.kernels, between)


def cpp_kernels(programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor]) -> Any:
    from updsl.back.cpp_build import build
    from updsl.back.cpp_exec import CppBackend
    from updsl.middle.sweeps import to_plan

    return CppBackend(programs, class_of, tensors, to_plan, build)


def no_compiler() -> str:
    """Why there can be no C++ kernels here, and what to do about it; "" if there can."""
    from updsl.back.cpp_build import NoCompiler, ready

    try:
        ready()
    except NoCompiler as e:
        return str(e)
    return ""


@cache
def warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def triton_kernels(programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[Tensor]) -> Any:
    from updsl.back.triton_exec import TritonBackend
    from updsl.middle.sweeps import to_plan

    return TritonBackend(programs, class_of, tensors, to_plan)


def no_triton() -> str:
    """Why there can be no Triton kernels here, and what to do about it; "" if there can."""
    from updsl.back.triton_exec import missing

    return missing()


CPP = Emitter("cpp", "C++", cpp_kernels, no_compiler, uncovered, is_foreign)
TRITON = Emitter("triton", "Triton", triton_kernels, no_triton, uncovered_on_gpu, is_foreign_on_gpu)
EMITTERS = {"cpp": CPP, "triton": TRITON, "cpu": CPP, "cuda": TRITON}
"""The backend of this name, and the one that "auto" chooses for this kind of device; for other devices it is torch."""


def to_sharded_engine(
    module: Module,
    tensors: Sequence[Tensor],
    params: Mapping[str, Constant],
    overridden: frozenset[str],
    lr: bool,
    ranks: Any,
) -> Engine:
    """Declarations and whole tensors → what runs on the part of each that this rank has, together with the other ranks: a class for each way to lie over the
    ranks. ranks: `updsl.runtime.distributed.Shards`."""
    made = elaborate(module, tensors, params, overridden, lr)
    ranks.keep_whole([name for name, c in made.class_of.items() if has_blocks(made.programs[c])])
    ways: dict[tuple[int, Cut], int] = {}
    class_of = {name: ways.setdefault((c, ranks.cuts[name]), len(ways)) for name, c in made.class_of.items()}
    programs = tuple(prepared(made.programs[c]) for c, _ in ways)
    cuts = dict(enumerate(cut for _, cut in ways))

    def to_parts(running_programs: Mapping[int, Program], running: frozenset[tuple[int, str]]) -> tuple[Part, ...]:
        return parts(shard(flat(running_programs, running), cuts), is_of_ranks)

    from updsl.back.torch_exec import TorchBackend
    from updsl.back.torch_sharded import ShardedBackend

    for c, cut in cuts.items():
        if cut.away and (found := next(orders_of_several(programs[c]), None)):
            message = f"`{module.name}` takes the {found} of several tensors, of which some are on other ranks alone"
            raise UpdslError(Diagnostic("placement", message, help="write `per tensor`, or a sum, norm or maximum, which stages complete together"))
    elaborated = replace(made, programs=programs, class_of=class_of, reductions=tuple(made.reductions[c] for c, _ in ways))
    return Engine(elaborated, ShardedBackend(programs, class_of, tensors, to_parts, TorchBackend, ranks), "torch")


def orders_of_several(program: Program) -> Iterator[str]:
    """The order statistics of a Program that need the entries of all tensors."""
    found = (n for e in roots(program) for n in walk(e) if isinstance(n, (Apply, Reduce)) and is_joint(n) and n.op in ("median", "quantile", "largest"))
    return (n.op for n in found if not any(a.type.window for a in n.args))


def has_blocks(program: Program) -> bool:
    """Whether values are of blocks of entries, which go across the parts that ranks have."""
    types = (*(s.type for s in program.states), *(i.type for i in program.inputs), *(n.type for e in roots(program) for n in walk(e)))
    return any(t.scope.size for t in types)


def prepared(program: Program) -> Program:
    """As torch and kernels take it."""
    return share(averaged(with_what_is_read(program)))


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
