"""Units: every value of a rule is of [g]^a·[w]^b, found from its text (LANGUAGE.md §7).

Each literal that is a term, each parameter and each state has unknown exponents. Sums, comparisons and choices say that units are equal, one linear equation
each, in text order; one that contradicts those before it is reported and left out. Gradients scaled by k scale a value of [g]^a by k^a: if nothing that is
fixed (a literal, a parameter) carries [g], that is a proof that the rule is scale-equivariant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from updsl.core.diagnostic import Diagnostic
from updsl.core.ir import NUMBER, Apply, Binding, Const, Every, Expr, Program, Reduce, Ref, Statement, children, is_shared, roots, walk
from updsl.core.ops import OPS
from updsl.core.source import NOWHERE, Span
from updsl.front.elaborate import deep_recursion
from updsl.front.exponents import FREE, LITERAL, NONE, PARAMETER, STATE, Equations, Exponents, G, Linear, W, unknown
from updsl.front.module import Module
from updsl.front.probes import programs_of
from updsl.front.statics import fold
from updsl.front.unit import Constant

TERMS = frozenset("add sub neg lt le gt ge eq ne minimum maximum clamp select".split())
"""Ops whose operands are terms: a literal there may have a unit."""
SAYS = {
    "add": "this adds {0} and {1}",
    "sub": "this takes {1} from {0}",
    "minimum": "this takes the smaller of {0} and {1}",
    "maximum": "this takes the larger of {0} and {1}",
    "clamp": "this holds {0} between bounds of {1}",
    "select": "this is either {0} or {1}",
    "pow": "this has an exponent of {0}",
    "uniform": "this draws between {0} and {1}",
    "push": "this keeps {1} among {0}",
    "atan2": "this takes the angle of {0} and {1}",
}


@dataclass(frozen=True, slots=True)
class Carrier:
    """A literal or a parameter with a unit. name: of the parameter that it is, "" for a literal; value: None for lr, which is not the rule's; span: where it
    stands in the text."""

    name: str
    value: float | None
    unit: Exponents
    span: Span

    @property
    def fixes_scale(self) -> bool:
        """Whether the rule's behaviour changes with the scale of gradients because of it: 0 and infinity are what they are at any scale."""
        return self.unit.g != 0 and self.value != 0 and (self.value is None or not math.isinf(self.value))


@dataclass(frozen=True)
class Units:
    """The units of a rule: of what it gives, of its parameters (with lr), its inputs and its states by name; the literals and parameters that carry one, its
    own first; conflicts: what contradicts, as warnings. outs: those of what it gives, more than one if its arms give different ones."""

    outs: tuple[Exponents, ...]
    parameters: Mapping[str, Exponents]
    inputs: Mapping[str, Exponents]
    states: Mapping[str, Exponents]
    carriers: tuple[Carrier, ...]
    conflicts: tuple[Diagnostic, ...]

    @property
    def out(self) -> Exponents:
        """Of what the rule gives; for a rule with arms, of what the first gives."""
        return self.outs[0]

    @property
    def equivariant(self) -> bool:
        """Whether units prove that rule(k·g) = k^degree·rule(g) for k > 0 (inputs that carry [g] scaled alike)."""
        return len({u.g for u in self.outs}) == 1 and not self.conflicts and not any(c.fixes_scale for c in self.carriers)

    @property
    def degree(self) -> Fraction:
        """The exponent of [g] in what the rule gives."""
        return self.out.g

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """What the rule gives, what carries a unit, and what follows."""
        yield f"out: {', or '.join(map(str, self.outs))}"
        for c in self.carriers:
            yield f"{c.name}{'' if c.value is None else f' = {c.value:g}'}: {c.unit}" if c.name else f"{c.value:g} at {_place(c.span)}: {c.unit}"
        yield from (f"{name} (input): {u}" for name, u in self.inputs.items() if u != NONE)
        fixed = dict.fromkeys(f"`{c.name or c.span.text}`" for c in self.carriers if c.fixes_scale)
        if self.equivariant:
            power = "" if self.degree == 0 else "k*" if self.degree == 1 else f"k^{self.degree}*"
            yield f"proved: rule(k*g) == {power}rule(g) for every k > 0"
        elif fixed:
            yield f"behaves differently at another loss scale, through {', '.join(fixed)}"
        yield from (f"{c.message}, at {_place(c.span)}" for c in self.conflicts)


def units_of(module: Module, parameters: Mapping[str, Constant]) -> Units:
    """The units of the rule with these parameters, for tensors of all kinds that its text tells apart. Raises UpdslError where it can be used for none."""
    return of_programs(programs_of(module, parameters), parameters)


def of_programs(programs: Iterable[Program], parameters: Mapping[str, Constant]) -> Units:
    """The units of a rule with these Programs and parameters."""
    with deep_recursion():
        return Inference(programs, parameters).units()


class Inference:
    """The exponents of every value of some Programs of a rule; parameters, and what they share, are the same in all."""

    def __init__(self, programs: Iterable[Program], parameters: Mapping[str, Constant]):
        self.programs, self.parameters = list(programs), parameters
        self.equations = Equations()
        self.values: dict[str, Linear] = {}
        self.exprs: dict[str, Expr] = {}
        self.literals: dict[int, tuple[Const, Const]] = {}
        self.seen: dict[str, Linear] = {}
        self.clashes: list[tuple[Span, str, Linear, Linear]] = []
        self.shared: dict[str, Linear] = {}
        self.stored: set[str] = set()
        self.outs: list[Linear] = []
        for c, p in enumerate(self.programs):
            self.terms = set(map(id, _terms(p)))
            self.values, self.exprs = {}, {}
            self.known: dict[int, Linear] = {}
            self.program(c, p)

    # --- programs ----------------------------------------------------------------------------------------------------

    def program(self, c: int, p: Program) -> None:
        self.prefix = f"{c}:"
        for s in p.states:
            self.seen.setdefault(f"state {s.name}", unknown(STATE, s.name))
            if s.init is not None:
                self.equal(s.span, f"`{s.name}` starts at {{1}}, and keeps {{0}}", unknown(STATE, s.name), self.of(s.init))
        self.body(p.body)
        spans = {s.name: s.span for s in p.states}
        for name, e in p.commits:
            if not (isinstance(e, Ref) and name in self.stored):  # then the equation stands already, where the state is given its value
                self.keeps(name, e, spans[name])
        for w in p.watches:
            self.of(w.expr)
        if p.weight is not None:
            self.equal(p.weight.span, "this writes {1} to the weight", Linear(W), self.of(p.weight))
        if p.out is not None:
            self.outs.append(self.of(p.out))

    def body(self, statements: Iterable[Statement]) -> None:
        for s in statements:
            match s:
                case Binding(name, e):
                    self.values[name], self.exprs[name] = self.of(e), e
                    if is_shared(e.type):
                        self.equal(e.span, "this is {0} of some tensors, and {1} of others", self.shared.setdefault(name, self.values[name]), self.values[name])
                case Every(body=body, yields=yields):
                    self.body(body)
                    for y in yields:
                        if not (isinstance(y.outer, Ref) and y.outer.kind == "state" and y.outer.name in self.stored):
                            self.equal(y.inner.span, "this is {0} where the block ran, and else {1}", self.of(y.inner), self.of(y.outer))
                        self.values[y.name] = self.of(y.inner)

    def keeps(self, name: str, e: Expr, span: Span) -> None:
        place = e.span if e.span.text else span
        self.equal(place, f"this keeps {{1}} in `{name}`, of {{0}}", unknown(STATE, name), self.of(e))

    def equal(self, span: Span, says: str, a: Linear, b: Linear) -> None:
        if not self.equations.add(a, b):
            self.clashes.append((span, says, a, b))

    # --- expressions -------------------------------------------------------------------------------------------------

    def of(self, e: Expr) -> Linear:
        if id(e) not in self.known:
            self.known[id(e)] = self.new(e)
        return self.known[id(e)]

    def new(self, e: Expr) -> Linear:
        match e:
            case Const():
                return self.literal(e)
            case Ref():
                return self.named(e)
            case _:
                return self.combined(e, [self.of(a) for a in children(e)])

    def literal(self, e: Const) -> Linear:
        """A term may have a unit, as may what an argument or a name stands for; a factor has none."""
        if isinstance(e.value, bool):
            return Linear()
        if e.value == 0 or not math.isfinite(e.value):
            return unknown(FREE, f"{self.prefix}{id(e)}")
        first = e.of or e
        if (e.of is None and id(e) not in self.terms) or first.span.text in ("pi", "π"):
            return Linear()
        self.literals.setdefault(id(first), (first, e))
        return unknown(LITERAL, f"{self.prefix}{first.span.start}:{id(first)}")

    def named(self, e: Ref) -> Linear:
        match e.kind, e.name:
            case "value", name:
                return self.values[name]
            case "state", name:
                return unknown(STATE, name)
            case "param", name:
                return self.seen.setdefault(f"param {name}", unknown(PARAMETER, name))
            case "builtin", "g":
                return Linear(G)
            case "builtin", "w":
                return Linear(W)
            case "builtin", "lr":
                return self.seen.setdefault("param lr", unknown(PARAMETER, "lr"))
            case "input", name:
                return self.seen.setdefault(f"input {name}", Linear(G) if e.type.samples else unknown(FREE, name))
            case _:
                return Linear()

    def combined(self, e: Apply | Reduce, units: list[Linear]) -> Linear:
        row = OPS[e.op]
        if e.op == "select":
            units = units[1:]
        elif row.numbers:
            self.without(e, e.args[-1], units[-1])
            units = units[:-1] if len(units) > 1 else units
        match row.units:
            case "product":
                return units[0].plus(units[1])
            case "quotient":
                return units[0].plus(units[1], -1)
            case "left-quotient":
                return units[1].plus(units[0], -1)
            case "power":
                return self.power(e, units)
            case "any-none":
                return Linear()
            case "none-none":
                for a, unit in zip(e.args, units, strict=True):
                    self.without(e, a, unit)
                return Linear()
            case "equal-none":
                self.all_equal(e, units)
                return Linear()
        self.all_equal(e, units)
        if e.op == "store" and f"state {e.static[1]}" in self.seen:
            self.keeps(e.static[1], e.args[0], e.span)
            self.stored.add(e.static[1])
        return units[0] if units else unknown(FREE, f"{self.prefix}{id(e)}")

    def all_equal(self, e: Apply | Reduce, units: list[Linear]) -> None:
        says = SAYS.get(e.op, "this compares {0} with {1}")
        for other in units[1:]:
            self.equal(e.span, says, units[0], other)

    def without(self, e: Apply | Reduce, operand: Expr, unit: Linear) -> None:
        self.equal(operand.span if operand.span.text else e.span, f"`{e.op}` takes what has no unit, and this is {{1}}", Linear(), unit)

    def power(self, e: Apply | Reduce, units: list[Linear]) -> Linear:
        match e.op:
            case "sqrt":
                return units[0].times(Fraction(1, 2))
            case "var":
                return units[0].times(Fraction(2))
        exponent = e.args[1]
        if e.op == "pow":
            self.equal(exponent.span, SAYS["pow"], units[1], Linear())
        value = self.number(exponent)
        if value is None or not math.isfinite(value):
            self.equal(e.args[0].span, "this is {0}, to a power that is not constant", units[0], Linear())
            return Linear()
        return units[0].times(Fraction(value).limit_denominator(1000))

    def number(self, e: Expr) -> float | None:
        """The value of an expression of literals and parameters; None for another."""
        match e:
            case Const(value=v):
                return float(v)
            case Ref(kind="param", name=name):
                return float(v) if isinstance(v := self.parameters.get(name), (int, float)) else None
            case Ref(kind="value", name=name) if name in self.exprs:
                return self.number(self.exprs[name])
            case Apply(op=op, args=args) if OPS[op].kind == "elementwise" and op != "select":
                values = [self.number(a) for a in args]
                return None if None in values else float(fold(op, *(v for v in values if v is not None)))
            case _:
                return None

    # --- what was found ----------------------------------------------------------------------------------------------

    def scale(self, c: int, e: Const) -> Exponents:
        """The unit of a literal of Program c."""
        first = e.of or e
        return self.equations.value(unknown(LITERAL, f"{c}:{first.span.start}:{id(first)}")) if id(first) in self.literals else NONE

    def units(self) -> Units:
        of_kind = {
            kind: {name[len(kind) + 1 :]: self.equations.value(e) for name, e in self.seen.items() if name.startswith(f"{kind} ")}
            for kind in ("param", "input", "state")
        }
        parameters = {n: of_kind["param"].get(n, NONE) for n, v in self.parameters.items() if isinstance(v, float)}
        parameters |= {"lr": of_kind["param"]["lr"]} if "lr" in of_kind["param"] else {}
        own = [Carrier(n, self.number(Ref(n, "param", NUMBER)), u, NOWHERE) for n, u in parameters.items() if u != NONE]
        return Units(
            tuple(dict.fromkeys(map(self.equations.value, self.outs))),
            parameters,
            of_kind["input"],
            of_kind["state"],
            (*own, *dict.fromkeys(self.carried())),
            tuple(dict.fromkeys(self.conflicts())),
        )

    def carried(self) -> Iterator[Carrier]:
        for c in range(len(self.programs)):
            for first, use in self.literals.values():
                unit = self.scale(c, first)
                if unit != NONE:
                    name = use.span.text if use.of is not None else ""
                    yield Carrier(name, float(first.value), unit, first.span)

    def conflicts(self) -> Iterator[Diagnostic]:
        for span, says, a, b in self.clashes:
            said = [str(self.equations.value(x)) for x in (a, b)]
            help_ = "what is added or compared is of one unit: divide one side by what has the other's, or take it to a power"
            yield Diagnostic("unit-conflict", says.format(*said), span, help=help_, severity="warning")


def _terms(p: Program) -> Iterator[Const]:
    """The literals that are terms: operands of sums, comparisons, choices; whole values."""
    for e in (*roots(p), *(s.init for s in p.states if s.init is not None)):
        if isinstance(e, Const):
            yield e
        for n in walk(e):
            if isinstance(n, Apply) and n.op in TERMS:
                yield from (a for a in n.args if isinstance(a, Const))


def _place(span: Span) -> str:
    return f"{span.source.name}:{span.line}:{span.column}"
