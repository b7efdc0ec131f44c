"""Writes docs/conformance.md from test results: what each rule was compared with, in which backend, and the largest error seen.

    python docs/write_conformance.py [RESULTS.xml …]

The results are JUnit reports of tests/test_golden.py and tests/test_library.py (pytest --junitxml); without any, both are run. Those of
tests/test_packages.py, which needs the packages, are kept in docs/packages.json with their date: a report with any replaces them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE / "packages.json"
TESTS = ("tests/test_golden.py", "tests/test_library.py")
BACKENDS = ("interpret", "torch", "inductor")
HEAD = """# Conformance

Written by `docs/write_conformance.py` from the results of `tests/test_golden.py`, `tests/test_library.py` and `tests/test_packages.py`; do not edit by hand.

An error is the largest difference over all steps, relative to the largest entry of the tensor at that step; gradients and states are float64.
A blank means that the results did not have that test.

## Golden files

The numbers of the official code named in the file (tests/data/golden), and of torch.optim 2.13. The bound is 1e-9.

| file | rule | interpreter | torch | inductor |
|---|---|---|---|---|
"""
LIBRARY = """
## The mathematics

Each rule against an independent statement in NumPy (tests/reference; torch.optim 2.13 itself where it has the method), in the interpreter, at
several settings, over streams with spikes, ties, zero tensors and silent first steps. The bound is 1e-9.

| rule | settings | error |
|---|---|---|
"""

PACKAGES = """
## Packages

Each rule against the packages that have the method (tests/test_packages.py), run on {date} with {versions}. An error is the largest difference of
weights over 30 steps with spikes, relative to how far the tensor has gone.

| package | rule | method | error | remark |
|---|---|---|---|---|
"""
DIFFERENT = """
Where a package's method is another, and the official code or torch is as the rule:

| package | rule | method | what differs |
|---|---|---|---|
"""


def properties(reports: Iterable[Path], name: str) -> Iterator[list[str]]:
    """The words of every recorded property of this name, of tests that passed."""
    for report in reports:
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            if case.find("failure") is None and case.find("error") is None:
                yield from (p.attrib["value"].split() for p in case.iter("property") if p.attrib["name"] == name)


def shown(error: float | None) -> str:
    return "" if error is None else "0" if error == 0 else f"{error:.0e}"


def packages(reports: list[Path]) -> dict[str, Any]:
    """The comparisons with packages: of the reports, which are then kept, or the kept ones."""
    equal = [
        (package, rule, method, float(error), version, " ".join(about)) for package, version, method, rule, error, *about in properties(reports, "package")
    ]
    different = [(package, rule, method, version, " ".join(about)) for package, version, method, rule, *about in properties(reports, "differs")]
    if equal:
        found = {"date": date.today().isoformat(), "equal": sorted(equal), "different": sorted(different)}
        KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return json.loads(KEPT.read_text(encoding="utf-8"))


def of_packages(found: dict[str, Any]) -> str:
    """Their part of the page."""
    versions = dict.fromkeys(f"{package} {version}" for package, *_, version, _ in found["equal"])
    equal = [f"| {package} | `{rule}` | {method} | {shown(error)} | {about} |" for package, rule, method, error, _, about in found["equal"]]
    different = [f"| {package} | `{rule}` | {method} | {about} |" for package, rule, method, _, about in found["different"]]
    head = PACKAGES.format(date=found["date"], versions=", ".join(versions))
    return head + "\n".join(equal) + "\n" + DIFFERENT + "\n".join(different) + "\n"


def page(reports: list[Path]) -> str:
    golden: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for file, rule, backend, error in properties(reports, "golden"):
        golden[file, rule][backend] = float(error)
    mathematics: dict[str, list[float]] = defaultdict(list)
    for rule, error in properties(reports, "mathematics"):
        mathematics[rule].append(float(error))
    lines = [f"| {file} | `{rule}` | {' | '.join(shown(found.get(b)) for b in BACKENDS)} |" for (file, rule), found in sorted(golden.items())]
    rows = [f"| `{rule}` | {len(errors)} | {shown(max(errors))} |" for rule, errors in sorted(mathematics.items())]
    return HEAD + "\n".join(lines) + "\n" + LIBRARY + "\n".join(rows) + "\n" + of_packages(packages(reports))


def main(given: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(g) for g in given] or [Path(folder) / "results.xml"]
        if not given:
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-m", "nightly or not nightly", *TESTS, f"--junitxml={reports[0]}", "-o", "junit_family=xunit1"],
                cwd=HERE.parent,
                check=True,
            )
        HERE.joinpath("conformance.md").write_text(page(reports), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
