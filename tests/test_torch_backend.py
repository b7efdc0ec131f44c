"""The torch backend: edge values, dtypes, memory, stacking, blocks, generated text; compiled code without recompilation."""

import ast
import linecache
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from edges import EDGES, EDGES32, every_op, triples
from handmade import GRID, INF, NAN, G, Rule, W, apply, every, expr, given, kind, old, program, reduce, spread, value
from test_torch_handmade import Both, agree, results, to_torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from updsl.back.torch_exec import TorchBackend
from updsl.back.torch_names import Names, to_identifier
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.core.ir import Apply, Binding, Input, Reduce, Ref, State, Type, Yield
from updsl.core.scope import ALL, COLUMN, GROUP, TENSOR, block
from updsl.core.source import Source, Span

H = given("h", GRID)
PARAMS = {"beta": 0.9, "eps": 1e-8}
BETA, EPS = (Ref(n, "param", Type(ALL)) for n in PARAMS)


BLOCK = block(5)
DRAWS = {"gaussian": (expr(0.1),), "uniform": (expr(-1), expr(2)), "bernoulli": (expr(0.3),)}


def reduce_time(op, *args):
    """A reduction over time: of scope tensor, as its window."""
    return Reduce(op, tuple(map(expr, args)), TENSOR, Type(TENSOR))


def backend(*programs, shapes, compiled=False, class_of=None):
    return TorchBackend(programs, class_of or dict.fromkeys(shapes, 0), [Tensor(n, s) for n, s in shapes.items()], compiled)


def frame(g, w=None, lr=0.1, params=None, groups=None, **inputs):
    groups = groups or dict.fromkeys(g, 0)
    w = w or {n: torch.zeros_like(x) for n, x in g.items()}
    return Frame(g, w, groups, dict.fromkeys(groups.values(), lr), dict.fromkeys(groups.values(), params or {}), inputs)


def adam():
    """An Adam with parameters from outside."""
    m, v = old("m", GRID), old("v", GRID)
    t = Ref("t", "builtin", Type(TENSOR))
    body = [
        ("m now", apply("store", apply("add", apply("mul", BETA, m), apply("mul", apply("sub", 1, BETA), G)), static=("state",))),
        ("v now", apply("store", apply("add", apply("mul", 0.999, v), apply("mul", 0.001, apply("pow", G, 2))), static=("state",))),
        ("m̂", apply("div", value("m now", GRID), apply("sub", 1, apply("pow", BETA, t)))),
        ("v̂", apply("div", value("v now", GRID), apply("sub", 1, apply("pow", 0.999, t)))),
        ("u", apply("div", value("m̂", GRID), apply("add", apply("sqrt", value("v̂", GRID)), EPS))),
    ]
    states = [State(n, expr(0), GRID) for n in "mv"]
    new = apply("store", apply("sub", W, apply("mul", Ref("lr", "builtin", Type(GROUP)), value("u", GRID))), static=("weight",))
    return program(body, states=states, commits=[("m", value("m now", GRID)), ("v", value("v now", GRID))], weight=new, returns=False)


# --- edge values -----------------------------------------------------------------------------------------------------


def test_every_elementwise_op_on_edge_values_in_float64():
    x, y, z = triples(EDGES)
    rule = Both(every_op(), shapes={"v": x.shape})
    rule.step({"v": x}, x={"v": x}, y={"v": y}, z={"v": z})


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["eager", "compiled"])
def test_every_elementwise_op_on_edge_values_in_float32(compiled):
    """Each entry is the float64 result to float32's precision; what is beyond its range is inf, or 0 to a few of its smallest numbers."""
    inputs = dict(zip("xyz", (a.astype(np.float32) for a in triples(EDGES32)), strict=True))
    p, shapes = every_op(), {"v": inputs["x"].shape}
    expected = Rule(p, shapes=shapes).step({"v": inputs["x"].astype(float)}, **{n: {"v": a.astype(float)} for n, a in inputs.items()}).state.values
    streams = {n: {"v": torch.from_numpy(a)} for n, a in inputs.items()}
    found = backend(p, shapes=shapes, compiled=compiled).step(RuleState(), frame(streams["x"], **streams)).state.values
    with np.errstate(over="ignore"):
        for name, cells in expected.items():
            want, have = cells["v"].astype(np.float32), found[name]["v"].numpy()
            assert have.dtype == np.float32
            np.testing.assert_array_equal(np.isnan(have), np.isnan(want), err_msg=name)
            np.testing.assert_allclose(have, want, rtol=2e-6, atol=2e-44, err_msg=name)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_norms_overflow_only_where_their_value_does(scale):
    ops = ["norm", "rms", "std", "cosine"]
    body = [(op, reduce(op, *([G, W] if op == "cosine" else [G]), to=TENSOR)) for op in ops]
    body += [(f"all {op}", reduce(op, *([G, W] if op == "cosine" else [G]), to=ALL)) for op in ops]
    p = program(body, watches=[(name, value(name, e.type)) for name, e in body])
    x = np.linspace(-1, 2, 24).reshape(4, 6) * scale
    rule = Both(p, shapes={"a": (4, 6), "b": (4, 6)})
    rule.step({"a": x, "b": x[::-1] * 1.5}, w={"a": x.T.reshape(4, 6), "b": np.abs(x)})


def test_the_variance_of_a_large_mean_and_of_equal_entries():
    body = [("here", reduce("var", G, to=TENSOR)), ("there", reduce("var", G, to=ALL)), ("std", reduce("std", G, to=ALL))]
    b = backend(program(body, watches=[(n, value(n, e.type)) for n, e in body]), shapes={"a": (5000,), "b": (40, 50)})
    g = {"a": 1e3 + 1e-3 * torch.randn(5000, generator=torch.Generator().manual_seed(0)), "b": torch.full((40, 50), 0.1)}
    seen = b.step(RuleState(), frame(g)).watches
    assert seen["here"]["a"].item() == pytest.approx(g["a"].double().var(correction=0).item(), rel=1e-3)
    assert seen["here"]["b"].item() == 0
    assert b.step(RuleState(), frame({"b": g["b"]})).watches["std"].item() == 0


def test_long_tensors_are_reduced_in_pieces():
    rng = np.random.default_rng(0)
    for shape in [(300_000,), (3, 70_000), (70_000, 3), (400, 500)]:
        body = []
        for op in ("sum", "mean", "norm", "std", "max", "median"):
            body += [(f"{op} {s}", reduce(op, G, to=s)) for s in (TENSOR, COLUMN, ALL) if s != COLUMN or op != "median"]
        p = program(body, watches=[(n, value(n, e.type)) for n, e in body if e.scope != COLUMN], out=spread(value("std column", kind(COLUMN))))
        Both(p, shapes={"v": shape}).step({"v": rng.standard_normal(shape)})


# --- dtypes and layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["eager", "compiled"])
def test_dtypes_of_results(dtype, compiled):
    """Arithmetic and states in float32 for 16-bit gradients; weights rounded once, and `out` is the difference of the rounded weights."""
    shapes = {"a": (6, 5)}
    p = adam()
    b = backend(p, shapes=shapes, compiled=compiled)
    rule = Rule(p, shapes=shapes, params={0: PARAMS}, lr={0: 0.1})
    real = torch.float64 if dtype == torch.float64 else torch.float32
    state, generator = RuleState(), torch.Generator().manual_seed(1)
    w = {"a": torch.randn(6, 5, generator=generator).to(dtype)}
    exact = {n: x.double().numpy() for n, x in w.items()}
    for _ in range(3):
        g = {"a": torch.randn(6, 5, generator=generator).to(dtype)}
        r = b.step(state, frame(g, w, params=PARAMS))
        e = rule.step({n: x.double().numpy() for n, x in g.items()}, exact)
        assert r.out["a"].dtype == r.weights["a"].dtype == dtype
        assert r.state.values["m"]["a"].dtype == real
        agree(r.state.values["m"], e.state.values["m"], (), 1e-9 if dtype == torch.float64 else 2e-6)
        agree(r.weights, e.weights, (), 3 * torch.finfo(dtype).eps)
        torch.testing.assert_close(r.out["a"], (w["a"].to(real) - r.weights["a"].to(real)).to(dtype), rtol=1e-6, atol=0)
        w, state = r.weights, r.state
        exact = {n: x.double().numpy() for n, x in w.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_rounding_from_float64(dtype):
    """Values beside the middle of two 16-bit numbers, nearer to it than float32 can tell."""
    ulp = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    x = np.array([s * (1 + ulp / 2 + d) for s in (1, -1) for d in (-(2.0**-40), 0, 2.0**-40)] + [0.0, -0.0, NAN, INF, -INF, 1e-320, 1e300, 1e-7])
    commit = apply("store", G, static=(dtype,))
    Both(program(states=[State("s", expr(0), GRID, dtype)], commits=[("s", commit)], out=commit), shapes={"v": x.shape}).step({"v": x})


def test_gradients_of_any_layout():
    """Transposed, channels-last, expanded, sliced: the result is that of a dense copy."""
    p = program([("x", apply("div", G, reduce("norm", G, to=COLUMN)))], value("x", GRID))
    base = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = {
        "transposed": base[0, :, :, 0].T,
        "channels": base.to(memory_format=torch.channels_last),
        "expanded": base[0, 0, 0].expand(7, 3),
        "sliced": base[:, ::2, 1:, 0],
        "number": base[0, 0, 0, 0],
    }
    b = backend(p, shapes={n: tuple(x.shape) for n, x in views.items()})
    found = b.step(RuleState(), frame(views)).out
    dense = b.step(RuleState(), frame({n: x.clone(memory_format=torch.contiguous_format) for n, x in views.items()})).out
    for n in views:
        torch.testing.assert_close(found[n], dense[n], rtol=0, atol=0)


@pytest.mark.parametrize("op", DRAWS)
def test_long_draws_are_made_in_pieces(op):
    """Beyond one piece too, and for one number for all."""
    one = Type(ALL)
    body = [("x", Apply(op, DRAWS[op], GRID, ("here",))), ("y", Apply(op, DRAWS[op], one, ("there",)))]
    p = program(body, apply("add", value("x", GRID), value("y", one)), watches=[("y", value("y", one))])
    Both(p, shapes={"a": (70_000, 2), "b": (3,)}, seed=5).step({"a": np.zeros((70_000, 2)), "b": np.zeros(3)})


def test_under_vmap():
    """A batch of models at once."""
    p = program(
        [("n", reduce("norm", G, to=ALL)), ("x", apply("div", G, value("n", Type(ALL)))), ("s", reduce("std", value("x", GRID), to=COLUMN))],
        apply("sub", value("x", GRID), value("s", kind(COLUMN))),
    )
    b = backend(p, shapes={"a": (4, 3), "b": (5,)})
    g = {"a": torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)), "b": torch.randn(6, 5, generator=torch.Generator().manual_seed(1))}
    found = torch.func.vmap(lambda x: b.step(RuleState(), frame(x)).out)(g)
    for i in range(6):
        alone = b.step(RuleState(), frame({n: x[i] for n, x in g.items()})).out
        for n, x in alone.items():
            torch.testing.assert_close(found[n][i], x)


def test_a_model_of_several_dtypes():
    """A value over the model is in the widest compute dtype; each tensor's result in its own."""
    p = program([("n", reduce("norm", G, to=ALL))], apply("div", G, value("n", Type(ALL))), watches=[("n", value("n", Type(ALL)))])
    g = {"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.ones(2, 1)}
    r = backend(p, shapes={n: tuple(x.shape) for n, x in g.items()}).step(RuleState(), frame(g))
    assert r.watches["n"].dtype == torch.float64
    assert r.watches["n"].item() == 3
    assert [r.out[n].dtype for n in g] == [x.dtype for x in g.values()]


# --- purity ----------------------------------------------------------------------------------------------------------


def test_results_lie_in_memory_of_their_own():
    """Writing into a gradient, a weight or a result after the step changes no other result."""
    states = [State("last", expr(0), GRID), State("w0", W, GRID)]
    p = program(out=G, states=states, commits=[("last", G), ("w0", old("w0", GRID))], watches=[("first", reduce("max", G, to=TENSOR))])
    b = backend(p, shapes={"v": (3,)})
    g, w = {"v": torch.ones(3)}, {"v": torch.full((3,), 2.0)}
    r = b.step(RuleState(), frame(g, w))
    for x in (g["v"], w["v"], r.out["v"]):
        x.fill_(7.0)
    assert r.state.values["last"]["v"].tolist() == [1, 1, 1]
    assert r.state.values["w0"]["v"].tolist() == [2, 2, 2]
    again = b.step(r.state, frame({"v": torch.zeros(3)}, w))
    again.out["v"].fill_(9.0)
    assert again.state.values["last"]["v"].tolist() == [0, 0, 0]


# --- stacking, blocks, memory ----------------------------------------------------------------------------------------


def counted(b):
    """The backend with a list of (function, stack size) of its calls."""
    calls = []
    for variant in b._variants.values():
        run = variant.run

        def counting(f, args, run=run):
            calls.append((f.name, max(x.shape[0] for x in args if isinstance(x, torch.Tensor) and x.ndim == 3)))
            return run(f, args)

        variant.run = counting
    return calls


def test_tensors_in_one_buffer_take_one_call_and_no_copy():
    shapes = dict.fromkeys("abc", (4, 3)) | {"d": (2,)}
    buffer = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = {n: buffer[i, :12].view(4, 3) for i, n in enumerate("abc")} | {"d": torch.ones(2, dtype=torch.float64)}
    w = {n: torch.randn(shapes[n], dtype=torch.float64, generator=torch.Generator().manual_seed(3)) for n in shapes}
    p = adam()
    b = backend(p, shapes=shapes)
    calls = counted(b)
    weights = torch.stack([w[n] for n in "abc"])
    stacked = w | {n: weights[i] for i, n in enumerate("abc")}
    state, apart, alone = RuleState(), RuleState(), backend(p, shapes=shapes)
    for step in range(3):
        calls.clear()
        r = b.step(state, frame(g, stacked, params=PARAMS))
        assert [k for _, k in calls] == [3, 1]
        e = alone.step(apart, frame({n: x.clone() for n, x in g.items()}, w, params=PARAMS))
        agree(results(r), {k: to_numpy(v) for k, v in results(e).items()}, (step,), 1e-15)
        state, apart = r.state, e.state
    cells = state.values["m"]
    assert cells["a"].untyped_storage().data_ptr() == cells["c"].untyped_storage().data_ptr()


def to_numpy(x):
    if isinstance(x, dict):
        return {k: to_numpy(v) for k, v in x.items()}
    return x.numpy() if isinstance(x, torch.Tensor) else x


class Ops(TorchDispatchMode):
    """Which ops ran, and how many buffers of at least `size` bytes were alive at once beside those before."""

    def __init__(self, size=1 << 62):
        super().__init__()
        self.size, self.names, self.live, self.peak = size, set(), [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket._qualified_op_name)
        known = {ref.cdata for ref in self.live}
        for x in [out] if isinstance(out, torch.Tensor) else [y for y in out or () if isinstance(y, torch.Tensor)] if isinstance(out, tuple) else []:
            ref = StorageWeakRef(x.untyped_storage())
            inputs = {StorageWeakRef(a.untyped_storage()).cdata for a in args if isinstance(a, torch.Tensor)}
            if x.untyped_storage().nbytes() >= self.size and ref.cdata not in known | inputs:
                self.live.append(ref)
        self.live = [ref for ref in self.live if not ref.expired()]
        self.peak = max(self.peak, len(self.live))
        return out


def peak(f, n):
    with Ops(4 * n) as ops:
        f()
    return ops.peak


def test_no_more_full_size_memory_than_by_hand():
    n = 300_000
    g, w, m, v = (torch.rand(n, generator=torch.Generator().manual_seed(i)) for i in range(4))
    b = backend(adam(), shapes={"v": (n,)})
    step = frame({"v": g}, {"v": w}, params=PARAMS)
    state = b.step(RuleState(), step).state

    def by_hand():
        m2 = 0.9 * m + 0.1 * g
        v2 = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m2 / (1 - 0.9**2), v2 / (1 - 0.999**2)
        u = m_hat / (v_hat.sqrt() + 1e-8)
        new = w - 0.1 * u
        return m2, v2, new, w - new

    assert peak(lambda: b.step(state, step), n) <= peak(by_hand, n)
    clip = program([("n", reduce("norm", G, to=ALL))], apply("div", G, value("n", Type(ALL))))
    b = backend(clip, shapes={"v": (n,)})
    step = frame({"v": g}, {"v": w})
    assert peak(lambda: b.step(RuleState(), step), n) == 1


def test_on_other_steps_nothing_of_a_block_is_computed():
    basis = Type(GRID.scope, "rows", 1)
    inside = every(3, 3, [("p", apply("left_basis", G, static=(1,), type_=basis))], Yield("P now", value("p", basis), old("P", basis), basis))
    p = program([inside], states=[State("P", expr(0), basis)], commits=[("P", value("P now", basis))])
    b = backend(p, shapes={"v": (4, 3)})
    state, ran = RuleState(), []
    for _ in range(6):
        with Ops() as ops:
            state = b.step(state, frame({"v": torch.randn(4, 3)})).state
        ran.append(any("svd" in name for name in ops.names))
    assert ran == [False, False, True, False, False, True]
    assert len(b.source) == 2


# --- generated text --------------------------------------------------------------------------------------------------


def test_identifiers_are_ascii_and_distinct():
    wishes = ["m̂", "m_hat", "β₁", "β1", "n'", "n′", "ema#1.m", "ema.1.m", "lambda", "torch", "1x", "", "名", "é", "ℵ", "ſ", "x" * 200]
    names = Names()
    given_ = [names.fresh(w) for w in wishes]
    assert len(set(given_)) == len(wishes)
    assert all(n.isidentifier() and n.isascii() for n in given_)
    assert to_identifier("m̂") == "m_hat"
    assert to_identifier("γ'") == "gamma_prime"


def test_the_text_of_a_rule_stays_within_comments():
    evil = "x\nimport os  # \x0c\u2028\r\"\"\"'''\\"
    span = Span(Source(evil, evil), 0, len(evil))
    p = replace(program(), name=evil, body=(Binding(evil, apply("mul", G, 2), span=span),), out=apply("add", value(evil, GRID), 1))
    (text,) = backend(p, shapes={"v": (2,)}).source.values()
    allowed = (ast.Module, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign, ast.Return, ast.Expr, ast.Delete)
    statements = [s for s in ast.walk(ast.parse(text)) if isinstance(s, ast.stmt)]
    assert all(isinstance(s, allowed) for s in statements)
    assert {a.name for s in statements if isinstance(s, ast.Import) for a in s.names} == {"math", "torch"}


def test_tracebacks_show_the_generated_line():
    p = program([("product", apply("mul", G, given("h", GRID)))], value("product", GRID), inputs=[Input("h", "stream", GRID)])
    b = backend(p, shapes={"v": (2,)})
    (variant,) = b._variants.values()
    with pytest.raises(RuntimeError) as caught:
        variant.eager["p_phase_0"](torch.ones(1, 2, 1), torch.float32, torch.ones(1, 3, 1), torch.float32)
    assert "product = g * h" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert any(name.startswith("<updsl") for name in linecache.cache)


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_changing_numbers_recompile_nothing():
    """Over 100 steps lr, t and parameters change; 20 shapes have a code object each, beyond the limit of 8 for one."""
    shapes = {"a": (3, 2)}
    b = backend(adam(), shapes=shapes, compiled=True)
    alone = backend(adam(), shapes=shapes)
    state, apart = RuleState(), RuleState()
    g, w = {"a": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}, {"a": torch.ones(3, 2)}
    for step in range(100):
        given_ = frame(g, w, lr=0.1 / (step + 1), params={"beta": 0.9 - 0.001 * step, "eps": 1e-8 * (step + 1)})
        with torch._dynamo.config.patch(error_on_recompile=True):
            r = b.step(state, given_)
        e = alone.step(apart, given_)
        state, apart = r.state, e.state
    agree(results(r), {k: to_numpy(v) for k, v in results(e).items()}, (), 1e-6)
    assert len(b.kernels) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_shape_has_code_of_its_own():
    shapes = {f"v{i}": (i + 1,) for i in range(10)}
    b = backend(program(out=apply("mul", G, 2)), shapes=shapes, compiled=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = b.step(RuleState(), frame({n: torch.ones(s) for n, s in shapes.items()})).out
    assert all((x == 2).all() for x in found.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_code_equals_the_interpreter():
    """Joint steps, orders, windows, blocks of entries and matrices, in one program without a graph break."""
    n, late = Type(ALL), Type(TENSOR, window=3)
    grids = replace(GRID, rows="rows", cols="rows")
    body = [
        ("n", reduce("norm", G, to=ALL)),
        ("x", apply("div", G, value("n", n))),
        ("h now", apply("push", old("h", late), reduce("std", value("x", GRID), to=TENSOR), type_=late)),
        ("q", reduce_time("quantile", value("h now", late), 0.3)),
        ("b", reduce("median", value("x", GRID), to=BLOCK)),
        ("gram", apply("matmul", value("x", GRID), apply("transpose", value("x", GRID), type_=Type(GRID.scope, "cols", "rows")), type_=grids)),
        ("u", apply("matmul", value("gram", grids), apply("polar", value("x", GRID)), type_=GRID)),
        ("top", apply("largest", value("u", GRID), 2, type_=replace(GRID, boolean=True), static=(TENSOR, False))),
        ("y", apply("select", value("top", replace(GRID, boolean=True)), value("u", GRID), spread(value("b", kind(BLOCK))))),
    ]
    state = State("h", None, late)
    body += [(op, Apply(op, args, GRID, (f"place of {op}",))) for op, args in DRAWS.items()]
    out = apply("mul", value("y", GRID), value("q", Type(TENSOR)))
    for op in DRAWS:
        out = apply("add", out, value(op, GRID))
    p = program(body, out, [state], [("h", value("h now", late))])
    shapes = {"a": (4, 3)}
    b, rule = backend(p, shapes=shapes, compiled=True), Rule(p, shapes=shapes)
    after = RuleState()
    for step in range(3):
        x = np.random.default_rng(step).standard_normal((4, 3))
        with torch._dynamo.config.patch(error_on_recompile=True):
            r = b.step(after, frame(to_torch({"a": x})))
        agree(results(r), results(rule.step({"a": x})), (step,))
        after = r.state
