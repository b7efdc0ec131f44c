"""Programs run by torch, eagerly or through torch.compile: what is pure stays pure, what fails changes nothing."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Mapping, Sequence
from types import CodeType

import torch
from torch import Tensor

from updsl.back.torch_names import to_identifier
from updsl.back.torch_plan import Plan, blocks_due, plan
from updsl.back.torch_source import Function, generate, title_of
from updsl.back.torch_step import take_step
from updsl.core import frame
from updsl.core.frame import Frame, Result, RuleState
from updsl.core.ir import Program

_serial = itertools.count(1)
OPTIONS: dict[str, str | int | bool | Callable] = {"emulate_precision_casts": True}
"""Without it Inductor leaves out the rounding to 16 bits of what the same kernel reads again."""


class Variant:
    """The code for one set of classes and of blocks that run; `inits`: of the first values of states."""

    def __init__(self, steps: Plan, file: str, compiled: bool):
        self.plan = steps
        generated = generate(steps, title_of(steps))
        self.text = generated.text
        self.functions = generated.functions
        self.inits = generated.inits
        self.compiled = compiled
        self.code = _register(self.text, f"<updsl {next(_serial)} {file}>")
        self.eager = _load(self.code)
        self.kernels: dict[tuple, Callable] = {}

    def run(self, f: Function, args: Sequence[object]) -> tuple[Tensor, ...]:
        """The function at these arguments: compiled for their shapes, if the backend compiles. A few numbers are not worth a kernel."""
        if not self.compiled or not f.local:
            return self.eager[f.name](*args)
        key = (f.name, *(_signature(a) for a in args))
        if key not in self.kernels:
            self.kernels[key] = torch.compile(_load(_fresh(self.code, self.text))[f.name], fullgraph=True, dynamic=False, options=OPTIONS)
        return self.kernels[key](*args)

    def init(self, owner: int, state: str, args: Sequence[object]) -> Tensor:
        """A state's first value."""
        return self.eager[self.inits[owner, state].name](*args)[0].contiguous()


def _register(text: str, file: str) -> CodeType:
    """The compiled text; tracebacks show its lines."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    return compile(text, file, "exec")


def _fresh(code: CodeType, text: str) -> CodeType:
    """The same code as an object of its own: torch.compile counts recompilations by code object."""
    return compile(text, code.co_filename, "exec")


def _load(code: CodeType) -> dict[str, Callable]:
    namespace: dict = {"__name__": "updsl.generated"}
    exec(code, namespace)
    return namespace


def _signature(a: object) -> object:
    return (a.shape, a.stride(), a.dtype, a.device) if isinstance(a, Tensor) else a


class TorchBackend:
    """The Programs of a rule's tensor classes as torch code. source: file name → text, as far as it was needed."""

    def __init__(self, programs: Sequence[Program], class_of: Mapping[str, int], tensors: Sequence[frame.Tensor], compiled: bool = False):
        self.programs = tuple(programs)
        self.class_of = dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.compiled = compiled
        self.source: dict[str, str] = {}
        self._variants: dict[tuple, Variant] = {}
        self.variant(tuple(sorted(set(self.class_of.values()))), 1)

    def variant(self, classes: tuple[int, ...], run: int) -> Variant | None:
        """The code for a step of the run in which tensors of these classes take part."""
        programs = {c: self.programs[c] for c in classes}
        if not programs:
            return None
        running = blocks_due(programs, run)
        if (classes, running) not in self._variants:
            name = to_identifier(self.programs[classes[0]].name)
            file = f"{name}.py" if not self._variants else f"{name}_{len(self._variants) + 1}.py"
            self._variants[classes, running] = made = Variant(plan(programs, running), file, self.compiled)
            self.source[file] = made.text
        return self._variants[classes, running]

    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step: a pure function of state and frame."""
        classes = tuple(sorted({self.class_of[name] for name in frame.g}))
        variant = self.variant(classes, state.run + 1)
        writes = any(p.weight is not None for p in self.programs)
        if variant is None:
            return Result({}, {} if writes else None, {}, RuleState({n: dict(v) for n, v in state.values.items()}, state.run + 1, dict(state.t)))
        with torch.no_grad():
            return take_step(variant, self.class_of, self.tensors, state, frame, writes)
