"""Every golden file, in the interpreter and the torch backends: the numbers of the official code, float64, 1e-9 relative to each tensor's largest entry."""

from __future__ import annotations

import golden
import pytest


def name(case: golden.Case) -> str:
    return f"{case.file}-{case.rule}"


COMPILED = ("adamw", "zclip-percentile", "muon-keller_f64", "stable_spam-gap0")
"""Files that are compared under torch.compile in every run; all of them are nightly."""


def pairs():
    """Every file in every backend; compiling takes some ten seconds each."""
    for case in golden.CASES:
        for backend in golden.BACKENDS:
            compiled = [pytest.mark.timeout(900), pytest.mark.slow if case.file in COMPILED else pytest.mark.nightly]
            yield pytest.param(case, backend, marks=compiled if backend == "inductor" else [], id=f"{name(case)}-{backend}")


@pytest.mark.parametrize(("case", "backend"), list(pairs()))
def test_equals_the_official_code(case, backend, record_property):
    found = golden.worst(case, backend)
    record_property("golden", f"{case.file} {case.rule} {backend} {max(found.values()):.17g}")
    for what, error in found.items():
        assert error <= case.tolerance, f"{what} is off by {error:.1e}"


def test_every_file_is_compared():
    assert {c.file for c in golden.CASES} == {p.stem for p in golden.FOLDER.glob("*.npz")}


def test_a_wrong_number_is_seen():
    """A rule with another parameter than the file's is far off."""
    case = next(c for c in golden.CASES if c.file == "zclip-percentile")
    other = golden.Case(case.file, case.rule, case.compare, {**case.params, "warmup": 11})
    assert golden.worst(other, "interpret")["out"] > 1e-3
