"""Plans: how often a step goes through memory, and that what makes it fewer keeps the meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from agreement import distance
from hypothesis import given
from strategies import Case, cases, examples

import updsl
from updsl import pipeline
from updsl.back.cpp_covers import uncovered
from updsl.back.interpret import Interpreter
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.core.ir import Apply, Binding, Const, Expr, Ref, children, is_shared, rebuild, roots, walk
from updsl.core.plan import Plan
from updsl.core.straight import blocks_due
from updsl.middle.flat import Programs, flat, tidy
from updsl.middle.lift import lift
from updsl.middle.pushdown import pushdown
from updsl.middle.rewrite import averaged, simplified
from updsl.middle.sweeps import Levels, to_plan

J1 = "norm per column → clip z > 2.5 per tensor → ema(0.9, debias = false)"
J2 = "zclip"
J3 = "clip norm > 1 per all → adamw"

LONGER = {
    J1: """rule long:
    n = norm(g) per column
    x = if n == 0 then 0 else g / n
    centre = mean(x) per tensor
    spread = std(x) per tensor
    m = abs(x - centre) / spread
    y = if m > 2.5 then centre + (x - centre) * (2.5 / m) else x
    state e = 0
    e ← 0.9*e + 0.1*y
    return e
""",
    "ema": """rule long:
    state m = 0
    kept = m * 0.9
    more = 0.1 * g
    m ← kept + more
    left = 1 - 0.9^t
    return (1 / left) * m
""",
    "adamw": """rule long:
    state first = 0, second = 0
    part = 0.1 * g
    first ← part + first * 0.9
    squared = g * g
    second ← 0.999 * second + squared * 0.001
    average = first / (1 - 0.9^t)
    root = sqrt(second / (1 - 0.999^t)) + 1e-8
    step = average / root
    decayed = w - lr * 0.01 * w
    w ← decayed - lr * step
""",
    J3: """rule long:
    state m = 0, v = 0
    size = norm(g) per all
    beyond = size > 1
    x = if beyond then g * (1 / size) else g
    twice = x + x
    half = twice / 2
    m ← 0.9*m + (1 - 0.9)*half
    v ← 0.999*v + (1 - 0.999)*x*x
    a = m / (1 - 0.9^t)
    b = v / (1 - 0.999^t)
    w ← w - lr*(a / (sqrt(b) + 1e-8) + 0.01*w)
""",
}
"""The same rules, written out."""


def rule_of(text: str) -> updsl.Rule:
    return updsl.parse(text) if " " in text else updsl.load(text)


def programs_of(rule: updsl.Rule, *shapes: tuple[int, ...]) -> Programs:
    tensors = [Tensor(f"x{i}", shape) for i, shape in enumerate(shapes)]
    found = pipeline.elaborate(rule.module, tensors, rule.params, frozenset(), True)
    return dict(enumerate(pipeline.prepared(p) for p in found.programs))


def plan_of(text: str) -> Plan:
    """Of a matrix in float32."""
    return to_plan(programs_of(rule_of(text), (6, 4)), frozenset())


@pytest.mark.parametrize(
    ("text", "sweeps", "moved", "idle"),
    [
        (J1, 2, 20, 20),
        (J2, 2, 12, 4),
        (J3, 2, 32, 32),
        ("adamw", 1, 28, 28),
        ("ema", 1, 16, 16),
        ("sinkgd", 11, 48, 48),
        ("adafactor", 3, 24, 24),
        ("lamb", 3, 48, 48),
        ("adagc", 2, 12, 4),
        ("clip norm > 1 per all", 2, 12, 4),
        ("norm per row → clip z > 2.5", 2, 12, 12),
        ("g * min(1, 1 / norm(g))", 2, 12, 4),
        ("min(1, 1 / norm(g)) * g", 2, 12, 4),
        ("g * (1 / (norm(g) per column)) → clip z > 2.5", 2, 12, 12),
        ("sign", 1, 8, 8),
    ],
)
def test_memory_traffic(text: str, sweeps: int, moved: int, idle: int) -> None:
    plan = plan_of(text)
    assert (plan.sweeps, plan.bytes_of(0, lambda _: 4), plan.bytes_of(0, lambda _: 4, idle=True)) == (sweeps, moved, idle)


def spelled_out(programs: Programs) -> Programs:
    """The same step in a longer text: every op has a name of its own."""
    return {c: replace(p, body=tuple(spelled(b for b in p.body if isinstance(b, Binding)))) for c, p in programs.items()}


def spelled(body: Iterable[Binding]) -> Iterator[Binding]:
    numbers = count()

    def named(e: Expr) -> Iterator[Binding | Expr]:
        """Bindings, and last what stands for e."""
        if isinstance(e, Const) or is_shared(e.type):
            yield e
            return
        operands = []
        for a in children(e):
            *before, operand = named(a)
            yield from before
            operands.append(operand)
        made = Binding(f"({next(numbers)} long)", rebuild(e, tuple(operands)))
        yield made
        yield Ref(made.name, "value", e.type)

    for b in body:
        if is_shared(b.expr.type):
            yield b
            continue
        *before, whole = named(b.expr)
        yield from before
        yield replace(b, expr=whole)


def cost(plan: Plan, programs: Programs) -> list[int]:
    """Sweeps, and the traffic of all classes, of a usual step and of an idle one."""
    return [plan.sweeps, *(sum(plan.bytes_of(c, lambda _: 4, idle) for c in programs) for idle in (False, True))]


@pytest.mark.parametrize("text", [J1, J2, J3, "adamw", "ema", "sinkgd", "adafactor", "lamb", "adagc"])
def test_a_program_with_a_name_for_everything_costs_the_same(text: str) -> None:
    programs = flat(programs_of(rule_of(text), (6, 4), (5,)), frozenset())
    assert cost(to_plan(spelled_out(programs), frozenset()), programs) == cost(to_plan(programs, frozenset()), programs)


@pytest.mark.parametrize("text", LONGER)
def test_a_longer_text_costs_no_more(text: str) -> None:
    short, long = plan_of(text), plan_of(LONGER[text])
    assert long.sweeps == short.sweeps
    assert long.bytes_of(0, lambda _: 4) == short.bytes_of(0, lambda _: 4)


# --- passes ----------------------------------------------------------------------------------------------------------


def averages(programs: Programs) -> Programs:
    return {c: averaged(p) for c, p in programs.items()}


PASSES: list[Callable[[Programs], Programs]] = [tidy, averages, simplified, lift, pushdown]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("ema", 1),
        ("adamw", 2),
        ("rule r:\n    state v = 0\n    v ← 0.001*g^2 + v*0.999\n    return v", 1),
        ("rule r(beta = 0.9):\n    state v = 0\n    v ← beta*v + (1 - beta)*g\n    return v", 1),
        ("rule r:\n    state v = 0\n    v ← 0.9*v + g\n    return v", 0),
        ("rule r:\n    state v = 0\n    v ← 0.9*v + 0.2*g\n    return v", 0),
        ("rule r:\n    state v = 0\n    v ← 0.9*v - (1 - 0.9)*g\n    return v", 0),
    ],
)
def test_a_moving_average_is_one_op(text: str, count: int) -> None:
    (program,) = programs_of(rule_of(text), (3, 2)).values()
    assert sum(isinstance(n, Apply) and n.op == "average" for e in roots(program) for n in walk(e)) == count


def flat_of(case: Case) -> tuple[Programs, Any, Any, Any] | None:
    """The Programs of the case's first step, without blocks, and what runs them; None if kernels do not cover them."""
    rule = updsl.parse(case.text)
    state = rule.interpret.init(case.weights, groups=case.groups)
    engine = rule.engine(state.layout, True, "interpret")
    programs = dict(enumerate(engine.elaborated.programs))
    if any(map(uncovered, programs.values())):
        return None
    return flat(programs, blocks_due(programs, 1)), engine, state.layout, rule


def first_step(case: Case, programs: Programs, engine: Any, layout: Any, rule: Any) -> Any:
    """out and the weights of the first step, by the interpreter."""
    interpreter = Interpreter([programs[c] for c in sorted(programs)], engine.elaborated.class_of, layout.tensors)
    step = case.steps[0]
    values = {n: v for n, v in rule.params.items() if not isinstance(v, (bool, str))}
    params = {i: {**values, **group.params} for i, group in enumerate(layout.groups)}
    lr = {i: case.lr if group.lr is None else group.lr for i, group in enumerate(layout.groups)}
    inputs = {n: x if isinstance(x, dict) else {"": x} for n, x in step.inputs.items()}
    g = {n: np.asarray(x) for n, x in step.g.items() if n in engine.elaborated.class_of}
    given_ = Frame(g, dict(case.weights), dict(layout.group_of), lr, params, inputs, None, case.seed)
    return interpreter.step(RuleState(), given_)


@pytest.mark.parametrize("step", PASSES, ids=lambda f: f.__name__)
@examples(0.08)
@given(case=cases(steps=1))
def test_passes_keep_the_meaning_and_change_nothing_twice(step: Callable[[Programs], Programs], case: Case) -> None:
    found = flat_of(case)
    if found is None or any(isinstance(x, list) for x in case.steps[0].inputs.values()):
        return
    programs, *rest = found
    changed = step(programs)
    before, after = first_step(case, programs, *rest), first_step(case, changed, *rest)
    for n, x in before.out.items():
        assert distance(after.out[n], x) <= 1e-9
    for n, x in (before.weights or {}).items():
        assert distance(after.weights[n], x) <= 1e-9
    assert step(changed) == changed


@examples(0.08)
@given(case=cases(steps=1))
def test_random_programs_with_a_name_for_everything_cost_the_same(case: Case) -> None:
    found = flat_of(case)
    if found is not None:
        programs = found[0]
        assert cost(to_plan(spelled_out(programs), frozenset()), programs) == cost(to_plan(programs, frozenset()), programs)


@examples(0.08)
@given(case=cases(steps=1))
def test_pushing_down_never_costs_traffic(case: Case) -> None:
    found = flat_of(case)
    if found is not None:
        programs = found[0]
        plain = Levels(lift(programs), {}).plan(programs)
        best = to_plan(programs, frozenset())
        assert sum(best.bytes_of(c, lambda _: 4) for c in programs) <= sum(plain.bytes_of(c, lambda _: 4) for c in programs)


@pytest.mark.parametrize("name", updsl.library())
def test_every_rule_of_the_library_has_a_plan_or_a_reason(name: str) -> None:
    programs = programs_of(updsl.load(name), (6, 4), (5,))
    reasons = [r for r in map(uncovered, programs.values()) if r]
    if not reasons:
        plan = to_plan(programs, frozenset())
        assert plan.sweeps >= 1
        assert all(any(s.stores for s in plan.sweeps_of(c)) for c in programs)
