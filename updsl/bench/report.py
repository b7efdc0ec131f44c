"""What `updsl bench` says."""

from __future__ import annotations

from typing import Any

HEAD = ("backend", "wall ms", "CPU ms", "least ms", "times as fast", "bytes/parameter", "error")


def report(found: dict[str, Any], what: str) -> str:
    """The figures of `updsl.bench.rules.bench` as a table."""
    rows = [_row(name, f) for name, f in found["backends"].items()]
    title = (
        f"{found['rule']} on {what}: {found['tensors']:,} tensors, {found['parameters']:,} parameters, {found['rounds']} rounds, {found['threads']} thread(s)"
    )
    legend = "times: medians of single rounds, against the eager torch backend; error: distance from the float64 interpreter over 3 steps of small tensors"
    return "\n".join([title, "", aligned([HEAD, *rows]), "", legend])


def _row(name: str, f: dict[str, Any]) -> tuple[str, ...]:
    full, idle = (f["plan"].get(key) for key in ("bytes_per_parameter", "idle_bytes_per_parameter"))
    traffic = "" if full is None else f"{full:g}" if idle in (None, full) else f"{full:g} ({idle:g} idle)"
    error = "infinite" if f["error"] is None else f"{f['error']:.0e}"
    return name, f"{f['wall_ms']:.3f}", f"{f['cpu_ms']:.3f}", f"{f['minimum_ms']:.3f}", f"{f['times_as_fast']:.2f}", traffic, error


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows)
    return "\n".join(lines)
