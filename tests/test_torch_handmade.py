"""The torch backend on every Program made by hand for the interpreter's tests, against the interpreter, in every array that a step gives."""

import handmade
import numpy as np
import pytest
import test_interpret
import test_interpret_steps
import torch
from test_interpret import *  # noqa: F403
from test_interpret_steps import *  # noqa: F403

from updsl.back.torch_exec import TorchBackend
from updsl.core.frame import Frame, RuleState, Tensor

TOLERANCE = 1e-9


def to_torch(x, dtype=torch.float64):
    if isinstance(x, dict):
        return {k: to_torch(v, dtype) for k, v in x.items()}
    x = torch.from_numpy(np.array(x))
    return x.to(dtype) if x.is_floating_point() else x


def agree(found, expected, where, tolerance=TOLERANCE):
    """Equal up to a fraction of the array's largest finite entry; NaN and inf in the same places."""
    match expected:
        case dict():
            assert found.keys() == expected.keys(), where
            for k in expected:
                agree(found[k], expected[k], (*where, k), tolerance)
        case tuple():
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                agree(a, b, (*where, i), tolerance)
        case None:
            assert found is None, where
        case _:
            a, b = found.to(torch.float64).numpy(), np.asarray(expected, np.float64)
            assert a.shape == b.shape, (*where, a.shape, b.shape)
            finite = np.isfinite(b)
            scale = np.abs(b[finite]).max(initial=0.0)
            np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=str(where))
            np.testing.assert_allclose(a[finite], b[finite], rtol=0, atol=tolerance * scale, err_msg=str(where))


def results(r):
    return {"out": r.out, "weights": r.weights, "watches": r.watches, "states": r.state.values}


class Both(handmade.Rule):
    """Steps both backends with states of their own, and compares them."""

    def __init__(self, *programs, shapes, **more):
        super().__init__(*programs, shapes=shapes, **more)
        self.torch = TorchBackend(programs, self.class_of, [Tensor(n, s) for n, s in shapes.items()], compiled=False)
        self.torch_state = RuleState()

    def step(self, g, w=None, batch=None, **inputs):
        expected = super().step(g, w, batch, **inputs)
        g = to_torch({n: np.asarray(x, np.float64) for n, x in g.items()})
        w = to_torch(w) if w else {n: torch.zeros_like(x) for n, x in g.items()}
        given = {name: {k: to_torch(np.asarray(x, np.float64)) for k, x in cells.items()} for name, cells in inputs.items()}
        frame = Frame(g, w, self.groups, self.lr, self.params, given, batch, self.seed)
        found = self.torch.step(self.torch_state, frame)
        agree(results(found), results(expected), ())
        assert (found.state.run, found.state.t) == (expected.state.run, expected.state.t)
        self.torch_state = found.state
        return expected


@pytest.fixture(autouse=True)
def _both(monkeypatch):
    monkeypatch.setattr(test_interpret, "Rule", Both)
    monkeypatch.setattr(test_interpret_steps, "Rule", Both)
