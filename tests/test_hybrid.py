"""Torch between sweeps: what kernels do not cover, and nothing else, runs in torch; a step is whole or not at all."""

from __future__ import annotations

import copy

import pytest
import test_cpp as kernels
import torch
from agreement import furthest, run
from hypothesis import Phase, given, seed, settings
from strategies import Case, cases

import updsl
from updsl import pipeline
from updsl.back import torch_runtime
from updsl.core.frame import Tensor
from updsl.core.straight import blocks_due
from updsl.middle.parts import Part
from updsl.middle.verify import verify

RULES = ("adaptive_dp_clip", "autoclip", "fira", "galore_with", "muon", "shampoo", "sparsify")
"""Every kind of what torch computes: samples, windows, matrix functions, the grid of an input, blocks every few steps, the largest entries."""


def parts_of(rule: updsl.Rule, shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[Part, ...]:
    """Of the first step."""
    tensors = [Tensor(n, s) for n, s in (shapes or kernels.SHAPES).items()]
    found = pipeline.elaborate(rule.module, tensors, rule.params, frozenset(), True)
    programs = {i: pipeline.prepared(p) for i, p in enumerate(found.programs)}
    return pipeline.CPP.to_parts(programs, blocks_due(programs, 1))


@pytest.mark.parametrize("name", RULES)
def test_rules_of_every_kind(name: str) -> None:
    kernels.check_rule(name)


@given(cases())
def test_parts_are_programs_that_take_turns_and_end_in_kernels(case: Case) -> None:
    rule = updsl.parse(case.text)
    parts = parts_of(rule, {n: tuple(w.shape) for n, w in case.weights.items()})
    for part in parts:
        for program in part.programs.values():
            verify(program)
            assert not part.kernels or not any(map(pipeline.is_foreign, pipeline.roots(program)))
    assert [p.kernels for p in parts[::-1]] == [n % 2 == 0 for n in range(len(parts))]


def check_case(case: Case) -> None:
    found = [run(updsl.parse(case.text), backend, case.weights, case.steps, case.lr, case.groups, case.seed) for backend in ("cpp", "interpret")]
    worst, where = furthest(*found, True)
    assert worst <= 1e-9, f"{where}: {worst:.1e}"


@pytest.mark.parametrize("size", [8, pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])])
def test_random_programs(size: int) -> None:
    """Of the whole language, most of which need torch too."""
    test = given(cases())(check_case)
    seed(300)(settings(max_examples=size, database=None, phases=(Phase.generate,))(test))()


def test_what_is_read_between_sweeps_is_all_that_is_stored() -> None:
    y = updsl.compile("muon", {"a": torch.zeros(64, 32)}, backend="cpp", lr=0.1)
    assert y.backend == "cpp"
    assert y.plan is not None
    assert (y.plan.sweeps, y.plan.bytes_per_parameter, y.plan.launches) == (2, 36, 2)
    assert "torch computes" in str(y.plan)


def test_one_pass_over_what_is_there_costs_no_kernel() -> None:
    """x → |x| is left to torch: a kernel would write it, and torch read it."""
    y = updsl.compile(updsl.parse("g / median(abs(g)) per all"), {"a": torch.zeros(64, 32)}, backend="cpp")
    assert y.plan is not None
    assert (y.plan.sweeps, y.plan.bytes_per_parameter) == (1, 8)


def test_explain_says_what_torch_computes() -> None:
    text = updsl.explain("autoclip")
    assert "torch computes" in text
    assert "quantile" in text


@pytest.mark.parametrize("rule", ["ema(0.9) → polar → ema(0.5)", "muon"])
def test_where_torch_fails_nothing_has_changed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.nn.Parameter(kernels.normal(6, 4, salt=0))
    made = updsl.load(rule) if rule == "muon" else updsl.parse(rule)
    optimizer = updsl.Optimizer([("a", w)], made, lr=0.1, backend="cpp") if made.writes_weights else torch.optim.SGD([w], lr=0.1)
    if not made.writes_weights:
        updsl.attach(optimizer, made, names=[("a", w)], backend="cpp")

    def step(salt: int) -> None:
        w.grad = kernels.normal(6, 4, salt=salt)
        optimizer.step()

    step(1)
    before = w.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    with monkeypatch.context() as patched:
        for name in ("polar", "matmul"):
            if hasattr(torch_runtime, name):
                patched.setattr(torch_runtime, name, fails)
        patched.setattr(torch, "matmul", fails)
        patched.setattr(torch.linalg, "svd", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            step(2)
    after = w.detach().clone(), optimizer.state_dict()["state"]
    assert torch.equal(before[0], after[0])
    for key, entry in before[1].items():
        assert {k: bool((x == after[1][key][k]).all()) if isinstance(x, torch.Tensor) else x == after[1][key][k] for k, x in entry.items()} == dict.fromkeys(
            entry, True
        )
    step(2)
    assert not torch.equal(before[0], w)


@pytest.mark.parametrize("text", ["g → clip norm > median(norm(it) → history(3))", "rule r:\n    state c = 0\n    c ← 0.5*c + g @ g.T\n    return c @ g\n"])
def test_a_checkpoint_holds_what_torch_computed_in_the_last_step(text: str) -> None:
    """Arrays that torch gives are others at each step: windows, values on grids of their own."""
    w, other_w = (torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(2))
    optimizer, other = (torch.optim.SGD([p], lr=0.1) for p in (w, other_w))
    for o in (optimizer, other):
        updsl.attach(o, updsl.parse(text), backend="cpp")
    for t in range(5):
        w.grad = kernels.normal(6, 4, salt=t)
        optimizer.step()
    other_w.data.copy_(w.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, o in ((w, optimizer), (other_w, other)):
        p.grad = kernels.normal(6, 4, salt=9, scale=10.0)
        o.step()
    assert torch.equal(w, other_w)


@pytest.mark.parametrize(
    "x",
    [
        "v ← 0.9*v + mean(abs(g))\n    x = g/(v*1.1 + 0.1)",
        "v ← 0.9*v + mean(abs(g)) per row\n    x = g/(v + 0.1)",
        "v ← 0.9*v + quantile(abs(g), 60%) per block(4)\n    x = g/(v + 0.1)",
        "v ← v + median(g)\n    x = tanh(g)*(2*v + 0.3*median(g))",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_and_kernels_have_the_same_bits(x: str, dtype: torch.dtype) -> None:
    """An entry that is the median, or the largest, of its tensor is that to both."""
    text = (
        f"rule r:\n    state v = 0\n    {x}\n    watch middle = count(x == median(x))\n    watch top = count(abs(x) >= quantile(abs(x), 100%))\n"
        "    s = (norm(x) per row)*0.7\n    watch row = count(s == median(s) per tensor) per tensor\n    return x\n"
    )
    shapes = {"a": (5, 3), "b": (7, 9), "c": (31,), "d": (33, 17)}
    y = updsl.compile(updsl.parse(text), {n: torch.zeros(s, dtype=dtype) for n, s in shapes.items()}, backend="cpp")
    for t in range(6):
        watches = y.step({n: kernels.normal(*s, salt=10 * t + i, dtype=dtype) for i, (n, s) in enumerate(shapes.items())})
        assert not [(label, n) for label, by_name in watches.items() for n, k in by_name.items() if k < 1]


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("out of memory")
