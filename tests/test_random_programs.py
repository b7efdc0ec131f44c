"""Random programs over all constructs of the language: their texts, their Programs, and what every backend makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from agreement import Given, Step, furthest, run
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from strategies import WHOLE, Case, cases, examples, texts

import updsl
from updsl.core.ir import Program
from updsl.core.ops import OPS
from updsl.core.show import canonical, show
from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.elaborate import elaborate
from updsl.front.files import library
from updsl.front.module import make_module
from updsl.front.parse import parse
from updsl.front.text import to_text
from updsl.front.unit import load_unit

TOLERANCE = 1e-9
SINGLE = 2e-5
MOVES, PERTURBED, LEFT_OUT = 1e-5, 1e-7, 0.15
SLICE, SEEDS, QUICK_SEEDS = 100, range(20), range(100, 103)
"""2,000 programs between interpreter and torch in the nightly run, and 3 slices of 50 of others in the quick one."""


def result(case: Case, backend: str, steps: Any = None, dtype: torch.dtype = torch.float64, weights: Any = None) -> list[Given]:
    return run(rule_of(case), backend, weights or case.weights, steps or case.steps, case.lr, case.groups, case.seed, dtype)


RULES: dict[str, updsl.Rule] = {}


def rule_of(case: Case) -> updsl.Rule:
    """The case's rule, made once."""
    if case.text not in RULES:
        RULES.clear()
        RULES[case.text] = updsl.parse(case.text)
    return RULES[case.text]


def assert_same(one: list[Given], other: list[Given], tolerance: float = TOLERANCE, states: bool = True) -> None:
    worst, where = furthest(one, other, states)
    assert worst <= tolerance, f"{where}: {worst:.1e}"


# --- texts and Programs ----------------------------------------------------------------------------------------------


@examples(1.5)
@given(texts())
def test_a_tree_written_down_reads_as_the_same_tree(drawn) -> None:
    """parse(to_text(f)) == f"""
    tree = parse(Source("main.upd", drawn[0]))
    again = to_text(tree)
    assert parse(Source("main.upd", again)) == tree
    assert to_text(parse(Source("main.upd", again))) == again


@examples(0.4)
@given(cases())
def test_a_program_shown_elaborates_to_itself(case) -> None:
    """The text that `show` prints of each class's Program elaborates to an equal one."""
    rule = rule_of(case)
    state = rule.init(case.weights, groups=case.groups)
    engine = rule.engine(state.layout, True, "interpret")
    shown = {}
    for tensor in state.layout.tensors:
        shown.setdefault(engine.elaborated.class_of[tensor.name], tensor)
    for number, tensor in shown.items():
        program = engine.elaborated.programs[number]
        assert_equal(program, read_back(show(program, rule.params), tensor, state.layout.overridden))


def read_back(text: str, tensor: Any, overridden: frozenset[str]) -> Program:
    module = make_module(load_unit(Source("shown.upd", text), "shown", library().find))
    params = {name: p.default for name, p in module.parameters.items()}
    return elaborate(module, [tensor], params, overridden & set(params)).programs[0]


def assert_equal(one: Program, other: Program) -> None:
    a, b = canonical(one), canonical(other)
    for field in fields(Program):
        if field.name != "inputs":  # an input that is declared and not read by this class is not shown
            assert getattr(a, field.name) == getattr(b, field.name), field.name


# --- backends --------------------------------------------------------------------------------------------------------


def check_torch(case: Case) -> None:
    assert_same(result(case, "torch"), result(case, "interpret"))


def slice_of(number: int, size: int) -> None:
    """`size` programs from a seed, in the interpreter and in torch."""
    test = given(cases())(check_torch)
    seed(number)(settings(max_examples=size, database=None, phases=WHOLE[2:3])(test))()


@pytest.mark.parametrize("number", QUICK_SEEDS)
def test_torch_equals_the_interpreter(number) -> None:
    slice_of(number, SLICE // 2)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", SEEDS)
def test_torch_equals_the_interpreter_on_two_thousand_programs(number) -> None:
    slice_of(number, SLICE)


@examples(0.25)
@given(cases(missing=True))
def test_gradients_may_be_missing_at_some_steps(case) -> None:
    check_torch(case)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@examples(0.03)
@given(cases(steps=3))
def test_torch_compile_equals_the_interpreter(case) -> None:
    torch.compiler.reset()
    assert_same(result(case, "inductor"), result(case, "interpret"))


def moved(x: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return {key: moved(value, change) for key, value in x.items()} if isinstance(x, dict) else change(np.asarray(x))


def every_input(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> Case:
    """Every gradient, weight and input changed."""
    steps = tuple(replace(s, g=moved(s.g, change), inputs=moved(s.inputs, change)) for s in case.steps)
    return replace(case, weights=moved(case.weights, change), steps=steps)


def perturbed(case: Case, signs: bytes) -> Case:
    """Every entry moved by 1e-7 of itself, up or down."""
    pattern = np.where(np.frombuffer(signs, np.uint8) & 1, PERTURBED, -PERTURBED)
    return every_input(case, lambda x: x * (1 + np.resize(pattern, x.shape)))


def test_float32_is_close_where_the_program_is_steady(record_property) -> None:
    """Within 2e-5, for programs whose result moves by less than 1e-5 when every input moves by 1e-7 of itself; few others are left out."""
    seen: Counter[str] = Counter()

    @examples(0.25)
    @given(cases(), st.lists(st.binary(min_size=61, max_size=61), min_size=2, max_size=2))
    def check(drawn, patterns) -> None:
        case = every_input(drawn, lambda x: x.astype(np.float32).astype(np.float64))
        expected = result(case, "interpret")
        steady = all(furthest(result(perturbed(case, signs), "interpret"), expected, states=False)[0] < MOVES for signs in patterns)
        seen["steady" if steady else "left out"] += 1
        if steady:
            assert_same(result(case, "torch", dtype=torch.float32), expected, SINGLE, states=False)

    check()
    share = seen["left out"] / seen.total()
    record_property("left_out", share)
    print(f"left out: {share:.1%} of {seen.total()} programs")
    assert share <= LEFT_OUT


# --- causality, order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["interpret", "torch"])
def test_a_step_changes_nothing_before_it(backend) -> None:
    """Another gradient at step k, and the steps before k are the same to the bit."""

    @examples(0.1)
    @given(cases(), st.integers(1, 4))
    def check(case, k) -> None:
        other = list(case.steps)
        other[k] = replace(other[k], g=moved(other[k].g, lambda x: 1.5 - 3 * x))
        assert_same(result(case, backend, other)[:k], result(case, backend)[:k], 0.0)

    check()


@examples(0.15)
@given(cases(missing=True))
def test_the_order_of_tensors_does_not_matter(case) -> None:
    def turned(x: Any) -> Any:
        return dict(reversed(x.items())) if isinstance(x, dict) else x

    steps = tuple(Step(turned(s.g), {name: turned(x) for name, x in s.inputs.items()}, s.set) for s in case.steps)
    expected = result(case, "interpret")
    assert_same(result(case, "torch", steps, weights=turned(case.weights)), expected)
    assert_same(result(case, "interpret", steps, weights=turned(case.weights)), expected)


# --- the strategy ----------------------------------------------------------------------------------------------------

NOT_WRITTEN = {"Law", "Example", "ExampleSetting", "Quantifier", "Array", "Use"}
"""Declarations beside rules and functions; they are no part of a Program."""


def nodes(x: Any) -> Iterator[Any]:
    if isinstance(x, tuple):
        for part in x:
            yield from nodes(part)
    elif isinstance(x, syntax.Node):
        yield x
        for field in fields(x):
            if not field.name.endswith("span"):
                yield from nodes(getattr(x, field.name))


def test_every_construct_is_drawn() -> None:
    """Every kind of node of the tree, every function of the table, every scope, type of a state, and kind of input stands in some program."""
    seen: set[str] = set()

    @settings(max_examples=400, phases=WHOLE[2:3])
    @given(texts())
    def collect(drawn) -> None:
        for node in nodes(parse(Source("main.upd", drawn[0])).declarations):
            seen.add(type(node).__name__)
            match node:
                case syntax.Call(callee=name) | syntax.Name(id=name):
                    seen.add(name)
                case syntax.ScopeName(name=name) | syntax.InputItem(kind=name):
                    seen.add(name)
                case syntax.StateItem(dtype=str() as name):
                    seen.add(name)
                case syntax.Binary(op=name) | syntax.Unary(op=name) | syntax.Clip(op=name):
                    seen.add(name)
                case syntax.Compare(rest=rest):
                    seen.update(op for op, _ in rest)

    collect()
    kinds = {c.__name__ for c in vars(syntax).values() if isinstance(c, type) and issubclass(c, syntax.Node) and c is not syntax.Node} - NOT_WRITTEN
    functions = {op.name for op in OPS.values() if op.text == "call" and op.kind != "core"} | {"min", "max", "history", "dim"}
    rest = (
        "element row column block tensor group all stream matrix samples float32 bfloat16 float16 float64 + - * / @ ^ and or not < <= > >= != == ~ "
        "g it w lr t batch name rows cols numel ndim tensors pi"
    )
    assert kinds | functions | set(rest.split()) <= seen | {"element", "File"}


@examples(2)
@given(texts())
def test_nothing_is_dead(drawn) -> None:
    """Whatever a text declares is read in it: names, states, inputs, parameters, functions, rules."""
    file = parse(Source("main.upd", drawn[0]))
    declared, read = Counter({"feed": 0}), Counter()
    for node in nodes(file.declarations):
        match node:
            case syntax.Local(name=name) | syntax.Let(name=name) | syntax.StateItem(name=name) | syntax.InputItem(name=name):
                declared[name] += 1
            case syntax.Fn(name=name) | syntax.Rule(name=name) | syntax.Parameter(name=name):
                declared[name] += 1
            case syntax.Name(id=name) | syntax.Call(callee=name):
                read[name] += 1
    assert {name for name in declared if not read[name]} == {"main"}
