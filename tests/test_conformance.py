"""The conformance suite: points, refusals and random programs of an independent interpreter, through the public functions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Step, distance, engine_of, run

import updsl

FOLDER = Path(__file__).parent / "data" / "conformance"
TOLERANCE = 1e-9
BACKENDS = ("interpret", "torch")
LEAST = {"points": 79, "errors": 16, "programs": 160}
COMPILED = (0, 1, 3, 12, 14, 20, 37, 59)
"""Random programs that run under torch.compile too: samples, bases and powers of matrices, several classes, groups, blocks every few steps, largest, skips."""


def suite() -> dict[str, list[dict[str, Any]]]:
    """The suite by kind of case."""
    spec = importlib.util.spec_from_file_location("conformance_load", FOLDER / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"points": module.points(), "errors": module.errors(), "programs": list(module.programs())}


SUITE = suite()


def name(case: dict[str, Any]) -> str:
    return " ".join(case["text"].split())[:60].strip()


def arrays(by_name: dict[str, Any]) -> dict[str, np.ndarray]:
    return {n: np.array(x, np.float64) for n, x in by_name.items()}


def by_tensor(watch: dict[str, Any], expected: dict[str, Any], groups: list[dict[str, Any]] | None) -> dict[str, dict[str, float]]:
    """The watches that are not of scope all, with one number for each tensor: one of scope group is the number of the tensor's group."""
    group_of = {n: i for i, group in enumerate(groups or ()) for n in group["params"]}
    last = len(groups or ())
    split = {label: numbers for label, numbers in expected.items() if isinstance(numbers, dict)}
    return {label: {n: watch[label][n if n in watch[label] else group_of.get(n, last)] for n in numbers} for label, numbers in split.items()}


def agree(given, expected: dict[str, Any], groups: Any) -> None:
    """out, w and watches of one step are as expected, as far as the suite says what they are."""
    for what in ("out", "w"):
        for tensor, x in (expected.get(what) or {}).items():
            assert distance(getattr(given, what)[tensor], x) <= TOLERANCE, f"{what} of {tensor}"
    watches = expected.get("watch") or {}
    split = by_tensor(given.watch, watches, groups)
    for label, x in watches.items():
        pairs = [(split[label][n], v) for n, v in x.items()] if isinstance(x, dict) else [(given.watch[label], x)]
        assert max(distance(a, b) for a, b in pairs) <= TOLERANCE, f"watch {label}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SUITE["points"], ids=name)
def test_points(case: dict[str, Any], backend: str) -> None:
    rule = updsl.parse(case["text"])
    weights = {n: np.array(case.get("w", {}).get(n, np.zeros(shape)), np.float64) for n, shape in case["shapes"].items()}
    steps = [Step(arrays(s["g"]), {n: arrays(x) if isinstance(x, dict) else x for n, x in (s.get("inputs") or {}).items()}) for s in case["steps"]]
    given = run(rule, backend, weights, steps, case.get("lr", 1.0), case.get("groups"))
    for step, expected in zip(given, case["steps"], strict=True):
        agree(step, expected, case.get("groups"))


@pytest.mark.parametrize("case", SUITE["errors"], ids=name)
def test_refusals(case: dict[str, Any]) -> None:
    with pytest.raises(updsl.UpdslError):
        engine_of(updsl.parse(case["text"]), case.get("shapes", {"x": (3, 4)}))


def check_program(case: dict[str, Any], backend: str) -> None:
    steps = [Step(g, {n: x[t] for n, x in case["input"].items()}) for t, g in enumerate(case["g"])]
    given = run(updsl.parse(case["text"]), backend, case["weights"], steps, case["lr"], case["groups"])
    for t, step in enumerate(given):
        agree(step, {"out": case["out"][t] if case["out"] else None, "w": case["w"][t], "watch": case["watch"][t]}, case["groups"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(len(SUITE["programs"])))
def test_programs(number: int, backend: str) -> None:
    check_program(SUITE["programs"][number], backend)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [pytest.param(n, marks=pytest.mark.slow if i < 2 else pytest.mark.nightly) for i, n in enumerate(COMPILED)])
def test_programs_under_torch_compile(number: int) -> None:
    check_program(SUITE["programs"][number], "inductor")


def test_the_suite_is_whole() -> None:
    assert {kind: len(cases) for kind, cases in SUITE.items()} == LEAST


def test_a_wrong_number_is_seen() -> None:
    case = SUITE["programs"][2]
    changed = case | {"w": [{n: x * (1 + 1e-7) for n, x in w.items()} for w in case["w"]]}
    with pytest.raises(AssertionError):
        check_program(changed, "interpret")
