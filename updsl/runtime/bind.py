"""Parameters → tensors, groups and the frame of a step; everything handed over is checked here, before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Array, Frame, Tensor
from updsl.front.contents import applied, nodes
from updsl.front.module import Module
from updsl.front.syntax import Name
from updsl.front.unit import Constant
from updsl.pipeline import Engine
from updsl.runtime.parameters import checked, instead_of, is_elsewhere, parameter_of, rate

GROUP = '{"params": ["name", …], …}'
"""How a group is written."""


@dataclass(frozen=True)
class Group:
    """A group's own learning rate (None: the caller's) and its own values of parameters."""

    lr: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The tensors that a rule runs over, in order, and their groups. tensors: those with at least one entry; empty: the names of the others."""

    tensors: tuple[Tensor, ...]
    empty: frozenset[str]
    group_of: Mapping[str, int]
    groups: tuple[Group, ...]

    @cached_property
    def overridden(self) -> frozenset[str]:
        """The parameters that some group has its own value of."""
        return frozenset(name for group in self.groups for name in group.params)

    def has_lr(self, lr: Any) -> bool:
        """Whether every group has a learning rate, its own or `lr`."""
        return lr is not None or all(group.lr is not None for group in self.groups)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {t.name: t.shape for t in self.tensors}


def layout(shapes: Mapping[str, Sequence[int]], group_of: Mapping[str, int], groups: Sequence[Group]) -> Layout:
    """Of tensors with these shapes, in order, in these groups."""
    tensors = tuple(Tensor(name, tuple(map(int, shape))) for name, shape in shapes.items())
    empty = frozenset(t.name for t in tensors if t.numel == 0)
    return Layout(tuple(t for t in tensors if t.numel), empty, dict(group_of), tuple(groups))


def named(params: Any) -> dict[str, Array]:
    """Tensors by name, from a dict, an iterable of (name, tensor), or a module."""
    if hasattr(params, "named_parameters"):
        return dict(params.named_parameters())
    if not isinstance(params, Iterable):
        raise unnamed(f"tensors by name are needed here, not {type(params).__name__}")
    pairs = params.items() if isinstance(params, Mapping) else params
    found: dict[str, Array] = {}
    for item in pairs:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise unnamed("every tensor needs a name here")
        if item[0] in found:
            raise UpdslError(Diagnostic("duplicate-tensor", f"two tensors are called `{item[0]}`", help="give each tensor a name of its own"))
        if not hasattr(item[1], "shape"):
            message = f"`{item[0]}` is of the type {type(item[1]).__name__}, and no tensor"
            raise UpdslError(Diagnostic("tensor-type", message, help="pass a tensor, such as `torch.tensor(3.0)`"))
        found[item[0]] = item[1]
    return found


def unnamed(message: str) -> UpdslError:
    """Of tensors without names where names are needed."""
    return UpdslError(Diagnostic("unnamed-tensor", message, help="pass a dict, pairs of (name, tensor), or a module"))


def grouped(module: Module, names: Iterable[str], groups: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, int], tuple[Group, ...]]:
    """name → group index, and the groups: those given, and a last one of the tensors in none."""
    names = list(names)
    group_of: dict[str, int] = {}
    found: list[Group] = []
    if groups is not None and (isinstance(groups, str) or not isinstance(groups, Sequence)):
        raise UpdslError(Diagnostic("bad-group", f"the groups are {type(groups).__name__}, and no list of them", help=f"write `groups=[{GROUP}]`"))
    for i, entry in enumerate(groups or ()):
        members = entry.get("params") if isinstance(entry, Mapping) else None
        if isinstance(members, str) or not isinstance(members, Iterable):
            raise UpdslError(Diagnostic("bad-group", f"group {i} does not say which tensors are in it", help=f"write `{GROUP}`"))
        for name in members:
            if not isinstance(name, str):
                raise UpdslError(Diagnostic("bad-group", f"group {i} lists a {type(name).__name__}, and not a tensor's name", help=f"write `{GROUP}`"))
            known(name, names, f"group {i} names")
            if name in group_of:
                raise UpdslError(Diagnostic("bad-group", f"`{name}` is in group {group_of[name]} and in group {i}", help="list a tensor in one group"))
            group_of[name] = i
        own = {k: checked(parameter_of(module, k), v) for k, v in entry.items() if k not in ("params", "lr")}
        found.append(Group(rate(entry.get("lr")), own))
    if len(group_of) < len(names) or not found:
        group_of |= {name: len(found) for name in names if name not in group_of}
        found.append(Group())
    return group_of, tuple(found)


def known(name: Any, names: Iterable[str], who: str) -> None:
    """Raises UpdslError, with the nearest name, unless `name` is one of the tensors'."""
    names = list(names)
    if name not in names:
        near = did_you_mean(str(name), names)
        raise UpdslError(Diagnostic("unknown-tensor", f"{who} `{name}`, and no tensor is called so", help=near or f"the tensors are called {_some(names)}"))


def frame(
    module: Module,
    engine: Engine,
    here: Layout,
    values: Mapping[str, Constant],
    lr: Any,
    g: Mapping[str, Array],
    w: Mapping[str, Array],
    inputs: Mapping[str, Mapping],
    batch: int | None,
    seed: int,
    consumed: bool = False,
) -> Frame:
    """The frame of one step. g: the gradients of the tensors that take part. consumed: `out` takes their place, or is not kept.

    Raises UpdslError if a weight that is read is missing."""
    params, lrs = numbers(here, values, lr)
    g = {t.name: g[t.name] for t in here.tensors if t.name in g}
    w = {name: w[name] for name in g if name in w}
    lacking = next((name for name in g if name not in w and engine.reads_weights(name)), None) if len(w) < len(g) else None
    if lacking is not None:
        raise UpdslError(Diagnostic("missing-weights", f"`{module.name}` reads w, and the weight of `{lacking}` is not given", help="pass `params=`"))
    return Frame(g, w, dict(here.group_of), lrs, params, {k: dict(v) for k, v in inputs.items()}, batch, seed, consumed)


def numbers(here: Layout, values: Mapping[str, Constant], lr: Any) -> tuple[dict[int, dict[str, Any]], dict[int, Any]]:
    """The parameters, and the learning rate if there is one, of each group."""
    varying = [name for name, value in values.items() if not isinstance(value, (bool, str))]
    params = {i: {name: group.params.get(name, values[name]) for name in varying} for i, group in enumerate(here.groups)}
    return params, {i: lr if group.lr is None else group.lr for i, group in enumerate(here.groups)} if here.has_lr(lr) else {}


def reads_names(module: Module) -> bool:
    """Whether the text asks for the names of tensors."""
    waiting, seen = [(module.rule, module.unit)], set()
    while waiting:
        rule, unit = waiting.pop()
        if id(rule) not in seen:
            seen.add(id(rule))
            if any(isinstance(n, Name) and n.id == "name" for n in nodes(rule.body)):
                return True
            waiting.extend((other, home) for _, other, home in applied(rule, unit))
    return False


def group_entries(module: Module, entries: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group's own values, checked; a 0-d tensor on another device is left as it is, since reading it would wait."""
    return {
        name: value if is_elsewhere(value) and parameter_of(module, name) else checked(parameter_of(module, name), value) for name, value in entries.items()
    }


def unknown_entry(module: Module, name: str) -> UpdslError:
    """Of a parameter group's entry that means nothing to the rule."""
    message = f"`{module.name}` has no parameter `{name}`, which a parameter group sets"
    return UpdslError(Diagnostic("unknown-parameter", message, help=instead_of(module, name)))


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{n}`" for n in names[:5])
    return f"{shown}, …" if len(names) > 5 else shown
