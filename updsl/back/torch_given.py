"""What generated functions are given at one step: streams, states, numbers, sizes, draws, values of earlier pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from updsl.back.torch_layout import Call
from updsl.back.torch_plan import Plan
from updsl.back.torch_source import Function
from updsl.back.torch_writer import Arg
from updsl.core import rng
from updsl.core.diagnostic import InternalError
from updsl.core.frame import Frame, Key, RuleState
from updsl.core.ir import GRID, Program, State, Type, is_shared
from updsl.core.scope import ALL, GROUP

Parts = tuple[Tensor, ...]
CPU = torch.device("cpu")


class Code(Protocol):
    """The generated functions of a plan, and how to run them."""

    plan: Plan
    functions: tuple[Function | None, ...]
    first: Plan
    first_functions: tuple[Function | None, ...]

    def run(self, f: Function, args: Sequence[object]) -> tuple[Tensor | Parts, ...]: ...

    def run_once(self, f: Function, args: Sequence[object]) -> tuple[Tensor | Parts, ...]: ...


class Given:
    """Arguments of generated functions, made when first asked for. `joint`: values of a group or of the model, by (kind, name) and then by
    group index, or ""."""

    def __init__(self, code: Code, calls: Sequence[Call], state: RuleState, frame: Frame):
        self.code, self.calls, self.state, self.frame = code, calls, state, frame
        self.programs: Mapping[int, Program] = code.plan.programs
        self.hosts = code.plan.hosts | code.first.hosts
        self.run = state.run + 1
        self.device = calls[0].device
        self.real = calls[0].real
        for call in calls:
            self.real = torch.promote_types(self.real, call.real)
        self.joint: dict[tuple[str, str], dict[Key, Tensor]] = {}
        self.numbers = self.all_numbers()

    # --- numbers -----------------------------------------------------------------------------------------------------

    def all_numbers(self) -> dict[tuple[torch.device, str, Key], Tensor]:
        """All numbers from outside (parameters, lr, the step of the run, the number of samples) in float64 on each device; the plain ones take one copy."""
        f = self.frame
        given: dict[tuple[str, Key], object] = {("run", ""): self.run, ("batch", ""): f.batch or 0}
        given |= {("lr", group): value for group, value in f.lr.items()}
        given |= {(f"param {name}", group): value for group, values in f.params.items() for name, value in values.items()}
        plain = {k: float(v) for k, v in given.items() if not isinstance(v, Tensor)}  # type: ignore[arg-type]
        held = torch.tensor(list(plain.values()), dtype=torch.float64)
        found: dict[tuple[torch.device, str, Key], Tensor] = {}
        for device in dict.fromkeys(call.device for call in self.calls):
            found |= {(device, name, key): x for (name, key), x in zip(plain, held.to(device).unbind(), strict=True)}
            found |= {(device, name, key): v.detach().to(device, torch.float64).reshape(()) for (name, key), v in given.items() if isinstance(v, Tensor)}
        return found

    def of_group(self, name: str, key: Key, numbers: Mapping[int, object], device: torch.device) -> Tensor:
        """What is given for a group; for any where all have the same."""
        return self.numbers[device, name, key if key in numbers else next(iter(numbers))]

    # --- for a class of tensors --------------------------------------------------------------------------------------

    def local(self, a: Arg, call: Call) -> object:
        """An argument of a function of a class."""
        match a.kind:
            case "stack":
                return len(call.names)
            case "size":
                return call.sizes[a.name]
            case "sample count":
                return self.frame.batch or 0
            case "device":
                return call.device
            case "real":
                return call.real
            case "given":
                return call.given
            case "weight_dtype":
                return call.weight_dtype or call.given
        if (a.kind, a.name) not in call.values:
            call.values[a.kind, a.name] = self.local_tensor(a, call)
        return call.values[a.kind, a.name]

    def local_tensor(self, a: Arg, call: Call) -> Tensor:
        f, names = self.frame, call.names
        match a.kind:
            case "g":
                return call.stacked([f.g[n] for n in names], GRID)
            case "w":
                return call.stacked([f.w[n] for n in names], GRID)
            case "stream" | "samples" | "matrix":
                t = next(i.type for i in self.programs[call.owner].inputs if i.name == a.name)
                return call.stacked([f.inputs[a.name][n] for n in names], t)
            case "input" if not is_shared(type_of(a)):
                given = [torch.as_tensor(f.inputs[a.name][n], dtype=call.real, device=call.device) for n in names]
                return call.stacked(given, type_of(a))
            case "t":
                return counts([self.state.t.get(n, 0) for n in names], call.device).add(1).reshape(-1, 1, 1)
            case "attribute":
                return torch.full((len(names), 1, 1), attribute(a.name, call), dtype=torch.float64, device=call.device)
            case "draw key":
                scope = type_of(a).scope
                return self.draw_key(a, [""] if scope == ALL else [call.group] if scope == GROUP else names, call.device)
            case "step words":
                return self.step_words(call.device)
            case "state" | "state count" if not is_shared(type_of(a)):
                slots, count = self.local_state(next(s for s in self.programs[call.owner].states if s.name == a.name), call)
                return slots if a.kind == "state" else count
            case _:
                return self.shared_in_call(a, call)

    def local_state(self, s: State, call: Call) -> tuple[Tensor, Tensor]:
        """A state before the step, and for a window the counts of its filled slots (else the state once more)."""
        kept, names = self.state.values.get(s.name, {}), call.names
        dtype = torch.bool if s.type.boolean else call.real
        if names[0] not in kept and s.type.window:
            k, cells = len(names), call.cells(s.type)
            return torch.zeros((k, s.type.window, *cells), dtype=dtype, device=call.device), torch.zeros((k, 1, *cells), dtype=torch.int64, device=call.device)
        if names[0] not in kept:
            first = call.values["first", s.name]
            return first, first
        arrays = [kept[n][0] if s.type.window else kept[n] for n in names]
        stack = call.stacked(arrays, s.type).to(call.device, dtype if s.dtype is None else None)
        if not s.type.window:
            return stack, stack
        return stack, call.stacked([kept[n][1] for n in names], replace(s.type, boolean=False)).to(call.device).unsqueeze(1)

    def draw_key(self, a: Arg, names: Sequence[Key], device: torch.device) -> Tensor:
        """The two words of the key of a draw of each tensor, of a group, or of the model: (2, tensor)."""
        return torch.tensor([rng.stream_key(self.frame.seed, n, a.name) for n in names]).T.contiguous().to(device)

    def step_words(self, device: torch.device) -> Tensor:
        """The two words of the step of the run."""
        return torch.tensor([self.run & rng.MASK, self.run >> 32]).to(device)

    def shared_in_call(self, a: Arg, call: Call) -> Tensor:
        """A value of a group or of the model as a function of a class has it: without dimensions, or (1, [sample,] [time,] 1, 1)."""
        t = a.type
        if t is None:
            return self.shared_tensor(a, call.group, call.device)
        x = self.shared_tensor(a, "" if t.scope == ALL else call.group, call.device)
        if a.kind == "param" or (a.kind == "value" and a.name in self.hosts):
            return x
        x = x.to(call.real) if x.is_floating_point() else x
        if a.kind.endswith("count"):
            return x.reshape(1, 1, 1, 1)
        return x.reshape(1, *x.shape, 1, 1) if t.samples or t.window else x

    # --- for a group, or the model -----------------------------------------------------------------------------------

    def shared(self, a: Arg, key: Key) -> object:
        """An argument of a function of a group (key is its index) or of the model (key is "")."""
        match a.kind:
            case "real":
                return self.real
            case "device":
                return self.device
            case "sample count":
                return self.frame.batch or 0
            case "step words":
                return self.step_words(self.device)
            case _:
                return self.shared_tensor(a, "" if a.type is not None and a.type.scope == ALL else key, self.device)

    def shared_tensor(self, a: Arg, key: Key, device: torch.device) -> Tensor:
        """A value of a group or of the model, on a device."""
        match a.kind:
            case "run" | "batch":
                return self.numbers[device, a.kind, ""]
            case "lr":
                return self.of_group("lr", key, self.frame.lr, device)
            case "param":
                return self.of_group(f"param {a.name}", key, self.frame.params, device)
        cells = self.joint.setdefault((a.kind, a.name), {})
        if key not in cells:
            cells[key] = self.joint_given(a, key)
        return cells[key].to(device)

    def joint_given(self, a: Arg, key: Key) -> Tensor:
        match a.kind:
            case "input":
                return torch.as_tensor(self.frame.inputs[a.name][key], dtype=self.real, device=self.device).reshape(())
            case "draw key":
                return self.draw_key(a, [key], self.device)
            case "state" | "state count":
                slots, count = self.joint_state(next(s for p in self.programs.values() for s in p.states if s.name == a.name), key)
                return slots if a.kind == "state" else count
            case _:
                raise InternalError(f"nothing gives the shared value `{a.name}`")

    def joint_state(self, s: State, key: Key) -> tuple[Tensor, Tensor]:
        """As `local_state`, of a group or of the model."""
        kept = self.state.values.get(s.name, {})
        if key in kept:
            x, count = kept[key] if s.type.window else (kept[key], kept[key])
            return x.to(self.device), count.to(self.device)
        if s.type.window:
            dtype = torch.bool if s.type.boolean else self.real
            return torch.zeros((s.type.window,), dtype=dtype, device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        first = self.joint["first", s.name][key]
        return first, first


def type_of(a: Arg) -> Type:
    assert a.type is not None
    return a.type


def attribute(name: str, call: Call) -> float:
    """A static attribute of the tensors of a call."""
    match name:
        case "rows" | "cols":
            return float(call.sizes[name])
        case "numel":
            return float(prod(call.shape))
        case "ndim":
            return float(len(call.shape))
        case _ if name.startswith("dim("):
            return float(call.shape[int(name[4:-1])])
        case _:
            raise InternalError(f"a program reads `{name}`, which is not built in")


def counts(values: Sequence[int | Tensor], device: torch.device) -> Tensor:
    """Numbers, some of which may be on the device already, as one float64 tensor; nothing waits for the device."""
    if any(isinstance(x, Tensor) for x in values):
        return torch.stack([torch.as_tensor(x, dtype=torch.float64, device=device) for x in values])
    return torch.tensor(values, dtype=torch.float64).to(device)
