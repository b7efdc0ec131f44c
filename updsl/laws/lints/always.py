"""Laws that hold whatever the rule gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from updsl.core.diagnostic import Diagnostic
from updsl.core.frame import Tensor
from updsl.core.ir import Apply, Expr, Ref, rewrite, walk
from updsl.front import syntax
from updsl.front.claim import CLAIM, COMPARISONS, PREMISE, RESULT, Claim, claim_of, parameters_of
from updsl.front.contents import nodes
from updsl.front.elaborate import elaborate
from updsl.front.module import Module
from updsl.front.probes import tensors_of
from updsl.front.unit import Constant
from updsl.laws.lints.bounds import Bounds
from updsl.laws.lints.flow import Flow

TENSORS = (Tensor("weight", (4, 3)), Tensor("bias", (4,)))
MIRRORED = {"ge": "le", "gt": "lt"}


def law_always_holds(module: Module, law: syntax.Law, values: Mapping[str, Constant]) -> Iterator[Diagnostic]:
    """The law, if its text alone makes it hold."""
    claim, parameters = claim_of(module, law), parameters_of(law, values)
    known = {**parameters, **{n: 1.0 for n in claim.module.parameters if n not in parameters}}
    fixed = {n: v for n, v in parameters.items() if n not in claim.ranges}
    named = any(isinstance(n, syntax.Name) and n.id == "name" for n in nodes(law))
    tensors = tensors_of(claim.module, known) if named else TENSORS
    flows = [Flow(claim.module, p, fixed) for p in elaborate(claim.module, tensors, known).programs]
    if not any(_reads_result(flow) for flow in flows):
        yield _always(law, "nothing here depends on what the rule gives", "say something of `out`, or of `rule(…)`")
    elif all(holds(flow, claim, parameters) for flow in flows):
        yield _always(law, "this holds whatever the rule gives, NaN apart", "claim what another rule would break, such as a bound that it has to keep")


def _always(law: syntax.Law, message: str, help_: str) -> Diagnostic:
    return Diagnostic("law-always-holds", f"{message}: no change of the rule would break it", law.claim.span, help=help_, severity="warning")


def _reads_result(flow: Flow) -> bool:
    read: set[str] = set()

    def note(e: Expr) -> bool:
        for n in walk(e):
            match n:
                case Ref(kind="input", name=name) if name == "out" or name.startswith(RESULT):
                    return True
                case Ref(kind="value", name=name) if name not in read:
                    read.add(name)
                    if name in flow.bindings and note(flow.bindings[name].expr):
                        return True
        return False

    return any(note(flow.commits[n]) for n in (PREMISE, CLAIM) if n in flow.commits)


def holds(flow: Flow, claim: Claim, parameters: Mapping[str, Constant]) -> bool:
    """Whether the claim, where its premise holds, is true by what its text compares."""
    bounds = Bounds(flow, {f"param {q}": r for q, r in claim.ranges_of(parameters).items()})

    def inlined(e: Expr) -> Expr:
        return rewrite(flow.behind(e), lambda n: inlined(n) if isinstance(n, Ref) and n.kind == "value" and n.name in flow.bindings else n)

    def truth(e: Expr) -> bool | None:
        """What it is for certain."""
        match e:
            case Apply(op="and" | "or" as op, args=args):
                parts = [truth(a) for a in args]
                absorbing = op == "or"
                return absorbing if absorbing in parts else None if None in parts else not absorbing
            case Apply(op="not", args=(a,)):
                found = truth(a)
                return None if found is None else not found
            case Apply(op=op, args=(a, b)) if op in COMPARISONS:
                a, b = (b, a) if op in MIRRORED else (a, b)
                return compared(bounds, MIRRORED.get(op, op), a, b)
        number = flow.number(e)
        return None if number is None else number != 0

    said = inlined(flow.commits[CLAIM])
    if truth(said) is True:
        return True
    if PREMISE not in flow.commits:
        return False
    premise = inlined(flow.commits[PREMISE])
    return truth(premise) is False or said in conjuncts(premise)


def compared(bounds: Bounds, op: str, a: Expr, b: Expr) -> bool | None:
    """eq, ne, lt or le."""
    (low, high), (lower, higher) = bounds.of(a), bounds.of(b)
    same = a == b or low == high == lower == higher
    apart = high < lower or higher < low
    match op:
        case "eq" | "ne":
            return (op == "eq") if same else (op == "ne") if apart else None
        case "le":
            return True if same or high <= lower else False if higher < low else None
        case _:
            return True if high < lower else False if same or higher <= low else None


def conjuncts(e: Expr) -> list[Expr]:
    match e:
        case Apply(op="and", args=(a, b)):
            return [*conjuncts(a), *conjuncts(b)]
        case _:
            return [e]
