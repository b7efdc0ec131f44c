"""Common and dead bindings: the same meaning, nothing left to do on a second run, no more work than before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from test_conformance import SUITE, name

from updsl.back.interpret import Interpreter
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.core.ir import Program, Reduce, roots, walk
from updsl.core.show import show
from updsl.front.elaborate import Elaborated, elaborate
from updsl.middle.share import is_costly, share
from updsl.middle.verify import verify
from updsl.pipeline import from_text

CASES = [case for case in SUITE["programs"] if not case["inputs"] and not case["groups"]][::5]


def elaborated(case) -> Elaborated:
    module = from_text(case["text"])
    return elaborate(module, [Tensor(n, tuple(s)) for n, s in case["shapes"].items()], {n: p.default for n, p in module.parameters.items()})


def outcomes(programs: Elaborated, case) -> list[dict[str, np.ndarray]]:
    """out and w of every step of a case."""
    tensors = [Tensor(n, tuple(s)) for n, s in case["shapes"].items()]
    params = {n: float(p.default) for n, p in from_text(case["text"]).parameters.items()}
    run = Interpreter(programs.programs, programs.class_of, tensors)
    state, w, found = RuleState(), dict(case["weights"]), []
    for g in case["g"]:
        result = run.step(state, Frame(g, w, dict.fromkeys(case["shapes"], 0), {0: case["lr"]}, {0: params}))
        state, w = result.state, w | (result.weights or {})
        found += [result.out, dict(w)]
    return found


def work(program: Program) -> int:
    return sum(is_costly(n) for e in roots(program) for n in walk(e))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_meaning_is_kept(case) -> None:
    before = elaborated(case)
    after = replace(before, programs=tuple(verify(share(p)) for p in before.programs))
    for a, b in zip(outcomes(before, case), outcomes(after, case), strict=True):
        for n in a:
            np.testing.assert_array_equal(b[n], a[n])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_second_run_changes_nothing_and_work_never_grows(case) -> None:
    for program in elaborated(case).programs:
        once = share(program)
        assert share(once) is once
        assert work(once) <= work(program)


def one_class(text: str) -> Program:
    return share(elaborate(from_text(text), [Tensor("w", (4, 3))], {}).programs[0])


def test_each_reduction_of_a_value_is_computed_once() -> None:
    program = one_class("norm per column → clip z > 2.5 → EMA")
    counts = Counter(n.op for e in roots(program) for n in walk(e) if isinstance(n, Reduce))
    assert counts["mean"] == 2  # of the flowing value, and of what was clipped
    assert counts["std"] == 1


def test_what_nothing_reads_is_not_computed() -> None:
    program = one_class("rule r:\n    a = g @ g.T\n    b = norm(a)\n    return 2*g\n")
    assert not program.body
    assert "@" not in show(program)


def test_a_value_of_several_tensors_stays_for_the_others() -> None:
    program = one_class("rule r:\n    n = norm(g) per all\n    return 2*g\n")
    assert [b.name for b in program.body] == ["norm"]
