"""Hypothesis profiles: `quick` draws the same examples on every run, `nightly` many more. Every Program that the pipeline makes in a test is verified."""

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

from updsl import pipeline
from updsl.core import kept
from updsl.middle.verify import verify

collect_ignore = ["bad_rules"]
"""Rule files that are to be refused, each with its own message: test_bad_rules.py."""

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("quick", derandomize=True, deadline=None, database=None, suppress_health_check=CHECKS)
settings.register_profile("nightly", max_examples=5000, deadline=None, suppress_health_check=CHECKS)
settings.load_profile("quick")

os.environ.setdefault("UPDSL_BACKEND", "torch")
"""What "auto" is in tests that name no backend: kernels of every rule of every test would take long to build. `make kernels` runs those that matter."""

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No law is proved: what streams find is looked at."""
    monkeypatch.setattr("updsl.laws.decide.prove", lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the expected messages of tests/bad_rules anew; read the difference before you commit it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked nightly run under the nightly profile, or where they are asked for by `-m`."""
    if config.getoption("--hypothesis-profile") == "nightly" or config.getoption("-m"):
        return
    left = [item for item in items if item.get_closest_marker("nightly")]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True, scope="session")
def every_program_is_verified():
    elaborate, last = pipeline.elaborate, [(), None]

    def verified(module, tensors, params, *rest):
        """The last result is kept: two backends in turn ask for the same Programs."""
        key = (module, tuple(tensors), tuple(params.items()), *rest)
        if last[0] != key:
            found = elaborate(module, tensors, params, *rest)
            last[:] = key, replace(found, programs=tuple(map(verify, found.programs)))
        return last[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "elaborate", verified)
        yield


@pytest.fixture(autouse=True, scope="session")
def nothing_is_kept():
    """What a test looks at is made in that test, and not in an earlier run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "fingerprint", lambda: None)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """The command line in this process: arguments ↦ exit code, stdout, stderr."""
    from updsl import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return call
