"""A rule run over parameters that lie in parts on several ranks: all of them take each step together, or none does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Frame
from updsl.core.ir import Type
from updsl.pipeline import Engine
from updsl.runtime.bind import Layout, layout
from updsl.runtime.distributed import Shards, cut, mine
from updsl.runtime.driver import Driver, Member, Stepped
from updsl.runtime.mirror import COUNT
from updsl.runtime.nonfinite import all_finite, looked_at
from updsl.runtime.rule import Rule


class ShardedDriver(Driver):
    """A `Driver` of which every rank has one. A step begins with one all-reduce, which the host reads: which tensors have a gradient on any rank, whether
    all that is given is finite, and whether a rank refuses the step. Then all do the same."""

    shards: Shards
    _overflowed = 0

    def __init__(self, rule: Rule, optimizers: list[torch.optim.Optimizer], *more: Any, mesh: Any = None):
        self.mesh = mesh
        super().__init__(rule, optimizers, *more)

    def placed(self, name: str, p: torch.Tensor) -> None:
        """Any parameter is allowed: plain ones are whole on all ranks."""

    def members(self) -> dict[str, Member]:
        before = self._members
        now = super().members()
        if now is not before:
            self.shards = Shards({name: m.parameter for name, m in now.items()}, {name: m.group for name, m in now.items()}, self.rule.name, self.mesh)
            held = self.shards.held_by
            self._shapes = layout({name: h.shape for name, h in held.items()}, {name: h.group for name, h in held.items()}, ())
        return now

    def engine(self, here: Layout) -> Engine:
        key = (here.overridden, here.has_lr(None), id(self.shards))
        if self._engine is None or self._engine[0] is not here.tensors or self._engine[1] != key:
            if "samples" in self.rule.inputs.values():
                message = f"`{self.rule.name}` takes per-sample gradients, and the parameters lie on several ranks"
                raise UpdslError(Diagnostic("placement", message, help="use whole parameters, as DDP has them"))
            self._engine = here.tensors, key, self.rule.sharded_engine(here, here.has_lr(None), self.shards)
        return self._engine[2]

    # --- steps -------------------------------------------------------------------------------------------------------

    def admitted(self, here: Layout, engine: Engine, in_place: bool, scale: torch.Tensor | None) -> tuple[Frame, Frame | None, Any]:
        """As `Driver.admitted`; the same on all ranks."""
        now, refusal = None, None
        try:
            now = self.given(here, engine, in_place, scale)
        except UpdslError as error:
            refusal = error
        finite = now is None or bool(all_finite(looked_at(now)))
        overflowed = int(self.guard.overflowed) - self._overflowed
        present = [now is not None and name in now.g for name in here.shapes]
        refusing, infinite, overflows, *present = self.shards.agreed([refusal is not None, not finite, overflowed > 0, *present])
        if now is None or refusing:
            raise refusal or UpdslError(Diagnostic("rank-refuses", f"another rank refuses this step of `{self.rule.name}`", help="see what it says"))
        if overflows and not overflowed:
            self.guard.overflowed += 1
        self._overflowed = int(self.guard.overflowed)
        now = self.joined(here, engine, now, {name for name, n in zip(here.shapes, present, strict=True) if n}, in_place)
        seen = torch.tensor(not infinite)
        admitted, finite = self.guard.admit(now, lambda _: seen) if now.g else (now, None)
        return now, admitted, finite

    is_sharded = True

    def anywhere(self, flags: list[bool]) -> list[bool]:
        return [n > 0 for n in self.shards.agreed(flags)]

    def joined(self, here: Layout, engine: Engine, now: Frame, names: set[str], in_place: bool) -> Frame:
        """With zeros for the gradients that other ranks have, and this one lacks."""
        if names <= now.g.keys():
            return now
        zeros = {name: torch.zeros_like(self.weight(name)) for name in names - now.g.keys()}
        return self._frame(here, engine, now.g | zeros, not in_place)

    def compute(self, in_place: bool, scale: torch.Tensor | None = None) -> Stepped | None:
        """As `Driver.compute`; what it gives is of this rank's parts."""
        stepped = super().compute(in_place, scale)
        if stepped is None or stepped.result is None:
            return stepped
        out = {name: self.part(name, x) for name, x in stepped.result.out.items() if name in self._members}
        weights = stepped.result.weights and {name: self.part(name, x) for name, x in stepped.result.weights.items() if name in self._members}
        frame = replace(stepped.frame, g={name: g for name, g in stepped.frame.g.items() if name in self._members})
        return replace(stepped, frame=frame, result=replace(stepped.result, out=out, weights=weights))

    def part(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Of what the step gives for a tensor, what belongs to this rank's part of the parameter."""
        p = self._members[name].parameter
        if not isinstance(p, DTensor):
            return x
        if name not in self.shards.meshes:
            return cut(x, p)
        return x[tuple(slice(0, n) for n in p.to_local().shape)]

    def gradients(self, here: Layout) -> dict[str, torch.Tensor]:
        mine = layout({name: here.shapes[name] for name in self._members if name in here.shapes}, here.group_of, here.groups)
        return {name: self.shards.local(name, g, "the gradient of") for name, g in super().gradients(mine).items()}

    def weight(self, name: str) -> torch.Tensor:
        w = super().weight(name) if name in self._members else None
        if w is None or (name not in self.shards.meshes and self._engine is not None and not self._engine[2].reads_weights(name)):
            return self.shards.nothing(name)  # which nobody reads
        return self.shards.local(name, w, "the parameter")

    def gradient(self, name: str) -> torch.Tensor:
        """This rank's part of the one that a member has; of a tensor that only other ranks have a gradient of, one that it is given here."""
        p = self._members[name].parameter
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        return mine(p.grad.detach())

    def target(self, name: str) -> torch.Tensor:
        return mine(super().target(name))

    def _frame(self, here: Layout, engine: Engine, g: Mapping[str, torch.Tensor], from_mean: bool) -> Frame:
        frame = super()._frame(here, engine, g, from_mean)
        types = {i.name: i.type for p in engine.elaborated.programs for i in p.inputs}
        local = {label: {key: self._part(key, x, types.get(label)) for key, x in found.items()} for label, found in frame.inputs.items()}
        return replace(frame, inputs=local)

    def _part(self, key: Any, x: Any, t: Any) -> Any:
        """Of an input, what belongs to this rank's part of a tensor."""
        if isinstance(x, DTensor):
            x = x.full_tensor()
        return self.shards.cut(key, x, t) if t is not None and key in self.shards.places and self.shards.is_cut(key, t) else x

    # --- the state's place in the optimizers' ------------------------------------------------------------------------

    def show(self, optimizer: torch.optim.Optimizer, present: Iterable[str]) -> None:
        """Nothing, until the state is saved: parts become DTensors then."""

    def before_save(self, optimizer: torch.optim.Optimizer) -> None:
        self._displayed = {}
        super().show(optimizer, [name for name in self._members if name in self.visible.t])

    def shown(self, name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self.shards.wrap(name, x, t) if (t := self.type_of(key)) is not None else x for key, x in entries.items()}

    def taken(self, name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self.shards.unwrap(name, x, t) if (t := self.type_of(key)) is not None else x for key, x in entries.items()}

    def type_of(self, key: Any) -> Type | None:
        """Of the state that an entry holds."""
        if not self.mirror.is_own(key) or self._engine is None:
            return None
        name = key.removeprefix(self.mirror.prefix)
        types = {s.name: s.type for p in self._engine[2].elaborated.programs for s in p.states}
        t = types.get(name.removesuffix(COUNT))
        return t and (replace(t, window=0) if name.endswith(COUNT) else t)
