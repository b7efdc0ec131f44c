"""python -m benchmarks [--quick] [--only TEXT] [--device cuda] [--budget SECONDS]: measures everything, writes benchmarks/results and docs/performance.md.

Every measurement has a process of its own, one after the other; nothing else should run meanwhile. With the Python of benchmarks/other_venv.sh,
HeavyBall and optax take part. Results of a quick look are shown, and do not reach the page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import plan
from updsl.bench.machine import machine
from updsl.bench.protocol import from_json, ratio, summary
from updsl.bench.report import aligned

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LIMIT = 2400.0
"""The seconds that one measurement may take."""
CACHES = ("UPDSL_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def measured(task: plan.Task, caches: Path, limit: float) -> dict[str, Any]:
    """The task with what its process found, or why there is nothing. "cold": with cache folders that are new; "warm": with those of the task before it."""
    if limit <= 0:
        return {**task, "failed": "no time was left"}
    folder = caches / "shared"
    if "cache" in task:
        folder = caches / re.sub(r"\W+", "-", json.dumps({k: v for k, v in task.items() if k != "cache"}))
    arguments = {k: v for k, v in task.items() if k != "cache"}
    threads = str(task.get("threads", 1))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    env |= {name: str(folder / name.lower()) for name in CACHES}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.measure", json.dumps(arguments)], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {**task, "failed": f"took more than {limit:.0f} s"}
    if done.returncode:
        return {**task, "failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {**task, **json.loads(done.stdout.splitlines()[-1])}


def said(result: dict[str, Any]) -> str:
    """A result in a line, or as a table."""
    title = " ".join(str(result[k]) for k in ("kind", "name", "contender", "set", "tensors", "cache", "backend") if k in result)
    if "failed" in result:
        return f"{title}: {result['failed']}"
    if result["kind"] != "job":
        rest = {k: v for k, v in result.items() if k not in ("kind", "name", "contender", "set", "tensors", "cache", "backend", "date", "commit")}
        if result["kind"] == "numerics":
            worst = sorted(result["errors"].items(), key=lambda item: -item[1])[:3]
            rest = {"rules": len(result["errors"]), "left out": len(result["left_out"]), "worst": worst}
        return f"{title}: {json.dumps(rest)}"
    found = from_json(result["samples"])
    ours = next(iter(found.values()))
    rows = [("", "wall ms", "CPU ms", "least ms", "÷ first", "error")]
    for name, s in found.items():
        error = result["errors"].get(name)
        rows.append((name, *(f"{v:.3f}" for v in summary(s).values()), f"{ratio(s, ours):.2f}", "" if error is None else f"{error:.0e}"))
    return "\n".join([title, aligned(rows), *(f"{name}: {why}" for name, why in result["left_out"].items())])


def divisor() -> int:
    """Of P4's dimensions: the least for which a job's streams, 16 at most, fit on the card."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return next((d for d in (1, 2, 4) if 16 * 4 * 6.74e9 / d**2 < free), 8)


def commit() -> str | None:
    """Of the checkout, with a + where it is changed."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.strip() else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="a minute or two, at sizes too small for figures that mean much")
    parser.add_argument("--only", metavar="TEXT", default="", help='measurements whose line holds this, such as "J1" or "P1"; the others are kept as they are')
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="leave out what does not fit")
    given = parser.parse_args()
    about = machine()
    if given.device == "cuda" and not about["card"]:
        print("benchmarks: there is no CUDA card here, or this torch was built without CUDA", file=sys.stderr)
        return 2
    tasks = plan.card(divisor()) if given.device == "cuda" else plan.quick() if given.quick else plan.everything()
    name = re.sub(r"\W+", "-", (about["card"] if given.device == "cuda" else about["processor"]).lower()).strip("-")
    path = RESULTS / f"{name}{'-quick' if given.quick else ''}.json"
    kept = earlier(path, about) if given.only else []
    end = time.monotonic() + given.budget
    results = []
    with tempfile.TemporaryDirectory(prefix="updsl-benchmarks-") as caches:
        for task in tasks:
            if given.only not in said({**task, "failed": ""}):
                continue
            found = measured(task, Path(caches), min(LIMIT, end - time.monotonic()))
            results.append({**found, "date": about["date"], "commit": commit()})
            print(said(results[-1]), end="\n\n" if task["kind"] == "job" else "\n", flush=True)
            write(path, given, about, [*(r for r in kept if not any(same(r, new) for new in results)), *results])
    print(f"results: {path}")
    if not given.quick:
        runpy.run_path(str(HERE.parent / "docs" / "write_performance.py"), run_name="__main__")
    return 0


def earlier(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The results there are, if they are of this machine and these versions; each says when it was measured."""
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    return data["results"] if data["machine"] == {k: v for k, v in about.items() if k != "date"} else []


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results are of the same measurement."""
    keys = ("kind", "name", "contender", "set", "tensors", "cache", "backend", "backends")
    return all(one.get(k) == other.get(k) for k in keys)


def write(path: Path, given: argparse.Namespace, about: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """All results so far: what was measured is kept, whatever happens next."""
    path.parent.mkdir(exist_ok=True)
    machine = {k: v for k, v in about.items() if k != "date"}
    data = {"format": 2, "device": given.device, "quick": given.quick, "machine": machine, "results": results}
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
