"""Tensors of every shape and layout, before an optimizer and as one: row L1 of the fault tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import updsl

BACKENDS = ["torch", "cpp", "interpret"]
ROUTES = ["attach", "optimizer"]
SHAPES = [(), (5,), (1, 1), (4, 3), (2, 3, 4), (2, 3, 4, 2, 2)]
LAYOUTS = ["dense", "transposed", "every other", "channels last", "expanded"]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, otherwise in memory. An expanded tensor has those of its first row alone."""
    match layout:
        case "transposed" if x.dim() > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        case "every other":
            return torch.stack([x, torch.full_like(x, 9.0)], -1)[..., 0]
        case "channels last" if x.dim() in (4, 5):
            return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        case "expanded" if x.dim():
            return x[:1].expand(x.shape)
        case _:
            return x.clone()


def stepped(route: str, rule: str, g: torch.Tensor, layout: str, backend: str) -> torch.Tensor:
    """What a rule makes of a gradient, as a weight of the same layout moves by it."""
    p = torch.nn.Parameter(laid_out(torch.zeros_like(g), "dense" if layout == "expanded" else layout))
    p.grad = laid_out(g, layout)
    o: Any = updsl.Optimizer([p], updsl.parse(rule), lr=1.0, backend=backend) if route == "optimizer" else torch.optim.SGD([p], lr=1.0)
    if route == "attach":
        updsl.attach(o, updsl.parse(rule), backend=backend)
    o.step()
    assert p.grad.stride() == laid_out(g, layout).stride()
    return -p.detach()


def normalised(g: torch.Tensor, scope: str) -> np.ndarray:
    """Each row or column of the matrix view, which the first dimension has the rows of, divided by its norm: written out."""
    m = g.double().numpy().reshape(g.shape[0] if g.dim() else 1, -1)
    norms = {
        "row": lambda: np.sqrt((m**2).sum(1, keepdims=True)),
        "column": lambda: np.sqrt((m**2).sum(0, keepdims=True)),
        "tensor": lambda: np.sqrt((m**2).sum()),
    }
    return (m / norms[scope]()).reshape(g.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scope", ["row", "column", "tensor"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_l1_rows_and_columns_of_every_shape_and_layout(shape, scope, route, backend) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for layout in LAYOUTS[:-1]:
        found = stepped(route, f"norm per {scope}", g, layout, backend)
        np.testing.assert_allclose(found.numpy(), normalised(g, scope), rtol=1e-5, err_msg=layout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_l1_entries_of_a_vector_are_rows(backend) -> None:
    g = torch.tensor([3.0, -4.0, 0.0])
    assert stepped("optimizer", "norm per row", g, "dense", backend).tolist() == [1.0, -1.0, 0.0]
    assert stepped("optimizer", "norm per column", g, "dense", backend).tolist() == pytest.approx([0.6, -0.8, 0.0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_l1_expanded_gradients_are_read_and_are_refused_where_they_would_be_written(backend) -> None:
    g = torch.tensor([[3.0, 4.0], [7.0, 7.0]])
    found = stepped("optimizer", "norm per row", g, "expanded", backend)
    assert found.flatten().tolist() == pytest.approx([0.6, 0.8] * 2)
    with pytest.raises(updsl.UpdslError, match="expanded: its entries share memory"):
        stepped("attach", "norm per row", g, "expanded", backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("empty", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("rule", ["norm per column", "norm per row → ema", "clip norm > 1 per all", "g*min(g) per tensor"])
def test_l1_empty_tensors_take_no_part(rule, empty, route, backend) -> None:
    """Nor does it matter where they stand, nor whether all are so."""
    rule = "rule r = " + rule.replace("g*min(g) per tensor", "(g*min(g) per tensor)")
    for shapes in ([empty, (2, 2)], [(2, 2), empty], [empty]):
        params = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
        o: Any = updsl.Optimizer(params, updsl.parse(rule), lr=1.0, backend=backend) if route == "optimizer" else torch.optim.SGD(params, lr=1.0, momentum=0.5)
        handle = updsl.attach(o, updsl.parse(rule), backend=backend) if route == "attach" else o
        for _ in range(2):
            for p in params:
                p.grad = torch.full_like(p, 5.0)
            o.step()
        full = [name for name, s in zip(("0.0", "0.1"), shapes, strict=False) if s == (2, 2)]
        assert list(handle.driver.state.t) == full
        assert all(set(cells) <= {"", *full} for cells in handle.driver.state.values.values())
        assert all(torch.isfinite(p).all() for p in params)
