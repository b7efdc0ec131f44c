"""Writes docs/performance.md from benchmarks/results: the latest of a CPU, and of a CUDA card. Run `python -m benchmarks`, which ends with this.

What the figures do not say themselves, such as why one falls short and what was tried, is in benchmarks/notes.md and is put at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from updsl.bench.protocol import from_json, ratio, summary

ROOT = Path(__file__).resolve().parents[1]
RESULTS, NOTES, PAGE = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "notes.md", ROOT / "docs" / "performance.md"
MISSING = "not measured yet"
SETS = {"P1": "GPT-2 small, 148 tensors", "P2": "200 × 64×64", "P3": "one 4096×4096", "P4": "Llama 7B shapes, 291 tensors"}

Results = list[dict[str, Any]]
Row = tuple[str, str, str, str, tuple[float | None, ...]]

CPU_ROWS: tuple[Row, ...] = (
    ("J1 vs eager loop", "J1", "eager loop", "updsl cpp", (8, 25, 12)),
    ("J1 vs `torch.compile` of the list", "J1", "compiled list", "updsl cpp", (3, 5, 1.8)),
    ("J1 vs the best Inductor by hand", "J1", "Inductor by hand", "updsl cpp", (1.15, 1.8, 1.25)),
    ("J2 vs `clip_grad_norm_`, clipping", "J2 clipping", "clip_grad_norm_", "updsl cpp", (1.1, 4, 1.4)),
    ("J2 vs `clip_grad_norm_`, idle", "J2 idle", "clip_grad_norm_", "updsl cpp", (2.2, 7, 2.8)),
    ("J3 vs clip + AdamW (fused)", "J3", "AdamW (fused)", "updsl cpp", (1.3, 3.5, 1.35)),
    ("J3 vs clip + AdamW (foreach)", "J3", "AdamW (foreach)", "updsl cpp", (None, None, None)),
    ("J3 vs clip + HeavyBall", "J3", "HeavyBall", "updsl cpp", (None, None, None)),
    ("J3 vs optax under jit", "J3", "optax", "updsl cpp", (None, None, None)),
    ("J1, fraction of the floor", "J1", "floor", "updsl cpp", (0.75, None, 0.7)),
    ("J2 clipping, fraction of the floor", "J2 clipping", "floor", "updsl cpp", (0.88, None, None)),
    ("J3, fraction of the floor", "J3", "floor", "updsl cpp", (0.92, None, None)),
)
"""Label, job, whose time is divided, by whose, and what P1, P2 and P3 should reach."""
CARD_ROWS: tuple[Row, ...] = (
    ("J1 vs eager loop", "J1", "eager loop", "updsl triton", (None, 20)),
    ("J1 vs `torch.compile` of the list", "J1", "compiled list", "updsl triton", (None, 3)),
    ("J2 vs `clip_grad_norm_`, clipping", "J2 clipping", "clip_grad_norm_", "updsl triton", (None, None)),
    ("J2 vs `clip_grad_norm_`, idle", "J2 idle", "clip_grad_norm_", "updsl triton", (2.5, None)),
    ("J3 vs clip + AdamW (fused)", "J3", "AdamW (fused)", "updsl triton", (1.15, None)),
)
BANDWIDTH = (("J1", 20, 0.80), ("J2 clipping", 12, 0.85), ("J3", 32, 0.85))
"""Job, the bytes a parameter that it moves, and the fraction of a copy's bandwidth that it should reach on P4."""


def latest(device: str) -> dict[str, Any] | None:
    """The newest results of a CPU or a card; quick looks are none."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    found = [data for data in found if data["device"] == device and not data["quick"]]
    return max(found, key=lambda data: max(r["date"] for r in data["results"]), default=None)


def page(cpu: dict[str, Any] | None, card: dict[str, Any] | None, notes: str = "") -> str:
    """The whole of docs/performance.md."""
    parts = [HEAD, "## CPU", about(cpu), *acceptance(cpu, CPU_ROWS, ("P1", "P2", "P3")), *others(cpu), *compile_times(cpu), *times(cpu)]
    parts += ["## CUDA", about(card), *acceptance(card, CARD_ROWS, ("P4", "P2")), *bandwidth(card), *launches(card), *times(card)]
    return "\n\n".join([*parts, *([notes.strip()] if notes.strip() else [])]) + "\n"


HEAD = """# Performance

Written by `docs/write_performance.py` from `benchmarks/results`; do not edit by hand. `python -m benchmarks` measures a CPU, `benchmarks/gpu.sh` a CUDA card.

- J1: `norm per column → clip z > 2.5 → ema(0.9)`, written back into the gradient. J2: `zclip`, one factor for all gradients. J3: `clip_grad_norm → adamw`.
- P1: GPT-2 small, 148 tensors. P2: 200 matrices of 64 × 64. P3: one of 4096 × 4096. P4: the 291 tensors of Llama 7B, dimensions divided. float32.
- All contenders take turns in one process of one thread, in the opposite order every other round; every figure is the median of the ratios of single
  rounds, after two rounds of warming up. First each is compared with float64 over three steps.
- The floor is the passes over memory that a job cannot do without (one that reads, one in place), as plain loops on the same tensors in the same rounds.
- In brackets: what is to be reached. ✗: it is not."""


def about(data: dict[str, Any] | None) -> str:
    if data is None:
        return f"{MISSING[0].upper()}{MISSING[1:]}."
    m = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    where = f"{m['card']}, CUDA {m['cuda']}" if data["device"] == "cuda" else f"{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB"
    when = sorted({(r["date"], r["commit"]) for r in data["results"]})
    return f"{where} · {versions} · {m['compiler']} · measured {', '.join(f'{date} ({commit})' for date, commit in when)}"


def of(data: dict[str, Any] | None, kind: str, **wanted: Any) -> Results:
    """The measurements of this kind that came to something."""
    results = data["results"] if data else []
    return [r for r in results if r["kind"] == kind and "failed" not in r and all(r.get(k) == v for k, v in wanted.items())]


def speed(data: dict[str, Any] | None, job: str, set: str, slow: str, fast: str) -> float | None:
    """How many times as fast one contender is as another; of the last run that had both."""
    for result in reversed(of(data, "job", name=job, set=set)):
        found = from_json(result["samples"])
        if slow in found and fast in found:
            return ratio(found[slow], found[fast])
    return None


def cell(value: float | None, bound: float | None, at_least: bool = True, form: Callable[[float], str] = "{:.2f}".format) -> str:
    """A figure and what it should be."""
    goal = "" if bound is None else f" ({'≥' if at_least else '≤'} {form(bound) if not at_least else f'{bound:g}'})"
    if value is None:
        return MISSING + goal
    missed = bound is not None and (value < bound if at_least else value > bound)
    return f"{form(value)}{' ✗' if missed else ''}{goal}"


def acceptance(data: dict[str, Any] | None, rows: tuple[Row, ...], sets: tuple[str, ...]) -> Iterator[str]:
    yield "### How many times as fast"
    lines = [(label, *(cell(speed(data, job, s, slow, fast), b) for s, b in zip(sets, bounds, strict=True))) for label, job, slow, fast, bounds in rows]
    yield table(("", *(f"{s}: {SETS[s]}" for s in sets)), lines)


def others(data: dict[str, Any] | None) -> Iterator[str]:
    """What is not a ratio of times."""
    yield "### Everything else"
    rows = [("binding 291 tensors", cell(first(of(data, "binding"), "seconds"), 0.020, False, milliseconds))]
    for name in ("J1", "J2 clipping", "J2 idle", "J3"):
        rows.append((f"{name}: host overhead of a step, 300 tensors", cell(first(of(data, "overhead", name=name), "seconds"), 100e-6, False, microseconds)))
    for name in ("J1", "J2 clipping", "J2 idle", "J3"):
        found = of(data, "memory", name=name)
        bound = 0.01 * found[-1]["gradients"] + 16e6 if found else None
        rows.append((f"{name}: extra memory on P1", cell(first(found, "extra"), bound, False, megabytes)))
    counts = [r["new"] for r in of(data, "recompilations")]
    rows.append(("recompilations in 100 steps of changing lr, t and parameters", cell(sum(counts[-1].values()) if counts else None, 0, False, "{:.0f}".format)))
    found = of(data, "invariance")
    rows.append(("same bits at 1 and 2 threads", agreed(found, "threads")))
    rows.append(("same bits from run to run", agreed(found, "run_to_run")))
    rows.append(("an idle step of J2 leaves every bit of the gradients", agreed(of(data, "idle_is_free"), "same")))
    rows += [(f"{name}: bytes a parameter, and of idle steps", planned(data, name)) for name in ("J1", "J2 clipping", "J3")]
    errors = [r["errors"] for r in of(data, "numerics")]
    worst = max(errors[-1], key=errors[-1].__getitem__) if errors else ""
    text = f"{len(errors[-1])} rules of the library, the worst `{worst}`: {errors[-1][worst]:.0e}" if errors else MISSING
    yield table(("", ""), [*rows, ("distance from float64 over three steps, float32", text)])


def agreed(found: Results, key: str) -> str:
    if not found:
        return MISSING
    wrong = [f"{r.get('name', 'J2')} on {r['set']}" for r in found if not r[key]]
    return f"no ✗: {', '.join(wrong)}" if wrong else "yes"


def planned(data: dict[str, Any] | None, name: str) -> str:
    plans = [p for r in of(data, "job", name=name) for p in r["plans"].values() if p]
    bounds = {"J1": "≤ 20", "J2 clipping": "12, 4 idle", "J3": "32"}[name]
    return (f"{plans[-1]['bytes_per_parameter']:g}, {plans[-1]['idle_bytes_per_parameter']:g}" if plans else MISSING) + f" ({bounds})"


def compile_times(data: dict[str, Any] | None) -> Iterator[str]:
    yield "### Until the first step is done"
    yield "Seconds from a list of tensors to the end of the first step of J1 (optax: J3), less a usual step: with empty caches, then in a new process."
    bounds = {("updsl cpp", "cold"): 3.0, ("updsl cpp", "warm"): 0.050, ("updsl triton", "cold"): 10.0, ("updsl triton", "warm"): 1.0}
    cold = of(data, "compiling", cache="cold")
    rows = []
    for r in cold:
        warm = of(data, "compiling", cache="warm", contender=r["contender"], tensors=r["tensors"])
        cells = [cell(x, bounds.get((r["contender"], c)), False, "{:.3f}".format) for x, c in ((r["wall"], "cold"), (first(warm, "wall"), "warm"))]
        rows.append((r["contender"], str(r["tensors"]), cells[0], f"{r['cpu']:.2f}", cells[1]))
    yield table(("", "tensors", "cold, wall s", "cold, CPU s", "warm, wall s"), rows) if rows else f"{MISSING[0].upper()}{MISSING[1:]}."
    walls = {r["tensors"]: r["wall"] for r in cold if r["contender"] == "updsl cpp"}
    if {10, 2000} <= walls.keys():
        yield f"2000 tensors against 10, cold: {cell(walls[2000] / walls[10], 1.1, False)}."


def times(data: dict[str, Any] | None) -> Iterator[str]:
    for r in of(data, "job"):
        found = from_json(r["samples"])
        yield f"### {r['name']} on {r['set']}: {r['parameters']:,} parameters"
        rows = []
        for name, s in found.items():
            error = r["errors"].get(name)
            rows.append((name, *(f"{v:.3f}" for v in summary(s).values()), "" if error is None else f"{error:.0e}"))
        yield table(("", "wall ms", "CPU ms", "least wall ms", "distance from float64"), rows)
        if r["left_out"]:
            yield "Left out: " + "; ".join(f"{name} ({why})" for name, why in r["left_out"].items()) + "."


def bandwidth(data: dict[str, Any] | None) -> Iterator[str]:
    yield "### Fraction of a copy's bandwidth, on P4"
    rows = []
    for job, traffic, bound in BANDWIDTH:
        fraction = speed(data, job, "P4", "copy", "updsl triton")
        rows.append((f"{job}, {traffic} bytes a parameter", cell(None if fraction is None else fraction * traffic / 8, bound)))
    yield table(("", ""), rows)


def launches(data: dict[str, Any] | None) -> Iterator[str]:
    yield "### Launches of a step"
    rows = []
    for job, bound in (("J1", 4), ("J2 clipping", 3), ("J3", 3)):
        plans = [r["plans"].get("triton", {}) for r in of(data, "job", name=job)]
        rows.append((job, cell(plans[-1].get("launches") if plans else None, bound, False, "{:.0f}".format)))
    yield table(("", ""), rows)


def first(found: Results, key: str) -> Any:
    """Of the last of them."""
    return found[-1][key] if found else None


def milliseconds(x: float) -> str:
    return f"{1e3 * x:.1f} ms"


def microseconds(x: float) -> str:
    return f"{1e6 * x:.0f} µs"


def megabytes(x: float) -> str:
    return f"{x / 1e6:.0f} MB"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, tuple("---" for _ in head), *rows))


def main() -> None:
    notes = NOTES.read_text(encoding="utf-8") if NOTES.exists() else ""
    PAGE.write_text(page(latest("cpu"), latest("cuda"), notes), encoding="utf-8")


if __name__ == "__main__":
    main()
