"""What a step knows from the one before it: no work is done twice, and whatever has changed is seen."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_plan import J1, J2, J3, rule_of

import updsl
from updsl.back import cpp_build, kernel_exec, kernel_first, kernel_watch, torch_exec
from updsl.back.cpp_covers import uncovered
from updsl.back.cpp_finite import CHUNK, TYPES, Finite
from updsl.back.kernel_where import Where, view_function
from updsl.core.frame import Frame, Places, RuleState, Tensor
from updsl.front import elaborate
from updsl.runtime import known

JOBS = {"j1": J1, "j2": J2, "j3": J3}
SHAPES = {"a.weight": (4, 3), "b.bias": (5,), "c.weight": (2, 3, 2), "d": ()}


def noise(salt: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(salt)
    return {n: torch.randn(s, generator=draw) for n, s in shapes.items()}


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, counts: Counter[str]) -> None:
    """Counts the calls of a function."""
    function = getattr(owner, name)

    def call(*args: Any, **more: Any) -> Any:
        counts[name] += 1
        return function(*args, **more)

    monkeypatch.setattr(owner, name, call)


# --- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", JOBS.values(), ids=JOBS)
def test_a_text_that_asks_for_no_shape_is_walked_once_for_all(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    counted(monkeypatch, elaborate, "_walk", counts)
    updsl.compile(updsl.parse(text), {"x": torch.zeros(4, 3)}, backend="cpp", lr=1e-3)
    one = counts["_walk"]
    updsl.compile(updsl.parse(text), {f"x{i}": torch.zeros(i + 1, 3) for i in range(20)} | {"v": torch.zeros(7), "s": torch.zeros(())}, backend="cpp", lr=1e-3)
    assert counts["_walk"] == 2 * one


@pytest.mark.parametrize("question", ["rows > 3", "ndim == 2", "cols == 3", "numel > 11", "dim(0) == 4"])
def test_a_text_that_asks_for_the_shape_has_an_answer_for_each(question: str) -> None:
    shapes = {"a": (4, 3), "b": (2, 3), "c": (4, 1), "d": (3, 4), "e": (5,), "f": (4, 3)}
    g = {n: torch.ones(s) for n, s in shapes.items()}
    updsl.compile(updsl.parse(f"if {question} then g*2 else g*3"), g, backend="cpp").step(g)
    found = {n: float(x.flatten()[0]) for n, x in g.items()}
    rows, cols = ({n: Tensor(n, s).grid[i] for n, s in shapes.items()} for i in (0, 1))
    holds = {n: eval(question, {"rows": rows[n], "cols": cols[n], "ndim": len(s), "numel": rows[n] * cols[n], "dim": s.__getitem__}) for n, s in shapes.items()}
    assert found == {n: 2.0 if yes else 3.0 for n, yes in holds.items()}


@pytest.mark.parametrize("text", JOBS.values(), ids=JOBS)
def test_no_torch_code_is_made_where_torch_takes_no_step(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    counted(monkeypatch, torch_exec, "generate", counts)
    w = noise(0)
    y = updsl.compile(updsl.parse(text), w, backend="cpp", lr=1e-3)
    for t in range(3):
        y.step(noise(t))
    assert not counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_literal_first_values_are_those_of_torch(dtype: torch.dtype) -> None:
    seen = 0
    own = "rule q:\n    state a = 0.1 as bfloat16, b = true, c = 3 per column, d = 0.7 per all\n    a ← a + g\n    b ← b and any(g > 0)\n"
    own += "    c ← c + (norm(g) per column)\n    d ← d + (norm(g) per all)\n    return g*a*c*d"
    texts = [*map(rule_of, updsl.library()), updsl.parse(own)]
    for rule in texts:
        w = {n: x.to(dtype) for n, x in noise(1).items()}
        engine = rule.engine(rule.init(w).layout, True, "cpp")
        if not isinstance(engine.run, kernel_exec.KernelBackend) or any(map(uncovered, engine.elaborated.programs)):
            continue
        params = {n: v for n, v in rule.params.items() if not isinstance(v, (bool, str))}
        frame = Frame(dict(w), dict(w), dict.fromkeys(w, 0), {0: 1e-3}, {0: params})
        lacking = list(kernel_first.missing(engine.run.programs, engine.run.class_of, RuleState(), frame))
        found = kernel_first.with_literals(lacking, engine.run.tensors, RuleState(), frame)
        if not lacking or found is None:
            continue
        expected = engine.run.fallback.started(RuleState(), frame)
        assert found.values.keys() == expected.values.keys()
        for name, cells in expected.values.items():
            for key, x in cells.items():
                mine = found.values[name][key]
                assert (mine.dtype, mine.shape) == (x.dtype, x.shape), (rule.name, name)
                assert torch.equal(mine, x), (rule.name, name)
                seen += 1
    assert seen > 100


# --- steps -----------------------------------------------------------------------------------------------------------


def same_place(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return g if p.grad is None else p.grad.copy_(g)


def compiled(text: str, ps: dict[str, torch.Tensor]) -> Callable[[float], Any]:
    y = updsl.compile(updsl.parse(text), ps, backend="cpp")
    return lambda lr: y.step({n: p.grad for n, p in ps.items() if p.grad is not None}, lr)


def attached(text: str, ps: dict[str, torch.Tensor]) -> Callable[[float], Any]:
    optimizer = torch.optim.SGD(ps.values(), lr=1.0)
    updsl.attach(optimizer, updsl.parse(text), names=ps, backend="cpp")
    return lambda lr: (optimizer.param_groups[0].update(lr=lr), optimizer.step())


def optimizing(text: str, ps: dict[str, torch.Tensor]) -> Callable[[float], Any]:
    optimizer = updsl.Optimizer(ps.values(), updsl.parse(text), lr=1.0, names=ps, backend="cpp")
    return lambda lr: (optimizer.param_groups[0].update(lr=lr), optimizer.step())


WAYS = {
    "compiled j1": (compiled, J1),
    "compiled j3": (compiled, J3),
    "attached j1": (attached, J1),
    "attached j2": (attached, J2),
    "optimizer": (optimizing, J3),
}


def trained(way: str, moves: bool) -> list[torch.Tensor]:
    """Nine steps with some gradients left out, one not finite, changing lr, and weights that are given other memory. moves: every gradient is a new object."""
    ps = {n: torch.nn.Parameter(w) for n, w in noise(7).items()}
    make, text = WAYS[way]
    step, kept, found = make(text, ps), [], []
    for t in range(9):
        for n, g in noise(t).items():
            g = g * float("inf") if t == 6 and n == "b.bias" and make is not compiled else g
            given = g.clone() if moves else same_place(ps[n], g)
            kept.append(given)
            ps[n].grad = None if t in (3, 4) and n == "d" else given
        if t == 5:
            ps["a.weight"].data = ps["a.weight"].data.clone()
        step(0.1 / (1 + t))
        found += [x.detach().clone() for p in ps.values() for x in (p, p.grad) if x is not None]
    return found


@pytest.mark.parametrize("way", WAYS)
def test_moved_gradients_give_the_same_bits(way: str) -> None:
    here, there = trained(way, False), trained(way, True)
    assert len(here) == len(there)
    assert all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_not_kept(way: str) -> None:
    ps = {n: torch.nn.Parameter(w) for n, w in noise(7).items()}
    make, text = WAYS[way]
    step = make(text, ps)
    for t in range(4):
        for n, g in noise(t).items():
            ps[n].grad = g
        gone = [weakref.ref(p.grad) for p in ps.values()]
        del g
        step(0.1)
        for p in ps.values():
            p.grad = None
        gc.collect()
        assert all(r() is None for r in gone)


@pytest.mark.parametrize(("text", "each"), [(J1, 1), (J2, 1), (J3, 2)])
def test_an_address_is_read_once_a_step(text: str, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w, g = noise(1), noise(2)
    y = updsl.compile(updsl.parse(text), w, backend="cpp", lr=1e-3)
    for _ in range(3):
        y.step(g)
    counts: Counter[str] = Counter()
    data_ptr = torch.Tensor.data_ptr

    def count(x: torch.Tensor) -> int:
        counts["data_ptr"] += 1
        return data_ptr(x)

    monkeypatch.setattr(torch.Tensor, "data_ptr", count)
    y.step(g)
    assert counts["data_ptr"] == 0, "C reads those of tensors that stay"
    y.step(noise(3))
    assert counts["data_ptr"] == each * len(SHAPES)


def moves(x: torch.Tensor, how: str) -> list[torch.Tensor]:
    """The tensor, changed, or another."""
    match how:
        case "data":
            x.data = x.detach().clone()
        case "transposed":
            x.t_()
        case "resized":
            x.resize_(2, 3)
        case "replaced":
            return [x.clone()]
        case "a view":
            return [x[:]]
        case "more":
            return [x, x]
        case "none":
            return []
    return [x]


@pytest.mark.parametrize("how", ["data", "transposed", "resized", "replaced", "a view", "more", "none", "stays"])
def test_tensors_that_stay_are_told_from_others(how: str) -> None:
    view = view_function()
    assert view is not None
    x = torch.randn(3, 3)
    where = Where([x], cpp_build.build, view)
    assert where.stay([x])
    changed = moves(x, how)
    assert where.stay(changed) == (how == "stays")
    assert Where([torch.randn(4)[1:], torch.zeros(())], cpp_build.build, view).stay([x]) is False


def test_what_is_told_of_a_tensor_ends_with_it() -> None:
    xs = [torch.randn(3), torch.randn(2, 2)]
    y = known.Known(xs, [], True, lambda tensors: Where(tensors, cpp_build.build, view_function() or 0))
    for _ in range(3):
        assert y.again(xs) is y.places
    assert len(y.stays) == 2
    del xs[1]
    assert not y.stays


def test_what_is_alike_needs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    y = updsl.compile(updsl.parse(J1), noise(1), backend="cpp")
    y.step(noise(2))
    y.step(noise(3))
    counts: Counter[str] = Counter()
    counted(monkeypatch, kernel_exec.KernelBackend, "new_tables", counts)
    counted(monkeypatch, kernel_exec, "dtypes_of", counts)
    for t in range(3):
        y.step(noise(t))
    assert not counts


@pytest.mark.parametrize("text", JOBS.values(), ids=JOBS)
def test_torch_goes_on_from_where_kernels_were(text: str) -> None:
    ys = [updsl.compile(updsl.parse(text), noise(1), backend=backend, lr=1e-3) for backend in ("cpp", "torch")]
    found = []
    for y in ys:
        for t in range(4):
            y.step(noise(t))
        run = y._engine.run
        w, g = y.params, noise(9)
        params = {n: v for n, v in y.rule.params.items() if not isinstance(v, (bool, str))}
        frame = Frame(g, dict(w), dict.fromkeys(w, 0), {0: 1e-3}, {0: params})
        found.append(getattr(run, "fallback", run).step(y.state.kept, frame))
    a, b = found
    assert dict(a.state.t) == dict(b.state.t) == dict.fromkeys(SHAPES, 5)
    assert all(torch.allclose(x, b.out[n], rtol=1e-4, atol=1e-6) for n, x in a.out.items())


def test_gradients_of_another_type_or_shape_are_seen() -> None:
    w = noise(1)
    y = updsl.compile(updsl.parse(J1), w, backend="cpp")
    for _ in range(2):
        y.step(noise(2))
    with pytest.raises(updsl.UpdslError, match="shape"):
        y.step({n: g.reshape(-1)[None] for n, g in noise(3).items()})
    wide = {n: g.double() for n, g in noise(3).items()}
    narrow = noise(3)
    before = {n: {k: x.clone() for k, x in cells.items()} for n, cells in y.state.values.items()}
    y.step(wide)
    z = updsl.compile(updsl.parse(J1), w, backend="cpp")
    z.state = y.state.after(RuleState(before, 2, dict.fromkeys(SHAPES, 2)))
    z.step(narrow)
    assert all(torch.allclose(wide[n].float(), narrow[n], atol=1e-5) for n in SHAPES)


def test_forms_are_plain() -> None:
    x = torch.zeros(3, 2)
    assert known.form([x]) is not None
    for other in (x.T, torch.nn.Parameter(x), x.clone().requires_grad_(), None):
        assert known.form([x, other]) is None  # type: ignore[list-item]
    y = known.Known([x], [], True)
    assert y.again([x]) is y.places
    assert y.again([x[:2]]) is None
    assert y.again([x.double()]) is None
    assert y.again([x, x]) is None


# --- what a step shows -----------------------------------------------------------------------------------------------


def plain(watches: dict[str, Any]) -> dict[str, Any]:
    return {label: {k: float(v) for k, v in x.items()} if isinstance(x, dict) else float(x) for label, x in watches.items()}


WATCHED = "rule q:\n    watch a = norm(g)\n    watch b = norm(g) per all\n    watch c = norm(g) per group\n    return g"


def test_watches_are_those_of_their_own_step() -> None:
    groups = [{"params": ["b.bias"]}]
    late, now = (updsl.compile(updsl.parse(WATCHED), noise(1), backend="cpp", groups=groups) for _ in range(2))
    kept = [late.step(noise(t)) for t in range(4)]
    at_once = [plain(now.step(noise(t))) for t in range(4)]
    assert [plain(w) for w in kept] == at_once
    assert len({w["b"] for w in at_once}) == 4


def test_watches_are_made_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    counted(monkeypatch, kernel_watch, "to_tensor", counts)
    y = updsl.compile(updsl.parse(WATCHED), noise(1), backend="cpp")
    watches = y.step(noise(2))
    assert not counts
    assert set(watches) == {"a", "b", "c"}
    assert counts["to_tensor"] == 1
    assert watches["a"]["d"] is watches["a"]["d"]
    assert counts["to_tensor"] == 2
    y.step({"d": torch.ones(())})
    assert set(y.step({"d": torch.ones(())})["a"]) == {"d"}


def test_a_lazy_dict_is_a_dict() -> None:
    for look in (
        dict,
        list,
        len,
        bool,
        repr,
        lambda x: {**x},
        lambda x: x | {},
        lambda x: {} | x,
        lambda x: x == {"a": 1},
        lambda x: x.get("a"),
        lambda x: "a" in x,
    ):
        assert look(kernel_watch.Lazy(lambda: {"a": 1})) == look({"a": 1})
    changed = kernel_watch.Lazy(lambda: {"a": 1})
    changed["b"] = 2
    assert changed == {"a": 1, "b": 2}


# --- finite entries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_finite_is_what_torch_says(dtype: str) -> None:
    kind = getattr(torch, dtype)
    xs = [torch.full((n,), 1.5, dtype=kind) for n in (1, 7, CHUNK + 3, 2 * CHUNK)]
    finite = Finite(object(), [(len(x), dtype) for x in xs], cpp_build.build)

    def looked() -> bool:
        return finite.holds(Places([x.data_ptr() for x in xs], None, finite.alike))

    assert looked()
    info = torch.finfo(kind)
    for value in (info.max, info.min, info.tiny, info.smallest_normal / 2, 0.0, -0.0, np.inf, -np.inf, np.nan):
        for x in xs:
            for place in {0, len(x) // 2, len(x) - 1}:
                before = x[place].clone()
                x[place] = value
                assert looked() == bool(torch.isfinite(x).all())
                x[place] = before


# --- what lies in an optimizer's state -------------------------------------------------------------------------------


def test_counts_in_the_optimizer_are_as_of_now() -> None:
    ps = {n: torch.nn.Parameter(w) for n, w in noise(7).items()}
    optimizer = torch.optim.Adam(ps.values(), lr=0.1)
    handle = updsl.attach(optimizer, updsl.parse(J1), names=ps, backend="cpp")

    def shown() -> list[int]:
        return [optimizer.state[p]["updsl.(t)"] for p in ps.values()]

    def step(without: str = "") -> None:
        for n, g in noise(3).items():
            ps[n].grad = None if n == without else g
        optimizer.step()

    for _ in range(3):
        step()
    assert shown() == [3, 3, 3, 3]
    step(without="d")
    step(without="d")
    assert shown() == [5, 5, 5, 3]
    step()
    step()
    assert shown() == [7, 7, 7, 5]
    assert [optimizer.state[p]["updsl.(run)"] for p in ps.values() if "updsl.(run)" in optimizer.state[p]] == [7]
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    step()
    assert shown() == [9, 9, 9, 7]
    assert dict(handle.driver.state.t) == dict(zip(SHAPES, shown(), strict=True))
    optimizer.state[ps["d"]].clear()
    step()
    assert set(optimizer.state[ps["d"]]) >= {"updsl.(t)", "updsl.(rule)"}
