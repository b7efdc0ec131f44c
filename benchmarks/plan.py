"""Which measurements there are: all of them, a quick look, and those for a card."""

from __future__ import annotations

from typing import Any

from updsl.bench.protocol import ROUNDS

Task = dict[str, Any]
JOBS = ("J1", "J2 clipping", "J2 idle", "J3")
SLOW = ["compiled list"]
"""Contenders whose compile time grows by half a second with every tensor."""
LIST = "compiled list"


def job(name: str, set: str, rounds: int = ROUNDS, backends: tuple[str, ...] = ("cpp", "torch"), without: list[str] = SLOW, **more: Any) -> Task:
    return {"kind": "job", "name": name, "set": set, "rounds": rounds, "backends": list(backends), "leave_out": list(without), **more}


def compiling(contender: str, *counts: int, **more: Any) -> list[Task]:
    """Each with an empty cache, and again with the cache that it left."""
    tasks: list[Task] = [{"kind": "compiling", "contender": contender, "tensors": n, **more} for n in counts]
    return [{**task, "cache": state} for task in tasks for state in ("cold", "warm")]


def everything() -> list[Task]:
    """On a CPU; about an hour."""
    backends = ("cpp", "torch", "inductor")
    tasks = [{"kind": "numerics", "backend": "cpp"}]
    tasks += [job(name, set, backends=backends, without=[]) for set in ("P2", "P3") for name in JOBS]
    tasks += [job(name, "P1", backends=("cpp",), without=[]) for name in JOBS] + [job(name, "P4") for name in JOBS]
    tasks += [job("J1", f"N{n}", without=[] if n <= 50 else SLOW) for n in (10, 50, 300, 2000)]
    tasks += [*compiling("updsl cpp", 10, 50, 150, 300, 2000), *compiling("updsl inductor", 10), *compiling("Inductor by hand", 10)]
    tasks += [*compiling(LIST, 10, 50, 150, 300), *compiling("optax", 200)]
    tasks += [{"kind": "overhead", "name": name, "backend": "cpp"} for name in JOBS]
    tasks += [{"kind": "binding", "backend": "cpp"}, {"kind": "recompilations", "backend": "cpp", "cache": "cold"}]
    tasks += [{"kind": "memory", "name": name, "set": "P1", "backend": "cpp"} for name in JOBS]
    tasks += [{"kind": "invariance", "name": name, "set": set, "backend": "cpp", "threads": 2} for set in ("P2", "P3") for name in JOBS]
    return [*tasks, {"kind": "idle_is_free", "set": "P2", "backend": "cpp"}]


def quick() -> list[Task]:
    """On a CPU; a minute or two: every kind of measurement, at sizes too small for its figures to mean much."""
    tasks = [job(name, set, 3, without=[]) for name in JOBS for set in ("N10",)] + [job(name, "P2", 3) for name in JOBS]
    tasks += [*compiling("updsl cpp", 10, 300), {"kind": "overhead", "name": "J1", "backend": "cpp"}, {"kind": "binding", "backend": "cpp"}]
    tasks += [{"kind": "recompilations", "backend": "cpp", "cache": "cold"}, {"kind": "memory", "name": "J1", "set": "P3", "backend": "cpp"}]
    tasks += [{"kind": "invariance", "name": "J1", "set": "P2", "backend": "cpp", "threads": 2}, {"kind": "idle_is_free", "set": "N10", "backend": "cpp"}]
    return tasks


def card(divisor: int) -> list[Task]:
    """On a CUDA card, the numbers' rightness first; what takes long to compile last. divisor: of P4's dimensions, by the card's memory."""
    backends, cuda = ("triton", "torch"), {"device": "cuda"}
    tasks: list[Task] = [{"kind": "numerics", "backend": "auto", **cuda}]
    tasks += [job(name, "P4", backends=backends, divisor=divisor, **cuda) for name in JOBS] + [job(name, "P2", backends=backends, **cuda) for name in JOBS]
    tasks += [{"kind": "overhead", "name": name, "backend": "triton", **cuda} for name in JOBS]
    tasks += compiling("updsl triton", 300, **cuda)
    return [*tasks, job("J1", "P2", backends=("triton",), without=["foreach", "Inductor by hand"], **cuda)]
