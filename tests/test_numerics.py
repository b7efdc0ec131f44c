"""Numbers at the edges, in every backend: what must not overflow, cancel, be NaN or be rounded twice. The rows N1 … are those of the fault table."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from edges import EDGES, EDGES32, ELEMENTWISE, every_op, triples
from handmade import Rule
from hypothesis import given, settings
from hypothesis import strategies as st

import updsl
from updsl import pipeline
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.core.ir import Type
from updsl.core.scope import TENSOR

HERE = ("torch", "cpp", *(("triton",) if find_spec("triton") else ()))
KERNELS = {"cpp": pipeline.cpp_kernels, "triton": pipeline.triton_kernels}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)

every_backend = pytest.mark.parametrize("backend", HERE)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def normal(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt), dtype=torch.float64).to(dtype)


def compiled(text: str, backend: str, *like: torch.Tensor) -> updsl.Compiled:
    rule = updsl.load(text) if text in updsl.library() else updsl.parse(text)
    y = updsl.compile(rule, {f"x{i}": torch.zeros_like(x) for i, x in enumerate(like)}, backend=backend, lr=0.0)
    assert y.backend == backend
    return y


def stepped(text: str, backend: str, g: torch.Tensor) -> torch.Tensor:
    """What the first step makes of a gradient, in its place."""
    given_ = {"x0": g.clone()}
    compiled(text, backend, g).step(given_)
    return given_["x0"]


def seen(what: str, backend: str, g: torch.Tensor) -> float:
    """A number of a gradient, of scope tensor."""
    return compiled(f"rule r:\n    watch seen = {what}\n    return g\n", backend, g).step({"x0": g.clone()})["seen"]["x0"].item()


# --- gradients -------------------------------------------------------------------------------------------------------

NORMALIZING = ("zclip", "clip_z", "adafactor", "lamb", "sinkgd", "adamw", "clip norm > 1 per all", "norm per column → clip z > 2.5 per tensor")
QUICK = ("lamb", "sinkgd", "norm per column → clip z > 2.5 per tensor")


@every_backend
@pytest.mark.parametrize("text", [pytest.param(t, marks=() if t in QUICK else pytest.mark.nightly) for t in NORMALIZING])
def test_n1_of_zeros_everything_is_finite(text: str, backend: str) -> None:
    for dtype in DTYPES[:2]:
        g = torch.zeros(6, 4, dtype=dtype)
        y = compiled(text, backend, g)
        for _ in range(2):
            y.step({"x0": g})
            arrays = [x for cells in y.state.values.values() for x in cells.values() if isinstance(x, torch.Tensor)]
            assert all(torch.isfinite(x).all() for x in (g, *y.params.values(), *arrays))


BAD = {"nan": [math.nan], "inf": [math.inf], "minus inf": [-math.inf], "all": [math.nan] * 12}


@every_backend
@pytest.mark.parametrize("bad", BAD)
def test_n2_a_step_of_what_is_no_number_is_skipped(bad: str, backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        named = [(n, torch.nn.Parameter(normal(3, 4, salt=i, dtype=dtype))) for i, n in enumerate("ab")]
        optimizer = torch.optim.SGD([p for _, p in named], lr=0.1)
        handle = updsl.attach(optimizer, updsl.parse("ema(0.9) → clip norm > 1 per all"), names=named, backend=backend)

        def step(salt: int, spoil: list[float], named=named, optimizer=optimizer, dtype=dtype) -> list[torch.Tensor]:
            for i, (_, p) in enumerate(named):
                p.grad = normal(3, 4, salt=salt + i, dtype=dtype)
            named[0][1].grad.view(-1)[: len(spoil)] = torch.tensor(spoil, dtype=dtype)
            optimizer.step()
            states = [x.clone() for p in optimizer.state.values() for x in p.values() if isinstance(x, torch.Tensor)]
            return [*(p.detach().clone() for _, p in named), *states]

        before = step(10, [])
        assert all(map(torch.equal, step(20, BAD[bad]), before))
        assert handle.counts["bad"] == 1
        assert not any(map(torch.equal, step(30, []), before))


SCALES = {
    torch.float64: (5e-324, 1e-300, 1e-30, 1e20, 1e307),
    torch.float32: (1e-45, 1e-42, 1e-30, 1e20, 4e36),
    torch.bfloat16: (1e-30, 1e20, 4e36),
    torch.float16: (6e-8, 1e-4, 60000.0),
}


@every_backend
@every_dtype
def test_n3_norms_neither_overflow_nor_underflow(dtype: torch.dtype, backend: str) -> None:
    for scale in SCALES[dtype]:
        g = torch.full((8, 8), scale, dtype=dtype)
        unit = stepped("g / norm(g)", backend, g)
        assert torch.allclose(unit, torch.full_like(g, 1 / 8), rtol=1e-5 if scale > 1e-40 else 0.2), scale
        for what, expected in (("norm(g)", 8), ("rms(g)", 1), ("norm(g, 1)", 64), ("norm(g, 3)", 4), ("absmax(g)", 1)):
            if (backend, what) == ("triton", "norm(g, 3)") and not 1e-75 < scale < 1e75:
                continue  # the range that docs/kernels.md states
            assert seen(what, backend, g) == pytest.approx(expected * g[0, 0].item(), rel=1e-6, abs=1e-45 if dtype != torch.float64 else 5e-324), (scale, what)


@every_backend
def test_n4_the_norm_of_float16_is_no_float16(backend: str) -> None:
    g = torch.full((100, 100), 60000.0, dtype=torch.float16)
    assert seen("norm(g)", backend, g) == pytest.approx(g[0, 0].item() * 100)
    clipped = stepped("clip norm > 1", backend, g)
    assert clipped.double().norm() == pytest.approx(1, rel=1e-3)


@every_backend
def test_n5_one_huge_entry_among_many(backend: str) -> None:
    """Bounds hold but for the two roundings of x·(c/|x|): to 2⁻²³ of the bound in float32."""
    bound = torch.tensor(0.1).double() * (1 + 2**-23)
    g = normal(1000, 1000 if backend != "triton" else 100, salt=1)
    g[3, 7] = 3e37
    assert stepped("clip abs > 0.1", backend, g).double().abs().max() <= bound
    assert stepped("clip norm > 0.1", backend, g).double().norm() <= bound
    assert torch.isfinite(stepped("clip z > 2.5", backend, g)).all()
    ordinary = normal(1000, 100, salt=2)
    bounded = stepped("clip norm > 0.1", backend, ordinary).double().norm()
    assert bounded == pytest.approx(0.1, rel=1e-6)
    assert bounded <= bound


@every_backend
@every_dtype
def test_n6_equal_entries_have_no_deviation_and_no_z(dtype: torch.dtype, backend: str) -> None:
    for g in (torch.full((30, 40), 0.1, dtype=dtype), torch.full((), 0.1, dtype=dtype), torch.full((1, 1), 7.0, dtype=dtype)):
        assert seen("std(g)", backend, g) == 0
        assert torch.equal(stepped("g - mean(g)", backend, g), torch.zeros_like(g))
        assert torch.equal(stepped("clip z > 2.5", backend, g), g)


@every_backend
def test_n7_the_first_step_is_defined(backend: str) -> None:
    for dtype in DTYPES[:2]:
        g = normal(5, 4, salt=1, dtype=dtype)
        assert torch.allclose(stepped("ema(0.999)", backend, g), g, rtol=1e-5)
        w = {"x0": torch.zeros_like(g)}
        updsl.compile(updsl.load("adamw"), w, backend=backend, lr=0.1).step({"x0": g.clone()})
        assert torch.allclose(w["x0"], -0.1 * g.sign(), rtol=1e-4)
        y = compiled("zclip(warmup = 2)", backend, g)
        for salt in range(4):
            x = {"x0": normal(5, 4, salt=salt, dtype=dtype)}
            y.step(x)
            assert torch.isfinite(x["x0"]).all()


@every_backend
def test_n8_a_small_deviation_beside_a_large_mean(backend: str) -> None:
    g = (1e3 + 1e-3 * normal(300, 100, salt=3, dtype=torch.float64)).float()
    exact = g.double().std(unbiased=False).item()
    assert seen("std(g)", backend, g) == pytest.approx(exact, rel=1e-3)
    assert seen("var(g)", backend, g) == pytest.approx(exact**2, rel=1e-3)
    columns = (g.double() - 1e3).std(0, unbiased=False)
    assert stepped("g*0 + (std(g) per column)", backend, g)[0].double().numpy() == pytest.approx(columns.numpy(), rel=1e-3)
    rows = g.double().std(1, unbiased=False)
    assert stepped("g*0 + (std(g) per row)", backend, g)[:, 0].double().numpy() == pytest.approx(rows.numpy(), rel=1e-3)


LONG = pytest.mark.timeout(3600)


@pytest.mark.parametrize("mean", [0.0, 1.0, -100.0])
@pytest.mark.parametrize(("backend", "steps"), [("cpp", 20_000), *(pytest.param(b, 100_000, marks=[pytest.mark.nightly, LONG]) for b in HERE if b != "triton")])
def test_n9_a_long_average_of_short_gradients(backend: str, steps: int, mean: float) -> None:
    """A state is float32 where gradients are bfloat16."""
    beta, exact = 0.99999, np.zeros(64)
    y = compiled(f"ema({beta}, debias = false)", backend, torch.zeros(64, dtype=torch.bfloat16))
    for salt in range(steps):
        g = normal(64, salt=salt, dtype=torch.bfloat16) + mean
        exact = beta * exact + (1 - beta) * g.double().numpy()
        y.step({"x0": g})
    (state,) = [x for cells in y.state.values.values() for x in cells.values()]
    assert state.dtype == torch.float32
    assert np.abs(state.double().numpy() - exact).max() <= 1e-5 * max(1.0, abs(mean))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("backend", "numel"),
    [
        ("cpp", 10**8),
        pytest.param("torch", 10**8, marks=pytest.mark.nightly),
        *([pytest.param("triton", 10**7, marks=pytest.mark.nightly)] if "triton" in HERE else []),
    ],
)
def test_n10_the_norm_of_many_entries(backend: str, numel: int) -> None:
    g = torch.full((numel,), 0.1)
    y = compiled("rule r:\n    watch total = norm(g)\n    watch mean = mean(g)\n    return 2*g\n", backend, g[:1].expand(numel))
    shown = y.step({"x0": g})
    exact = np.float32(0.1).astype(np.float64)
    assert shown["total"]["x0"].item() == pytest.approx(exact * math.sqrt(numel), rel=1e-6)
    assert shown["mean"]["x0"].item() == pytest.approx(exact, rel=1e-6)


@every_backend
@every_dtype
def test_n11_signs_of_zero_and_ties(dtype: torch.dtype, backend: str) -> None:
    """The larger of 0 and -0 may be either."""
    g = torch.tensor([[0.0, -0.0, 1.0, -1.0, 2.0, -2.0], [3.0, 3.0, -3.0, 3.0, 0.5, 0.5]], dtype=dtype)
    for text in ("g * 1", "-1 * g", "sign(g)", "abs(g)", "round(g / 4)", "floor(g)", "g^3", "tanh(g)", "clamp(g, -1, 1)"):
        found, expected = (stepped(text, b, g) for b in (backend, "interpret"))
        assert torch.equal(torch.signbit(found), torch.signbit(expected)), text
        assert torch.allclose(found, expected, rtol=1e-2 if dtype in HALVES else 1e-6), text
    nothing = stepped("sign(g)", backend, torch.tensor([math.nan, 0.0], dtype=dtype))
    assert torch.isnan(nothing[0])
    for text in ("largest(g, 2)", "g * 0 + median(g)", "g * 0 + (median(abs(g)) per row)"):
        text = f"if {text} then g else 0" if text.startswith("largest") else text
        assert torch.equal(stepped(text, backend, g), stepped(text, "interpret", g)), text


@every_backend
def test_n12_what_a_rule_makes_too_large_is_counted(backend: str) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    handle = updsl.attach(optimizer, updsl.parse("g * 1e30 * 1e30 * 1e30"), names=[("a", p)], backend=backend)
    for scale, overflowed in ((1e-70, 0), (1.0, 1)):
        p.grad = torch.full((3, 4), scale)
        optimizer.step()
        assert (int(handle.counts["overflowed"]), int(handle.counts["bad"])) == (overflowed, 0)


@every_backend
@every_dtype
def test_n13_the_two_sides_of_a_threshold(dtype: torch.dtype, backend: str) -> None:
    """What is equal to a bound is not beyond it."""
    y = {text: compiled(f"clip {text} > 0.75", backend, torch.zeros(1, dtype=dtype)) for text in ("norm", "abs")}
    z = compiled("if norm(g) >= 0.75 then 2*g else g", backend, torch.zeros(1, dtype=dtype))

    @settings(max_examples=20)
    @given(st.sampled_from([-1.0, 1.0]), st.integers(-2, 2))
    def sides(sign: float, ulps: int) -> None:
        x = torch.tensor([0.75 * sign], dtype=dtype)
        for _ in range(abs(ulps)):
            x = torch.nextafter(x, x * 0 if ulps < 0 else x * 2)
        expected = x if ulps <= 0 else torch.full_like(x, 0.75 * sign)
        for one in y.values():
            g = {"x0": x.clone()}
            one.step(g)
            assert torch.allclose(g["x0"], expected, rtol=torch.finfo(dtype).eps if ulps > 0 else 0, atol=0)
        g = {"x0": x.clone()}
        z.step(g)
        assert torch.equal(g["x0"], x if ulps < 0 else 2 * x)

    sides()


OTHER = {
    "int64": lambda: torch.ones(4, dtype=torch.int64),
    "bool": lambda: torch.ones(4, dtype=torch.bool),
    "complex64": lambda: torch.ones(4, dtype=torch.complex64),
    "sparse": lambda: torch.ones(4).to_sparse(),
    "quint8": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
}


@every_backend
@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("kind", OTHER)
def test_n14_other_gradients_are_refused_by_name(kind: str, backend: str) -> None:
    y = compiled("g * 2", backend, torch.zeros(4))
    with pytest.raises(updsl.UpdslError, match=f"the gradient of `x0` is {kind}"):
        y.step({"x0": OTHER[kind]()})
    assert y.state.run == 0


# --- ops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("where", ["entries", "numbers"])
@pytest.mark.parametrize("backend", [b for b in HERE if b in KERNELS])
def test_every_op_on_edge_values(backend: str, where: str, dtype: torch.dtype) -> None:
    """Entries are computed in their own type, what is of scope tensor in float64; zeros have the sign they should."""
    numbers = np.float64 if dtype == torch.float64 else np.float32
    inputs = dict(zip("xyz", (a.astype(numbers) for a in triples(EDGES if dtype == torch.float64 else EDGES32)), strict=True))
    if (backend, where) == ("triton", "numbers"):
        inputs = {n: a[::5] for n, a in inputs.items()}  # Triton's interpreter takes a while for each tensor
    count = len(inputs["x"])
    ops = [op for op in ELEMENTWISE if getattr(op, backend)]
    expected = Rule(every_op(ops), shapes={"v": (count,)}).step({"v": np.ones(count)}, **{n: {"v": a.astype(float)} for n, a in inputs.items()}).state.values
    if where == "entries":
        shapes, program = {"v": (count,)}, every_op(ops)
        given_ = {n: {"v": torch.from_numpy(a)} for n, a in inputs.items()}
    else:
        shapes, program = {f"v{i}": () for i in range(count)}, every_op(ops, Type(TENSOR), "per")
        given_ = {n: {f"v{i}": float(x) for i, x in enumerate(a)} for n, a in inputs.items()}
    g, one = {n: torch.ones(s, dtype=dtype) for n, s in shapes.items()}, dict.fromkeys(shapes, 0)
    made = KERNELS[backend]([program], one, [Tensor(n, s) for n, s in shapes.items()])
    states = made.step(RuleState(), Frame(g, {n: torch.zeros_like(x) for n, x in g.items()}, one, {0: 0.1}, {0: {}}, given_)).state.values
    exact, tiny = (2e-6, 2e-44) if dtype == torch.float32 else (1e-12, 5e-323)
    for name, cells in expected.items():
        with np.errstate(over="ignore"):
            want = cells["v"].astype(numbers)
        have = np.concatenate([states[name][n].numpy().reshape(-1) for n in shapes])
        np.testing.assert_allclose(have, want, rtol=exact, atol=tiny, err_msg=name)
        zero = (want == 0) & (have == 0)
        np.testing.assert_array_equal(np.signbit(have[zero]), np.signbit(want[zero]), err_msg=name)
