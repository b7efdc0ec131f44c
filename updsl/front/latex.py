"""A rule that checks, as LaTeX, in the notation of the literature: an algorithm box of aligned lines, without its documentation and watches.

m = x defines m, m ← x gives a state its new value. Products of tensors are by entry, unless they are of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator

from updsl.front import syntax
from updsl.front.companions import companions
from updsl.front.elaborate import deep_recursion
from updsl.front.formula import Formula, formula_of
from updsl.front.letters import word
from updsl.front.module import Module
from updsl.front.unit import Unit

LIST = r",\ "
BREAK = " \\\\\n"
APART = " \\\\[1ex]\n"


def to_latex(module: Module) -> str:
    """The rule with the rules and functions that its file brings along, as one `aligned` block."""
    blocks = [BREAK.join("& " + r"\quad " * depth + text for depth, text in lines) for lines in formulas(module)]
    return "\\begin{aligned}\n" + APART.join(blocks) + "\n\\end{aligned}"


def formulas(module: Module) -> list[list[tuple[int, str]]]:
    """The lines of the rule, then of each rule and function that it brings along; each line with how deep it is indented."""
    with deep_recursion():
        return [list(_declaration(d, unit)) for d, unit in [(module.rule, module.unit), *companions(module)]]


def _declaration(d: syntax.Rule | syntax.Fn, unit: Unit) -> Iterator[tuple[int, str]]:
    formula = formula_of(d, unit)
    parameters = LIST.join(formula.names[p.name] for p in d.parameters)
    head = word(d.name) + (f"({parameters})" if parameters else "")
    if isinstance(d, syntax.Fn):
        yield 0, f"{head} = {formula.part(d.body)}"
        return
    yield 0, spaced(keyword("rule"), head)
    if isinstance(d.body, tuple):
        yield from statements(d.body, formula, 1)
    else:
        yield 1, spaced(keyword("return"), formula(d.body))


def statements(body: tuple[syntax.Statement, ...], formula: Formula, depth: int) -> Iterator[tuple[int, str]]:
    for s in body:
        yield from statement(s, formula, depth)


def statement(s: syntax.Statement, formula: Formula, depth: int) -> Iterator[tuple[int, str]]:
    """The lines of a statement."""
    match s:
        case syntax.Input(items=items):
            yield depth, spaced(keyword("input"), LIST.join(_input(i, formula) for i in items))
        case syntax.State(items=items):
            yield depth, spaced(keyword("state"), LIST.join(_state(i, formula) for i in items))
        case syntax.Local(name=name, value=value):
            yield depth, f"{formula.names[name]} = {formula.part(value)}"
        case syntax.Let(name=name, value=value) | syntax.Assign(name=name, value=value):
            yield depth, rf"{formula.names[name]} \leftarrow {formula.part(value)}"
        case syntax.RepeatBlock(count=count, body=body):
            yield depth, spaced(keyword("repeat"), formula.part(count), keyword("times"))
            yield from statements(body, formula, depth + 1)
        case syntax.Every(count=count, start=start, body=body):
            begin = () if start is None else (keyword("from"), formula.part(start))
            yield depth, spaced(keyword("every"), formula.part(count), keyword("steps"), *begin)
            yield from statements(body, formula, depth + 1)
        case syntax.Reset(names=names, condition=condition):
            what = LIST.join(formula.names[n.id] for n in names) or word("everything")
            yield depth, spaced(keyword("reset"), what, *(() if condition is None else (keyword("when"), formula.part(condition))))
        case syntax.Skip(condition=condition):
            yield depth, spaced(keyword("skip"), keyword("when"), formula.part(condition))
        case syntax.Match(arms=arms):
            yield from _match(arms, formula, depth)
        case syntax.Return(value=value):
            yield depth, spaced(keyword("return"), formula(value))


def _match(arms: tuple[syntax.Arm, ...], formula: Formula, depth: int) -> Iterator[tuple[int, str]]:
    """Arms that are expressions as cases; else each arm as a block."""
    cases = [(formula(a.body), a.condition) for a in arms if not isinstance(a.body, tuple)]
    if len(cases) == len(arms):
        yield depth, spaced(keyword("return"), formula.choice(cases))
        return
    for i, arm in enumerate(arms):
        if arm.condition is None:
            yield depth, keyword("else")
        else:
            yield depth, spaced(keyword("else if" if i else "if"), formula.part(arm.condition))
        if isinstance(arm.body, tuple):
            yield from statements(arm.body, formula, depth + 1)
        else:
            yield depth + 1, spaced(keyword("return"), formula(arm.body))


def _input(i: syntax.InputItem, formula: Formula) -> str:
    kind = (keyword("as"), word(i.kind)) if i.kind in ("matrix", "samples") and i.name != i.kind else ()
    return spaced(formula.names[i.name], *_per(i.scope, formula), *kind)


def _state(i: syntax.StateItem, formula: Formula) -> str:
    start = f"{formula.names[i.name]} = {formula.part(i.init)}"
    return spaced(start, *_per(i.scope, formula), *(() if i.dtype is None else (keyword("as"), word(i.dtype))))


def _per(scope: syntax.ScopeName | None, formula: Formula) -> tuple[str, ...]:
    return () if scope is None else (keyword("per"), formula.scope_name(scope))


def keyword(text: str) -> str:
    return r"\mathbf{" + text.replace(" ", r"\ ") + "}"


def spaced(*parts: str) -> str:
    return r"\ ".join(parts)
