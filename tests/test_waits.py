"""How often a step waits for the device, on a device that is none: tensors of `meta` have no numbers, and whoever asks for one is counted."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import updsl
from updsl.integrations.watching import Writer
from updsl.runtime import arrays, commit

RULES = ["zclip", "clip_norm", "norm per column → clip z > 2.5 → EMA"]
LOOKED_AFTER = 100
"""The device is asked every so many steps whether as many were bad in a row."""


class Waits(TorchDispatchMode):
    """Counts the numbers that are read from the device, of which each is 1."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            self.count += 1
            return True
        return f(*args, **(kwargs or {}))


@pytest.fixture
def pretended(monkeypatch) -> None:
    """Tensors without numbers are taken, though they lie nowhere."""
    monkeypatch.delenv("UPDSL_BACKEND", raising=False)
    monkeypatch.setattr(arrays, "supported", lambda *_: None)
    monkeypatch.setattr(commit, "overlapping", lambda *_: None)


def rule_of(text: str) -> updsl.Rule:
    return updsl.parse(text) if " " in text else updsl.load(text)


def stepped(route: str, rule: str, policy: str, steps: int, each=lambda handle: None) -> list[int]:
    """How often each step waits."""
    params = [torch.nn.Parameter(torch.zeros(4, 3, device="meta")) for _ in range(3)]
    if route == "attach":
        o = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        handle = updsl.attach(o, rule_of(rule), nonfinite=policy, backend="torch")
    else:
        handle = o = updsl.Optimizer(params, rule_of(rule), nonfinite=policy, backend="torch")
    found = []
    with Waits() as waits:
        for _ in range(steps):
            for p in params:
                p.grad = torch.ones_like(p)
            before = waits.count
            o.step()
            each(handle)
            found.append(waits.count - before)
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("route", ["attach", "optimizer"])
@pytest.mark.usefixtures("pretended")
class TestWaits:
    @pytest.mark.parametrize("policy", ["skip", "raise"])
    def test_l15_a_step_that_may_be_skipped_reads_one_flag(self, route, rule, policy) -> None:
        assert stepped(route, rule, policy, 4) == [1] * 4

    @pytest.mark.parametrize("policy", ["mask", "zero", "propagate"])
    def test_l15_other_steps_wait_for_nothing(self, route, rule, policy) -> None:
        """But for the first of a rule with states under "mask", which have no value yet that could stay."""
        first, *others = stepped(route, rule, policy, 5)
        assert first == (policy == "mask" and rule != "clip_norm")
        assert others == [0] * 4

    def test_l15_watches_counts_and_writers_wait_for_nothing(self, route, rule) -> None:
        class Unread(Writer):
            def put(self, rows):
                raise AssertionError("it is not full")

        writer = Unread(interval=100)

        def each(handle) -> None:
            assert handle.watch()
            assert set(handle.counts) == {"bad", "in_a_row", "overflowed"}
            writer.write(handle, loss=torch.ones((), device="meta"))

        assert stepped(route, rule, "propagate", 4, each) == [0] * 4


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("route", ["attach", "optimizer"])
def test_l15_tensors_as_parameters_are_not_read(route) -> None:
    """By `set`, and in a group."""

    def each(handle) -> None:
        handle.set(b=torch.ones((), device="meta"))
        for group in (handle if route == "optimizer" else handle.optimizers[0]).param_groups:
            group["c" if route == "optimizer" else "updsl.c"] = torch.ones((), device="meta")

    assert stepped(route, "rule r(b = 1 in [0, 9], c = 2 in [0, 9]) = g*b*c", "propagate", 4, each) == [0] * 4


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("policy", ["mask", "zero"])
def test_l15_every_hundredth_step_asks_whether_training_is_lost(policy) -> None:
    found = stepped("attach", "clip_norm", policy, 2 * LOOKED_AFTER)
    assert [k for k, n in enumerate(found, 1) if n] == [LOOKED_AFTER, 2 * LOOKED_AFTER]
    assert sum(found) == 2


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("rule", RULES)
def test_l15_a_compiled_step_waits_for_nothing(rule) -> None:
    params = {"a": torch.zeros(4, 3, device="meta"), "b": torch.zeros(3, device="meta")}
    y = updsl.compile(rule_of(rule), params, backend="torch")
    with Waits() as waits:
        for _ in range(3):
            y.step({name: torch.ones_like(p) for name, p in params.items()})
    assert waits.count == 0


@pytest.mark.usefixtures("pretended")
def test_a_wait_is_seen() -> None:
    assert stepped("attach", "clip_norm", "propagate", 2, lambda handle: float(handle.watch()["clipped"])) == [1, 1]


@pytest.mark.skipif(os.environ.get("UPDSL_BACKEND") == "triton", reason="Triton's interpreter reads all there is")
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_l15_steps_on_the_host_read_no_number_of_a_tensor(backend) -> None:
    """Under "propagate", where no flag is needed."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.count += f is torch.ops.aten._local_scalar_dense.default
            return f(*args, **(kwargs or {}))

    params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    o = torch.optim.SGD(params, lr=0.1)
    handle = updsl.attach(o, "zclip", nonfinite="propagate", backend=backend)
    with Reads() as reads:
        for _ in range(5):
            for p in params:
                p.grad = torch.ones_like(p)
            o.step()
            handle.watch()
    assert reads.count == 0
