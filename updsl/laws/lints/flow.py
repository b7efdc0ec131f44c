"""A Program as its lints read it: what a name stands for, what is constant in it, and where in the text of its rule a value comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from updsl.core.diagnostic import Diagnostic
from updsl.core.ir import Apply, Binding, Const, Every, Expr, Program, Ref, Statement, Yield, walk
from updsl.core.source import Span
from updsl.front import syntax
from updsl.front.module import Module
from updsl.front.sites import sites_of
from updsl.front.unit import Constant

NEAR = {
    "neg": lambda x: -x, "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y, "sqrt": lambda x: x**0.5, "minimum": min, "maximum": max, "abs": abs, "spread": lambda x: x,
    "lt": lambda x, y: x < y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y, "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y, "not": lambda x: not x, "and": lambda x, y: x and y, "or": lambda x, y: x or y, "select": lambda c, x, y: x if c else y,
}  # fmt: skip
"""Ops on numbers, near enough for what lints ask, without NumPy."""


class Flow:
    """What a rule does to one class of tensors, with values of its parameters."""

    def __init__(self, module: Module, program: Program, parameters: Mapping[str, Constant]):
        self.module, self.program, self.parameters = module, program, parameters
        self.source = module.unit.source
        self.bindings: dict[str, Binding] = {}
        self.yields: dict[str, Yield] = {}
        self._note(program.body)
        self.commits = dict(program.commits)
        self.states = {s.name: s for s in program.states}
        self._numbers: dict[int, tuple[Expr, float | None]] = {}

    def _note(self, statements: Iterable[Statement]) -> None:
        for s in statements:
            match s:
                case Binding(name=name):
                    self.bindings[name] = s
                case Every(body=body, yields=yields):
                    self._note(body)
                    self.yields |= {y.name: y for y in yields}

    @cached_property
    def given(self) -> list[Expr]:
        """What the rule gives: `out`, if the text says it, and the new weight."""
        p = self.program
        return [e for e in (p.out if p.returns or p.weight is None else None, p.weight) if e is not None]

    @cached_property
    def kept(self) -> frozenset[str]:
        """The states that what the rule gives depends on, on this step or a later one."""
        read: set[tuple[str, str]] = set()
        waiting = list(self.given)
        while waiting:
            for n in walk(waiting.pop()):
                if isinstance(n, Ref) and n.kind in ("value", "state") and (n.kind, n.name) not in read:
                    read.add((n.kind, n.name))
                    y = self.yields.get(n.name)
                    waiting += [self.commits[n.name]] if n.kind == "state" else [self.bindings[n.name].expr] if y is None else [y.inner, y.outer]
        return frozenset(name for kind, name in read if kind == "state")

    def behind(self, e: Expr) -> Expr:
        """What a name stands for, through roundings and spreadings too."""
        while True:
            match e:
                case Ref(kind="value", name=name) if name in self.bindings:
                    e = self.bindings[name].expr
                case Apply(op="store" | "spread", args=(x,)):
                    e = x
                case _:
                    return e

    def number(self, e: Expr) -> float | None:
        """The value of an expression of literals and parameters; None for any other."""
        if isinstance(e, Const):
            return float(e.value)
        if id(e) not in self._numbers:
            self._numbers[id(e)] = e, self._number(e)
        return self._numbers[id(e)][1]

    def _number(self, e: Expr) -> float | None:
        match e:
            case Ref(kind="param", name=name):
                v = self.parameters.get(name)
                return None if v is None or isinstance(v, str) else float(v)
            case Ref(kind="value", name=name) if name in self.bindings:
                return self.number(self.bindings[name].expr)
            case Apply(op=op, args=args) if op in NEAR:
                return computed(op, [self.number(a) for a in args])
        return None

    # --- places in the text ------------------------------------------------------------------------------------------

    def place(self, name: str, span: Span) -> Span:
        """Where the rule's own text has the state or value of this name; `span` is where the text does that declares it."""
        if span.source is self.source or "." not in name:
            return span if span.source is self.source else self.module.rule.name_span
        stage = name.split(".")[0].split("#")[0]
        sites = sites_of(self.module.rule, self.module.unit)
        for node, in_stage in sites.nodes:
            if isinstance(node, syntax.Name | syntax.Call) and sites.applies_rule(node, in_stage) and sites.label(node, "rule") == stage:
                return node.span
        return self.module.rule.name_span

    def is_own(self, span: Span) -> bool:
        """Whether this is a place in the file of the rule."""
        return span.source is self.source


def computed(op: str, values: list[float | None]) -> float | None:
    numbers = [v for v in values if v is not None]
    if len(numbers) < len(values):
        return None
    try:
        result = NEAR[op](*numbers)
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(result, complex) else float(result)


def is_clock(name: str) -> bool:
    """Whether a state counts the steps of an instance."""
    return name.removesuffix("@tensor").rsplit(".", 1)[-1] == "t"


def first_of_each(found: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """One for each code and place: classes of tensors have most of their findings in common."""
    seen = set()
    for d in found:
        key = d.code, d.span.source.name, d.span.start
        if key not in seen:
            seen.add(key)
            yield d
