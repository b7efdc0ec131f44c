"""What a rule's text says and seldom means: values that nothing reads, rules applied without an arrow, stages that step on where one before them skips,
averages kept in too few bits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from updsl.core.diagnostic import Diagnostic, Label
from updsl.core.ir import Apply, Const, Expr, Reduce, Ref, State, children
from updsl.core.source import Span
from updsl.front import syntax
from updsl.front.contents import nodes
from updsl.front.module import Module
from updsl.front.sites import sites_of
from updsl.laws.lints.flow import Flow, is_clock

BITS = {"bfloat16": 8, "float16": 11}
"""Significant bits, the leading one included."""
SLOW = 0.99
SKIPS = re.compile(r"skip(ped|\d*)")
"""What the condition of a `skip` is called in a Program."""

# --- values that nothing reads ---------------------------------------------------------------------------------------


def unused_value(module: Module, rule: syntax.Rule) -> Iterator[Diagnostic]:
    """Locals, `let`s and states that neither what the rule gives nor a watch depends on."""
    if not isinstance(rule.body, tuple):
        return
    made: dict[str, tuple[Span, str]] = {}
    feeds: dict[str, set[str]] = {}
    read = _sorted(rule.body, made, feeds)
    waiting = list(read)
    while waiting:
        for name in feeds.get(waiting.pop(), set()) - read:
            read.add(name)
            waiting.append(name)
    for name, (span, what) in made.items():
        if name not in read:
            says = f"the state `{name}` is kept, and nothing that the rule gives reads it" if what == "state" else f"`{name}` is computed, and nothing reads it"
            last = rule.body[-1]
            labels = (Label(last.value.span, "this does not need it"),) if isinstance(last, syntax.Return) else ()
            yield Diagnostic("unused-value", says, span, labels=labels, help=f"delete it, or use it; `watch {name} = …` shows it outside", severity="warning")


def _sorted(statements: Iterable[syntax.Statement], made: dict, feeds: dict[str, set[str]], under: frozenset[str] = frozenset()) -> set[str]:
    """The names that what leaves the rule reads; into `made` those that are set, into `feeds` what each of them reads. under: what a block's count reads."""
    read: set[str] = set()
    for s in statements:
        match s:
            case syntax.Local(name=name, value=e) | syntax.Let(name=name, value=e):
                made.setdefault(name, (s.name_span, "value"))
                feeds.setdefault(name, set()).update(_names(e), under)
            case syntax.Assign(name="w", value=e):
                read |= _names(e)
            case syntax.Assign(name=name, value=e):
                feeds.setdefault(name, set()).update(_names(e), under)
            case syntax.State(items=items):
                for i in items:
                    made.setdefault(i.name, (i.name_span, "state"))
                    feeds.setdefault(i.name, set()).update(_names(i))
            case syntax.RepeatBlock(body=body) | syntax.Every(body=body):
                counts = _names(s.count) | (_names(s.start) if isinstance(s, syntax.Every) else set())
                read |= _sorted(body, made, feeds, under | counts)
            case syntax.Reset(names=names, condition=c) if names:
                for n in names:
                    feeds.setdefault(n.id, set()).update(_names(c), under)
            case syntax.Match(arms=arms):
                for a in arms:
                    read |= _names(a.condition)
                    read |= _sorted(a.body, made, feeds, under) if isinstance(a.body, tuple) else _names(a.body)
            case _:
                read |= _names(s)
    return read


def _names(tree: object) -> set[str]:
    return {n.id if isinstance(n, syntax.Name) else n.callee for n in nodes(tree) if isinstance(n, (syntax.Name, syntax.Call))}


# --- rules without an arrow ------------------------------------------------------------------------------------------


def rule_without_arrow(module: Module, rule: syntax.Rule) -> Iterator[Diagnostic]:
    """Rules within an expression: they are applied to what flows there, which the text does not show. Whole branches are as plain as whole stages."""
    sites = sites_of(rule, module.unit)
    branches = {id(n) for s in nodes(rule.body) if isinstance(s, syntax.Local | syntax.Let | syntax.Assign) for n in _branches(s.value, False)}
    for node, in_stage in sites.nodes:
        if not in_stage and id(node) not in branches and isinstance(node, syntax.Name | syntax.Call) and sites.applies_rule(node, in_stage):
            name = node.id if isinstance(node, syntax.Name) else node.callee
            yield Diagnostic(
                "rule-without-arrow",
                f"`{name}` is a rule, and nothing says what it is applied to: it is what flows here, `it`",
                node.span,
                help=f"write `(it → {node.span.text})`, or what else it is meant for",
                severity="warning",
            )


def _branches(e: syntax.Expr, inside: bool) -> Iterator[syntax.Expr]:
    """All that an `if` chooses from."""
    match e:
        case syntax.If(then=a, otherwise=b):
            yield from _branches(a, True)
            yield from _branches(b, True)
        case syntax.Per(body=body) if inside:
            yield from _branches(body, True)
        case _ if inside:
            yield e


# --- stages that step on ---------------------------------------------------------------------------------------------


def steps_after_skip(flow: Flow) -> Iterator[Diagnostic]:
    """States that take in the 0 that a stage gives where it skips, and are not frozen with it."""
    above = [flow.behind(b.expr) for name, b in flow.bindings.items() if SKIPS.fullmatch(name)]
    for name, b in flow.bindings.items():
        stage, _, last = name.rpartition(".")
        if not stage or not SKIPS.fullmatch(last) or flow.behind(b.expr) in above:
            continue
        gives = _Reader(flow, name, stage)
        for state, e in flow.commits.items():
            if state in flow.kept and not state.startswith(f"{stage}.") and not is_clock(state) and not flow.states[state].type.window and gives.reaches(e):
                here, there = flow.place(state, flow.states[state].span), flow.place(name, b.span)
                if here != there:
                    skipping = stage.split(".")[0].split("#")[0]
                    yield Diagnostic(
                        "steps-after-skip",
                        f"`{state}` takes in a 0 where `{skipping}` skips the step",
                        here,
                        labels=(Label(there, "gives 0 there, and only its own states stay as they are"),),
                        help="to leave the step out everywhere, move the `skip when …` into the rule that applies both",
                        severity="warning",
                    )
                    break


class _Reader:
    """Which values depend on what a skipping stage gives: the choice of 0 where its condition holds."""

    def __init__(self, flow: Flow, condition: str, stage: str):
        self.flow, self.condition, self.stage = flow, condition, stage
        self.known: dict[str, bool] = {}

    def reaches(self, e: Expr) -> bool:
        match e:
            case Apply(op="select", args=(Ref(kind="value", name=name), Const(value=0.0), _)) if name == self.condition:
                return True
            case Ref(kind="value", name=name):
                if name not in self.known:
                    self.known[name] = False
                    y = self.flow.yields.get(name)
                    self.known[name] = any(map(self.reaches, (self.flow.bindings[name].expr,) if y is None else (y.inner, y.outer)))
                return self.known[name]
            case _:
                return any(map(self.reaches, children(e)))


# --- averages in too few bits ----------------------------------------------------------------------------------------


def narrow_state(flow: Flow) -> Iterator[Diagnostic]:
    """States of 16 bits that keep 99 % and more of themselves."""
    for name, s in flow.states.items():
        if s.dtype in BITS and name in flow.kept and not s.type.window:
            kept = _kept(flow, s, flow.commits[name])
            if kept is not None and SLOW <= kept < 1:
                lost = 2.0 ** -(BITS[s.dtype] + 1) / (1 - kept)
                yield Diagnostic(
                    "narrow-state",
                    f"`{name}` is a {s.dtype}, and takes in {1 - kept:.2g} of what is new: what is within {min(lost, 9.99):.0%} of it does not move it",
                    flow.place(name, s.span),
                    help=f"keep it in 32 bits: `state {name.rsplit('.', 1)[-1]} = … as float32`",
                    severity="warning",
                )


def _kept(flow: Flow, s: State, e: Expr) -> float | None:
    """The factor of the state's old value in the new one; the largest, of a choice; None where it is no plain factor."""
    match e:
        case Ref(kind="state", name=name):
            return 1.0 if name == s.name else 0.0
        case Ref(kind="value", name=name) if name in flow.yields:
            y = flow.yields[name]
            return _kept(flow, s, y.inner)
        case Ref(kind="value", name=name):
            return _kept(flow, s, flow.bindings[name].expr)
        case Ref() | Const():
            return 0.0
        case Apply(op="select", args=(_, a, b)):
            parts = [x for x in (_kept(flow, s, a), _kept(flow, s, b)) if x is not None and x < 1]
            return max(parts, default=None)
    parts = [_kept(flow, s, a) for a in children(e)]
    if all(x == 0 for x in parts):
        return 0.0
    if isinstance(e, Reduce) or None in parts:
        return None
    a, *others = (x for x in parts if x is not None)
    b = others[0] if others else 0.0
    match e.op:
        case "store" | "spread":
            return a
        case "neg":
            return -a
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            numbers = [flow.number(x) for x in e.args]
            factor = numbers[1] if b == 0 else numbers[0] if a == 0 else None
            return None if factor is None else factor * (a + b)
        case "div":
            number = flow.number(e.args[1])
            return None if b or not number else a / number
    return None
