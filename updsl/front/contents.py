"""What a rule's text holds, before any of it is elaborated: the rules it applies, its inputs, whether it writes the weights."""

from __future__ import annotations

from collections.abc import Iterator

from updsl.core.diagnostic import Diagnostic
from updsl.front import sites as places
from updsl.front import syntax
from updsl.front.unit import BUILTIN_NAMES, FUNCTIONS, Unit


def nodes(tree: object) -> Iterator[syntax.Node]:
    """Every node of a syntax tree in text order, the root first."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, syntax.Node):
            yield item
            waiting.extend(getattr(item, name) for name in reversed(item.__dataclass_fields__) if not name.endswith("span"))
        elif isinstance(item, tuple):
            waiting.extend(reversed(item))


def own_names(rule: syntax.Rule) -> frozenset[str]:
    """The rule's parameters and locals: in its body they hide rules of the same names."""
    made = (n.name for n in nodes(rule.body) if isinstance(n, (syntax.Local, syntax.Let, syntax.StateItem, syntax.InputItem)))
    return frozenset((*(p.name for p in rule.parameters), *made))


def applied(rule: syntax.Rule, unit: Unit) -> Iterator[tuple[syntax.Node, syntax.Rule, Unit]]:
    """Every name in a rule's body that may apply a rule, with that rule. (In a branch of an `if` a bare `norm` may turn out to be the function.)"""
    sites = places.sites_of(rule, unit)
    for node, in_stage in sites.nodes:
        if isinstance(node, (syntax.Name, syntax.Call)) and sites.applies_rule(node, in_stage):
            found = unit.find_rule(node.id if isinstance(node, syntax.Name) else node.callee)
            if found:
                yield node, *found


def applied_in_circle(
    rule: syntax.Rule, unit: Unit, within: tuple[syntax.Rule, ...] = (), done: set[int] | None = None
) -> Iterator[tuple[Diagnostic, frozenset[int]]]:
    """A rule that applies itself, directly or through others; with the ids of the rules that are in that circle."""
    done = set() if done is None else done
    within = (*within, rule)
    for node, other, home in applied(rule, unit):
        if any(other is r for r in within):
            circle = within[[r is other for r in within].index(True) :]
            through = f": {' → '.join(f'`{r.name}`' for r in (*circle, other))}" if len(circle) > 1 else ""
            help_ = "a rule cannot be its own stage; `repeat n times (…)` repeats a pipeline"
            yield Diagnostic("rule-circle", f"`{other.name}` applies itself{through}", node.span, help=help_), frozenset(map(id, circle))
        elif id(other) not in done:
            yield from applied_in_circle(other, home, within, done)
    done.add(id(rule))


def input_items(rule: syntax.Rule, unit: Unit, seen: set[int] | None = None) -> Iterator[syntax.InputItem]:
    """The inputs that a rule and all it applies declare; a stage's inputs become the main rule's."""
    seen = set() if seen is None else seen
    if id(rule) in seen:
        return
    seen.add(id(rule))
    for node in nodes(rule.body):
        if isinstance(node, syntax.InputItem):
            yield node
    for _, other, home in applied(rule, unit):
        yield from input_items(other, home, seen)


def writes_weights(rule: syntax.Rule, unit: Unit) -> bool:
    """Whether applying the rule writes w: it has `w ←`, or ends in a rule that does."""
    return gives_weights(rule.body, unit, own_names(rule))


def gives_weights(body: syntax.Expr | tuple[syntax.Statement, ...], unit: Unit, hidden: frozenset[str] = frozenset()) -> bool:
    """Whether a body, arm or last stage writes w. hidden: names that are no rules where no bracket follows them."""
    match body:
        case tuple():
            if any(isinstance(n, syntax.Assign) and n.name == "w" for s in body if not isinstance(s, syntax.Match) for n in nodes(s)):
                return True
            match body[-1] if body else None:
                case syntax.Match(arms=arms):
                    return any(gives_weights(a.body, unit, hidden) for a in arms)
                case syntax.Return(value=value):
                    return gives_weights(value, unit, hidden)
            return False
        case syntax.Pipe(stages=stages):
            return gives_weights(stages[-1], unit, hidden)
        case syntax.Per(body=inner):
            return gives_weights(inner, unit, hidden)
        case syntax.If(then=then, otherwise=otherwise):
            return gives_weights(then, unit, hidden) or gives_weights(otherwise, unit, hidden)
        case syntax.Name(id=name) if name in hidden:
            return False
        case syntax.Name(id=name) | syntax.Call(callee=name) if name not in FUNCTIONS | BUILTIN_NAMES:
            found = unit.find_rule(name)
            return bool(found and writes_weights(*found))
        case _:
            return False
