"""The interpreter's expressions on Programs made by hand: every node kind and scope, against values worked out here."""

import itertools
import math

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
    SHAPES,
    G,
    Rule,
    S,
    W,
    apply,
    builtin,
    cells,
    close,
    draw,
    expr,
    kind,
    mask,
    program,
    reduce,
    same,
    spread,
    value,
    view,
)

from updsl.core import rng
from updsl.core.ir import Apply, Const, Ref, State, Type
from updsl.core.ops import OPS
from updsl.core.scope import ALL, COLUMN, ELEMENT, GROUP, ROW, TENSOR, block

# --- expressions on one tensor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", LOCAL, ids=str)
@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kind == "reduction"], ids=lambda op: op.name)
def test_reduction_to_a_scope(op, scope):
    """Each cell of the scope gets the op's value of the cell's entries, and gives it to its entries."""
    first = apply("gt", G, 0) if op.conditions else G
    args = (first, *((apply("mul", G, G),) if op.args == ("x", "y") else (0.3,) if op.numbers else ()))
    found = reduce(op.name, *args, to=scope)
    rule = Rule(program([("x", found)], spread(value("x", found.type))), shapes=SHAPES)
    g = {n: draw(s, len(n)) for n, s in SHAPES.items()}
    out = rule.step(g).out
    for name, x in g.items():
        x = view(x)
        expected = []
        for cell in cells(x, scope):
            cell = np.array(cell)
            rest = (cell * cell,) if op.args == ("x", "y") else (np.float64(0.3),) if op.numbers else ()
            expected.append(float(op.reference(cell > 0 if op.conditions else cell, *rest)))
        index = cells(np.arange(x.size).reshape(x.shape), scope)
        full = np.empty(x.size)
        for which, number in zip(index, expected, strict=True):
            full[which] = number
        assert out[name].shape == g[name].shape
        close(out[name].ravel(), full)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kind == "elementwise"], ids=lambda op: op.name)
def test_elementwise_over_scopes(op):
    """Operands of different scopes combine entry by entry."""
    scopes = [ELEMENT, ROW, COLUMN, block(2), TENSOR]
    parts = [("whole", G)] + [(s.name, reduce("sum", G, to=s)) for s in scopes[1:]]
    x = draw((5, 3))
    full = {"whole": x}
    for name, scope in zip(("row", "column", "block", "tensor"), scopes[1:], strict=True):
        index, full[name] = cells(np.arange(15).reshape(5, 3), scope), np.empty(15)
        for which in index:
            full[name][which] = x.ravel()[which].sum()
        full[name] = full[name].reshape(5, 3)
    for chosen in itertools.product(parts, repeat=min(len(op.args), 2)):
        args = [value(n, e.type) for n, e in chosen] + [value("whole", GRID)] * (len(op.args) - len(chosen))
        arrays = [full[n] for n, _ in chosen] + [x] * (len(op.args) - len(chosen))
        if op.conditions or op.name == "select":
            args[0], arrays[0] = apply("gt", args[0], 0), arrays[0] > 0
        if op.conditions and len(args) > 1:
            args[1], arrays[1] = apply("lt", args[1], 0.5), arrays[1] < 0.5
        rule = Rule(program([*parts, ("y", apply(op.name, *args))], spread(value("y", apply(op.name, *args).type))), shapes={"m": (5, 3)})
        with np.errstate(all="ignore"):
            close(rule.step({"m": x}).out["m"], op.reference(*arrays))


def test_combining_incomparable_scopes():
    """Row with column, and blocks of two sizes, give one value for each entry."""
    x = np.arange(15.0).reshape(5, 3)
    pairs = [(ROW, COLUMN), (block(2), block(7)), (block(4), ROW), (COLUMN, block(4))]
    for a, b in pairs:
        found = apply("add", reduce("sum", G, to=a), reduce("max", G, to=b))
        assert found.type.scope == ELEMENT
        out = Rule(program([], found), shapes={"m": (5, 3)}).step({"m": x}).out["m"].ravel()
        expected = [next(sum(c) for c in cells(x, a) if v in c) + next(max(c) for c in cells(x, b) if v in c) for v in x.ravel()]
        close(out, expected)


def test_booleans_count_as_numbers():
    positive = apply("gt", G, 0)
    body = [("c", positive), ("n", reduce("sum", value("c", positive.type), to=TENSOR)), ("d", apply("sub", value("c", positive.type), positive))]
    out = apply("add", apply("add", value("n", Type(TENSOR)), value("d", GRID)), apply("neg", value("c", positive.type), type_=GRID))
    close(Rule(program(body, out), shapes={"v": (3,)}).step({"v": [1.0, -1.0, 2.0]}).out["v"], [1, 2, 1])


def test_what_is_not_selected_does_not_leak():
    safe = apply("select", apply("gt", G, 0), apply("log", G), apply("div", 1, apply("mul", G, 0)))
    inner = apply("select", apply("isfinite", safe), safe, -1)
    close(Rule(program([], inner), shapes={"v": (4,)}).step({"v": [1.0, -1.0, 0.0, NAN]}).out["v"], [0, -1, -1, -1])


def test_builtins():
    names = {"rows": 2, "cols": 6, "numel": 12, "ndim": 3, "dim(0)": 2, "dim(1)": 3, "dim(-1)": 2}
    body = [(n, apply("mul", builtin(n, Type(TENSOR)), 1)) for n in names]
    found = Rule(program(body, watches=[(n, value(n, Type(TENSOR))) for n in names]), shapes={"k": (2, 3, 2)}).step({"k": np.ones((2, 3, 2))})
    assert found.watches == {n: {"k": v} for n, v in names.items()}


def test_anything_that_numpy_can_read_is_an_input():
    rule = Rule(program([], apply("add", G, W)), shapes={"v": (2,), "s": ()})
    out = rule.step({"v": np.array([1, 2], np.float32), "s": np.float16(3)}, w={"v": [10, 20], "s": 1}).out
    assert out["v"].dtype == out["s"].dtype == np.float64
    same(out, {"v": np.array([11.0, 22.0]), "s": np.array(4.0)})


# --- values of a group and of the model ------------------------------------------------------------------------------


def test_norm_per_all_over_two_classes():
    """Each class has its own operand of the shared norm."""
    ours, theirs = reduce("norm", G, to=ALL), reduce("norm", apply("mul", 2, G), to=ALL)
    programs = [program([("n", e)], apply("div", G, value("n", Type(ALL))), watches=[("n", value("n", Type(ALL)))]) for e in (ours, theirs)]
    rule = Rule(*programs, shapes={"a": (2,), "b": (2, 2), "c": (1,)}, class_of={"a": 0, "b": 1, "c": 0})
    found = rule.step({"a": [1.0, 2.0], "b": [[1.0, 1.0], [2.0, 0.0]], "c": [3.0]})
    n = math.sqrt(1 + 4 + 4 * (1 + 1 + 4) + 9)
    close(found.watches["n"], n)
    close(found.out["b"], np.array([[1, 1], [2, 0]]) / n)


def test_reduction_of_values_that_are_shared_or_coarse():
    """Cells count, not entries: rows to all, tensors to group, groups to all."""
    row, group = reduce("sum", G, to=ROW), reduce("sum", G, to=GROUP)
    body = [
        ("row", row),
        ("mean of rows", reduce("mean", value("row", row.type), to=ALL)),
        ("tensor", reduce("max", G, to=TENSOR)),
        ("group", reduce("mean", value("tensor", Type(TENSOR)), to=GROUP)),
        ("groups", reduce("sum", value("group", Type(GROUP)), to=ALL)),
        ("sum", group),
        ("twice", apply("mul", 2, value("sum", Type(GROUP)))),
    ]
    watches = [(n, value(n, Type(s))) for n, s in (("mean of rows", ALL), ("group", GROUP), ("groups", ALL), ("twice", GROUP), ("tensor", TENSOR))]
    rule = Rule(program(body, watches=watches), shapes={"a": (2, 2), "b": (3,), "c": (1,)}, groups={"a": 0, "b": 2, "c": 0})
    found = rule.step({"a": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0, 6.0, 7.0], "c": [8.0]}).watches
    tensors = {"a": 4, "b": 7, "c": 8}
    assert found == {"mean of rows": (3 + 7 + 5 + 6 + 7 + 8) / 6, "group": {0: 6, 2: 7}, "groups": 13, "twice": {0: 36, 2: 36}, "tensor": tensors}


def test_two_operands_of_different_scopes():
    """dot over all of an entry's gradient with its row's sum; the cells are entries."""
    row = reduce("sum", G, to=ROW)
    rule = Rule(program([("d", reduce("dot", G, row, to=ALL))], watches=[("d", value("d", Type(ALL)))]), shapes={"a": (2, 2), "b": (2,)})
    assert rule.step({"a": [[1.0, 2.0], [3.0, 4.0]], "b": [2.0, -1.0]}).watches["d"] == 3 * 3 + 7 * 7 + 4 + 1


def test_quantile_over_all_with_a_shared_fraction():
    q = apply("div", RUN, 4)
    rule = Rule(program([("x", reduce("quantile", G, q, to=ALL))], watches=[("x", value("x", Type(ALL)))]), shapes={"a": (2,), "b": (3,)})
    g = {"a": [1.0, 5.0], "b": [2.0, 4.0, 3.0]}
    assert [float(rule.step(g).watches["x"]) for _ in range(4)] == [2, 3, 4, 5]


def test_parameters_and_learning_rates_of_groups():
    own, common = Ref("a", "param", Type(GROUP)), Ref("b", "param", Type(ALL))
    rule = Rule(
        program([("c", apply("mul", common, 2))], apply("add", apply("mul", G, own), apply("add", LR, value("c", Type(ALL))))),
        shapes={"x": (1,), "y": (1,)},
        groups={"x": 0, "y": 1},
        params={0: {"a": 2.0, "b": 5.0}, 1: {"a": 3.0, "b": 5.0}},
        lr={0: 0.5, 1: np.float32(0.25)},
    )
    same(rule.step({"x": [1.0], "y": [1.0]}).out, {"x": np.array([12.5]), "y": np.array([13.25])})


@pytest.mark.parametrize("scope", LOCAL, ids=str)
@pytest.mark.parametrize("k", [1, 2, 0.5, 100])
def test_largest_in_each_cell(scope, k):
    x = draw((5, 3), 3).round(1)
    found = Rule(program([], mask(scope, k)), shapes={"m": (5, 3)}).step({"m": x}).out["m"]
    expected = np.zeros(15)
    for which in cells(np.arange(15).reshape(5, 3), scope):
        taken = k if k >= 1 else math.ceil(k * len(which))
        expected[sorted(which, key=lambda i: -abs(x.ravel()[i]))[:taken]] = 1
    same(found.ravel(), expected)


def test_largest_with_a_count_for_each_row():
    k = apply("add", 1, apply("gt", reduce("sum", G, to=ROW), 4), type_=kind(ROW))
    out = Rule(program([], mask(ROW, k)), shapes={"m": (2, 3)}).step({"m": [[1.0, 3.0, -2.0], [4.0, -1.0, 2.0]]}).out["m"]
    same(out, np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))


def test_largest_over_all_tensors_of_two_classes():
    """The tensors compete; ties go to the lower index, then to the earlier tensor; NaN is largest."""
    doubled = apply("mul", 2, G)
    programs = [program([("c", mask(ALL, 3, of=of))], value("c", mask(ALL, 3).type)) for of in (G, doubled)]
    rule = Rule(*programs, shapes={"a": (3,), "b": (2, 2), "c": (1,)}, class_of={"a": 0, "b": 1, "c": 0})
    found = rule.step({"a": [1.0, -6.0, 4.0], "b": [[-2.5, 1.0], [2.0, 0.5]], "c": [0.0]}).out
    same(found, {"a": np.array([0.0, 1.0, 1.0]), "b": np.array([[1.0, 0.0], [0.0, 0.0]]), "c": np.array([0.0])})
    found = rule.step({"a": [0.0, 7.0, 7.0], "b": [[3.5, 3.5], [3.5, 3.5]], "c": [7.0]}).out
    same(found, {"a": np.array([0.0, 1.0, 0.0]), "b": np.array([[1.0, 0.0], [0.0, 0.0]]), "c": np.array([1.0])})
    found = rule.step({"a": [1.0, NAN, 4.0], "b": [[NAN, 1.0], [2.0, INF]], "c": [9.0]}).out
    same(found, {"a": np.array([0.0, 1.0, 0.0]), "b": np.array([[1.0, 0.0], [0.0, 1.0]]), "c": np.array([0.0])})


def test_largest_of_a_group_and_of_coarser_cells():
    """Entries compete within their group; tensors, by their norm, within the model; groups among each other."""
    norm, size = reduce("norm", G, to=TENSOR), reduce("norm", G, to=GROUP)
    body = [
        ("entry", mask(GROUP, 0.5)),
        ("tensor", norm),
        ("loudest", mask(ALL, 1, of=value("tensor", Type(TENSOR)))),
        ("group", size),
        ("louder", mask(ALL, 1, of=value("group", Type(GROUP)))),
    ]
    watches = [("loudest", value("loudest", Type(TENSOR, boolean=True))), ("louder", value("louder", Type(GROUP, boolean=True)))]
    rule = Rule(program(body, value("entry", mask(GROUP, 1).type), watches=watches), shapes={"a": (2,), "b": (2,), "c": (1,)}, groups={"a": 0, "b": 1, "c": 0})
    found = rule.step({"a": [3.0, 3.0], "b": [4.0, 1.0], "c": [4.0]})
    same(found.out, {"a": np.array([1.0, 0.0]), "b": np.array([1.0, 0.0]), "c": np.array([1.0])})
    assert found.watches == {"loudest": {"a": 1, "b": 0, "c": 0}, "louder": {0: 1, 1: 0}}


# --- matrix functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.kind == "matrix"], ids=lambda op: op.name)
def test_matrix_function_of_the_matrix_view(op):
    """A tensor of more dimensions is its matrix; 1-D is a column."""
    static = (2,) if op.static else ()
    square = apply("matmul", G, apply("transpose", G, type_=Type(ELEMENT, "cols", "rows")), type_=Type(ELEMENT, "rows", "rows"))
    shifted = apply("add", value("c", square.type), apply("eye", value("c", square.type)))
    first = {"matmul": value("c", square.type), "matrix_power": value("c2", square.type), "solve": value("c2", square.type)}.get(op.name, G)
    rest = {"matmul": (G,), "solve": (G,), "matrix_power": (Const(0.5),)}.get(op.name, ())
    for name, shape in SHAPES.items():
        x = draw(shape, 4)
        m = view(x)
        c = m @ m.T
        arrays = {"matmul": (c, m), "solve": (c + np.eye(len(c)), m), "matrix_power": (c + np.eye(len(c)), np.float64(0.5))}.get(op.name, (m,))
        expected = np.asarray(op.reference(*arrays, **dict(zip(op.static, static, strict=True))))
        type_ = {0: Type(TENSOR), 1: Type(ROW, expected.shape[0] if expected.ndim else None)}.get(expected.ndim) or Type(ELEMENT, *expected.shape)
        found = Apply(op.name, (first, *rest), type_, static)
        states = [State("kept", Const(0.0), type_)]
        rule = Rule(program([("c", square), ("c2", shifted), ("x", found)], G, states, [("kept", value("x", type_))]), shapes={name: shape})
        rule.step({name: x})
        close(rule.state.values["kept"][name], expected)


# --- draws -----------------------------------------------------------------------------------------------------------


def noise(op, *args, key="here", type_=GRID):
    return Apply(op, tuple(map(expr, args)), type_, (key,))


def test_draws_are_functions_of_their_address():
    rule = Rule(program([("z", noise("gaussian", 2.0))], value("z", GRID)), shapes={"m": (2, 3), "v": (4,)}, seed=5)
    g = {"m": np.zeros((2, 3)), "v": np.zeros(4)}
    rule.step(g)
    out = rule.step(g).out
    for name, n in (("m", 6), ("v", 4)):
        close(out[name].ravel(), 2 * rng.normal(rng.words(5, 2, name, "here", np.arange(n))))
    alone = Rule(program([("z", noise("gaussian", 2.0))], value("z", GRID)), shapes={"v": (4,)}, seed=5)
    alone.step({})
    same(alone.step({"v": np.zeros(4)}).out["v"], out["v"])


def test_one_number_for_each_tensor_or_for_all():
    body = [
        ("a", noise("uniform", -1.0, 3.0, key="a", type_=Type(TENSOR))),
        ("b", noise("bernoulli", 0.5, key="b", type_=Type(ALL))),
        ("c", apply("add", noise("uniform", 0.0, 1.0, key="c", type_=Type(ALL)), value("a", Type(TENSOR)))),
    ]
    watches = [("a", value("a", Type(TENSOR))), ("b", value("b", Type(ALL))), ("c", apply("sub", value("c", Type(TENSOR)), value("a", Type(TENSOR))))]
    found = Rule(program(body, watches=watches), shapes={"m": (2, 3), "v": (4,)}).step({"m": np.zeros((2, 3)), "v": np.zeros(4)}).watches
    u = lambda name, key: rng.uniform01(rng.words(0, 1, name, key, np.arange(1)))[0]
    close([found["a"][n] for n in "mv"], [-1 + 4 * u("m", "a"), -1 + 4 * u("v", "a")])
    assert found["b"] == (u("", "b") < 0.5)
    close([found["c"][n] for n in "mv"], [u("", "c")] * 2)


def test_draws_on_other_grids_with_other_scales():
    """An n × m matrix; a scale for each row; the same draw for every sample."""
    fixed = Type(ELEMENT, 2, 3)
    rows = reduce("norm", G, to=ROW)
    body = [
        ("x", noise("uniform", 0.0, 1.0, type_=fixed)),
        ("y", noise("gaussian", rows, key="y")),
        ("z", noise("gaussian", reduce("norm", S, to=TENSOR), key="z", type_=SAMPLES)),
    ]
    states = [State("x kept", Const(0.0), fixed)]
    out = apply("add", value("y", GRID), apply("sample_sum", value("z", SAMPLES), type_=GRID))
    rule = Rule(program(body, out, states, [("x kept", value("x", fixed))], inputs=[SAMPLE_INPUT]), shapes={"m": (2, 2)})
    g, samples = np.array([[3.0, 4.0], [0.0, 2.0]]), draw((3, 2, 2))
    found = rule.step({"m": g}, batch=3, samples={"m": samples}).out["m"]
    z = {k: rng.normal(rng.words(0, 1, "m", k, np.arange(4))).reshape(2, 2) for k in "yz"}
    close(found, z["y"] * [[5], [2]] + z["z"] * sum(np.linalg.norm(s) for s in samples))
    close(rule.state.values["x kept"]["m"].ravel(), rng.uniform01(rng.words(0, 1, "m", "here", np.arange(6))))


def test_one_rank_has_everything():
    """What ranks have together, where there is one: itself."""
    part = reduce("norm", G, to=ROW)
    body = [("a", apply("total", part, static=("norm 2",))), ("b", apply("pooled", 2.0, 5.0, part)), ("c", apply("gathered", G))]
    out = apply("add", value("c", GRID), apply("sub", value("a", part.type), value("b", part.type)))
    close(Rule(program(body, out), shapes={"m": (1, 2)}).step({"m": np.array([[3.0, 4.0]])}).out["m"], [[3, 4]])


def test_every_core_op_is_stated_here():
    assert {op.name for op in OPS.values() if op.kind == "core"} == {"spread", "store", "push", "empty", "total", "pooled", "gathered"}
