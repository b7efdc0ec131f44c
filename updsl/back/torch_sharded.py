"""Programs of which every rank runs a part: between sweeps of what each has, collectives make reductions one, and torch works on whole tensors.

A step is in parts, as where kernels do not cover all of it: of every second part the reductions are completed, by one collective for the whole model, and what
reads whole tensors runs on them, gathered. What it gives is cut again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from updsl.back.kernel_hybrid import Handed, MakeParts, Part, Running, Stage, given_by
from updsl.back.kernel_tables import key_of
from updsl.back.torch_exec import TorchBackend
from updsl.core import frame
from updsl.core.frame import Frame, Key, Result, RuleState
from updsl.core.ir import GRID, Apply, Expr, Program, Ref, State, Type, roots, walk
from updsl.core.ranks import is_of_ranks
from updsl.core.scope import GROUP
from updsl.core.straight import blocks_due


class Total(NamedTuple):
    """A reduction to complete: a tensor that has it, how, its type, and what this rank has of it."""

    tensor: str
    how: str
    type: Type
    here: tuple[Tensor, ...]


class Ranks(Protocol):
    """What the ranks of a model do together; `updsl.runtime.distributed` has it. name: of a tensor; t: the type of a value on its grid."""

    def numbers(self, name: str) -> Mapping[str, float]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def is_cut(self, name: str, t: Type) -> bool: ...

    def gather(self, name: str, x: Tensor, t: Type) -> Tensor: ...

    def cut(self, name: str, x: Tensor, t: Type) -> Tensor: ...

    def totals(self, what: Sequence[Total]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Between(Stage):
    """A part after a collective. totals: how, and the names of the inputs, of each reduction that is completed before it; whole: the classes that run on
    whole tensors."""

    totals: tuple[tuple[int, str, tuple[str, ...], Type], ...]
    whole: frozenset[int]


class ShardedBackend:
    """The Programs of a rule's tensor classes on the part of each tensor that this rank has. programs, class_of: of whole tensors, a class for each way
    to lie over the ranks. to_parts: a step with these blocks running → its parts."""

    def __init__(
        self,
        programs: Sequence[Program],
        class_of: Mapping[str, int],
        tensors: Sequence[frame.Tensor],
        to_parts: MakeParts,
        to_local: Callable[[Sequence[Program], Mapping[str, int], Sequence[frame.Tensor]], TorchBackend],
        ranks: Ranks,
    ):
        self.programs, self.class_of, self.ranks = tuple(programs), dict(class_of), ranks
        self.whole = {t.name: t for t in tensors}
        self.here = {t.name: frame.Tensor(t.name, ranks.shape(t.name)) for t in tensors}
        self.to_parts, self.to_local = to_parts, to_local
        self._stages: dict[tuple[tuple[int, ...], Running], list[Stage]] = {}
        self._first = TorchBackend(programs, class_of, tensors)
        self._numbers: dict[tuple, Handed] = {}
        self._lock = threading.Lock()

    @property
    def source(self) -> dict[str, str]:
        """File name → text, part by part."""
        return {
            f"{stem}_part{number}.{ending}": text
            for stages in self._stages.values()
            for number, stage in enumerate(stages, 1)
            for stem, _, ending in (file.rpartition(".") for file in stage.run.source)
            for text in (stage.run.source[f"{stem}.{ending}"],)
        }

    # --- parts -------------------------------------------------------------------------------------------------------

    def stages(self, classes: tuple[int, ...], running: Running) -> list[Stage]:
        """The parts of a step in which tensors of these classes take part and these blocks run."""
        with self._lock:
            if (classes, running) not in self._stages:
                self._stages[classes, running] = [self.stage(part) for part in self.to_parts({c: self.programs[c] for c in classes}, running)]
        return self._stages[classes, running]

    def stage(self, part: Part) -> Stage:
        order = sorted(part.programs)
        programs = [part.programs[c] for c in order]
        class_of = {n: order.index(c) for n, c in self.class_of.items() if c in part.programs}
        if part.kernels:
            return Stage(part, self.to_local(programs, class_of, [self.here[n] for n in class_of]))
        whole = frozenset(c for c, p in part.programs.items() if any(map(is_of_whole, roots(p))))
        tensors = [(self.whole if self.class_of[n] in whole else self.here)[n] for n in class_of]
        return Between(part, TorchBackend(programs, class_of, tensors), tuple(dict.fromkeys(totals_of(part))), whole)

    def kinds(self, names: Sequence[str], steps: int) -> list[int]:
        """The first step of each kind, by the blocks that run, among so many."""
        programs = {c: self.programs[c] for c in sorted({self.class_of[n] for n in names})}
        found: dict[Running, int] = {}
        for step in range(1, steps + 1):
            found.setdefault(blocks_due(programs, step), step)
        return list(found.values())

    def collectives(self, names: Sequence[str], run: int = 1) -> tuple[int, list[tuple[str, str, Type]]]:
        """Of the step of the run of these tensors: how many collectives there are that complete reductions, and what is gathered: tensor, value, type."""
        classes = tuple(sorted({self.class_of[n] for n in names}))
        running = blocks_due({c: self.programs[c] for c in classes}, run)
        between = [s for s in self.stages(classes, running) if isinstance(s, Between)]
        gathered = [
            (n, r.name, r.type)
            for s in between
            for c in sorted(s.whole)
            for r in reads_of(s.part.programs[c])
            for n in names
            if self.class_of[n] == c and self.ranks.is_cut(n, r.type)
        ]
        return sum(1 for s in between if s.totals), gathered

    # --- steps -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step of what this rank has: a pure function of state and frame, taken by all ranks together."""
        classes = tuple(sorted({self.class_of[n] for n in frame.g}))
        stages = self.stages(classes, blocks_due({c: self.programs[c] for c in classes}, state.run + 1))
        frame = replace(frame, inputs=frame.inputs | self.numbers(frame, stages), places=None)
        state = self.started(state, frame)
        handed: Handed = {}
        kept: Handed = {}
        for stage in stages[:-1]:
            values = self.between(stage, state, frame, handed) if isinstance(stage, Between) else self.local(stage, state, frame, handed)
            for c, name, into in given_by(stage.part, handed, kept):
                s = next(s for s in stage.part.programs[c].states if s.name == name)
                names = [n for n in frame.g if self.class_of[n] == c]
                into.setdefault(name, {}).update({key_of(s, n, frame.group_of): values[name][key_of(s, n, frame.group_of)] for n in names})
        last = stages[-1]
        result = last.run.step(state, last.frame(frame, self.class_of, handed))
        for name, cells in kept.items():
            result.state.values[name] = result.state.values.get(name, {}) | cells
        return result

    def numbers(self, frame: Frame, stages: Sequence[Stage]) -> Handed:
        """What the parts read of how each tensor lies; made once for each set of tensors."""
        key = (tuple(frame.g), id(stages))
        if key not in self._numbers:
            read = {(c, i.name) for stage in stages for c, p in stage.part.programs.items() for i in p.inputs if i.name.startswith("[")}
            found: Handed = {}
            for name in frame.g:
                numbers = self.ranks.numbers(name)
                for c, label in read:
                    if c == self.class_of[name]:
                        found.setdefault(label, {})[name] = torch.tensor(numbers[label], dtype=torch.float64, device=frame.g[name].device)
            self._numbers = {key: found}
        return self._numbers[key]

    def local(self, stage: Stage, state: RuleState, frame: Frame, handed: Handed) -> Handed:
        """What a part gives that runs on what this rank has."""
        return stage.run.step(state, stage.frame(frame, self.class_of, handed)).state.values

    def between(self, stage: Between, state: RuleState, frame: Frame, handed: Handed) -> Handed:
        """What a part gives after its collectives: cut to what this rank has."""
        own = stage.frame(frame, self.class_of, handed)
        own = replace(own, inputs={name: dict(cells) for name, cells in own.inputs.items()})
        self.complete(stage, own)
        if not stage.whole:
            return stage.run.step(state, own).state.values
        values = stage.run.step(*self.gathered(stage, state, own)).state.values
        cut = {name: dict(cells) for name, cells in values.items()}
        for c in stage.whole:
            for s in stage.part.programs[c].states:
                for n in own.g:
                    if self.class_of[n] == c and n in cut.get(s.name, {}) and self.ranks.is_cut(n, s.type):
                        cut[s.name][n] = self.ranks.cut(n, values[s.name][n], s.type)
        return cut

    def complete(self, stage: Between, own: Frame) -> None:
        """All reductions of a part, in the place of what this rank has of them."""
        entries = [(how, names, key, n, t) for c, how, names, t in stage.totals for key, n in self.cells(c, t, own)]
        if not entries:
            return
        unique = {(names[-1], key): (how, names, n, t) for how, names, key, n, t in entries}
        what = [Total(n, how, t, tuple(torch.as_tensor(own.inputs[name][key]) for name in names)) for (_, key), (how, names, n, t) in unique.items()]
        for (name, key), x in zip(unique, self.ranks.totals(what), strict=True):
            own.inputs[name][key] = x

    def cells(self, c: int, t: Type, own: Frame) -> list[tuple[Key, str]]:
        """Key, and the first tensor of it, of each value of this type of a class."""
        found: dict[Key, str] = {}
        for n in own.g:
            if self.class_of[n] == c:
                found.setdefault(n if "T" in t.scope.indices else own.group_of[n] if t.scope == GROUP else "", n)
        return list(found.items())

    def gathered(self, stage: Between, state: RuleState, own: Frame) -> tuple[RuleState, Frame]:
        """State and frame, with whole tensors where the part reads them; where it does not, an array of their shape that takes no memory."""
        g, w = dict(own.g), dict(own.w)
        values = {name: dict(cells) for name, cells in state.values.items()}
        for c in stage.whole:
            reads = list(reads_of(stage.part.programs[c]))
            for n in (n for n in own.g if self.class_of[n] == c):
                g[n] = blank(own.g[n], self.whole[n])
                if n in w:
                    w[n] = blank(own.w[n], self.whole[n])
                for r in reads:
                    if n in (cells := self.read(r, own, values)):
                        into = g if (r.kind, r.name) == ("builtin", "g") else w if (r.kind, r.name) == ("builtin", "w") else cells
                        into[n] = self.whole_of(n, self.read(r, own, state.values)[n], r.type)
        return replace(state, values=values), replace(own, g=g, w=w)

    @staticmethod
    def read(r: Ref, own: Frame, values: Mapping[str, dict[Key, Any]]) -> dict[Any, Any]:
        """Where what a reference reads lies, tensor by tensor."""
        match r.kind:
            case "builtin":
                return own.g if r.name == "g" else own.w
            case "input":
                return own.inputs.get(r.name, {})
            case _:
                return values.get(r.name, {})

    def whole_of(self, name: str, x: Any, t: Type) -> Any:
        """A value of a whole tensor; of a window the slots, and how many are filled."""
        if not self.ranks.is_cut(name, t):
            return x
        if isinstance(x, tuple):
            return tuple(self.ranks.gather(name, part, replace(t, window=t.window if i == 0 else 0)) for i, part in enumerate(x))
        return self.ranks.gather(name, x, t)

    def started(self, state: RuleState, frame: Frame) -> RuleState:
        """The state before the step, with the first values of what takes its first step: made of whole tensors, and cut."""
        new = [(n, s) for n in frame.g for s in self.states_of(n) if key_of(s, n, frame.group_of) not in state.values.get(s.name, {})]
        if not new:
            return state
        reads = {n for n, s in new if s.init is not None and any(isinstance(r, Ref) and (r.kind, r.name) == ("builtin", "w") for r in walk(s.init))}
        g = {n: blank(x, self.whole[n]) for n, x in frame.g.items()}
        w = {n: self.whole_of(n, x, GRID) if n in reads else blank(x, self.whole[n]) for n, x in frame.w.items()}
        started = self._first.started(state, replace(frame, g=g, w=w))
        values = {name: dict(cells) for name, cells in started.values.items()}
        for n, s in new:
            if key_of(s, n, frame.group_of) == n and n in values.get(s.name, {}) and self.ranks.is_cut(n, s.type):
                values[s.name][n] = self.ranks.cut(n, values[s.name][n], s.type)
        return replace(started, values=values)

    def states_of(self, name: str) -> Iterator[State]:
        """Those of a tensor that have a first value."""
        return (s for s in self.programs[self.class_of[name]].states if s.init is not None)


def blank(x: Tensor, whole: frame.Tensor) -> Tensor:
    """Zeros of the whole tensor's shape, in no memory."""
    return x.new_zeros(()).expand(whole.shape)


def totals_of(part: Part) -> Iterator[tuple[int, str, tuple[str, ...], Type]]:
    """Class, how, the names of the inputs, and the type, of each reduction that the part completes."""
    for c, p in part.programs.items():
        for e in roots(p):
            for n in walk(e):
                if isinstance(n, Apply) and n.op in ("total", "pooled"):
                    how = "pooled" if n.op == "pooled" else n.static[0]
                    yield c, how, tuple(a.name for a in n.args if isinstance(a, Ref)), n.type


def is_of_whole(e: Expr) -> bool:
    """Whether an expression reads whole tensors: it has a node that no rank's part is enough for."""
    return any(is_of_ranks(n) and not (isinstance(n, Apply) and n.op in ("total", "pooled")) for n in walk(e))


def reads_of(p: Program) -> Iterator[Ref]:
    """The gradient, weights, states and inputs that a Program reads."""
    found = {(n.kind, n.name): n for e in roots(p) for n in walk(e) if isinstance(n, Ref) and (n.kind in ("input", "state") or n.name in ("g", "w"))}
    return iter(found.values())
