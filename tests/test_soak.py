"""The long run of soak.py, a short one on every change and 100,000 steps at night: row L15, memory flat, and all that may happen to an optimizer in one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soak

BACKENDS = ("torch", "cpp")
KINDS = {"restart", "detach", "attach", "resume", "add", "freeze", "thaw", "lr", "set", "bad", "nothing"}


def test_l15_whatever_happens_is_as_the_interpreter_has_it() -> None:
    report = soak.run(list(soak.SCENARIOS), BACKENDS, 1000, soak.SEED)
    assert report.worst <= soak.TOLERANCE
    assert KINDS <= report.happened.keys()


def test_l15_the_interpreter_as_a_backend_is_exact() -> None:
    report = soak.run(["kinds", "zclip"], ("interpret",), 300, soak.SEED + 1)
    assert report.worst <= 1e-15


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [soak.SEED, soak.SEED + 1])
def test_l15_memory_is_flat_over_a_hundred_thousand_steps(seed: int) -> None:
    """A tensor, object or block that every fortieth step left behind would show."""
    report = soak.run(list(soak.SCENARIOS), BACKENDS, 100_000, seed)
    soak.assert_flat(report.memory)


@pytest.mark.nightly
@pytest.mark.parametrize("name", soak.SCENARIOS)
def test_l15_each_rule_by_itself(name: str) -> None:
    soak.assert_flat(soak.run([name], BACKENDS, 20_000, soak.SEED + 2).memory)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.w["a"].data.add_(1e-6),
        lambda one: one.handle.driver.state.values["μ"][""].mul_(1 + 1e-6),
        lambda one: setattr(one.handle.driver.guard, "bad", 99),
        lambda one: one.handle.driver.watches.clear(),
        lambda one: setattr(one.handle.driver.state, "run", 3),
    ],
)
def test_the_replay_sees_what_is_wrong(spoil) -> None:
    one, right = soak.Trainer("torch"), soak.Replay()
    for each in (one, right):
        each.restart("zclip")
    for event in soak.events(soak.SEED, 10, ["zclip"]):
        one.step(event)
        right.step(event)
    grads = {n: np.full(soak.SHAPES[n], np.nan) for n in ("a", "b")}
    for each in (one, right):
        each.step(soak.Event((), grads))
    soak.assert_alike(one.result(), right.result(), 1.0, "before")
    spoil(one)
    with pytest.raises(AssertionError):
        soak.assert_alike(one.result(), right.result(), 1.0, "after")


def test_memory_that_grows_is_seen() -> None:
    flat = [soak.Memory(200, 300_000, 1_100_000, 320.0)] * 10
    soak.assert_flat(flat)
    for grown in ({"tensors": 3000}, {"objects": 310_000}, {"blocks": 1_120_000}, {"megabytes": 400.0}):
        with pytest.raises(AssertionError, match=next(iter(grown))):
            soak.assert_flat([*flat, replace(flat[0], **grown)])
