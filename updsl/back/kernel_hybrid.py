"""Kernels with torch between sweeps: a step in parts, of which the last, kernels', writes everything that leaves it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from updsl.back.kernel_exec import KernelBackend, Run
from updsl.back.kernel_tables import dense, key_of
from updsl.back.torch_exec import TorchBackend
from updsl.core import frame
from updsl.core.frame import Frame, Key, Result, RuleState
from updsl.core.ir import Program, State, is_shared
from updsl.core.plan import Summary
from updsl.core.scope import ELEMENT
from updsl.core.straight import blocks_due

Running = frozenset[tuple[int, str]]
Handed = dict[str, dict[Key, Any]]


class Part(Protocol):
    """What `middle.parts` gives."""

    @property
    def kernels(self) -> bool: ...
    @property
    def programs(self) -> Mapping[int, Program]: ...
    @property
    def hands_on(self) -> Mapping[int, tuple[State, ...]]: ...
    @property
    def keeps(self) -> Mapping[int, tuple[str, ...]]: ...


MakeParts = Callable[[Mapping[int, Program], Running], Sequence[Part]]
MakeKernels = Callable[[Sequence[Program], Mapping[str, int], Sequence[frame.Tensor]], KernelBackend]


@dataclass(frozen=True)
class Stage:
    """A part with what runs it."""

    part: Part
    run: KernelBackend | TorchBackend

    def frame(self, frame: Frame, class_of: Mapping[str, int], inputs: Handed) -> Frame:
        """Of the tensors that take part in it."""
        here = [n for n in frame.g if class_of[n] in self.part.programs]
        if len(here) == len(frame.g):
            return replace(frame, inputs=frame.inputs | inputs)
        w = {n: frame.w[n] for n in here if n in frame.w}
        return replace(frame, g={n: frame.g[n] for n in here}, w=w, inputs=frame.inputs | inputs, places=None)


class HybridRun(Run):
    """A run of steps in place. memory: by the blocks that run, what each of the parts but the last hands on."""

    def __init__(self, state: RuleState, frame: Frame):
        super().__init__(state, frame)
        self.memory: dict[Running, list[RuleState]] = {}


class HybridBackend:
    """The Programs of a rule's tensor classes as kernels, with torch for what they do not cover. to_parts: a step with these blocks running → its parts.
    torch: what torch computes, in words."""

    def __init__(
        self,
        programs: Sequence[Program],
        class_of: Mapping[str, int],
        tensors: Sequence[frame.Tensor],
        to_parts: MakeParts,
        to_kernels: MakeKernels,
        torch: str,
    ):
        self.programs, self.class_of = tuple(programs), dict(class_of)
        self.tensors = {t.name: t for t in tensors}
        self.to_parts, self.to_kernels, self.torch = to_parts, to_kernels, torch
        self.whole = to_kernels(programs, class_of, tensors)
        """Starts states, and takes in torch the steps that no kernel can."""
        self._has_streams = any(i.kind == "stream" and i.type.scope == ELEMENT for p in self.programs for i in p.inputs)
        self._stages: dict[tuple[tuple[int, ...], Running], list[Stage]] = {}
        self._runs: list[HybridRun] = []
        self._lock = threading.Lock()

    @property
    def source(self) -> dict[str, str]:
        """File name → text, part by part."""
        found = {}
        for stages in self._stages.values():
            for number, stage in enumerate(stages, 1):
                for file, text in stage.run.source.items():
                    stem, dot, ending = file.rpartition(".")
                    name = f"{stem}_part{number}{dot}{ending}"
                    found[name if name not in found else f"{stem}_part{number}_{len(found)}{dot}{ending}"] = text
        return found

    def summary(self, dtypes: Mapping[str, tuple[str, str]], group_of: Mapping[str, int]) -> Summary:
        """Of the kernels of the first step, for tensors of these types (of the gradient, and of the weight)."""
        programs = {c: self.programs[c] for c in sorted(set(self.class_of.values()))}
        stages = [self.stage(part) for part in self.to_parts(programs, blocks_due(programs, 1))]
        found = [stage.run.summary(dtypes, group_of) for stage in stages if isinstance(stage.run, KernelBackend)]
        last = found[-1]
        handed = sum(self.bytes_of(c, stage.part.hands_on[c], dtypes) for stage in stages for c in stage.part.programs)
        kept = {c: [s for stage in stages for s in p.states if s.name in stage.part.keeps.get(c, ())] for c, p in programs.items()}
        first = {c.owner: c for c in reversed(last.classes)}
        classes = tuple(
            replace(c, state_bytes=c.state_bytes + (self.bytes_of(c.owner, kept[c.owner], dtypes) if c is first[c.owner] else 0)) for c in last.classes
        )
        return replace(
            last,
            classes=classes,
            launches=sum(s.launches for s in found),
            workspace_bytes=handed + sum(s.workspace_bytes for s in found),
            before=tuple(found[:-1]),
            torch=self.torch,
        )

    def bytes_of(self, owner: int, states: Sequence[State], dtypes: Mapping[str, tuple[str, str]]) -> int:
        """That these states of all tensors of a class have."""
        names = [n for n, c in self.class_of.items() if c == owner]
        return sum(self.whole.state_bytes(s, n, 1 if s.type.boolean else 8 if "float64" in (dtypes[n][0], s.dtype) else 4) for s in states for n in names)

    # --- parts -------------------------------------------------------------------------------------------------------

    def stages(self, state: RuleState, frame: Frame) -> tuple[Running, list[Stage]]:
        """The parts of this step."""
        classes = tuple(sorted({self.class_of[n] for n in frame.g}))
        programs = {c: self.programs[c] for c in classes}
        running = blocks_due(programs, state.run + 1)
        with self._lock:
            if (classes, running) not in self._stages:
                self._stages[classes, running] = [self.stage(part) for part in self.to_parts(programs, running)]
        return running, self._stages[classes, running]

    def stage(self, part: Part) -> Stage:
        order = sorted(part.programs)
        programs = [part.programs[c] for c in order]
        class_of = {n: order.index(c) for n, c in self.class_of.items() if c in part.programs}
        tensors = [self.tensors[n] for n in class_of]
        return Stage(part, self.to_kernels(programs, class_of, tensors) if part.kernels else TorchBackend(programs, class_of, tensors))

    def memory(self, stage: Stage, state: RuleState, frame: Frame) -> RuleState:
        """The state before a part of kernels, with memory for what it hands on."""
        values = dict(state.values)
        for c, states in stage.part.hands_on.items():
            names = [n for n in frame.g if self.class_of[n] == c]
            for s in states:
                own = values.setdefault(s.name, {})
                for n in names:
                    own.setdefault(key_of(s, n, frame.group_of), self.blank(s, n, frame.g[n]))
        return RuleState(values, state.run, state.t)

    def blank(self, s: State, name: str, g: Tensor) -> Tensor:
        """Memory for a value of a tensor."""
        rows, cols = self.tensors[name].grid
        sizes = {"element": g.shape, "row": (rows,), "column": (cols,), "block": (-(-rows * cols // (s.type.scope.size or 1)),)}
        real = torch.float64 if g.dtype == torch.float64 or s.dtype == "float64" else torch.float32
        return torch.empty(() if is_shared(s.type) else sizes.get(s.type.scope.name, ()), dtype=torch.bool if s.type.boolean else real, device=g.device)

    def before_last(self, stages: Sequence[Stage], state: RuleState, frame: Frame, memory: list[RuleState] | None) -> tuple[Handed, Handed]:
        """All parts but the last: what they hand on, and the states that torch gives. Writes to no array but those of memory, which it makes if there is
        none."""
        handed: Handed = {}
        kept: Handed = {}
        for i, stage in enumerate(stages[:-1]):
            own = stage.frame(frame, self.class_of, handed)
            if isinstance(stage.run, TorchBackend):
                values = stage.run.step(state, own).state.values
            else:
                before = memory[i] if memory is not None else self.memory(stage, state, frame)
                after = stage.run.step_in_place(before, own).state
                values = after.values
                if memory is not None:
                    memory[i] = after
            for c, name, into in given_by(stage.part, handed, kept):
                names = [n for n in own.g if self.class_of[n] == c]
                keys = {n: key_of(next(s for s in stage.part.programs[c].states if s.name == name), n, own.group_of) for n in names}
                into.setdefault(name, {}).update({key: values[name][key] for key in keys.values()})
        return handed, kept

    # --- steps -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, state: RuleState, frame: Frame) -> Result:
        """One step: a pure function of state and frame."""
        if not self.whole.takes(frame):
            return self.whole.fallback.step(state, frame)
        frame = dense(frame)
        state = self.whole.started(state, frame)
        _, stages = self.stages(state, frame)
        handed, kept = self.before_last(stages, state, frame, None)
        last = stages[-1]
        result = last.run.step(state, last.frame(frame, self.class_of, handed))
        for name, cells in kept.items():
            result.state.values[name] = result.state.values.get(name, {}) | cells
        return result

    def steps_in_place(self, frame: Frame) -> bool:
        """Whether this step can be taken in place: as of kernels alone."""
        return not self._has_streams and self.whole.takes(frame) and all(x.is_contiguous() for x in (*frame.g.values(), *frame.w.values()))

    @torch.no_grad()
    def step_in_place(self, state: RuleState, frame: Frame) -> Result:
        """One step: `out` into the gradients of the frame, new weights into its weights, states into their own memory. Everything that can fail is done before
        the first entry is written."""
        run = next((r for r in self._runs if r.state is state), None)
        if run is None or not run.goes_on(frame):
            state = self.whole.started(state, frame)
            run = self.new_run(state, frame)
        running, stages = self.stages(state, frame)
        if running not in run.memory:
            run.memory[running] = [self.memory(stage, state, frame) for stage in stages]
        memory = run.memory[running]
        for before in memory:
            before.run, before.t = state.run, state.t
        handed, kept = self.before_last(stages, state, frame, memory)
        last = stages[-1]
        assert isinstance(last.run, KernelBackend)
        result = last.run.step_in_place(memory[-1], last.frame(frame, self.class_of, handed))
        memory[-1] = result.state
        for name, cells in kept.items():
            state.values.setdefault(name, {}).update(cells)
        values = dict(state.values) if kept else state.values  # whoever refers to arrays of these values, not to the values, sees that some are others
        result.state = RuleState(values, result.state.run, result.state.t)
        run.goes_on_from(result.state)
        return result

    def new_run(self, state: RuleState, frame: Frame) -> HybridRun:
        with self._lock:
            self._runs = [*(r for r in self._runs if r.state is not None), HybridRun(state, frame)]
            return self._runs[-1]

    def forget(self, state: RuleState) -> None:
        """The run that goes on from this state: its arrays are elsewhere now."""
        with self._lock:
            self._runs = [run for run in self._runs if run.state is not state]


def given_by(part: Part, handed: Handed, kept: Handed) -> Iterator[tuple[int, str, Handed]]:
    """Class, and name, of what a part gives, and where it belongs."""
    for c in part.programs:
        yield from ((c, s.name, handed) for s in part.hands_on[c])
        yield from ((c, name, kept) for name in part.keeps[c])
