"""C++ kernels: the numbers of the interpreter, the same bits on any number of threads, and a step that touches no more memory than its plan says."""

from __future__ import annotations

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_conformance as conformance
import torch
from agreement import furthest, run
from hypothesis import Phase, given, seed, settings
from strategies import Case, cases
from test_plan import J1, J2, J3, rule_of

import updsl
from updsl import pipeline
from updsl.back import cpp_build
from updsl.core.frame import Tensor

GENERATED = Path(__file__).parent / "data" / "generated"
JOBS = {"j1": J1, "j2": J2, "j3": J3}
SHAPES = {"a.weight": (40, 30), "b.bias": (50,), "lm_head.weight": (3, 4, 5), "d": ()}
QUICK = ("adafactor", "adagc", "lamb", "sinkgd", "stable_spam", "clip_z", "zclip")
"""Rules of every kind: rows and columns, values of the model, blocks every few steps, states that are stored early."""


def normal(*shape: int, salt: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(salt), dtype=torch.float64) * scale).to(dtype)


def inputs_of(rule: updsl.Rule, salt: int, g: dict[str, torch.Tensor]) -> dict[str, Any]:
    given_: dict[str, Any] = {}
    for k, (name, kind) in enumerate(rule.inputs.items()):
        match kind:
            case "all":
                given_[name] = 1.0 + k
            case "samples":
                given_[name] = {n: normal(5, *x.shape, salt=salt + k, dtype=x.dtype) for n, x in g.items()}
            case "matrix":
                grids = {n: Tensor(n, tuple(x.shape)).grid for n, x in g.items() if x.ndim > 1}
                given_[name] = {n: torch.eye(*((2, c) if r >= c else (r, 2)), dtype=g[n].dtype) for n, (r, c) in grids.items()}
            case _:
                given_[name] = {n: normal(*x.shape, salt=salt + k, dtype=x.dtype) for n, x in g.items()}
    return given_


def steps_of(rule: updsl.Rule, backend: str, dtype: torch.dtype, steps: int = 4) -> list[tuple[dict, dict, dict]]:
    """(gradients after the step, weights, watches) of some steps in place, the third a spike, the last without one tensor."""
    params = {n: normal(*s, salt=i, dtype=dtype) for i, (n, s) in enumerate(SHAPES.items())}
    y = updsl.compile(rule, params, backend=backend, lr=0.1)
    assert y.backend == backend
    made = []
    for t in range(steps):
        g = {n: normal(*s, salt=100 * t + i, scale=10.0 if t == 2 else 1.0, dtype=dtype) for i, (n, s) in enumerate(SHAPES.items())}
        if t == steps - 1:
            del g["b.bias"]
        watches = y.step(g, **inputs_of(rule, 1000 * t, g))
        made.append(({n: x.clone() for n, x in g.items()}, {n: p.clone() for n, p in params.items()}, watches))
    return made


def compared(rule: updsl.Rule, other: str, dtype: torch.dtype) -> float:
    """The largest difference, relative to each tensor's largest entry."""
    worst = 0.0
    for mine, theirs in zip(steps_of(rule, "cpp", dtype), steps_of(rule, other, dtype), strict=True):
        for a, b in zip(mine[:2], theirs[:2], strict=True):
            for n, x in b.items():
                worst = max(worst, float((a[n].double() - x.double()).abs().max() / x.double().abs().max().clamp_min(1e-30)))
        assert mine[2].keys() == theirs[2].keys()
    return worst


def check_rule(name: str) -> None:
    rule = updsl.load(name)
    assert compared(rule, "interpret", torch.float64) <= 1e-9
    assert compared(rule, "torch", torch.float32) <= 2e-5


@pytest.mark.parametrize("name", QUICK)
def test_rules_of_every_kind(name: str) -> None:
    check_rule(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", updsl.library())
def test_every_rule_of_the_library(name: str) -> None:
    check_rule(name)


@pytest.mark.parametrize("number", [pytest.param(n, marks=() if n % 40 == 0 else pytest.mark.nightly) for n in range(len(conformance.SUITE["programs"]))])
def test_conformance_programs(number: int) -> None:
    conformance.check_program(conformance.SUITE["programs"][number], "cpp")


@pytest.mark.parametrize("number", [pytest.param(n, marks=() if n % 20 == 0 else pytest.mark.nightly) for n in range(len(conformance.SUITE["points"]))])
def test_conformance_points(number: int) -> None:
    conformance.test_points(conformance.SUITE["points"][number], "cpp")


def check_case(case: Case) -> None:
    rule = updsl.parse(case.text)
    assert rule.engine(rule.init(case.weights, groups=case.groups).layout, True, "cpp").name == "cpp"
    given_ = [run(rule, backend, case.weights, case.steps, case.lr, case.groups, case.seed) for backend in ("cpp", "interpret")]
    worst, where = furthest(*given_, True)
    assert worst <= 1e-9, f"{where}: {worst:.1e}"


def random_programs(number: int, size: int, missing: bool = False) -> None:
    """`size` programs from a seed, in kernels and in the interpreter; missing: some tensors have no gradient at some steps."""
    test = given(cases(missing, kernels="cpp"))(check_case)
    seed(number)(settings(max_examples=size, database=None, phases=(Phase.generate,))(test))()


def test_random_programs() -> None:
    random_programs(200, 6)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(20))
def test_two_thousand_random_programs(number: int) -> None:
    random_programs(number, 100)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_random_programs_whose_gradients_may_be_missing() -> None:
    random_programs(700, 100, missing=True)


# --- memory and threads ----------------------------------------------------------------------------------------------


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize("text", JOBS.values(), ids=JOBS)
def test_the_same_bits_on_one_thread_and_on_two_and_from_run_to_run(text: str) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            params = {"x": normal(700, 500, salt=1), "y": normal(300, salt=2)}
            y = updsl.compile(rule_of(text), params, backend="cpp", lr=0.01)
            for t in range(3):
                g = {"x": normal(700, 500, salt=3 + t), "y": normal(300, salt=9 + t)}
                y.step(g)
            states = [x for cells in y.state.values.values() for x in cells.values()]
            found.append([bits(x) for x in (*g.values(), *params.values(), *states) if isinstance(x, torch.Tensor)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_states_and_gradients_are_written_where_they_lie() -> None:
    params = {"x": normal(64, 64, salt=1)}
    y = updsl.compile(updsl.parse(J1), params, backend="cpp")
    g = {"x": normal(64, 64, salt=2)}
    y.step(g)
    (state,) = [x for cells in y.state.values.values() for x in cells.values()]
    places = state.data_ptr(), g["x"].data_ptr()
    before = state.clone()
    y.step(g)
    assert (next(iter(y.state.values["ema.m"].values())).data_ptr(), g["x"].data_ptr()) == places
    assert not torch.equal(state, before)


def test_a_step_that_changes_nothing_writes_nothing() -> None:
    """The gradient's memory may be read-only then."""
    rule = updsl.parse("clip norm > 1e6 per all")
    source = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    source.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        g = {"x": torch.from_numpy(source)}
    y = updsl.compile(rule, {"x": torch.zeros(64, 64)}, backend="cpp")
    assert y.plan.idle_bytes_per_parameter == 4
    y.step(g)
    assert np.array_equal(g["x"].numpy(), source)


def test_the_plan_is_told() -> None:
    y = updsl.compile(updsl.parse(J1), {"x": torch.zeros(64, 32), "y": torch.zeros(8, 8)}, backend="cpp")
    assert (y.plan.sweeps, y.plan.bytes_per_parameter, y.plan.launches, y.plan.state_bytes_per_parameter) == (2, 20, 1, 4)
    assert y.plan.workspace_bytes > 0
    *passes, state = str(y.plan).splitlines()
    assert passes == [
        "2112 parameters:",
        "  sweep 1: reads g (4 B); adds up norm.n, (mean), (std)",
        "  sweep 2: reads g (4 B), ema.m (4 B); adds up (count); stores ema.m (4 B), out (4 B)",
        "2 sweeps, 20 bytes a parameter, 1 launches, 0 collectives",
    ]
    assert state == f"state: 4 bytes a parameter; workspace: {y.plan.workspace_bytes} bytes"


def test_gradients_that_are_not_dense_rows_are_written_too() -> None:
    dense, strided = normal(6, 4, salt=1), normal(4, 6, salt=5).T
    strided.copy_(dense)
    for g in (dense, strided):
        updsl.compile(updsl.parse(J1), {"x": torch.zeros(6, 4)}, backend="cpp").step({"x": g})
    assert torch.equal(dense, strided)


# --- numbers ---------------------------------------------------------------------------------------------------------


def one_step(text: str, g: torch.Tensor) -> torch.Tensor:
    given_ = {"x": g.clone()}
    updsl.compile(updsl.parse(text), {"x": torch.zeros_like(g)}, backend="cpp").step(given_)
    return given_["x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e20, 1e37])
def test_norms_neither_overflow_nor_underflow(scale: float, dtype: torch.dtype) -> None:
    g = torch.full((8, 8), scale, dtype=dtype)
    assert torch.allclose(one_step("g / norm(g)", g), torch.full_like(g, 1 / 8), rtol=1e-6)


def test_norms_of_the_largest_float64() -> None:
    g = torch.full((4, 4), 1e300, dtype=torch.float64)
    assert torch.allclose(one_step("g / norm(g)", g), torch.full_like(g, 0.25), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_entries_have_no_deviation(dtype: torch.dtype) -> None:
    g = torch.full((300, 300), 0.1, dtype=dtype)
    assert torch.equal(one_step("g*0 + std(g)", g), torch.zeros_like(g))
    assert torch.equal(one_step("g - mean(g)", g), torch.zeros_like(g))
    assert torch.equal(one_step("g*0 + (std(g) per column)", g), torch.zeros_like(g))


def test_a_small_deviation_beside_a_large_mean() -> None:
    g = (1e3 + 1e-3 * normal(1000, 100, salt=3, dtype=torch.float64)).float()
    exact = g.double().std(unbiased=False)
    for text in ("g*0 + std(g)", "g*0 + (mean(std(g) per column) per tensor)", "norm per column → clip z > 1e9 → it*0 + std(it)"):
        found = one_step(text, g)[0, 0].double()
        assert torch.isfinite(found)
    assert abs(one_step("g*0 + std(g)", g)[0, 0].double() - exact) <= 1e-3 * exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    """Every value of the type, times a number whose product lies between two of the type."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    for factor in (1.0, 1.00390625, 0.33, 3.0):
        exact = (every.double() * float(np.float32(factor))).to(torch.float32).to(dtype)
        assert torch.equal(one_step(f"g * {factor}", every), exact)


def test_what_is_not_a_number_stays_so() -> None:
    g = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    for text in ("g*0 + max(g)", "g*0 + mean(g)", "g*0 + norm(g)", "g*0 + absmax(g)", "g*0 + std(g)", "g*0 + norm(g, 0)", "max(g, 0)", "sign(g) + 0*g"):
        assert torch.isnan(one_step(text, g)[0, 1]), text
    assert one_step("if g > 0 then 1 else 0", g).tolist() == [[1, 0], [1, 1]]


def test_a_number_beyond_float32_is_shown_as_infinite_without_a_word() -> None:
    y = updsl.compile(updsl.parse(block("watch size = norm(g)", "return g*2")), {"x": torch.zeros(64)}, backend="cpp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert y.step({"x": torch.full((64,), 1e38)})["size"]["x"].item() == float("inf")


def test_threads_with_optimizers_of_their_own() -> None:
    rule = updsl.parse(J3)

    def trained(salt: int) -> torch.Tensor:
        params = {"x": normal(64, 64, salt=salt)}
        y = updsl.compile(rule, params, backend="cpp", lr=0.01)
        for t in range(30):
            y.step({"x": normal(64, 64, salt=salt + t)})
        return params["x"]

    alone = [trained(salt) for salt in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(trained, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# --- what once went wrong --------------------------------------------------------------------------------------------

SHAPES_OF_MANY_CLASSES = {"a": (5, 7), "b": (9,), "c": (3, 4, 2)}


def block(*lines: str) -> str:
    return "rule q:\n" + "".join(f"    {line}\n" for line in lines)


CASES = {
    "values of two classes that are complete after different sweeps": block(
        "x = if ndim > 1 then tanh(g/norm(g)) else g",
        "n = norm(x) per all",
        "y = tanh(g/norm(g))",
        "m = norm(y) + max(y) per tensor",
        "return x/n + m",
    ),
    "one name in two classes": block(
        "a = if ndim > 1 then norm(g)*2 else norm(g)/(max(norm(g) per tensor) per all)", "state s = 0", "s ← 0.5*s + a", "watch s2 = s", "return g"
    ),
    "states that are true or false": block("state e = false", "e ← e or g > 0.5", "return if e then g else 0"),
    "blocks only where nothing runs": block("state s = 0 per block(4)", "every 2:", "    s ← mean(g) per block(4)", "watch x = max(s)", "return g"),
    "names that C++ has": block("l = g*2", "r = l + 1", "bad = r*r", "template = bad + (mean(g) per column)", "entry = template*norm(r)", "return entry"),
    "names that the generated text has": block(
        "power = g*2",
        "square = abs(power)^1.5",
        "is_finite = square^2",
        "smaller = min(is_finite, 9)",
        "INF = min(smaller, inf)",
        "SLOTS0 = INF + std(INF)",
        "return SLOTS0",
    ),
    "dot of rows and columns": block("d = dot(norm(g) per row, norm(g) per column)", "return g*d"),
}


def stepped(text: str, backend: str, change: Any = lambda t, g: g, groups: Any = None, shapes: Any = None) -> list[np.ndarray]:
    """What three steps give: gradients and watches."""
    shapes = shapes or SHAPES_OF_MANY_CLASSES
    y = updsl.compile(updsl.parse(text), {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}, backend=backend, groups=groups)
    found: list[np.ndarray] = []
    for t in range(3):
        g = change(t, {n: normal(*s, salt=10 * t + i, dtype=torch.float64) for i, (n, s) in enumerate(shapes.items())})
        watches = y.step(g)
        found += [x.numpy() for x in g.values()]
        found += [np.asarray(x) for w in watches.values() for x in (w.values() if isinstance(w, dict) else [w])]
    return found


def assert_as_interpreted(text: str, **more: Any) -> None:
    for mine, theirs in zip(stepped(text, "cpp", **more), stepped(text, "interpret", **more), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_as_interpreted(case: str) -> None:
    assert_as_interpreted(CASES[case])


ROUTED = block(
    "match:",
    "    ndim == 2: 2*g",
    "    else:",
    "        state m = 0.1",
    "        m ← 0.5*m + (norm(g) per group)",
    "        n = min(norm(g) per group) per all",
    "        watch seen = m",
    "        return g*m + n",
)
"""A state, a value over groups and a watch of some tensors: groups that have none of these have none."""


def test_groups_that_have_no_tensor_of_an_arm() -> None:
    assert_as_interpreted(ROUTED, groups=[{"params": ["a"]}, {"params": ["b"]}])
    params = {n: torch.zeros(s) for n, s in SHAPES_OF_MANY_CLASSES.items()}
    y = updsl.compile(updsl.parse(ROUTED), params, backend="cpp", groups=[{"params": ["a"]}, {"params": ["b"]}])
    assert set(y.step({n: torch.ones_like(x) for n, x in params.items()})["seen"]) == {1, 2}


def test_a_group_without_gradients() -> None:
    text = block("state s = 0 per group", "s ← 0.5*s + (norm(g) per group)", "return g*s")
    assert_as_interpreted(text, groups=[{"params": ["a"]}], change=lambda t, g: g if t else {"a": g["a"]})


@pytest.mark.parametrize("text", ["g*0 + mean(g)", "g*0 + (mean(norm(g) per row) per all)", "g*0 + norm(g) + std(g)"])
def test_infinite_entries(text: str) -> None:
    def infinite(t: int, g: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        g["a"][0, 0] = float("inf")
        return g

    assert_as_interpreted(text, change=infinite, shapes={"a": (300, 300)})


def test_arrays_of_another_type_than_before() -> None:
    rule, params = updsl.parse(block("input h", "return g + h")), {"x": torch.zeros(4)}
    y = updsl.compile(rule, params, backend="cpp")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        g = {"x": torch.ones(4)}
        y.step(g, h={"x": torch.full((4,), 2.0, dtype=dtype)})
        assert g["x"].tolist() == [3.0] * 4


def test_an_input_that_is_another_gradient() -> None:
    a, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    handle = updsl.attach(optimizer, updsl.parse(block("input h", "return 2*h/(norm(g) per all) + g")), names=[("a", a), ("b", b)], backend="cpp")
    a.grad, b.grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    handle.inputs(h={"a": b.grad, "b": a.grad})
    optimizer.step()
    assert torch.allclose(b.detach(), -torch.tensor([1.2, 4.0, 0.0]))
    assert torch.allclose(a.detach(), -torch.tensor([3.0, 1.6, 0.0]))


def test_states_and_gradients_of_the_past_are_let_go() -> None:
    rule, params = updsl.parse(J1), {"x": torch.zeros(8, 8)}
    y = updsl.compile(rule, params, backend="cpp")
    first = torch.ones(8, 8)
    y.step({"x": first})
    y.step({"x": torch.ones(8, 8)})
    (state,) = [x for cells in y.state.values.values() for x in cells.values()]
    gone = weakref.ref(first), weakref.ref(state)
    del first, state, y
    gc.collect()
    assert [r() for r in gone] == [None, None]


# --- where there are no kernels --------------------------------------------------------------------------------------


def test_a_rule_that_kernels_do_not_cover_runs_in_torch_and_says_why() -> None:
    rule = updsl.parse("(g - (mean(g) per block(4))) / (norm(g) per row)")
    y = updsl.compile(rule, {"x": torch.zeros(4, 3)}, backend="cpp", lr=0.1)
    assert y.backend == "torch"
    assert y.plan is None
    assert "kernels do not cover" in updsl.explain(rule)


def test_without_a_compiler_torch_runs_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise cpp_build.NoCompiler("no C++ compiler found: install g++")

    monkeypatch.setattr(cpp_build, "ready", missing)
    monkeypatch.setenv("UPDSL_BACKEND", "auto")
    pipeline.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name in ("auto", "cpp"):
            y = updsl.compile(updsl.parse("g * 3"), {"x": torch.zeros(2)}, backend=name)
            y.step({"x": torch.ones(2)})
            assert y.backend == "torch"
    (only,) = said
    assert "install g++" in str(only.message)


# --- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
def test_generated_text(job: str, request: pytest.FixtureRequest) -> None:
    y = updsl.compile(rule_of(JOBS[job]), {"x": torch.zeros(8, 8)}, backend="cpp", lr=0.1)
    y.step({"x": torch.ones(8, 8)})
    (text,) = y.source.values()
    file = GENERATED / f"{job}.cpp"
    if request.config.getoption("--rewrite"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
