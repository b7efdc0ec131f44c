"""Flat storage: tensors and gradients in one buffer for each type train as separate ones do, bit for bit, and stay the same objects."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import updsl

MOMENTUM = "rule r(beta = 0.9):\n    state m = 0\n    m ← beta*m + g\n    watch size = norm(m) per all\n    w ← w - lr*m\n"


def model() -> torch.nn.Module:
    """Shapes that leave gaps between tensors, tied weights, a kernel whose channels lie last, a tensor without entries and a frozen one."""
    torch.manual_seed(0)
    m = torch.nn.Module()
    m.first, m.tied = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
    m.tied.weight = m.first.weight
    m.convolution = torch.nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last)
    m.empty = torch.nn.Parameter(torch.empty(0, 3))
    m.scale = torch.nn.Parameter(torch.tensor(0.7))
    m.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    m.small = torch.nn.Parameter(torch.randn(7).bfloat16())
    return m


def loss_of(m: Any, k: int) -> torch.Tensor:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(k))
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(k))
    h = m.tied(torch.tanh(m.first(x))) * m.scale + m.empty.sum()
    return h.square().mean() + m.convolution(image).square().mean() + (m.small.float() * m.frozen.sum()).square().mean()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(x.dtype == b[n].dtype and x.stride() == b[n].stride() and torch.equal(x, b[n]) for n, x in a.items())


def weights(m: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in m.named_parameters()}


def gradients(m: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in m.named_parameters() if p.grad is not None}


OPTIMIZERS: dict[str, Callable[[torch.nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "foreach": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, foreach=True),
    "rule": lambda m: updsl.Optimizer(m.parameters(), updsl.parse(MOMENTUM), lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_made_before_trains_on_with_the_same_bits(name: str) -> None:
    apart, flat = model(), model()
    optimizers = OPTIMIZERS[name](apart), OPTIMIZERS[name](flat)
    stored = None
    for k in range(6):
        if k == 2:
            stored = updsl.flatten(flat)
        for m, optimizer in zip((apart, flat), optimizers, strict=True):
            if m is flat and stored is not None:
                stored.zero_grad()
            else:
                optimizer.zero_grad()
            loss_of(m, k).backward()
            optimizer.step()
        assert same(weights(apart), weights(flat)), k
    assert stored is not None
    assert same(gradients(apart), stored.grads)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("rule", [MOMENTUM, "zclip", "adamw", "lion"])
def test_a_compiled_step_on_views_is_that_on_separate_tensors(rule: str, backend: str) -> None:
    apart, flat = model(), model()
    stored = updsl.flatten(flat)
    loaded = updsl.parse(rule) if "\n" in rule else updsl.load(rule)
    y, z = (updsl.compile(loaded, params, backend=backend, lr=0.01) for params in ([(n, p) for n, p in apart.named_parameters() if p.requires_grad], stored))
    for k in range(4):
        stored.zero_grad()
        apart.zero_grad()
        for m in (apart, flat):
            loss_of(m, k).backward()
        grads = gradients(apart)
        watches, expected = z.step_flat(stored.grad_buffers) if k % 2 else z.step(stored.grads), y.step(grads)
        assert str(watches) == str(expected)
        assert same(weights(apart), weights(flat))
        assert same(grads, stored.grads)
    for name, cells in y.state.values.items():
        for key, x in cells.items():
            assert torch.equal(x, z.state.values[name][key])


def test_where_things_lie() -> None:
    m = model()
    given = dict(m.named_parameters())
    before = {n: p.detach().clone() for n, p in given.items()}
    m.scale.grad = torch.tensor(5.0)
    flat = updsl.flatten(m)
    assert list(flat.params) == [n for n in given if n != "frozen"]
    assert all(flat.params[n] is given[n] for n in flat.params)
    assert same(before, weights(m))
    assert set(flat.buffers) == set(flat.grad_buffers) == {"float32", "bfloat16"}
    for name, p in flat.params.items():
        kind = str(p.dtype).removeprefix("torch.")
        for x, buffer in ((p, flat.buffers[kind]), (p.grad, flat.grad_buffers[kind])):
            assert x is not None
            assert x.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
            assert x.data_ptr() % 64 == 0 or not x.numel()
        assert p.grad is flat.grads[name]
    assert m.scale.grad == 5.0
    assert m.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert sum(int(x.count_nonzero()) for x in flat.buffers.values()) == sum(int(p.count_nonzero()) for p in flat.params.values())
    flat.buffers["float32"].zero_()
    assert m.scale == 0
    assert repr(flat) == "<8 tensors in 128 entries of float32, 32 entries of bfloat16>"


def test_states_are_side_by_side_and_only_once_in_memory() -> None:
    m = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 3), torch.nn.Linear(3, 2).to(torch.bfloat16))
    flat = updsl.flatten(m)
    y = updsl.compile("adamw", flat, backend="cpp", lr=0.01)
    late = flat.grads.copy()
    del late["1.bias"]
    gone: list[weakref.ref[torch.Tensor]] = []
    for grads in (late, flat.grads, flat.grads):
        y.step(grads)
        for name in ("adam.m", "adam.v"):
            cells = y.state.values[name]
            assert len(cells) == len(grads)
            assert len({x.untyped_storage().data_ptr() for x in cells.values()}) == 1, name
        assert all(x() is None for x in gone)
        gone = [weakref.ref(x) for cells in y.state.values.values() for x in cells.values()] if grads is late else []


def test_a_dict_or_pairs_of_plain_tensors() -> None:
    x, y = torch.ones(2, 3), torch.arange(4.0, dtype=torch.float64)
    for params in ({"x": x, "y": y}, [("x", x), ("y", y)]):
        params = {n: v.clone() for n, v in dict(params).items()} if isinstance(params, dict) else [(n, v.clone()) for n, v in params]
        flat = updsl.flatten(params)
        assert flat.params["y"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert flat.params["y"] is dict(params)["y"]
        assert {n: g.tolist() for n, g in flat.grads.items()} == {"x": [[0.0] * 3] * 2, "y": [0.0] * 4}
        assert flat.params["x"].grad is None
    assert updsl.flatten({"a": x, "b": x}).params.keys() == {"a"}
    assert updsl.flatten({}).buffers == {}


def test_a_gradient_that_is_no_longer_in_its_buffer_is_told_of_and_put_back() -> None:
    m = torch.nn.Linear(2, 2)
    flat = updsl.flatten(m)
    m.zero_grad()
    with pytest.raises(updsl.UpdslError, match=r"the gradient of `weight` is None(.|\n)*flat.zero_grad"):
        flat.grads  # noqa: B018
    m(torch.ones(2)).sum().backward()
    with pytest.raises(updsl.UpdslError, match="the gradient of `weight` is no longer in its buffer"):
        flat.grads  # noqa: B018
    flat.zero_grad()
    m(torch.ones(2)).sum().backward()
    assert {n: g.tolist() for n, g in flat.grads.items()} == {"weight": [[1.0, 1.0], [1.0, 1.0]], "bias": [1.0, 1.0]}


class Own(torch.Tensor):
    pass


X = torch.ones(4)
WRONG = {
    "devices": ({"x": torch.ones(1), "y": torch.ones(1, device="meta")}, "`y` is on the meta device"),
    "overlap": ({"x": X, "y": torch.empty(0).set_(X.untyped_storage(), 1, (2,))}, "the memory of `y` and of `x` overlap in memory"),
    "view": ({"x": X[:2]}, "`x` is a view of another tensor"),
    "computed": ({"x": torch.ones(1, requires_grad=True) * 2}, "`x` is the result of a computation"),
    "class": ({"x": torch.ones(2).as_subclass(Own)}, "`x` is of the type Own"),
    "integer": ({"x": torch.ones(2, dtype=torch.int64)}, "`x` is int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_moved_is_refused_and_nothing_is(name: str) -> None:
    params, message = WRONG[name]
    before = [x.data_ptr() for x in params.values()]
    with pytest.raises(updsl.UpdslError, match=message):
        updsl.flatten(params)
    assert [x.data_ptr() for x in params.values()] == before


def test_buffers_of_another_layout_are_refused() -> None:
    flat = updsl.flatten({"x": torch.ones(3)})
    for buffers in ({"float32": torch.ones(3)}, {"float64": torch.ones(16)}):
        with pytest.raises(updsl.UpdslError, match="`float32` of 16 entries"):
            flat.split(buffers)
    with pytest.raises(updsl.UpdslError, match="`ema` was compiled for tensors, and not for buffers"):
        updsl.compile("ema", {"x": torch.ones(3)}).step_flat(flat.grad_buffers)


def test_a_gradient_goes_through_the_split() -> None:
    flat = updsl.flatten(model())
    buffers = {kind: x.clone().requires_grad_() for kind, x in flat.buffers.items()}
    sum(k * x.float().sum() for k, x in enumerate(flat.split(buffers).values(), 1)).backward()
    for k, g in enumerate(flat.split({kind: x.grad for kind, x in buffers.items()}).values(), 1):
        assert (g == k).all()
    assert sum(float(x.grad.float().abs().sum()) for x in buffers.values()) == sum(k * p.numel() for k, p in enumerate(flat.params.values(), 1))
