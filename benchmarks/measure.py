"""The measurements, one a process: `python -m benchmarks.measure '{"kind": "job", …}'` prints what it found as a line of JSON.

A process of its own gives each a fresh memory, fresh caches where these matter, and a limit on its time.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import updsl
from benchmarks.jobs import IDLE, J1, J3, JOBS, Job, Make, compiled, ours
from benchmarks.passes import floor
from updsl.bench.protocol import Contender, measure, to_json
from updsl.bench.rules import disagreement, plan_of
from updsl.bench.sets import shapes_of
from updsl.bench.tensors import Tensors, clock_of, farthest
from updsl.runtime.rule import library

WRONG = 0.03
"""A contender farther than this from float64 does something else, and is not timed. (HeavyBall is 0.01 away; a missing step of AdamW is more than 0.1.)"""


# --- speed -----------------------------------------------------------------------------------------------------------


def job(name: str, set: str, rounds: int, backends: list[str], leave_out: list[str], device: str = "cpu", divisor: int = 8) -> dict[str, Any]:
    """Every contender of a job on a set of tensors: compared with float64 over the steps of the job's scales, then timed in turn with all others."""
    what = JOBS[name]
    tensors = Tensors(shapes_of(set, divisor), device)
    torch._dynamo.config.recompile_limit = 64
    makes = {**{f"updsl {b}": ours(what, b) for b in backends}, **{n: m for n, m in what.others.items() if n not in leave_out}}
    start = {n: w.clone() for n, w in tensors.weights.items()} if what.writes_weights else {}
    contenders, errors, left_out = [], {}, {}
    for label, make in makes.items():
        try:
            contender, errors[label] = checked(what, make, tensors, start)
            contenders.append(contender)
        except Exception as reason:  # whatever a contender fails with, the others are measured, and the page says what it was
            left_out[label] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0]}"
    tensors.scale = 1.0
    del start
    contenders.append(floor(tensors, what.floor) if device == "cpu" else copying(tensors))
    found = measure(contenders, rounds, clock=clock_of(device))
    plans = {b: plan_of(compiled(what, tensors, b)) for b in backends if f"updsl {b}" in found}
    return {"parameters": tensors.numel, "samples": to_json(found), "errors": errors, "left_out": left_out, "plans": plans}


def checked(what: Job, make: Make, tensors: Tensors, start: dict[str, torch.Tensor]) -> tuple[Contender, float | None]:
    """A contender that has taken the steps to be compared, and its largest distance from float64; None for one that is no exact match of the job.

    Raises ValueError for one that is too far away."""
    with torch.no_grad():
        for name, w in start.items():
            tensors.weights[name].copy_(w)
    contender, reference = make(tensors), what.reference(tensors)
    if contender.outputs is dict:
        return contender, None
    worst = 0.0
    for scale in what.scales:
        tensors.scale = scale
        worst = max(worst, farthest(contender, reference(), start))
    if not worst < WRONG:
        raise ValueError(f"wrong: {worst:.1e} from float64")
    return contender, worst


def copying(tensors: Tensors) -> Contender:
    """What a card does best: 4 bytes a parameter read, 4 written."""
    pairs = [(stack, torch.empty_like(stack)) for stack in tensors.stacks.values()]
    return Contender("copy", lambda: [to.copy_(x) for x, to in pairs], tensors.fill)


def overhead(name: str, backend: str, tensors: int = 300, device: str = "cpu") -> dict[str, Any]:
    """Seconds of a step whose tensors are too small to matter, once what looks at its tensors has been compiled."""
    made = Tensors({f"w{i}": (4, 4) for i in range(tensors)}, device)
    y, clock = compiled(JOBS[name], made, backend), clock_of(device)
    times = []
    for _ in range(4000):
        before = clock()[0]
        y.step(made.grads)
        times.append(clock()[0] - before)
    return {"backend": y.backend, "tensors": tensors, "seconds": median(times[2000:])}


# --- compiling -------------------------------------------------------------------------------------------------------


def compiling(contender: str, tensors: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds from a list of tensors to the end of the first step of J1 (optax: of J3), less a usual step: on the wall, and of the CPUs of this process
    and all that it started. What is imported is not counted. Cold or warm as the cache folders are that this process was given."""
    import torch._inductor.compile_fx

    import updsl.back.cpp_build
    import updsl.back.cpp_exec
    import updsl.middle.sweeps  # noqa: F401

    makes = {**{f"updsl {b}": ours(J1, b) for b in ("cpp", "triton", "torch", "inductor")}, **J1.others, "optax": J3.others["optax"]}
    if contender == "optax":
        import jax  # noqa: F401
        import optax  # noqa: F401
    torch._dynamo.config.recompile_limit = 64
    made, clock = Tensors(shapes_of(f"N{tensors}"), device), clock_of(device)
    wall, cpu = clock()[0], cpu_seconds()
    found = makes[contender](made)
    found.before()
    found.step()
    wall, cpu = clock()[0] - wall, cpu_seconds() - cpu
    usual = []
    for _ in range(5):
        before = clock()[0]
        found.before()
        found.step()
        usual.append(clock()[0] - before)
    return {"wall": wall - median(usual), "cpu": cpu - median(usual)}


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def binding(backend: str) -> dict[str, Any]:
    """Seconds of compiling a rule for tensors like others that it is compiled for already: P4, whose sizes do not matter here."""
    rule, times = updsl.parse(J1.rule), []
    for _ in range(8):
        made = {n: torch.zeros(s) for n, s in shapes_of("P4", 256).items()}
        before = time.perf_counter()
        y = updsl.compile(rule, made, backend=backend, lr=1e-3)
        times.append(time.perf_counter() - before)
        y.step({n: torch.ones_like(w) for n, w in made.items()})
    return {"backend": y.backend, "tensors": len(made), "seconds": median(times[1:])}


def recompilations(backend: str) -> dict[str, Any]:
    """Libraries that appear in the caches during 100 steps in which lr, t and every parameter that may change do change, after the first step."""
    found: dict[str, Any] = {}
    for name, parameters in (("adamw", ("beta1", "beta2", "eps", "weight_decay")), ("zclip", ("alpha", "z_thresh", "max_norm", "eps", "factor"))):
        made = Tensors(shapes_of("N10"))
        y = updsl.compile(name, made.weights, backend=backend, lr=1e-3)
        y.step(made.grads)
        before = libraries()
        for step in range(100):
            made.fill()
            y.set(**{p: y.rule.params[p] * (1 - 1e-3 * (step + 1)) for p in parameters})
            y.step(made.grads, lr=1e-3 / (step + 1))
        found[name] = len(libraries() - before)
    return {"backend": y.backend, "new": found}


def libraries() -> set[Path]:
    """Everything that was compiled so far, in the cache folders of this process."""
    folders = {os.environ[name] for name in ("UPDSL_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    return {p for folder in folders for ending in ("so", "cubin") for p in Path(folder).rglob(f"*.{ending}")}


# --- the rest --------------------------------------------------------------------------------------------------------


def memory(name: str, set: str, backend: str) -> dict[str, Any]:
    """Bytes that compiling and three steps need at their height beyond gradients, weights and state, and those of the gradients. On Linux."""
    tensors = Tensors(shapes_of(set))
    warm = Tensors(shapes_of("N10"))
    compiled(JOBS[name], warm, backend).step(warm.grads)  # the code of everything that runs below is in memory from here on
    del warm
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    y = compiled(JOBS[name], tensors, backend)
    for _ in range(3):
        y.step(tensors.grads)
    peak = resident("VmHWM")
    state = sum(x.numel() * x.element_size() for cells in y.state.values.values() for x in cells.values())
    return {"backend": y.backend, "extra": peak - before - state, "state": state, "gradients": 4 * tensors.numel}


def resident(entry: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def invariance(name: str, set: str, backend: str) -> dict[str, Any]:
    """Whether gradients, weights and state have the same bits after three steps at 1 thread, at 1 again, and at 2."""
    digests = []
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        tensors = Tensors(shapes_of(set))
        y = compiled(JOBS[name], tensors, backend)
        for _ in range(3):
            tensors.fill()
            y.step(tensors.grads)
        states = (x for cells in y.state.values.values() for x in cells.values())
        digest = hashlib.sha256()
        for x in (*tensors.grads.values(), *tensors.weights.values(), *states):
            digest.update(x.detach().contiguous().view(torch.uint8).numpy().data if x.ndim else x.numpy().tobytes())
        digests.append(digest.hexdigest())
    return {"backend": y.backend, "run_to_run": digests[0] == digests[1], "threads": digests[0] == digests[2]}


def numerics(backend: str, device: str = "cpu") -> dict[str, Any]:
    """Rule of the library → its distance from the float64 interpreter; or why it was not compared."""
    shapes = {"lm_head.weight": (24, 16), "layers.0.weight": (16, 40), "layers.0.bias": (16,), "scale": (1,)}
    errors, left_out = {}, {}
    for name in library():
        try:
            error = disagreement(updsl.load(name), backend, shapes, device)
            if not math.isfinite(error):
                raise ValueError("NaN or infinite where the interpreter is finite, or the other way round")
            errors[name] = error
        except (updsl.UpdslError, ValueError) as reason:
            left_out[name] = str(reason).splitlines()[0]
    return {"errors": errors, "left_out": left_out}


def idle_is_free(set: str, backend: str) -> dict[str, Any]:
    """Whether an idle step of J2 leaves gradients as they are to the bit."""
    tensors = Tensors(shapes_of(set))
    y = compiled(IDLE, tensors, backend)
    y.step(tensors.grads)
    return {"backend": y.backend, "same": all(torch.equal(tensors.stacks[s], x) for s, x in tensors.made.items())}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (job, overhead, compiling, binding, recompilations, memory, invariance, numerics, idle_is_free)
}


def main(task: dict[str, Any]) -> int:
    """Runs a task in this process; `threads`, 1 unless given, are all the CPUs that it may use."""
    arguments = dict(task)
    kind, threads = arguments.pop("kind"), arguments.pop("threads", 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    print(json.dumps(KINDS[kind](**arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
