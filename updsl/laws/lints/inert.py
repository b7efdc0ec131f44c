"""Stages that only scale, in front of what divides the scale out again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from updsl.core.diagnostic import Diagnostic, Label
from updsl.core.ir import Apply, Const, Expr, Ref, walk
from updsl.core.scope import Scope
from updsl.core.source import Span
from updsl.laws.lints.degree import ANY, FREE, Degrees, name_of
from updsl.laws.lints.flow import Flow, is_clock
from updsl.laws.lints.signs import NONZERO, POSITIVE, Signs

LONGEST = 40


@dataclass(frozen=True)
class Scaling:
    """x times factors that are coarser than x, or, where a condition says so, x itself."""

    x: Expr
    factors: tuple[Expr, ...]
    conditions: tuple[Expr, ...] = ()

    @property
    def scope(self) -> Scope:
        """The coarsest that refines those of factors and conditions."""
        scope = self.factors[0].type.scope
        for f in (*self.factors, *self.conditions):
            scope = scope | f.type.scope
        return scope


def inert_scale(flow: Flow) -> Iterator[Diagnostic]:
    """Values of the rule's own text that are another times positive numbers, where what the rule gives does not depend on such numbers."""
    signs = Signs(flow, {"builtin g": NONZERO, "builtin w": NONZERO} | {f"state {s}": POSITIVE for s in flow.states if not is_clock(s)})
    reported: set[str] = set()
    for name, b in flow.bindings.items():
        found = scaling(flow, b.expr) if flow.is_own(b.span) and not name.endswith("@tensor") else None
        if found is None or b.expr.type.samples or not is_flowing(flow, found.x, b.span) or not all(signs.of(f) == POSITIVE for f in found.factors):
            continue
        degrees = Degrees(flow, name, found.scope)
        if all(degrees.of(e) in (FREE, ANY) for e in flow.given) and degrees.absorbers and not reported & {n.name for n in walk(b.expr) if isinstance(n, Ref)}:
            reported.add(name)
            yield from _inert(flow, b.span, found, degrees)


def scaling(flow: Flow, e: Expr) -> Scaling | None:
    """e as a scaling, if it is one."""
    match e:
        case Ref(kind="value", name=name) if name in flow.bindings:
            return scaling(flow, flow.bindings[name].expr)
        case Apply(op="mul", args=(a, b)):
            x, f = (b, a) if a.type.scope < b.type.scope else (a, b)
            return times(flow, x, f) if f.type.scope <= x.type.scope else None
        case Apply(op="div", args=(x, f)) if f.type.scope <= x.type.scope:
            return times(flow, x, f)
        case Apply(op="select", args=(c, a, b)):
            return chosen(flow, c, a, b)
    return None


def times(flow: Flow, x: Expr, f: Expr) -> Scaling:
    """x·f or x/f; x may be written out as a product itself."""
    inner = scaling(flow, x) if isinstance(x, Apply) and x.op in ("mul", "div") else None
    return Scaling(x, (f,)) if inner is None else Scaling(inner.x, (*inner.factors, f))


def chosen(flow: Flow, c: Expr, a: Expr, b: Expr) -> Scaling | None:
    """x times a factor or x itself, where c says; or 0 where the divisor is."""
    parts = [scaling(flow, a), scaling(flow, b)]
    for p, other in zip(parts, (b, a), strict=True):
        if p is not None and flow.behind(p.x) == flow.behind(other) and c.type.scope <= other.type.scope:
            return replace(p, conditions=(*p.conditions, c))  # what is scaled may be scaled itself
    factors = tuple(f for p in parts if p is not None for f in p.factors)
    x, y = (p.x if p is not None else e for p, e in zip(parts, (a, b), strict=True))
    match flow.behind(c), x:
        case Apply(op="eq", args=(n, Const(value=0.0))), Const(value=0.0) if any(flow.behind(n) == flow.behind(f) for f in factors):
            return parts[1]
    if not factors or flow.behind(x) != flow.behind(y) or not c.type.scope <= x.type.scope:
        return None
    return Scaling(x, factors, (c,))


def is_flowing(flow: Flow, x: Expr, span: Span) -> bool:
    """Whether the text of the rule itself has this value, so that a stage that scales it, at this place, does nothing else. A clip has, whatever it is of."""
    match x:
        case _ if span.text.startswith("clip"):
            return True
        case Ref(name=name):
            return "." not in name
        case _:
            return flow.is_own(x.span)


def _inert(flow: Flow, span: Span, found: Scaling, degrees: Degrees) -> Iterator[Diagnostic]:
    absorber = min(degrees.absorbers.values(), key=lambda n: n.type.boolean)
    own = flow.is_own(absorber.span)
    by = f"`{absorber.span.text}`" if own and len(absorber.span.text) <= LONGEST else "what follows" if own else f"`{Path(absorber.span.source.name).stem}`"
    small = " and ".join(dict.fromkeys(name_of(flow, e) for e in degrees.small))
    up_to = f", up to {small}" if small else ""
    this = "this clip" if span.text.startswith("clip") else "this"
    labels = (Label(absorber.span, "here the scale is divided out"),) if own and absorber.span.text else ()
    kept = [s for s, d in degrees.states.items() if isinstance(d, Fraction) and d != FREE]
    if not kept or all(is_fixed(flow, f) for f in (*found.factors, *found.conditions)):
        message, notes, help_ = f"{this} changes nothing: {by} divides its scale out again{up_to}", (), "delete it, or move it behind what divides"
    else:
        message = (
            f"{this} bounds no step: {by} divides its scale out again{up_to}"
            if "clip" in this
            else f"the scale that this gives is lost: {by} divides it out again{up_to}"
        )
        listed = ", ".join(f"`{s}`" for s in kept[:3])
        notes = (f"all that is left of it is how much a step weighs against others in {listed}",)
        help_ = "to bound the step, move it behind; to keep large gradients out of the averages, leave it"
    yield Diagnostic("inert-scale", message, span, labels=labels, notes=notes, help=help_, severity="warning")


def is_fixed(flow: Flow, e: Expr) -> bool:
    """Whether it is the same on every step: made of literals, parameters and sizes."""
    match e:
        case Const():
            return True
        case Ref(kind="value", name=name):
            return name in flow.bindings and is_fixed(flow, flow.bindings[name].expr)
        case Ref(kind=kind, name=name):
            return kind == "param" or (kind == "builtin" and name not in ("g", "w", "lr", "t", "batch"))
        case Apply(op="gaussian" | "uniform" | "bernoulli"):
            return False
        case _:
            return all(is_fixed(flow, a) for a in e.args)
