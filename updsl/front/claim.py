"""A law as a rule of its own, whose states after a step are what the law compares: it runs wherever rules run.

`rule(stream)` becomes an input beside `out`; the stream itself a state, to be read before that input is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Apply, Const, Expr, Program, Reduce, Ref, State, bindings, joined
from updsl.front import syntax
from updsl.front.claims import inputs_of
from updsl.front.elaborate import elaborate
from updsl.front.module import Module, Parameter
from updsl.front.statics import constant, number
from updsl.front.unit import Constant

STREAM, RESULT, PREMISE, CLAIM = "law stream", "law result", "law premise", "law claim"
"""Names that no text can have."""
COMPARISONS = frozenset("eq ne lt le gt ge".split())
ONE, ZERO = Const(1.0), Const(0.0)

Tree: TypeAlias = "Leaf | tuple[str, tuple[Tree, ...]]"
"""What a claim is made of: leaves under "and", "or" and "not"."""


@dataclass(frozen=True)
class Leaf:
    """A comparison of what two states hold, or (op "") a condition that a state holds as 1 or 0."""

    op: str
    states: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """What a law says of its rule. module: the law as a rule; premise, text: the premise and the claim, with names for what the rule gives; streams: the other
    streams that the rule is run on, as texts."""

    law: syntax.Law
    module: Module
    premise: syntax.Expr | None
    text: syntax.Expr
    given: tuple[syntax.Expr, ...]

    @property
    def streams(self) -> int:
        """How many other streams there are."""
        return len(self.given)

    @property
    def ranges(self) -> tuple[str, ...]:
        """The numbers that it is quantified over."""
        return tuple(q.name for q in self.law.quantifiers if q.kind == "in")

    def ranges_of(self, parameters: Mapping[str, Constant]) -> dict[str, tuple[float, float]]:
        """From where to where each of them goes."""
        return {q.name: (float(number(q.low, parameters)), float(number(q.high, parameters))) for q in self.law.quantifiers if q.low and q.high}

    @property
    def any_gradients(self) -> bool:
        """Whether it holds for infinite gradients and NaN too."""
        return any(q.kind == "any" for q in self.law.quantifiers)


@dataclass(frozen=True)
class Elaborated:
    """A claim for some tensors: Programs, classes and constants as those of a rule; trees: of the comparisons, by class."""

    programs: tuple[Program, ...]
    class_of: Mapping[str, int]
    trees: tuple[Tree, ...]
    premise: bool
    constants: frozenset[str]


def claim_of(module: Module, law: syntax.Law) -> Claim:
    """The law about the module's rule, whose names and scopes are right."""
    streams: list[syntax.Expr] = []
    parts = {name: _without_runs(e, streams) for name, e in ((PREMISE, law.premise), (CLAIM, law.claim)) if e is not None}
    numbers = [q.name for q in law.quantifiers if q.kind == "in" and q.name not in module.parameters]
    matrices = [q.name for q in law.quantifiers if q.kind in ("orthogonal", "permutation")]
    items = (
        *inputs_of(module),
        *(syntax.InputItem(name, "stream") for name in ("out", *(f"{RESULT} {k}" for k in range(1, len(streams) + 1)))),
        *(syntax.InputItem(name, "matrix") for name in matrices),
    )
    kept = {f"{STREAM} {k}": e for k, e in enumerate(streams, 1)} | parts
    body = (
        syntax.Input(items),
        syntax.State(tuple(syntax.StateItem(n, syntax.Boolean(False) if n in parts else syntax.Number(0.0), None, None) for n in kept)),
        *(syntax.Assign(n, e, span=e.span) for n, e in kept.items()),
        syntax.Return(syntax.Name("g")),
    )
    parameters = (*module.rule.parameters, *(syntax.Parameter(n, syntax.Number(1.0), None, None) for n in numbers))
    rule = syntax.Rule(f"{module.name}.{law.name}", parameters, body, span=law.span)
    known = {**module.parameters, **{n: Parameter(n, 1.0) for n in numbers}}
    kinds = {i.name: i.scope.name if i.scope else i.kind for i in items}
    return Claim(law, Module(module.unit, rule, known, kinds, False), parts.get(PREMISE), parts[CLAIM], tuple(streams))


def parameters_of(law: syntax.Law, values: Mapping[str, Constant]) -> dict[str, Constant]:
    """The rule's parameters as the law sets them, the others as they are."""
    parameters = dict(values)
    for s in law.settings:
        assert s.name is not None
        parameters[s.name] = constant(s.value, parameters)
    return parameters


def _without_runs(tree: Any, streams: list[syntax.Expr]) -> Any:
    """The expression with the name of a result for each `rule(stream)`; equal streams are one."""
    match tree:
        case syntax.Call(callee="rule", arguments=(argument,)):
            stream = _without_runs(argument.value, streams)
            if stream == syntax.Name("g"):
                return syntax.Name("out", span=tree.span)
            if stream not in streams:
                streams.append(stream)
            return syntax.Name(f"{RESULT} {streams.index(stream) + 1}", span=tree.span)
        case syntax.Node():
            made = {f.name: _without_runs(getattr(tree, f.name), streams) for f in fields(tree) if not f.name.endswith("span")}
            return replace(tree, **made)
        case tuple():
            return tuple(_without_runs(x, streams) for x in tree)
        case _:
            return tree


def elaborate_claim(claim: Claim, tensors: Sequence[Tensor], parameters: Mapping[str, Constant]) -> Elaborated:
    """The claim for these tensors and values of the parameters. Raises UpdslError where it cannot be made of them."""
    found = elaborate(claim.module, tensors, parameters)
    split = [Split(p) for p in found.programs]
    return Elaborated(tuple(s.program for s in split), found.class_of, tuple(s.tree for s in split), claim.law.premise is not None, found.constants)


class Split:
    """One class: the claim's comparisons, each side with a state of its own, all on the claim's own cells."""

    def __init__(self, p: Program):
        self.exprs = {b.name: b.expr for b in bindings(p.body)}
        self.commits = dict(p.commits)
        parts = [self.commits[n] for n in (PREMISE, CLAIM) if n in self.commits]
        self.type = replace(joined(*(e.type for e in parts)), boolean=False)
        self.made: dict[str, Expr] = {}
        if PREMISE in self.commits:
            self.made[PREMISE] = self.number(self.commits.pop(PREMISE))
        self.tree = self.split(self.source(self.commits.pop(CLAIM)))
        streams = {n: Apply("spread", (e,), GRID) for n, e in self.commits.items()}
        states = [State(n, ZERO, GRID) for n in streams] + [State(n, ZERO, self.type) for n in self.made]
        self.program = replace(p, states=tuple(states), commits=(*streams.items(), *self.made.items()), watches=())

    def source(self, e: Expr) -> Expr:
        """What a state is given, behind names and stores."""
        match e:
            case Ref(name, "value") if name in self.exprs and not _reduces(self.exprs[name]):
                return self.source(self.exprs[name])
            case Apply(op="store" | "spread", args=(x,)) if x.type.boolean:
                return self.source(x)
            case _:
                return e

    def split(self, e: Expr) -> Tree:
        match e:
            case Apply(op="and" | "or" | "not" as op, args=args):
                return op, tuple(self.split(self.source(a)) for a in args)
            case Apply(op=op, args=(a, b)) if op in COMPARISONS:
                return Leaf(op, (self.keep(a), self.keep(b)))
            case _:
                return Leaf("", (self.keep(e),))

    def keep(self, e: Expr) -> str:
        name = f"law side {len(self.made)}"
        self.made[name] = self.number(e)
        return name

    def number(self, e: Expr) -> Expr:
        number = Apply("select", (e, ONE, ZERO), replace(e.type, boolean=False)) if e.type.boolean else e
        return Apply("spread", (number,), self.type)


def _reduces(e: Expr) -> bool:
    """Whether it stands alone: what other expressions hold is its name."""
    return isinstance(e, Reduce) or (isinstance(e, Apply) and e.op == "largest")


def leaves(tree: Tree) -> Iterator[Leaf]:
    return (leaf for leaf, _ in meant_leaves(tree))


def meant_leaves(tree: Tree, meant: bool = True) -> Iterator[tuple[Leaf, bool]]:
    """Each leaf, and whether the claim wants it to hold: not under a `not`."""
    match tree:
        case Leaf():
            yield tree, meant
        case (op, parts):
            for part in parts:
                yield from meant_leaves(part, meant != (op == "not"))
