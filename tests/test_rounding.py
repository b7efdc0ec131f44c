"""16-bit gradients: arithmetic and statistics in float32, what depends on no tensor in float64, `out`, `w` and states rounded once, on assignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from agreement import distance
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import Case, cases

import updsl
from updsl.back import interpret, torch_layout
from updsl.core import numeric
from updsl.core.frame import Result, RuleState
from updsl.core.ir import Apply, Binding, Every, Expr, Program, State, Statement, rewrite
from updsl.runtime import arrays
from updsl.runtime.rule import advance

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SINGLE = 2e-5
"""How far float32 may be from float64, relative to an array's largest entry, where a perturbation of PERTURBED moves the result by less than MOVES."""
MOVES, PERTURBED, LEFT_OUT = 1e-5, 1e-7, 0.15
NEIGHBOURS = 0.01
"""Share of 16-bit entries that may be the other neighbour of the exact value. float32's error, 1e-6 of the largest entry or less, moves a value across the
middle of two numbers of float16 (1e-3 apart) in one of a thousand entries; a second rounding, or arithmetic in 16 bits, does so in tens of a hundred."""


# --- the interpreter, with the types of 16-bit gradients --------------------------------------------------------------


def typed(program: Program, half: str) -> Program:
    """The Program with every default type written out: states in float32, the weight in the gradient's type."""
    default = {"state": "float32", "weight": half}

    def stored(e: Expr) -> Expr:
        match e:
            case Apply("store", static=(kind, *of)) if kind in default and not e.type.boolean:
                return replace(e, static=(default[kind], *of))
            case _:
                return e

    def each(e: Expr) -> Expr:
        return rewrite(e, stored)

    def body(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        return tuple(map(statement, statements))

    def statement(s: Statement) -> Statement:
        match s:
            case Binding():
                return replace(s, expr=each(s.expr))
            case Every():
                return replace(s, body=body(s.body), yields=tuple(replace(y, inner=each(y.inner), outer=each(y.outer)) for y in s.yields))

    def state(s: State) -> State:
        return s if s.type.boolean or s.type.window else replace(s, dtype=s.dtype or "float32")

    return replace(
        program,
        body=body(program.body),
        states=tuple(map(state, program.states)),
        commits=tuple((name, each(e)) for name, e in program.commits),
        out=each(program.out),
        weight=None if program.weight is None else each(program.weight),
        watches=tuple(replace(w, expr=each(w.expr)) for w in program.watches),
    )


@contextmanager
def of_sixteen_bits(half: str) -> Iterator[None]:
    """The interpreter rounds as for gradients of this type; a float64 `out` is rounded at last."""

    class Rounding(interpret.Interpreter):
        def __init__(self, programs: Any, class_of: Any, tensors: Any):
            super().__init__([typed(p, half) for p in programs], class_of, tensors)

        def step(self, state: RuleState, frame: Any) -> Result:
            result = super().step(state, frame)
            return replace(result, out={name: numeric.rounded(x, half) for name, x in result.out.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret, "Interpreter", Rounding)
        yield


# --- one step of both, from the same state ----------------------------------------------------------------------------


def each(x: Any, convert: Callable[[Any], Any]) -> Any:
    match x:
        case Mapping():
            return {key: each(value, convert) for key, value in x.items()}
        case tuple():
            return each(x[0], convert), x[1]
        case _:
            return convert(x)


def to_numpy(x: Any) -> np.ndarray:
    return np.asarray(arrays.to_numpy(x) if arrays.is_tensor(x) else x)


def one_step(rule: updsl.Rule, backend: str, case: Case, k: int, state: Any, w: Mapping[str, Any], change: Callable[[Any], Any]) -> tuple:
    """out, state, weights and watches of the step k + 1; `change` makes the arrays what the backend takes."""
    convert = arrays.to_torch if backend == "torch" else arrays.to_numpy
    step = case.steps[k]
    handed = {name: each(x, change) for name, x in step.inputs.items()}
    return advance(rule, backend, convert, each(step.g, change), state, each(w, change), case.lr, case.groups, step.set, handed)


class Tally:
    """How the steps of a test went: those compared and those left out, 16-bit entries, and how many of these are the other neighbour."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def compare(self, found: Any, expected: Any, where: str) -> None:
        """Entry by entry: within float32's error, and in 16 bits of the exact value's two neighbours."""
        if isinstance(expected, Mapping):
            assert set(found) == set(expected), where
            for key in expected:
                self.compare(found[key], expected[key], f"{where}, {key}")
            return
        if isinstance(expected, tuple):
            assert np.array_equal(to_numpy(found[1]), to_numpy(expected[1])), f"{where}: slots filled"
            self.compare(found[0], expected[0], where)
            return
        a, b = to_numpy(found).astype(np.float64), np.asarray(expected, np.float64)
        assert a.shape == b.shape, where
        near = SINGLE * np.abs(b).max(initial=0.0)
        ulp = torch.finfo(found.dtype).eps if found.dtype in HALVES.values() else 0.0
        gap = np.abs(a - b)
        assert (gap <= ulp * np.abs(b) + near).all(), f"{where}: {gap.max():.1e} of {np.abs(b).max():.1e}"
        if ulp:
            self.seen["entries"] += b.size
            self.seen["neighbours"] += int((gap > near).sum())


def moves(exact: tuple, others: list[tuple]) -> bool:
    """Whether a small change of all that goes in moves the result."""
    return any(_apart(a, b) >= MOVES for other in others for a, b in zip((exact[0], exact[2], exact[3]), (other[0], other[2], other[3]), strict=True))


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, Mapping):
        return max((_apart(a[key], b[key]) for key in a), default=0.0)
    return 0.0 if a is None else distance(b, a)


def perturbation(signs: bytes) -> Callable[[Any], np.ndarray]:
    """Every entry moved by PERTURBED of itself, up or down."""
    pattern = np.where(np.frombuffer(signs, np.uint8) & 1, PERTURBED, -PERTURBED)

    def change(x: Any) -> np.ndarray:
        x = to_numpy(x)
        return x if x.dtype == bool else x * (1 + np.resize(pattern, x.shape))

    return change


def with_values(state: Any, change: Callable[[Any], Any]) -> Any:
    """The state with its arrays changed."""
    return state.after(replace(state.kept, values=each(state.kept.values, change)))


def follow(case: Case, half: str, patterns: list[bytes], tally: Tally) -> None:
    """The steps of a program in 16 bits; at each the interpreter takes the same step from the same state."""
    dtype = HALVES[half]
    rule, rounding = updsl.parse(case.text), updsl.parse(case.text)
    state = rule.init(case.weights, groups=case.groups, seed=case.seed)
    w = each(case.weights, lambda x: torch.as_tensor(x).to(dtype))
    exact = lambda x: numeric.rounded(np.asarray(x, np.float64), half)
    for k in range(len(case.steps)):
        before, weights = with_values(state, to_numpy), each(w, to_numpy)
        with of_sixteen_bits(half):
            expected = one_step(rounding, "interpret", case, k, before, weights, exact)
        unrounded = one_step(rule, "interpret", case, k, before, weights, exact)
        moved = []
        for signs in patterns:
            change = perturbation(signs)
            moved.append(one_step(rule, "interpret", case, k, with_values(before, change), weights, lambda x, change=change: change(exact(x))))
        found = one_step(rule, "torch", case, k, state, w, lambda x: torch.as_tensor(np.array(to_numpy(x))).to(dtype))
        if moves(unrounded, moved):
            tally.seen["left out"] += 1
        else:
            tally.seen["steady"] += 1
            check_step(found, expected, dtype, f"step {k + 1}", tally)
        state, w = found[1], w | (found[2] or {})


def check_step(found: tuple, expected: tuple, dtype: torch.dtype, where: str, tally: Tally) -> None:
    assert all(x.dtype == dtype for x in (*found[0].values(), *(found[2] or {}).values())), where
    for what, a, b in zip(("out", "w", "watch"), (found[0], found[2], found[3]), (expected[0], expected[2], expected[3]), strict=True):
        if b is not None:
            tally.compare(a, b, f"{where}, {what}")
    tally.compare(found[1].kept.values, expected[1].kept.values, f"{where}, state")


def check(half: str, examples: int) -> None:
    tally = Tally()

    @settings(max_examples=examples, database=None, phases=(Phase.generate,))
    @given(cases(steps=3), st.lists(st.binary(min_size=61, max_size=61), min_size=2, max_size=2))
    def test(case: Case, patterns: list[bytes]) -> None:
        follow(case, half, patterns, tally)

    test()
    seen = tally.seen
    print(
        f"{half}: {seen['left out']} of {seen['left out'] + seen['steady']} steps left out; {seen['neighbours']} of {seen['entries']} entries round elsewhere"
    )
    assert seen["neighbours"] <= NEIGHBOURS * seen["entries"]
    assert seen["left out"] <= LEFT_OUT * (seen["left out"] + seen["steady"])


@pytest.mark.parametrize("half", HALVES)
def test_sixteen_bits_are_rounded_once(half: str) -> None:
    check(half, 20)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("half", HALVES)
def test_sixteen_bits_are_rounded_once_in_five_hundred_programs(half: str) -> None:
    check(half, 500)


def test_arithmetic_in_sixteen_bits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails where the backend computes in the gradient's own type."""
    monkeypatch.setattr(torch_layout, "HALVES", ())
    with pytest.raises(AssertionError):
        check("bfloat16", 5)


# --- what depends on no tensor ------------------------------------------------------------------------------------------

IN_FLOAT64 = {
    "parameters": "((1 - a) * 1e12) * g",
    "powers of t": "(((1 + 1e-12)^t - 1) * 1e12) * g",
    "lr": "((lr - (lr - 1e-12)) * 1e12) * g",
    "through a function": "f(1 - a) * g",
    "a choice": "(if a < 1 then (1 - a) * 1e12 else 0) * g",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("what", IN_FLOAT64)
def test_what_depends_on_no_tensor_is_computed_in_float64(what: str, dtype: torch.dtype) -> None:
    """Numbers 1e-12 apart are told apart: in float32 each of these would be 0."""
    rule = updsl.parse(f"fn f(x) = x * 1e12\nrule r(a = {1 - 1e-12!r}) = {IN_FLOAT64[what]}\n", name="r")
    g = {"x": torch.ones(2, 3, dtype=dtype)}
    state = rule.init(g)
    out, _, _, _ = rule.update(g, state, lr=0.5)
    assert out["x"].dtype == dtype
    np.testing.assert_allclose(out["x"].double(), np.ones((2, 3)), rtol=1e-3)
