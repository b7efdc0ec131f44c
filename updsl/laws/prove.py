"""Laws that are proved, over the real numbers: by units, by the structure of the rule, by algebra.

What is not proved is not said to be false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from updsl.core.diagnostic import UpdslError
from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Program
from updsl.front import syntax
from updsl.front.claim import RESULT, Claim, claim_of
from updsl.front.contents import applied, nodes
from updsl.front.module import Module
from updsl.front.probes import tensors_of
from updsl.front.statics import number
from updsl.front.unit import Constant, Unit
from updsl.front.units import units_of
from updsl.laws.bounds import Prover
from updsl.laws.claimed import Claims
from updsl.laws.structure import LINEAR, OTHER, PERMUTED, SAME, SIGNS, TURNED, Reading, Symmetry, readings
from updsl.laws.symbolic import Numbers, Step1, Steps, programs_of_sets, ranges_after
from updsl.laws.term import Term, walk
from updsl.laws.terms import Exhausted, Terms
from updsl.laws.wording import argument
from updsl.middle.algebra import Algebra

ALGEBRA = Algebra()
MOST = 12_000
"""Terms of a proof: one that needs more is given up."""
G = syntax.Name("g")
OUT = (syntax.Name("out"), syntax.Call("rule", (syntax.Argument(None, G),)))


def prove(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> str | None:
    """The argument for a law with these values of the rule's parameters, if one is found."""
    if any(q.kind == "any" for q in law.quantifiers) or not tensors_of(module, parameters):
        return None
    return by_units(module, law, parameters) or by_structure(module, law, parameters) or by_algebra(module, law, parameters)


def by_structure(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> str | None:
    """The argument, if the law says that what the rule gives moves as its gradients do, and it does."""
    wanted = _movement(law)
    if wanted is None:
        return None
    symmetry, reading = wanted
    try:
        if not all(case is not None and case.moves(symmetry, reading) for case in cases(module, law, parameters)):
            return None
    except (UpdslError, Exhausted, OverflowError):
        return None
    return f"by structure: {symmetry.words}"


def _movement(law: syntax.Law) -> tuple[Symmetry, Reading] | None:
    """Of `rule(-g) == -rule(g)` and the like: what moves, and how what the rule gives is to follow."""
    match law.claim:
        case syntax.Compare(first=a, rest=(("==", b),)):
            pass
        case _:
            return None
    square = {q.name: PERMUTED if q.kind == "permutation" else TURNED for q in law.quantifiers if q.kind in ("permutation", "orthogonal")}
    numbers = {q.name for q in law.quantifiers if q.kind == "in"}
    for x, y in ((a, b), (b, a)):
        match x, y:
            case syntax.Call("rule", (syntax.Argument(None, syntax.Unary("-", syntax.Name("g"))),)), syntax.Unary("-", out) if out in OUT:
                return SIGNS, OTHER
            case syntax.Call("rule", (syntax.Argument(None, syntax.Unary("-", syntax.Name("g"))),)), out if out in OUT:
                return SIGNS, SAME
            case syntax.Call("rule", (syntax.Argument(None, syntax.Binary("*", syntax.Name(k), syntax.Name("g"))),)), syntax.Binary("*", syntax.Name(c), out):
                if out in OUT and k == c and k in numbers:
                    return LINEAR, OTHER
            case syntax.Call("rule", (syntax.Argument(None, syntax.Binary("@", syntax.Name(p), syntax.Name("g"))),)), syntax.Binary("@", syntax.Name(q), out):
                if out in OUT and p == q and p in square:
                    return square[p], (True, False)
    return None


class Case:
    """A rule on some tensors: a step as terms. at_first: only the first."""

    def __init__(self, steps: Steps, at_first: bool):
        self.steps, self.at_first = steps, at_first
        self.first = steps.first()
        g = steps.terms.leaf("builtin", "g", GRID)
        now = {("builtin", "t"): steps.terms.const(1)} if at_first else {}
        self.any_step: Step1 = steps.step(g, steps.before())
        self.step = steps.step(g, self.first, now) if at_first else self.any_step
        self.ranges = ranges_after(steps, self.any_step)

    def moves(self, symmetry: Symmetry, reading: Reading) -> bool:
        """Whether what it gives moves so, and is a number."""
        found = readings(symmetry, self.steps, self.step, self.first, self.at_first)
        return all(reading in found(t) and self.is_number(t) for t in self.step.out.values()) and all(map(self.is_number, self.steps.terms.dropped))

    def gives_numbers(self) -> bool:
        return all(map(self.is_number, self.step.out.values())) and all(map(self.is_number, self.steps.terms.dropped))

    def is_number(self, t: Term) -> bool:
        return self.ranges.of(t).finite


def by_algebra(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> str | None:
    """The argument, if what the law compares compares so in every case that the rule and the law tell apart."""
    if reads_tensors(module.rule, module.unit) or any(isinstance(n, syntax.Name) and n.id == "name" for n in nodes(law)):
        return None  # how many tensors there are is a literal of a Program; names that only the law asks for are not looked at
    claim = claim_of(module, law)
    provers: list[Prover] = []
    try:
        for found in programs_of_sets(module, tensors_of(module, parameters), parameters, claim.ranges_of(parameters)):
            if found is None:
                return None
            prover = claim_prover(claim, *found, parameters)
            if prover is None:
                return None
            provers.append(prover)
    except (UpdslError, Exhausted, OverflowError):
        return None
    if not any(p.compares_anything for p in provers):
        return None
    telling = max(provers, key=lambda p: len(p.compared))
    return argument(telling.compared, telling.chosen)


def reads_tensors(rule: syntax.Rule, unit: Unit) -> bool:
    """Whether a rule, or one that it applies, asks how many tensors there are."""
    own = any(isinstance(n, syntax.Name) and n.id == "tensors" for n in nodes(rule))
    return own or any(reads_tensors(other, home) for _, other, home in applied(rule, unit))


def claim_prover(
    claim: Claim, tensors: Sequence[Tensor], programs: Sequence[Program], class_of: Mapping[str, int], parameters: Mapping[str, Constant]
) -> Prover | None:
    """What has proved the claim for these tensors, if it did."""
    terms, numbers = Terms(MOST), claim.ranges_of(parameters)
    steps = Steps(terms, programs, parameters, numbers)
    at_first = says_first(claim.law.premise, unquantified(claim.law, parameters))
    case = Case(steps, at_first)
    more = {("builtin", "t"): terms.const(1)} if at_first else {}
    g = terms.leaf("builtin", "g", GRID)
    if not at_first:
        steps.averaged = steps.averages()
    step = case.step if at_first else steps.step(g, steps.before())
    results = {"out": step.out}
    claims = Claims(terms, claim, tensors, class_of, parameters, numbers)
    for k in range(1, claim.streams + 1):
        stream = claims.stream(k, g, results, more)
        if stream is None or (step.weights and any(steps.weight in walk(t) for t in step.out.values())):
            return None
        if any(x.data[0] == "state" for t in step.out.values() for x in walk(t) if x.op == "leaf"):
            return None
        results[f"{RESULT} {k}"] = steps.step(stream, case.first if at_first else steps.before(), more).out
    said = claims.said(g, results, more)
    dropped = list(terms.dropped)
    prover = Prover(terms, ranges_after(steps, case.any_step), steps.is_still, ALGEBRA)
    for s in said:
        facts = frozenset() if s.premise is None else prover.told(frozenset(), prover.settled(s.premise, frozenset()), True)
        if facts is None:
            continue
        prover.compares_anything = True
        if not prover.proves(s.claim, facts):
            return None
    return prover if all(prover.is_number(t, frozenset()) for t in dropped) else None


def cases(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> Iterator[Case | None]:
    """The rule on each set of tensors that it can be used for; None where it is another rule for each number that is quantified."""
    claim = claim_of(module, law)
    numbers: Numbers = claim.ranges_of(parameters)
    at_first = says_first(law.premise, unquantified(law, parameters))
    for found in programs_of_sets(module, tensors_of(module, parameters), parameters, numbers):
        yield found and Case(Steps(Terms(), found[1], parameters, numbers), at_first)


def unquantified(law: syntax.Law, parameters: Mapping[str, Constant]) -> dict[str, Constant]:
    """The parameters that have one value in a law."""
    return {n: v for n, v in parameters.items() if all(q.name != n for q in law.quantifiers)}


def says_first(premise: syntax.Expr | None, parameters: Mapping[str, Constant]) -> bool:
    """Whether it holds at the first step only."""
    match premise:
        case syntax.Compare(first=syntax.Name("t"), rest=((op, syntax.Name() | syntax.Number() as end),)):
            value = end.value if isinstance(end, syntax.Number) else parameters.get(end.id)
            return (op in ("==", "<=") and value == 1) or (op == "<" and value == 2)
        case syntax.Binary(op="and", left=a, right=b):
            return says_first(a, parameters) or says_first(b, parameters)
        case _:
            return False


def by_units(module: Module, law: syntax.Law, parameters: Mapping[str, Constant]) -> str | None:
    """The argument, if units prove `rule(k*g) == k^a*rule(g) for k in [lo, hi]`, 0 < lo; with a premise all the more."""
    match law:
        case syntax.Law(claim=syntax.Compare(first=a, rest=(("==", b),)), quantifiers=(syntax.Quantifier(name=k, kind="in", low=low),)) if low is not None:
            sides = [_power(side, k) for side in (a, b)]
        case _:
            return None
    scaled, plain = next(((x, y) for x, y in (sides, sides[::-1]) if x and y and x[0] == 1 and y[0] == 0), (None, None))
    if scaled is None or plain is None or number(low, parameters) <= 0 or k in parameters:
        return None
    units = units_of(module, parameters)
    degree = plain[1] - scaled[1]
    if not units.equivariant or units.degree != degree or any(u.g for u in units.inputs.values()):
        return None
    try:
        if not all(case is not None and case.gives_numbers() for case in cases(module, law, parameters)):
            return None
    except (UpdslError, Exhausted, OverflowError):
        return None
    carried = {0: "no unit of [g]", 1: "[g]"}.get(int(degree) if degree.denominator == 1 else -1, f"[g]^{degree}")
    return f"by units: what the rule gives has {carried}, and nothing that is fixed carries [g]"


def _power(e: syntax.Expr, k: str) -> tuple[int, Fraction] | None:
    """Of `k^a*rule(k*g)` 1 and a, of `k^a*rule(g)` 0 and a."""
    match e:
        case syntax.Binary(op="*", left=a, right=b):
            for factor, rest in ((a, b), (b, a)):
                power, inner = _of_k(factor, k), _power(rest, k)
                if power is not None and inner is not None:
                    return inner[0], inner[1] + power
            return None
        case syntax.Call(callee="rule", arguments=(syntax.Argument(name=None, value=syntax.Binary(op="*", left=a, right=b)),)) if {a, b} == {syntax.Name(k), G}:
            return 1, Fraction(0)
        case _ if e in OUT:
            return 0, Fraction(0)
        case _:
            return None


def _of_k(e: syntax.Expr, k: str) -> Fraction | None:
    match e:
        case syntax.Name(id=name) if name == k:
            return Fraction(1)
        case syntax.Binary(op="^", left=syntax.Name(id=name), right=syntax.Number(value=v)) if name == k:
            return Fraction(v).limit_denominator(1000)
        case _:
            return None
