"""A rule run over the parameter groups of torch optimizers: what `attach` and `updsl.Optimizer` have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, cast

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Frame, Result, RuleState, Tensor
from updsl.core.ir import Apply, Program, Reduce, blocks, roots, walk
from updsl.core.ops import OPS
from updsl.core.scope import Scope
from updsl.middle.flat import flat
from updsl.pipeline import Backend, Engine, InPlace, to_backend
from updsl.runtime import arrays
from updsl.runtime.bind import Group, Layout, frame, group_entries, layout, named, reads_names, unnamed
from updsl.runtime.commit import uninterrupted, writable
from updsl.runtime.familiar import Display, Last
from updsl.runtime.inputs import inputs_of, known_input
from updsl.runtime.mirror import Mirror
from updsl.runtime.nonfinite import Guard, all_finite
from updsl.runtime.parameters import listed, rate, seeded, set_later
from updsl.runtime.reference import over_tensors
from updsl.runtime.rule import Rule, from_samples
from updsl.runtime.state import same_rule
from updsl.runtime.succession import Member, Succession

IN_PLACE = ("skip", "raise", "propagate")
"""The policies under which a step may write in place."""
FLAT = {"_is_flat_param": "flat, of FSDP1", "_fsdp_flattened": "flat, of FSDP1", "ds_id": "partitioned by ZeRO"}
"""How parameters are marked that are not whole, and do not say how they lie."""
FLOATS = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


@dataclass(frozen=True)
class Stepped:
    """A step that is computed and not yet written; or, without a result, one that `run` writes in place when it is committed. finite: what the policy saw."""

    frame: Frame
    result: Result | None
    finite: Any
    run: Backend


class Driver:
    """A rule with its state over the parameter groups of some optimizers, found anew at each step.

    entries: a parameter group → the values of the rule's parameters that it sets, unchecked.
    """

    def __init__(
        self,
        rule: Rule,
        optimizers: list[torch.optim.Optimizer],
        names: Any,
        nonfinite: str,
        backend: str,
        seed: int,
        prefix: str,
        entries: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ):
        self.rule, self.optimizers, self.seed, self.entries = rule, optimizers, seeded(seed), entries
        if names is not None and not hasattr(names, "named_parameters") and not isinstance(names, Iterable):
            raise unnamed(f"`names` are tensors by name, not {type(names).__name__}")
        self.names = names if names is None or hasattr(names, "named_parameters") else list(names.items() if isinstance(names, Mapping) else names)
        self.backend = to_backend(backend)
        self.guard = Guard(nonfinite, rule.name)
        self.mirror = Mirror(prefix, rule.text_hash)
        self.values = dict(rule.params)
        self.state = RuleState()
        self.watches: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self._structure: list[list[torch.Tensor]] = []
        self._members: dict[str, Member] = {}
        self._engine: tuple[tuple[Tensor, ...], Any, Engine] | None = None
        self._shapes = layout({}, {}, ())
        self._last: Last | None = None
        self._displayed: dict[int, Display] = {}
        self._loading: dict[int, list[Mapping[str, Any]]] = {}
        self.places: RuleState | None = None
        self.engine(self.layout())

    # --- parameters and groups ---------------------------------------------------------------------------------------

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def members(self) -> dict[str, Member]:
        """name → parameter, in order; read anew when the parameters of the groups have changed."""
        groups = [group["params"] for group in self.groups()]
        if list(map(len, groups)) != list(map(len, self._structure)) or not all(
            all(map(is_, now, before)) for now, before in zip(groups, self._structure, strict=True)
        ):
            before, self._members = self._members, {m.name: m for m in self._named()}
            self._structure = list(map(list, groups))
            self._succeed(Succession(before.values(), self._members.values()))
            self._shapes = layout({n: m.parameter.shape for n, m in self._members.items()}, {n: m.group for n, m in self._members.items()}, ())
        return self._members

    def _succeed(self, succession: Succession) -> None:
        """Let the state go with the tensors. Warns of what is dropped."""
        if not succession.changes:
            return
        dropped = [name for name in succession.gone if name in self.state.t]
        self.state, self._displayed, self.places = succession.of_state(self.state), {}, None
        self.mirror.succeed(succession.keys)
        for m in succession.left:
            self._hide(m.optimizer, m.parameter)
        if dropped:
            message = f"{listed(dropped)} left the groups, or was replaced by another tensor: its state of the rule `{self.rule.name}` is dropped"
            warnings.warn(message, stacklevel=2)

    def _named(self) -> Iterator[Member]:
        by_id = None if self.names is None else {id(p): name for name, p in named(self.names).items()}
        seen: set[str | int] = set()
        at = 0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for name, p in zip(self._names(group, at, by_id), group["params"], strict=True):
                    if name in seen:
                        raise UpdslError(Diagnostic("duplicate-tensor", f"two tensors are called `{name}`", help="give each tensor a name of its own"))
                    if id(p) in seen:
                        raise UpdslError(
                            Diagnostic("duplicate-tensor", f"`{name}` is in the groups twice", help="a tensor that is used twice is one parameter")
                        )
                    if p.dtype not in FLOATS:
                        arrays.supported(p, f"`{name}`")
                    self.placed(name, p)
                    seen |= {name, id(p)}
                    yield Member(name, p, optimizer, at)
                at += 1

    def _names(self, group: Mapping[str, Any], at: int, by_id: Mapping[int, str] | None) -> list[str]:
        """Of a group's parameters: those given, else the group's own `param_names`, else "group.index"."""
        if by_id is not None:
            missing = next((i for i, p in enumerate(group["params"]) if id(p) not in by_id), None)
            if missing is not None:
                message = f"parameter {missing} of group {at} is not among the names given"
                raise UpdslError(Diagnostic("unnamed-tensor", message, help="pass the module that holds all parameters"))
            return [by_id[id(p)] for p in group["params"]]
        if "param_names" in group:
            return list(group["param_names"])
        if reads_names(self.rule.module):
            message = f"`{self.rule.name}` reads the names of tensors, and they have none"
            raise UpdslError(Diagnostic("no-names", message, help="pass `names=model`, or pairs of (name, tensor)"))
        return [f"{at}.{i}" for i in range(len(group["params"]))]

    def placed(self, name: str, p: torch.Tensor) -> None:
        """Raises UpdslError for a parameter of which this rank has a part, if the others are whole."""
        if hasattr(p, "device_mesh"):
            message = f"`{name}` is a DTensor, and the other parameters were none when the rule was attached"
            raise UpdslError(Diagnostic("placement", message, help="attach when all parameters are there"))

    def layout(self) -> Layout:
        """The tensors, their groups, and what the groups set, as of now."""
        self.members()
        groups = tuple(Group(rate(group.get("lr")), group_entries(self.rule.module, self.entries(group))) for group in self.groups())
        return Layout(self._shapes.tensors, self._shapes.empty, self._shapes.group_of, groups)

    def engine(self, here: Layout) -> Engine:
        """What runs the rule for these tensors and overridden parameters."""
        device = arrays.device_of(m.parameter for m in self._members.values())
        key = (here.overridden, here.has_lr(None), device)
        if self._engine is None or self._engine[0] is not here.tensors or self._engine[1] != key:
            self._engine = here.tensors, key, over_tensors(self.rule.engine(here, here.has_lr(None), self.backend, device=device))
        return self._engine[2]

    # --- steps -------------------------------------------------------------------------------------------------------

    def set(self, params: Mapping[str, Any]) -> None:
        """Values of parameters from the next step on; none is set if one will not do."""
        self.values |= set_later(self.rule.module, self.rule.constants, params)

    def hand_over(self, inputs: Mapping[str, Any]) -> None:
        """Inputs of the next step."""
        for name in inputs:
            known_input(self.rule.module, name)
        self.inputs |= {name: detached(x) for name, x in inputs.items()}

    def compute(self, in_place: bool, scale: torch.Tensor | None = None) -> Stepped | None:
        """The step of the current gradients; None if the policy skips it. in_place: `out` will be written into them. scale: what they are multiples of.
        Changes nothing but the counts of bad steps."""
        here = self.layout()
        engine = self.engine(here)
        if self._last is not None and scale is None and not self.inputs and (frame := self._last.again(here, self.values)) is not None:
            frame, finite = self.guard.admit(frame, getattr(engine.run, "is_finite", None))
            return None if frame is None else Stepped(frame, None, finite, engine.run)
        self._last = None
        now, admitted, finite = self.admitted(here, engine, in_place, scale)
        if admitted is None:
            self.inputs = {}
            return None
        if scale is None and self.writes_in_place(engine, admitted, in_place):
            if not self.inputs:
                self._last = Last(
                    here, [self._members[name].parameter for name in here.shapes], admitted, self.reads(engine), getattr(engine.run, "where", None)
                )
            return Stepped(admitted, None, finite, engine.run)
        result = self.guard.review(self.state, admitted, engine.run.step(self.state, admitted), finite)
        if result is None:
            self.guard.settle()
            self.inputs = {}
            return None
        return Stepped(now, result, finite, engine.run)

    def admitted(self, here: Layout, engine: Engine, in_place: bool, scale: torch.Tensor | None) -> tuple[Frame, Frame | None, Any]:
        """The step as it is given, as the policy lets it be (None: not at all), and what the policy saw."""
        now = self.given(here, engine, in_place, scale)
        admitted, finite = self.guard.admit(now) if now.g else (now, None)
        return now, admitted, finite

    def given(self, here: Layout, engine: Engine, in_place: bool, scale: torch.Tensor | None) -> Frame:
        """The frame of the current gradients, checked."""
        grads = self.gradients(here)
        if in_place:
            writable(grads, "the gradient")
        if scale is not None:
            inverse = scale.double().reciprocal().float()
            grads = {name: g * inverse.to(g.device) for name, g in grads.items()}
        return self._frame(here, engine, grads, not in_place)

    @property
    def has_begun(self) -> bool:
        """Whether there was a step."""
        return bool(self.state.run or self.state.values)

    is_sharded = False
    """Whether other ranks have a driver that steps with this one."""

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Which of the flags hold on any rank."""
        return flags

    @staticmethod
    def reads(engine: Engine) -> bool:
        """Whether some tensor's Program reads or writes w."""
        return any(map(engine.reads_weights, engine.elaborated.class_of))

    def writes_in_place(self, engine: Engine, now: Frame, gradients: bool) -> bool:
        """Whether the step can write what the caller is to write: the gradients, or else the weights alone. Not where the policy works on copies."""
        if not isinstance(engine.run, InPlace) or self.guard.policy not in IN_PLACE or not engine.run.steps_in_place(now):
            return False
        return gradients or all(p.weight is not None and not p.returns for p in engine.elaborated.programs)

    def gradients(self, here: Layout) -> dict[str, torch.Tensor]:
        """The gradients of the tensors that take part."""
        found = {}
        for name in here.shapes:
            g = self._members[name].parameter.grad
            if g is not None:
                if g.layout is not torch.strided or g.dtype not in FLOATS or g.is_meta:
                    arrays.supported(g, f"the gradient of `{name}`")
                if g.shape != here.shapes[name] or self._members[name].parameter.shape != here.shapes[name]:
                    raise arrays.reshaped(name, self._members[name].parameter, here.shapes[name])
                found[name] = g.detach() if g.requires_grad else g
        return found

    def weight(self, name: str) -> torch.Tensor:
        """Of a member, as it is read."""
        return self._members[name].parameter.detach()

    def target(self, name: str) -> torch.Tensor:
        """The memory of a member's weight."""
        return self._members[name].parameter.detach()

    def gradient(self, name: str) -> torch.Tensor:
        """That a member has."""
        g = self._members[name].parameter.grad
        assert g is not None
        return g

    def _frame(self, here: Layout, engine: Engine, g: Mapping[str, torch.Tensor], from_mean: bool) -> Frame:
        """from_mean: where there are per-sample gradients, their mean stands in for a gradient that is None."""
        if from_mean and "samples" in self.inputs:
            g = arrays.gradients(from_samples(self.rule, here, g, self.inputs), here)
        found, batch = inputs_of(self.rule.module, engine, here, g, self.inputs, arrays.to_torch)
        w = {name: self.weight(name) for name in g}
        return frame(self.rule.module, engine, here, self.values, None, g, w, found, batch, self.seed, consumed=True)

    def commit(self, stepped: Stepped, write: Callable[[], None]) -> None:
        """Write the step, by `write` and here: all of it, or on an exception none."""
        with uninterrupted():
            result = stepped.result
            if result is None:
                result = self._step_in_place(stepped)
            else:
                write()
            self.guard.settle()
            self.state, self.watches, self.inputs = result.state, result.watches, {}

    def _step_in_place(self, stepped: Stepped) -> Result:
        """From here on the step is done: whatever fails, it is counted as done."""
        result = cast(InPlace, stepped.run).step_in_place(self.state, stepped.frame)
        try:
            overflowed = ~all_finite((result.weights or result.out).values()) if result.overflowed is None else result.overflowed()
            self.guard.count_overflow(stepped.finite, overflowed)
        except Exception as error:
            warnings.warn(f"whether the step of `{self.rule.name}` overflowed was not counted: {type(error).__name__}: {error}", stacklevel=2)
        return result

    # --- the state's place in the optimizers' ------------------------------------------------------------------------

    @property
    def visible(self) -> RuleState:
        """The state as it lies in the optimizers': before the first step maybe places for it."""
        return self.state if self.places is None or self.has_begun else self.places

    def show(self, optimizer: torch.optim.Optimizer, present: Iterable[str]) -> None:
        """Put references to the state into the optimizer's: of the tensors that took part in a step of it, and of what its groups, or all tensors, have."""
        state = self.visible
        present = tuple(state.t if state is self.places else present)
        displayed = self._displayed.get(id(optimizer))
        if displayed is not None and displayed.again(optimizer, present, state):
            return
        own = {name: m for name, m in self._members.items() if m.optimizer is optimizer}
        mine = [name for name in present if name in own]
        for name, entries in self.mirror.entries(state, mine, {name: m.group for name, m in own.items()}).items():
            optimizer.state[own[name].parameter].update(self.shown(name, entries))
        self._displayed[id(optimizer)] = Display(optimizer, {name: own[name].parameter for name in mine}, present, state, self.mirror.prefix)

    def before_save(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's state is about to be read."""

    def shown(self, name: str, entries: Mapping[str, Any]) -> Mapping[str, Any]:
        """Entries of a tensor as they lie in the optimizer's state."""
        return entries

    def taken(self, name: str, entries: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inverse of `shown`."""
        return entries

    def hide(self) -> None:
        """Take the references out of the optimizers' states."""
        self._displayed = {}
        for optimizer in self.optimizers:
            for p in list(optimizer.state):
                self._hide(optimizer, p)

    def _hide(self, optimizer: torch.optim.Optimizer, p: torch.Tensor) -> None:
        own = optimizer.state.get(p, {})
        mine = [key for key in own if self.mirror.is_own(key)]
        for key in mine:
            del own[key]
        if mine and not own:
            del optimizer.state[p]

    def adopt(self) -> bool:
        """Take over the state that lies in the optimizers'; whether there was any. Raises UpdslError if it is another rule's."""
        here = self.layout()
        entries = {name: self.taken(name, m.optimizer.state.get(m.parameter, {})) for name, m in self._members.items()}
        self._same_rule("the optimizer's state", entries.values())
        found = self.mirror.state(entries, self.scopes(self.engine(here)), here.group_of)
        self.state, self._displayed = found or RuleState(), {}
        return found is not None

    @staticmethod
    def scopes(engine: Engine) -> dict[str, Scope]:
        """The scope of every state."""
        return {s.name: s.type.scope for program in engine.elaborated.programs for s in program.states}

    def before_load(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
        """Keep what a checkpoint holds: torch casts it to the parameters' types. Raises UpdslError if it is another rule's; then nothing is loaded."""
        self._same_rule("the checkpoint", saved["state"].values())
        order = [i for group in saved["param_groups"] for i in group["params"]]
        self._loading[id(optimizer)] = [saved["state"].get(i, {}) for i in order]

    def _same_rule(self, what: str, entries: Iterable[Mapping[str, Any]]) -> None:
        help_ = f"attach the rule it was made with; to start `{self.rule.name}` afresh, delete the entries `{self.mirror.prefix}…` of the state"
        same_rule(self.rule.name, self.rule.text_hash, self.mirror.rule_of(entries), what, help_)

    def after_load(self, optimizer: torch.optim.Optimizer) -> None:
        """Put back what was cast, and go on from it. Warns if the checkpoint holds a state, but none of the rule's."""
        originals = self._loading.pop(id(optimizer), [])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, entries in zip(parameters, originals, strict=False):
            for key, x in entries.items():
                if self.mirror.is_own(key):
                    optimizer.state[p][key] = x.to(p.device) if isinstance(x, torch.Tensor) else x
        if not self.adopt() and any(originals):
            warnings.warn(f"the checkpoint holds no state of the rule `{self.rule.name}`: it starts afresh", stacklevel=3)


def driver_of(rule: Rule, optimizers: list[torch.optim.Optimizer], *more: Any, mesh: Any = None) -> Driver:
    """The driver for parameters that are whole here, or lie in parts on several ranks."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    if mesh is not None or any(hasattr(p, "device_mesh") for p in parameters):
        from updsl.runtime.together import ShardedDriver

        return ShardedDriver(rule, optimizers, *more, mesh=mesh)
    driver = Driver(rule, optimizers, *more)
    flat = next((kind for p in parameters for mark, kind in FLAT.items() if hasattr(p, mark)), None)
    if flat is not None and not all(map(is_of_entries, driver.engine(driver.layout()).elaborated.programs)):
        message = f"the parameters are {flat}: a rank has a run of entries, and not the tensors that `{rule.name}` is about"
        raise UpdslError(Diagnostic("placement", message, help="use `torch.distributed.fsdp.fully_shard` (FSDP2), whose parameters keep their shapes"))
    return driver


def is_of_entries(program: Program) -> bool:
    """Whether each entry goes by itself, but for watches, so that it does not matter in which tensor it lies."""
    step = flat({0: replace(program, watches=())}, frozenset((0, block) for block in blocks(program.body)))[0]
    return all(OPS[n.op].kind in ("elementwise", "core") for e in roots(step) for n in walk(e) if isinstance(n, (Apply, Reduce)))


def detached(x: Any) -> Any:
    """An input without its graph."""
    match x:
        case torch.Tensor():
            return x.detach()
        case Mapping():
            return {key: detached(value) for key, value in x.items()}
        case list() | tuple():
            return [detached(value) for value in x]
        case _:
            return x
