"""Rule files as pytest's tests, run by pytest in a process of its own, in a folder that has nothing but rule files."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from updsl.core.resources import folder

ROOT = Path(__file__).parents[1]
INSTALLED = bool(entry_points(group="pytest11", name="updsl"))
"""Where updsl is not, but only on the path, the plugin is named."""

GOOD = """rule mine(c = 1) = clip norm > c per all

law bounded: norm(out) <= c per all
law idle: norm(g) <= c per all implies out == g
example: [3, 4] gives [0.6, 0.8]
example(c = 10): [1]; [2] gives [1]; [2]
"""
FALSE = """rule mine(c = 1) = clip norm > c per all

law bounded: norm(out) <= c/2 per all
law says_nothing: norm(g) < 0 implies out == g
example: [3, 4] gives [3, 4]
"""
WARNED = "rule mine(eps = 1) = g + g^2*eps + (g + g^2)\n\nlaw odd: out == 2*g + (1 + eps)*g^2\n"
ROUNDED = "rule mine = 1e5*g + g - 1e5*g\n\nlaw same: out == g\n"


def pytest_in(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Plain pytest in that folder."""
    named = () if INSTALLED else ("-p", "updsl.integrations.pytest_plugin")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *named, *arguments]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    left_out = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=240)


def write(where: Path, text: str, name: str = "mine.upd") -> None:
    (where / name).write_text(text, encoding="utf-8")


def test_a_file_in_a_bare_folder(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    result = pytest_in(tmp_path, "-v")
    assert result.returncode == 0, result.stdout
    for name in ("text", "lint", "mine::bounded", "mine::idle", "mine::example[1]", "mine::example[2]"):
        assert f"mine.upd::{name} PASSED" in result.stdout
    assert "6 passed" in result.stdout


def test_laws_and_examples_that_do_not_hold(tmp_path: Path) -> None:
    write(tmp_path, FALSE)
    result = pytest_in(tmp_path, "-v")
    assert result.returncode == 1
    assert "3 failed, 2 passed" in result.stdout
    assert "mine.bounded: refuted" in result.stdout
    assert "step 1: g = [1.]" in result.stdout
    assert "mine.says_nothing: vacuous" in result.stdout
    assert "--> mine.upd:3" in result.stdout
    assert "error[example-fails]: this example says [3, 4], and the rule gives [0.6, 0.8]" in result.stdout
    assert "Traceback" not in result.stdout
    assert "decide.py" not in result.stdout


def test_one_law_is_chosen(tmp_path: Path) -> None:
    write(tmp_path, FALSE)
    write(tmp_path, GOOD, "other.upd")
    assert "1 passed" in pytest_in(tmp_path, "other.upd::mine::idle").stdout
    assert "1 failed, 2 passed" in pytest_in(tmp_path, "mine.upd::mine::bounded", "other.upd::mine::example").stdout


def test_a_file_that_cannot_be_read_as_rules_is_one_failure(tmp_path: Path) -> None:
    write(tmp_path, "rule mine = clip norm >\n\nlaw odd: out == g\n")
    result = pytest_in(tmp_path)
    assert "1 failed" in result.stdout
    assert "mine.upd:1:" in result.stdout
    assert "Traceback" not in result.stdout


def test_mistakes_of_a_text_fail_its_laws_too(tmp_path: Path) -> None:
    write(tmp_path, "rule mine = clip nrom > 1\n\nlaw odd: out == out\n")
    result = pytest_in(tmp_path, "mine.upd::mine::odd")
    assert "1 failed" in result.stdout
    assert "error[unknown-name]" in result.stdout


def test_warnings_are_shown_or_fail(tmp_path: Path) -> None:
    write(tmp_path, WARNED)
    shown = pytest_in(tmp_path)
    assert shown.returncode == 0, shown.stdout
    assert "RuleWarning: warning[unit-conflict]" in shown.stdout
    assert "3 passed, 1 warning" in shown.stdout
    strict = pytest_in(tmp_path, "--updsl-strict")
    assert "1 failed, 2 passed" in strict.stdout
    write(tmp_path, "[pytest]\nupdsl_strict = true\n", "pytest.ini")
    assert "1 failed, 2 passed" in pytest_in(tmp_path).stdout


def test_a_law_that_fails_in_float32_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, ROUNDED)
    shown = pytest_in(tmp_path)
    assert "3 passed, 1 warning" in shown.stdout
    assert "in float32 it fails" in shown.stdout
    assert "mine.upd:3: RuleWarning: mine.same:" in shown.stdout
    assert "1 failed, 2 passed" in pytest_in(tmp_path, "--updsl-strict").stdout


def test_profiles(tmp_path: Path) -> None:
    """The verdict says how many streams were tried."""
    write(tmp_path, "rule mine = g\n\nlaw it: norm(g) < 0 implies out == g\n")
    assert "held nowhere in 40 streams" in pytest_in(tmp_path).stdout
    assert "held nowhere in 200 streams" in pytest_in(tmp_path, "--updsl-profile=ci").stdout
    assert pytest_in(tmp_path, "--updsl-profile=none").returncode == 4
    write(tmp_path, "[pytest]\nupdsl_profile = ci\n", "pytest.ini")
    assert "held nowhere in 200 streams" in pytest_in(tmp_path).stdout
    write(tmp_path, "[pytest]\nupdsl_profile = fast\n", "pytest.ini")
    assert "updsl_profile is 'fast': choose quick, ci, nightly" in pytest_in(tmp_path).stderr


def test_in_parallel(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    write(tmp_path, GOOD)
    write(tmp_path, FALSE, "other.upd")
    assert "3 failed, 8 passed" in pytest_in(tmp_path, "-n", "2").stdout


@pytest.mark.parametrize("name", ["z", "zclip"])
def test_a_file_of_the_library(name: str, tmp_path: Path) -> None:
    (path,) = folder("rules").glob(f"*/{name}.upd")
    result = pytest_in(tmp_path, str(path), "-v")
    assert result.returncode == 0, result.stdout


REPORT = "def pytest_unconfigure():\n    import sys\n    print('loaded:', *sorted({m.split('.')[0] for m in sys.modules}))\n"


@pytest.mark.parametrize("text", [None, GOOD])
def test_collecting_loads_nothing_heavy(text: str | None, tmp_path: Path) -> None:
    """Hypothesis' own plugin loads Hypothesis, whatever is collected."""
    write(tmp_path, REPORT, "conftest.py")
    write(tmp_path, "def test_it():\n    pass\n", "test_it.py")
    if text is not None:
        write(tmp_path, text)
    result = pytest_in(tmp_path, "--collect-only", "-q", "-s", "-p", "no:hypothesispytest")
    assert result.returncode == 0, result.stdout
    assert ("mine.upd::mine::bounded" in result.stdout) == (text is not None)
    loaded = set(result.stdout.rsplit("loaded:", 1)[1].split())
    assert "updsl" in loaded
    assert not loaded & {"torch", "sympy", "hypothesis", "numpy", *(() if text else ("lark",))}
