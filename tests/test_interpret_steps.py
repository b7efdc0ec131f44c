"""The interpreter's steps on Programs made by hand: states, guarded blocks, windows, samples, inputs, weights, against values worked out here."""

import itertools

import numpy as np
import pytest
from handmade import (
    GRID,
    INF,
    LOCAL,
    LR,
    NAN,
    RUN,
    SAMPLE_INPUT,
    SAMPLES,
    G,
    Rule,
    S,
    T,
    W,
    apply,
    builtin,
    cells,
    close,
    draw,
    every,
    expr,
    given,
    kind,
    old,
    program,
    reduce,
    same,
    spread,
    value,
)

from updsl.core.ir import Apply, Const, Input, Reduce, Ref, State, Type, Yield, joined, on_grid
from updsl.core.ops import OPS
from updsl.core.scope import ALL, COLUMN, ELEMENT, GROUP, ROW, TENSOR, block

# --- states, and tensors that come late or are missing ---------------------------------------------------------------


def counter(name, type_):
    """A state that counts its steps from 0, and the binding that does."""
    more = apply("add", old(name, type_), 1, type_=type_)
    return State(name, Const(0.0), type_), (f"{name} next", more), (name, value(f"{name} next", type_))


def test_states_of_every_scope_are_kept_in_their_shape():
    types = {str(s): kind(s) for s in (ELEMENT, ROW, COLUMN, block(4), TENSOR, GROUP, ALL)}
    types |= {"transposed": Type(ELEMENT, "cols", "rows"), "fixed": Type(ELEMENT, 2, "cols")}
    made = [counter(n, t) for n, t in types.items()]
    rule = Rule(program([b for _, b, _ in made], states=[s for s, _, _ in made], commits=[c for _, _, c in made]), shapes={"k": (2, 3, 2), "v": (4,)})
    for _ in range(3):
        rule.step({"k": np.ones((2, 3, 2)), "v": np.ones(4)})
    shapes = {n: {k: np.shape(x) for k, x in cells_.items()} for n, cells_ in rule.state.values.items()}
    assert shapes == {
        "element": {"k": (2, 3, 2), "v": (4,)},
        "row": {"k": (2,), "v": (4,)},
        "column": {"k": (6,), "v": (1,)},
        "block(4)": {"k": (3,), "v": (1,)},
        "tensor": {"k": (), "v": ()},
        "group": {0: ()},
        "all": {"": ()},
        "transposed": {"k": (6, 2), "v": (1, 4)},
        "fixed": {"k": (2, 6), "v": (2, 1)},
    }
    assert all((np.asarray(x) == 3).all() for c in rule.state.values.values() for x in c.values())
    assert (rule.state.run, rule.state.t) == (3, {"k": 3, "v": 3})


def test_a_state_reads_its_value_before_the_step():
    p = program([("next", apply("add", old("m", GRID), G))], old("m", GRID), [State("m", Const(7.0), GRID)], [("m", value("next", GRID))])
    rule = Rule(p, shapes={"v": (1,)})
    assert [float(rule.step({"v": [x]}).out["v"][0]) for x in (1.0, 2.0, 3.0)] == [7, 8, 10]


def test_late_and_missing_tensors():
    """t of the run counts all steps, t of a tensor its own; states of tensors that take no part stay; shared values run over those that do."""
    types = {"own": Type(TENSOR), "group": Type(GROUP), "all": Type(ALL)}
    made = [counter(n, t) for n, t in types.items()]
    body = [b for _, b, _ in made] + [("n", reduce("count", apply("ge", G, 0), to=ALL)), ("ng", reduce("sum", apply("mul", G, G), to=GROUP))]
    watches = [("run", RUN), ("t", T), ("n", value("n", Type(ALL))), ("ng", value("ng", Type(GROUP)))]
    p = program(body, G, [s for s, _, _ in made], [c for _, _, c in made], watches=watches)
    rule = Rule(p, shapes={"a": (2,), "b": (1,)}, groups={"a": 0, "b": 1})
    one = {"a": [1.0, 1.0], "b": [1.0]}
    shown = [rule.step({n: one[n] for n in names}) for names in ("a", "ab", "b", "", "ab")]
    assert [r.watches for r in shown] == [
        {"run": 1, "t": {"a": 1}, "n": 2, "ng": {0: 2}},
        {"run": 2, "t": {"a": 2, "b": 1}, "n": 3, "ng": {0: 2, 1: 1}},
        {"run": 3, "t": {"b": 2}, "n": 1, "ng": {1: 1}},
        {},
        {"run": 5, "t": {"a": 3, "b": 3}, "n": 3, "ng": {0: 2, 1: 1}},
    ]
    assert [list(r.out) for r in shown] == [["a"], ["a", "b"], ["b"], [], ["a", "b"]]
    assert rule.state.values == {"own": {"a": 3, "b": 3}, "group": {0: 3, 1: 3}, "all": {"": 4}}
    assert (rule.state.run, rule.state.t) == (5, {"a": 3, "b": 3})


def test_a_route_without_a_tensor_keeps_its_shared_state():
    """The arm's model-wide state waits for the arm's tensors; what is before the `match` runs on."""
    arm = counter("arm", Type(ALL))
    everyone = counter("everyone", Type(ALL))
    programs = [
        program([everyone[1], arm[1]], G, [everyone[0], arm[0]], [everyone[2], arm[2]]),
        program([everyone[1]], G, [everyone[0]], [everyone[2]]),
    ]
    rule = Rule(*programs, shapes={"a": (1,), "b": (1,)}, class_of={"a": 0, "b": 1})
    for names in ("ab", "b", "b", "a"):
        rule.step({n: [1.0] for n in names})
    assert rule.state.values == {"everyone": {"": 4}, "arm": {"": 2}}


def test_a_start_is_evaluated_once_at_the_first_step_of_its_cell():
    a = Ref("a", "param", Type(ALL))
    first = {
        "copy": State("copy", W, GRID),
        "size": State("size", reduce("norm", W, to=TENSOR), kind(ROW)),
        "model": State("model", apply("mul", a, reduce("sum", W, to=ALL)), Type(ALL)),
        "rows": State("rows", apply("mul", builtin("rows", Type(TENSOR)), 1), Type(TENSOR)),
        "share": State("share", apply("div", W, reduce("sum", W, to=ALL)), GRID),
    }
    rule = Rule(program(states=first.values()), shapes={"a": (2,), "b": (2, 2)}, params={0: {"a": 10.0}})
    w = {"a": np.array([3.0, 4.0]), "b": np.array([[1.0, 2.0], [2.0, 4.0]])}
    rule.step({"a": [0.0, 0.0]}, w=w)
    rule.step({"a": [0.0, 0.0], "b": np.zeros((2, 2))}, w={"a": 2 * w["a"], "b": w["b"]})
    found = rule.state.values
    same(found["copy"], w)
    same(found["size"], {"a": np.array([5.0, 5.0]), "b": np.array([5.0, 5.0])})
    same(found["model"], {"": np.array(70.0)})
    same(found["rows"], {"a": np.array(2.0), "b": np.array(2.0)})
    same(found["share"], {"a": w["a"] / 7, "b": w["b"] / 23})


def test_a_shared_start_over_two_classes():
    most = State("m", reduce("max", W, to=ALL), Type(ALL))
    programs = [program([("x", apply("mul", G, k))], value("x", GRID), [most], watches=[("m", old("m", Type(ALL)))]) for k in (1, 2)]
    rule = Rule(*programs, shapes={"a": (2,), "b": (1,)}, class_of={"a": 0, "b": 1})
    assert rule.step({"a": [0.0, 0.0], "b": [0.0]}, w={"a": [1.0, 5.0], "b": [3.0]}).watches["m"] == 5


@pytest.mark.parametrize("dtype, x, kept", [
    ("bfloat16", 1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-7),
    ("bfloat16", 1 + 2.0**-8, 1.0),
    ("float16", 65520.0, INF),
    ("float32", 1 + 2.0**-30, 1.0),
    ("float64", 1 + 2.0**-30, 1 + 2.0**-30),
    ("state", 0.1, 0.1),
    ("weight", 0.1, 0.1),
])  # fmt: skip
def test_store_rounds_once(dtype, x, kept):
    stored = apply("store", apply("add", G, old("m", GRID)), static=(dtype,))
    states = [State("m", Const(0.0), GRID, None if dtype in ("state", "weight") else dtype)]
    rule = Rule(program([("n", stored)], value("n", GRID), states, [("m", value("n", GRID))]), shapes={"v": (1,)})
    assert rule.step({"v": [x]}).out["v"][0] == kept
    assert rule.state.values["m"]["v"][0] == kept


def test_a_start_is_rounded_to_the_type_of_its_state():
    rule = Rule(program(states=[State("m", Const(0.1), Type(TENSOR), "bfloat16")]), shapes={"v": (1,)})
    rule.step({"v": [0.0]})
    assert rule.state.values["m"]["v"] == 0.10009765625


def test_boolean_states():
    flag = Type(TENSOR, boolean=True)
    seen = apply("or", old("seen", flag), apply("gt", reduce("max", G, to=TENSOR), 1))
    states, commits = [State("seen", Const(False), flag)], [("seen", value("next", flag))]
    p = program([("next", apply("store", seen, static=("state",), type_=flag))], apply("select", value("next", flag), 1, G), states, commits)
    rule = Rule(p, shapes={"v": (1,)})
    assert [float(rule.step({"v": [x]}).out["v"][0]) for x in (0.5, 2.0, 0.25)] == [0.5, 1, 1]
    assert rule.state.values["seen"]["v"].dtype == bool


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights():
    new = apply("sub", W, apply("mul", LR, G))
    rule = Rule(program([("w2", new)], 0, weight=value("w2", GRID), returns=False), shapes={"a": (2,), "b": (1,)}, lr={0: 0.5})
    found = rule.step({"a": [2.0, 4.0]}, w={"a": np.array([1.0, 1.0]), "b": np.array([9.0])})
    same(found.weights, {"a": np.array([0.0, -1.0])})
    same(found.out, {"a": np.array([1.0, 2.0])})


def test_a_rule_that_writes_weights_may_return_something_else():
    rule = Rule(program([("w2", apply("add", W, 1))], apply("neg", G), weight=value("w2", GRID)), shapes={"a": (2,)})
    found = rule.step({"a": [2.0, 4.0]})
    same((found.weights, found.out), ({"a": np.array([1.0, 1.0])}, {"a": np.array([-2.0, -4.0])}))


def test_weights_are_there_or_not_by_the_rule_alone():
    writing = program([("w2", W)], weight=value("w2", GRID))
    assert Rule(writing, shapes={"a": (1,)}).step({}).weights == {}
    assert Rule(program(), shapes={"a": (1,)}).step({"a": [1.0]}).weights is None


def test_a_number_is_spread_over_the_tensor():
    same(Rule(program(out=7), shapes={"k": (2, 1, 2)}).step({"k": np.zeros((2, 1, 2))}).out["k"], np.full((2, 1, 2), 7.0))


# --- every -----------------------------------------------------------------------------------------------------------


def ticking(type_, count, start):
    """Counts in a state how often the block ran."""
    inner = apply("add", old("n", type_), 1, type_=type_)
    guard = every(count, start, [("n inner", inner)], Yield("n after", value("n inner", type_), old("n", type_), type_))
    return program([guard], spread(value("n after", type_)), [State("n", Const(0.0), type_)], [("n", value("n after", type_))])


@pytest.mark.parametrize("type_", [GRID, Type(TENSOR), Type(GROUP), Type(ALL)], ids=lambda t: t.scope.name)
@pytest.mark.parametrize("count, start, ran", [(1, 1, "11111"), (2, 2, "01010"), (2, 1, "10101"), (3, 2, "01001"), (10**30, 4, "00010"), (5, 10**30, "00000")])
def test_every(type_, count, start, ran):
    rule = Rule(ticking(type_, count, start), shapes={"v": (1,)})
    found = [int(rule.step({"v": [0.0]}).out["v"][0]) for _ in range(5)]
    assert found == list(itertools.accumulate(int(c) for c in ran))


def test_every_counts_the_steps_of_the_run():
    """A tensor that is missing when the block is due waits for the next time."""
    rule = Rule(ticking(Type(TENSOR), 2, 2), shapes={"a": (1,), "b": (1,)})
    for names in ("ab", "a", "ab", "ab"):
        rule.step({n: [0.0] for n in names})
    same(rule.state.values["n"], {"a": np.array(2.0), "b": np.array(1.0)})


def test_blocks_compute_nothing_when_they_are_not_due():
    """An input that only the block reads need not be there on other steps."""
    inside = every(2, 2, [("x", apply("mul", given("h", GRID), 2))], Yield("y", value("x", GRID), G, GRID))
    rule = Rule(program([inside], value("y", GRID), inputs=[Input("h", "stream", GRID)]), shapes={"v": (1,)})
    assert rule.step({"v": [1.0]}).out["v"] == 1
    assert rule.step({"v": [1.0]}, h={"v": [5.0]}).out["v"] == 10


def test_nested_blocks_with_shared_values_over_two_classes():
    """In the outer block a norm over all, in the inner one its square; what is yielded is spread to its type."""
    n, n2, s = (value(name, Type(ALL)) for name in ("n", "n2", "s"))

    def one(scale):
        inner = every(2, 2, [("s", apply("mul", n, n))], Yield("n2", s, n, Type(ALL)), name="inner")
        outer = every(1, 2, [("n", reduce("norm", apply("mul", scale, G), to=ALL)), inner], Yield("o", n2, Const(0.0), GRID), name="outer")
        return program([outer], value("o", GRID))

    rule = Rule(one(1), one(2), shapes={"a": (2,), "b": (1,)}, class_of={"a": 0, "b": 1})
    found = [rule.step({"a": [0.0, 3.0], "b": [2.0]}).out for _ in range(3)]
    assert [float(r["a"][0]) for r in found] == [float(r["b"][0]) for r in found] == [0, 25, 5]


def test_a_block_with_a_count_of_each_class():
    """Where the count is an attribute, each class runs the block at its own steps; what is shared runs over the tensors of those that do."""

    def one(count):
        guard = every(count, count, [("n", reduce("sum", G, to=ALL))], Yield("m", value("n", Type(ALL)), Const(-1.0), Type(TENSOR)))
        return program([guard], spread(value("m", Type(TENSOR))))

    rule = Rule(one(1), one(2), shapes={"a": (1,), "b": (1,)}, class_of={"a": 0, "b": 1})
    found = [rule.step({"a": [1.0], "b": [10.0]}).out for _ in range(2)]
    assert [(float(r["a"][0]), float(r["b"][0])) for r in found] == [(1, -1), (11, 11)]


# --- windows ---------------------------------------------------------------------------------------------------------


def history(x, n, name="h"):
    """The state, the binding and the commit of a window of x."""
    t = joined(x.type)
    t = Type(t.scope, t.rows, t.cols, window=n)
    pushed = Apply("push", (old(name, t), x), t)
    return State(name, None, t), (f"{name} now", pushed), (name, value(f"{name} now", t))


def over_time(op, *args, static=()):
    args = tuple(map(expr, args))
    whole = joined(*(a.type for a in args))
    return Reduce(op, args, whole.scope, on_grid(whole.scope, whole.rows, whole.cols, boolean=OPS[op].boolean), static)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kind == "reduction"], ids=lambda op: op.name)
@pytest.mark.parametrize("scope", [ELEMENT, ROW, block(4), TENSOR, GROUP, ALL], ids=str)
def test_reduction_over_time(op, scope):
    """Of the last three values of each cell, of fewer at the start."""
    x = apply("mul", G, 2) if scope == ELEMENT else reduce("norm", G, to=scope)
    state, push, commit = history(value("x", x.type), 3)
    window = value("h now", state.type)
    other = apply("add", window, 1)
    args = (window, *((other,) if op.args == ("x", "y") else (0.25,) if op.numbers else ()))
    if op.conditions:
        args = (apply("gt", window, 1.5),)
    found = over_time(op.name, *args)
    rule = Rule(program([("x", x), push, ("r", found)], spread(value("r", found.type)), [state], [commit]), shapes={"m": (5, 3)})
    seen = []
    for i in range(5):
        g = draw((5, 3), i)
        full = np.full((5, 3), np.nan)
        for which in cells(np.arange(15).reshape(5, 3), scope):
            full.ravel()[which] = 2 * g.ravel()[which] if scope == ELEMENT else np.linalg.norm(g.ravel()[which])
        seen = [*seen, full][-3:]
        series = np.stack(seen, axis=-1)
        rest = (series + 1,) if op.args == ("x", "y") else (np.full((5, 3), 0.25),) if op.numbers else ()
        close(rule.step({"m": g}).out["m"], op.reference(series > 1.5 if op.conditions else series, *rest))


def test_elementwise_on_windows():
    """What is no window is the same at all times; two windows align at their newest value."""
    state, push, commit = history(G, 3, "h")
    entries = value("h now", state.type)
    total = reduce("sum", G, to=ALL)
    norms, push_norms, commit_norms = history(value("total", Type(ALL)), 2, "k")
    sums = value("k now", norms.type)
    ratio = apply("div", entries, sums)
    assert ratio.type.window == 3
    body = [("total", total), push, push_norms, ("r", over_time("sum", ratio)), ("l", over_time("max", apply("sub", entries, reduce("sum", G, to=ROW))))]
    rule = Rule(program(body, apply("add", value("r", GRID), apply("mul", 1000, value("l", GRID))), [state, norms], [commit, commit_norms]), shapes={"v": (2,)})
    rule.step({"v": [1.0, 3.0]})
    rule.step({"v": [2.0, 8.0]})
    out = rule.step({"v": [4.0, 12.0]}).out["v"]
    close(out, [2 / 10 + 4 / 16 + 1000 * 0, 8 / 10 + 12 / 16 + 1000 * 0])


def test_conditions_on_windows_count_as_numbers():
    state, push, commit = history(G, 3)
    window = value("h now", state.type)
    up, big = apply("gt", window, 0), apply("gt", window, 2)
    found = over_time("sum", apply("neg", apply("sub", up, big)))
    rule = Rule(
        program([push, ("n", found), ("m", over_time("mean", apply("and", up, big)))], apply("add", value("n", GRID), value("m", GRID)), [state], [commit]),
        shapes={"v": (1,)},
    )
    close([rule.step({"v": [x]}).out["v"][0] for x in (1.0, 3.0, -1.0, 5.0)], [-1, -0.5, -1 + 1 / 3, 2 / 3])


def test_dot_of_a_window_with_a_number():
    state, push, commit = history(G, 2)
    found = over_time("dot", value("h now", state.type), G)
    rule = Rule(program([push, ("d", found)], value("d", GRID), [state], [commit]), shapes={"v": (2,)})
    assert [rule.step({"v": x}).out["v"].tolist() for x in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])] == [[1, 4], [12, 24], [40, 60]]


def test_windows_with_counts_of_each_cell():
    """Where a condition holds the window stays as it was, so cells hold different numbers of values; `empty` starts anew."""
    state, push, _ = history(G, 3)
    t = state.type
    keep = Apply("select", (apply("lt", G, 0), old("h", t), value("h now", t)), t)
    restart = Apply("select", (apply("gt", G, 100), Apply("empty", (), t), value("kept", t)), t)
    body = [push, ("kept", keep), ("h2", restart), ("n", over_time("sum", apply("ge", value("h2", t), 0))), ("mean", over_time("mean", value("h2", t)))]
    watches = [("count", reduce("sum", value("n", GRID), to=TENSOR))]
    rule = Rule(program(body, value("mean", GRID), [state], [("h", value("h2", t))], watches=watches), shapes={"v": (2,)})
    found = [rule.step({"v": x}) for x in ([1.0, -1.0], [3.0, 5.0], [-1.0, 7.0], [8.0, 101.0], [8.0, 9.0])]
    close([r.out["v"] for r in found], [[1, NAN], [2, 5], [2, 6], [4, NAN], [19 / 3, 9]])
    assert [float(r.watches["count"]["v"]) for r in found] == [1, 3, 4, 3, 4]
    slots, count = rule.state.values["h"]["v"]
    assert (slots.shape, count.tolist()) == ((3, 2), [3, 1])
    assert slots[-1].tolist() == [8, 9]


def test_a_window_of_entries_is_kept_in_the_shape_of_the_parameter():
    state, push, commit = history(G, 4)
    rule = Rule(program([push], G, [state], [commit]), shapes={"k": (2, 3, 2), "s": ()})
    for i in range(2):
        rule.step({"k": draw((2, 3, 2), i), "s": np.array(1.0)})
    slots, count = rule.state.values["h"]["k"]
    assert (slots.shape, count.shape, count.max()) == ((4, 2, 3, 2), (2, 3, 2), 2)
    same(slots[3], draw((2, 3, 2), 1))
    assert rule.state.values["h"]["s"][0].shape == (4,)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_each_sample_is_clipped_by_its_norm_over_the_model():
    norm = reduce("norm", S, to=ALL)
    n = value("n", norm.type)
    clipped = apply("mul", S, apply("select", apply("gt", n, 1), apply("div", 1, n), 1))
    out = apply("sample_mean", value("c", SAMPLES), type_=GRID)
    rule = Rule(program([("n", norm), ("c", clipped)], out, inputs=[SAMPLE_INPUT]), shapes={"a": (2,), "b": (1, 2)})
    samples = {"a": draw((4, 2)), "b": draw((4, 1, 2), 1)}
    out = rule.step({"a": np.zeros(2), "b": np.zeros((1, 2))}, batch=4, samples=samples).out
    norms = np.sqrt((samples["a"] ** 2).sum(axis=1) + (samples["b"] ** 2).sum(axis=(1, 2)))
    close(out["a"], (samples["a"] / np.maximum(norms, 1)[:, None]).mean(axis=0))
    close(out["b"], (samples["b"] / np.maximum(norms, 1)[:, None, None]).mean(axis=0))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("scope", [*LOCAL, GROUP, ALL], ids=str)
def test_reductions_keep_the_samples(batch, scope):
    """One value for each sample and cell; with none, sums are 0 and means NaN."""
    total = reduce("sum", S, to=scope)
    x = value("x", total.type)
    spread_samples = apply("add", apply("mul", S, 0), x)
    for op, empty in (("sample_sum", 0.0), ("sample_mean", NAN)):
        rule = Rule(program([("x", total), ("y", spread_samples)], apply(op, value("y", SAMPLES), type_=GRID), inputs=[SAMPLE_INPUT]), shapes={"m": (5, 3)})
        samples = draw((batch, 5, 3))
        full = np.zeros((batch, 15))
        for which in cells(np.arange(15).reshape(5, 3), scope):
            full[:, which] = samples.reshape(batch, 15)[:, which].sum(axis=1, keepdims=True)
        expected = (full.sum(axis=0) / (1 if op == "sample_sum" else batch)).reshape(5, 3) if batch else np.full((5, 3), empty)
        close(rule.step({"m": np.zeros((5, 3))}, batch=batch, samples={"m": samples}).out["m"], expected)


def test_other_functions_of_samples():
    """Matrix functions and `largest` work on each sample; quantile takes a fraction of each sample; dot mixes samples with the gradient."""
    gram = apply("matmul", S, apply("transpose", S, type_=Type(ELEMENT, "cols", "rows", samples=True)), type_=Type(ELEMENT, "rows", "rows", samples=True))
    fraction = apply("clamp", reduce("mean", S, to=TENSOR), 0, 1)
    of_sample, flags = Type(TENSOR, samples=True), Type(ELEMENT, "rows", "cols", samples=True, boolean=True)
    body = [
        ("gram", gram),
        ("trace", apply("trace", value("gram", gram.type), type_=of_sample)),
        ("top", apply("mul", S, Apply("largest", (S, Const(1.0)), flags, (TENSOR, False)))),
        ("q", reduce("quantile", S, fraction, to=TENSOR)),
        ("dot", reduce("dot", S, G, to=TENSOR)),
        ("joint", Apply("largest", (S, Const(1.0)), flags, (ALL, False))),
        ("mix", apply("add", apply("add", value("trace", of_sample), value("q", of_sample)), value("dot", of_sample))),
        ("n", apply("sample_sum", value("mix", of_sample), type_=Type(TENSOR))),
        ("batch", apply("mul", builtin("batch", Type(ALL)), 1)),
    ]
    out = apply("sample_sum", apply("add", value("top", SAMPLES), apply("mul", 1000, value("joint", flags))), type_=GRID)
    watches = [("n", value("n", Type(TENSOR))), ("batch", value("batch", Type(ALL)))]
    rule = Rule(program(body, out, inputs=[SAMPLE_INPUT], watches=watches), shapes={"m": (2, 3), "o": (1,)})
    for batch in (0, 3):
        samples, g = draw((batch, 2, 3), 5), draw((2, 3), 6)
        found = rule.step({"m": g, "o": [0.0]}, batch=batch, samples={"m": samples, "o": np.zeros((batch, 1))})
        flat = samples.reshape(batch, 6)
        top = flat * (np.abs(flat) == np.abs(flat).max(axis=1, keepdims=True, initial=0))
        close(found.out["m"], (top + 1000 * (top != 0)).sum(axis=0).reshape(2, 3))
        expected = [(x**2).sum() + np.quantile(x, np.clip(x.mean(), 0, 1)) + (x * g.ravel()).sum() for x in flat]
        close(found.watches["n"]["m"], sum(expected))
        assert found.watches["batch"] == batch


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_of_every_kind():
    scopes = {"whole": ALL, "pergroup": GROUP, "pertensor": TENSOR, "perrow": ROW, "percolumn": COLUMN, "perblock": block(4)}
    kinds = {"stream": GRID} | {n: kind(s) for n, s in scopes.items()}
    inputs = [Input(n, "stream" if n == "stream" else "per", t) for n, t in kinds.items()]
    out = G
    for name, t in kinds.items():
        out = apply("add", out, given(name, t))
    rule = Rule(program([], out, inputs=inputs), shapes={"k": (2, 3), "v": (2,)}, groups={"k": 0, "v": 1})
    handed = {
        "stream": {"k": np.full((2, 3), 1.0), "v": [1.0, 2.0]},
        "whole": {"": 10.0},
        "pergroup": {0: 100.0, 1: 200.0},
        "pertensor": {"k": 1000.0, "v": 2000.0},
        "perrow": {"k": [1e4, 2e4], "v": [3e4, 4e4]},
        "percolumn": {"k": [1e5, 2e5, 3e5], "v": [4e5]},
        "perblock": {"k": [1e6, 2e6], "v": [3e6]},
    }
    found = rule.step({"k": np.zeros((2, 3)), "v": np.zeros(2)}, **handed).out
    same(found["k"], np.array([[1111111, 1211111, 1311111], [1121111, 2221111, 2321111]]) + 0.0)
    same(found["v"], np.array([3432211, 3442212]) + 0.0)


def test_a_matrix_input_has_a_grid_of_its_own():
    """u = P·Pᵀ·g for P handed over; its sizes are those of the array, and a tensor whose Program does not read it needs none."""
    p = given("P", Type(ELEMENT, "P.rows", "P.cols"))
    low = apply("matmul", apply("transpose", p, type_=Type(ELEMENT, "P.cols", "P.rows")), G, type_=Type(ELEMENT, "P.cols", "cols"))
    state = Type(ELEMENT, "P.cols", "cols")
    reading = program(
        [("low", low), ("m", apply("add", old("m", state), value("low", state)))],
        apply("matmul", p, value("m", state), type_=GRID),
        [State("m", Const(0.0), state)],
        [("m", value("m", state))],
        watches=[("P", reduce("sum", apply("mul", p, p), to=TENSOR))],
        inputs=[Input("P", "matrix", p.type)],
    )
    rule = Rule(reading, program([], apply("mul", 2, G)), shapes={"a": (4, 3), "b": (5, 2), "c": (3,)}, class_of={"a": 0, "b": 0, "c": 1})
    handed, g = {"a": draw((4, 2)), "b": draw((5, 1), 1)}, {"a": draw((4, 3), 2), "b": draw((5, 2), 3), "c": np.ones(3)}
    rule.step(g, P=handed)
    found = rule.step(g, P=handed)
    for n in "ab":
        close(found.out[n], 2 * handed[n] @ handed[n].T @ g[n])
        close(found.watches["P"][n], (handed[n] ** 2).sum())
        assert rule.state.values["m"][n].shape == (handed[n].shape[1], g[n].shape[1])
