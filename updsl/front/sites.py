"""Places in a rule's text that make something with a name of its own, numbered in text order.

The second `zclip` of a caller is `zclip2`, the second assignment of `x` makes the value `x2`. Numbers count the text, not the elaboration, so that a
place has the same name for every class of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from updsl.core.diagnostic import InternalError
from updsl.core.ops import REDUCTIONS
from updsl.front import contents, syntax
from updsl.front.unit import BOTH, BUILTIN_NAMES, FUNCTIONS, Unit

_NAMED = REDUCTIONS | frozenset("largest gaussian uniform bernoulli".split())
"""Functions whose result may stand alone in a Program, under their name."""


class Sites:
    """The labels of one rule or fn declaration."""

    def __init__(self, declaration: syntax.Rule | syntax.Fn, unit: Unit):
        self.declaration = declaration
        self.unit = unit
        self.parameters = {p.name for p in declaration.parameters}
        defaults = tuple(p.default for p in declaration.parameters)
        self.text = (*defaults, declaration.about, declaration.body) if isinstance(declaration, syntax.Fn) else declaration.body

    @cached_property
    def has_clock(self) -> bool:
        """Whether the steps of the declared rule may be undone or restarted, so that its `t` is its own."""
        return any(isinstance(n, syntax.Skip) or (isinstance(n, syntax.Reset) and not n.names) for n, _ in self.nodes)

    @cached_property
    def writes_weights(self) -> bool:
        """Whether applying the declared rule writes w."""
        return isinstance(self.declaration, syntax.Rule) and contents.writes_weights(self.declaration, self.unit)

    def label(self, node: syntax.Node, kind: str, made: str | None = None) -> str:
        """The name of what this node makes; kind is "rule", "state", "watch", "value", or "flow" (what flows out of a stage).

        `made` is the name where the node stands in no text."""
        found = self._labels.get((kind, id(node)), made)
        if found is None:
            raise InternalError(f"a {kind} of `{self.declaration.name}` has no name")
        return found

    @cached_property
    def nodes(self) -> tuple[tuple[syntax.Node, bool], ...]:
        """Every node of the text in order, with whether it is a whole stage, or all that a rule, arm, return or repeat gives."""
        return tuple(_walk(self.text, True))

    @cached_property
    def locals(self) -> frozenset[str]:
        """Names that the declaration's own text defines."""
        return frozenset(name for node, _ in self.nodes for name in _defined(node))

    def applies_rule(self, node: syntax.Expr, in_stage: bool) -> bool:
        """Whether this name or call stands for a rule. `in_stage`: it is a whole stage, or all that a rule, arm, return or repeat gives."""
        match node:
            case syntax.Name(id=name):
                if name in self.locals or name in self.parameters or name in BUILTIN_NAMES:
                    return False
                return in_stage if name in BOTH else name not in FUNCTIONS and self.unit.find_rule(name) is not None
            case syntax.Call(callee=name, arguments=arguments):
                if name in BOTH:
                    return in_stage and bool(arguments) and all(a.name is not None and a.name != "x" for a in arguments)
                if name in FUNCTIONS or name.startswith("history."):
                    return False
                if name in self.locals or (name in self.parameters and not in_stage):
                    return False
                return self.unit.find_rule(name) is not None
            case _:
                return False

    @cached_property
    def _labels(self) -> dict[tuple[str, int], str]:
        made: dict[str, list[tuple[int, str]]] = {"rule": [], "state": [], "watch": [], "value": [], "flow": []}
        for node, in_stage in self.nodes:
            for kind, base in self._made(node, in_stage):
                made[kind].append((id(node), base))
            match node:
                case syntax.Pipe(stages=stages):
                    made["flow"].extend((id(s), "it") for s in stages[:-1])
                case syntax.Repeat(body=body):
                    made["flow"].append((id(body), "it"))
        labels: dict[tuple[str, int], str] = {}
        for kind, items in made.items():
            taken = {base for _, base in items}
            count: dict[str, int] = {}
            for key, base in items:
                count[base] = count.get(base, 0) + 1
                label = base
                if count[base] > 1:
                    while (label := f"{base}{count[base]}") in taken:
                        count[base] += 1
                    taken.add(label)
                labels[kind, key] = label
        return labels

    def _made(self, node: syntax.Node, in_stage: bool) -> Iterator[tuple[str, str]]:
        match node:
            case syntax.Local(name=name) | syntax.Let(name=name) | syntax.Assign(name=name):
                yield "value", name
            case syntax.StateItem(name=name):
                yield "state", name
                yield "value", name
            case syntax.Watch(label=name):
                yield "watch", name
                yield "value", name
            case syntax.Clip():
                yield "watch", "clipped"
                yield "value", "clipped"
            case syntax.Every():
                yield "value", "every"
            case syntax.Skip():
                yield "value", "skip"
            case syntax.Reset():
                yield "value", "reset"
            case syntax.Name(id="tensors"):
                yield "value", "tensors"
            case syntax.Name(id=name) | syntax.Call(callee=name):
                if self.applies_rule(node, in_stage):
                    found = self.unit.find_rule(name)
                    yield "rule", found[0].name if found else name
                elif name == "history":
                    yield "state", name
                    yield "value", name
                elif name in _NAMED or (name not in self.locals | self.parameters and self.unit.find_fn(name)):
                    yield "value", name


def sites_of(declaration: syntax.Rule | syntax.Fn, unit: Unit) -> Sites:
    """The places of a declaration, found once."""
    found = unit.sites.get(id(declaration))
    if found is None:
        found = unit.sites[id(declaration)] = Sites(declaration, unit)
    return found


def _defined(node: syntax.Node) -> Iterator[str]:
    match node:
        case syntax.Local(name=name) | syntax.Let(name=name) | syntax.StateItem(name=name) | syntax.InputItem(name=name):
            yield name


def _walk(tree: object, in_stage: bool) -> Iterator[tuple[syntax.Node, bool]]:
    """Every node in text order, with whether it stands where a bare `norm` is the rule."""
    waiting: list[tuple[object, bool]] = [(tree, in_stage)]
    while waiting:
        item, whole = waiting.pop()
        if isinstance(item, tuple):
            waiting.extend((i, whole) for i in reversed(item))
            continue
        if not isinstance(item, syntax.Node):
            continue
        yield item, whole
        waiting.extend(reversed(list(_parts(item, whole))))


def _parts(node: syntax.Node, whole: bool) -> Iterator[tuple[object, bool]]:
    """A node's parts in text order, with whether each is a whole stage."""
    match node:
        case syntax.Pipe(stages=stages):
            yield stages, True
        case syntax.Repeat(count=count, body=body):
            yield count, False
            yield body, True
        case syntax.Per(body=body, scope=scope):
            yield body, whole
            yield scope, False
        case syntax.If(condition=condition, then=then, otherwise=otherwise):
            yield condition, False
            yield then, whole
            yield otherwise, whole
        case syntax.Return(value=value):
            yield value, True
        case syntax.Arm(condition=condition, body=body):
            yield condition, False
            yield body, True
        case syntax.Match(arms=arms):
            yield arms, True
        case syntax.RepeatBlock(count=count, body=body):
            yield count, False
            yield body, True
        case syntax.Every(count=count, start=start, body=body):
            yield count, False
            yield start, False
            yield body, True
        case _:
            for name in node.__dataclass_fields__:
                if not name.endswith("span"):
                    yield getattr(node, name), False
