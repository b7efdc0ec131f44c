"""A value over several tensors that a static `if`, a count or a start makes another for some of them is a value of each tensor."""

import numpy as np
import pytest
from agreement import Step, furthest, run

import updsl

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 2), "b.bias": (2,)}
GROUPS = [{"params": ["a.weight", "a.bias"], "lr": 1}, {"params": ["b.weight"], "lr": 2}, {"params": ["b.bias"], "lr": 3}]
LEVEL = {"a.weight": 10.0, "a.bias": 20.0, "b.weight": 30.0, "b.bias": 40.0}
"""The entries of each gradient."""

# rule: what it adds to 0*g on steps 1, 2, 3 of a.weight, a.bias, b.weight, b.bias
RULES = {
    """
    let u = (max(g) per group)
    u ← u + (if name ~ "bias" then 5*lr else (min(g) per group))
    return 0*g + u
    """: [(30, 25, 60, 55)] * 3,
    """
    let u = (max(g) per group)
    every 2:
        u ← u + (if name ~ "bias" then 5*lr else (min(g) per group))
    return 0*g + u
    """: [(20, 20, 30, 40), (30, 25, 60, 55), (20, 20, 30, 40)],
    """
    k = lr*(if ndim > 1 then 2 else 3)
    twice = 2*k
    return 0*g + twice
    """: [(4, 6, 8, 18)] * 3,
    """
    state k = 1
    k ← k + lr*(if name ~ "bias" then 2 else 3)
    return 0*g + k
    """: [(4, 3, 7, 7), (7, 5, 13, 13), (10, 7, 19, 19)],
    """
    state k = if name ~ "bias" then 1 else 2
    k ← 2*k
    return 0*g + k
    """: [(4, 2, 4, 2), (8, 4, 8, 4), (16, 8, 16, 8)],
    """
    state k = 0
    every ndim:
        k ← k + lr
    return 0*g + k
    """: [(0, 1, 0, 3), (1, 2, 2, 6), (1, 3, 2, 9)],
    """
    let k = lr
    repeat (2*ndim) times:
        k ← 2*k
    return 0*g + k
    """: [(16, 4, 32, 12)] * 3,
    """
    state k = 0
    k ← k + lr
    reset k when name ~ "weight"
    return 0*g + k
    """: [(0, 1, 0, 3), (0, 2, 0, 6), (0, 3, 0, 9)],
    """
    k = if name ~ "bias" then t else lr
    return 0*g + (sum(k → history(2)))
    """: [(1, 1, 2, 1), (2, 3, 4, 3), (2, 5, 4, 5)],
    """
    return 0*g + (sum(lr → history(1 + ndim)))
    """: [(1, 1, 2, 3), (2, 2, 4, 6), (3, 2, 6, 6)],
    """
    u = max(g) per all
    watch seen = if name ~ "bias" then lr else u
    return 0*g + u
    """: [(40, 40, 40, 40)] * 3,
}


@pytest.mark.parametrize("backend", ["interpret", "torch"])
@pytest.mark.parametrize("body", RULES, ids=range(len(RULES)))
def test_values_that_differ_are_of_each_tensor(body, backend):
    rule = updsl.parse(f"rule r:{body}")
    g = {name: np.full(shape, LEVEL[name]) for name, shape in SHAPES.items()}
    steps = run(rule, backend, {name: np.zeros(shape) for name, shape in SHAPES.items()}, [Step(g)] * 3, lr=1, groups=GROUPS)
    found = [tuple(float(step.out[name].flat[0]) for name in SHAPES) for step in steps]
    assert found == RULES[body]


@pytest.mark.parametrize("backend", ["interpret", "torch"])
def test_a_watch_that_differs_is_of_each_tensor(backend):
    rule = updsl.parse('rule r:\n    watch k = if name ~ "bias" then 2 else 3\n    return g')
    g = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    (step,) = run(rule, backend, g, [Step(g)])
    assert {name: float(x) for name, x in step.watch["k"].items()} == {"a.weight": 3, "a.bias": 2, "b.weight": 3, "b.bias": 2}


@pytest.mark.parametrize("backend", ["interpret", "torch"])
def test_blocks_that_are_due_in_some_classes_hold_rules_that_others_lack(backend):
    rule = updsl.parse("rule r:\n    every ndim:\n        x = if cols == 2 then (lr → ema) else 2\n        watched = x\n    return g")
    g = {name: np.ones(shape) for name, shape in SHAPES.items()}
    steps = run(rule, backend, g, [Step(g)] * 3, lr=1, groups=GROUPS)
    assert all(np.array_equal(step.out[name], g[name]) for step in steps for name in g)


@pytest.mark.parametrize("backend", ["interpret", "torch"])
@pytest.mark.parametrize(
    ("clip", "share"),
    [("norm > 5", 0), ("norm >= 5", 0), ("norm < 5", 0), ("norm <= 5", 0), ("abs > 3", 0.5), ("abs ≥ 4", 0), ("abs < 4", 0.5), ("norm > 4.99", 1)],
)
def test_a_cell_that_meets_the_bound_is_not_clipped(clip, share, backend):
    (step,) = run(updsl.parse(f"clip {clip}"), backend, {"a": np.zeros(2)}, [Step({"a": np.array([3.0, 4.0])})])
    assert float(step.watch["clipped"]["a"]) == share


@pytest.mark.parametrize("backend", ["interpret", "torch"])
def test_a_skip_that_is_known_is_folded(backend):
    rule = updsl.parse('rule r:\n    state m = 0\n    skip when name ~ "bias"\n    m ← m + (max(g) per all)\n    w ← w - m*t')
    g = {name: np.full(shape, LEVEL[name]) for name, shape in SHAPES.items()}
    steps = run(rule, backend, {name: np.zeros(shape) for name, shape in SHAPES.items()}, [Step(g)] * 3, lr=1, groups=GROUPS)
    assert [tuple(float(step.w[name].flat[0]) for name in SHAPES) for step in steps] == [(-40, 0, -40, 0), (-200, 0, -200, 0), (-560, 0, -560, 0)]
    assert "skipped" not in str(updsl.explain(rule))


def test_arms_may_have_watches_of_one_name():
    arms = "".join(f"        {c}:\n            watch n = {e}\n            return g\n" for c, e in (("ndim > 1", "norm(g)"), ("else", "max(g)")))
    rule = updsl.parse(f"rule r:\n    match:\n{arms}")
    g = {name: np.ones(shape) for name, shape in SHAPES.items()}
    (step,) = run(rule, "interpret", g, [Step(g)])
    assert {k for shown in step.watch.values() for k in shown} == set(SHAPES)


@pytest.mark.parametrize("text", ["lr → it + gaussian(1)", "(norm(g) per group) → uniform(0, 1) + 0*it"])
def test_groups_draw_independently_and_alike_on_every_backend(text):
    rule = updsl.parse(f"rule r:\n    x = {text}\n    return 0*g + x")
    g = {name: np.ones(shape) for name, shape in SHAPES.items()}
    one, other = (run(rule, backend, g, [Step(g)] * 2, lr=0, groups=[{"params": group["params"]} for group in GROUPS]) for backend in ("interpret", "torch"))
    for step, same in zip(one, other, strict=True):
        drawn = {name: float(x.flat[0]) for name, x in step.out.items()}
        assert drawn["a.weight"] == drawn["a.bias"]
        assert len(set(drawn.values())) == len(GROUPS)
        assert drawn == pytest.approx({name: float(x.flat[0]) for name, x in same.out.items()}, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "g*(quantile(w, q = sigmoid(median(g))) per group)",
        "g*(quantile(norm(w) per row, q = sigmoid(norm(g))) per all)",
        "g*(quantile(w, q = sigmoid(median(g) per all)) per group)",
        "if (largest(g, 1 + abs(median(w))) per all) then g else 0",
        "rule r:\n    q = sigmoid(median(g → history(2)))\n    x = if bernoulli(0.5) then g else w\n    return g*(quantile(x, q = mean(q)) per group)",
    ],
)
def test_the_number_of_a_joint_reduction_may_be_a_joint_reduction(text):
    rng, groups = np.random.default_rng(0), [{"params": ["a.weight", "a.bias"]}]
    w = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    steps = [Step({name: rng.standard_normal(shape) for name, shape in SHAPES.items()}) for _ in range(3)]
    found, expected = (run(updsl.parse(text), b, w, steps, groups=groups) for b in ("torch", "interpret"))
    assert furthest(found, expected)[0] <= 1e-12
