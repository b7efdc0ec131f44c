"""What a reader of LANGUAGE expects where two backends could agree and both be wrong: expected numbers, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Step, run

import updsl

A, B = [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0]
BOTH = {"a": A, "b": B}
BACKENDS = ("interpret", "torch")


def last(text: str, grads: list[dict[str, Any]], backend: str, lr: float = 0.5) -> Any:
    """What the last of several steps gives."""
    names = dict.fromkeys(n for g in grads for n in g)
    weights = {n: np.zeros(np.shape(next(g[n] for g in grads if n in g))) for n in names}
    steps = [Step({n: np.array(x, np.float64) for n, x in g.items()}) for g in grads]
    return run(updsl.parse(text), backend, weights, steps, lr)[-1]


LATE = {
    "a name": "rule q:\n    k = 1 - 0.5^t\n    return 0*g + k\n",
    "a name, under skip": "rule q:\n    skip when norm(g) > 50 per all\n    k = 1 - 0.5^t\n    return 0*g + k\n",
    "a name, after a reset": "rule q:\n    reset when norm(g) > 50\n    k = 1 - 0.5^t\n    return 0*g + k\n",
    "a let in a block": "rule q:\n    let k = 0\n    every 1:\n        k ← 1 - 0.5^t\n    return 0*g + k\n",
    "a restarted clock": "rule q:\n    every 3:\n        reset\n    return 0*g + 1 - 0.5^t\n",
    "a parameter": "rule q = f(1 - 0.5^t)\nrule f(k) = 0*g + k\nrule main = q\n",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", LATE.values(), ids=LATE)
def test_a_late_tensor_counts_its_own_steps(text: str, backend: str) -> None:
    given = last(text, [{"a": A}, BOTH], backend)
    np.testing.assert_allclose(given.out["a"], np.full((2, 2), 0.75))
    np.testing.assert_allclose(given.out["b"], [0.5, 0.5])


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_a_branch_are_counted_for_each_instance(backend: str) -> None:
    text = "rule inner(k) = if ndim > k then (if tensors > 1 then 10*it else it) else it\nrule main = g → inner(0) → inner(1)\n"
    given = last(text, [BOTH], backend)
    np.testing.assert_allclose(given.out["a"], 10 * np.array(A))
    np.testing.assert_allclose(given.out["b"], 10 * np.array(B))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_state_starts_from_the_callers_value(backend: str) -> None:
    text = "rule f(a):\n    state s = a\n    reset when norm(g) > 5\n    s ← s + 1\n    return 0*g + s\nrule main = f(norm(g))\n"
    np.testing.assert_allclose(last(text, [{"a": [3.0]}, {"a": [6.0]}], backend).out["a"], [7.0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_per_row_is_transposed_to_one_per_column(backend: str) -> None:
    given = last("rule q = g * (sum(g) per row).T\n", [{"a": A}], backend)
    np.testing.assert_allclose(given.out["a"], np.array(A) * np.sum(A, axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_one_class_only_is_of_each_tensor(backend: str) -> None:
    text = "rule q:\n    x = if ndim > 1 then (norm(g) per all) else norm(g)\n    state m = 0\n    m ← 0.5*m + x\n    watch m = m\n    return 0*g + m\n"
    given = last(text, [BOTH, BOTH], backend)
    whole, own = np.sqrt(30), np.sqrt(5)  # `per all` in a branch: the tensors that take it
    np.testing.assert_allclose(given.out["a"], np.full((2, 2), 1.5 * whole))
    np.testing.assert_allclose(given.out["b"], np.full(2, 1.5 * own))
    assert set(given.watch["m"]) == {"a", "b"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_combines_with_a_tensor_in_dot(backend: str) -> None:
    np.testing.assert_allclose(last("rule q = 0*g + dot(2, g)\n", [{"a": A}], backend).out["a"], np.full((2, 2), 20.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bernoulli_draws_both_values(backend: str) -> None:
    drawn = last("bernoulli(0.5) + 0*it\n", [{"a": np.ones((20, 20)).tolist()}], backend).out["a"]
    assert 100 < drawn.sum() < 300
    assert set(np.unique(drawn)) == {0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", ["0*inf*it", "0/0", "norm(it)*inf*0"])
def test_bernoulli_of_nan_is_false(backend: str, p: str) -> None:
    drawn = last(f"(if bernoulli({p}) then 1 else 2) + 10*bernoulli({p}) + 0*it\n", [{"a": [[1, 2]]}], backend).out["a"]
    assert drawn.tolist() == [[2, 2]]


REFUSED = {
    "rule-or-function": "rule q:\n    x = if ndim > 1 then norm else 1\n    return x*g\n",
    "stage-ignores-input": "norm(g) → (if ndim > 1 then 1 else 2)\n",
    "not-a-function": "rule q:\n    ema = 0.5\n    return g → ema(0.9)\n",
    "window-outside": "mean((g → history(3)) → clip abs > 2)\n",
    "per-unused": "norm(g) → ema per all\n",
}


@pytest.mark.parametrize("code", REFUSED)
def test_refused(code: str) -> None:
    with pytest.raises(updsl.UpdslError) as caught:
        updsl.parse(REFUSED[code])
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_a_reduction_over_values_of_two_scopes_is_refused() -> None:
    rule = updsl.parse("rule q:\n    s = sum(if ndim > 1 then (norm(g) per tensor) else lr) per all\n    return 0*g + s\n")
    tensors = {"a": np.ones((2, 2)), "b": np.ones(2)}
    state = rule.interpret.init(tensors)
    with pytest.raises(updsl.UpdslError, match="one value for each tensor for `a`, and one value for each group for `b`"):
        rule.interpret.update(tensors, state, lr=0.5)


def test_the_size_of_a_matrix_input_is_checked_before_the_step() -> None:
    rule = updsl.parse("rule q:\n    input P as matrix\n    return P.T @ (P @ g)\n")
    state = rule.interpret.init({"a": np.ones((2, 3))})
    with pytest.raises(updsl.UpdslError, match="`P` of `a` has shape \\(1, 3\\), and must be n×2"):
        rule.interpret.update({"a": np.ones((2, 3))}, state, P={"a": np.ones((1, 3))})
