"""Ranks for tests: processes with gloo between them, that wait for functions to run."""

from __future__ import annotations

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
"""Seconds after which a collective fails; the functions of a test have four times as many."""


SILENT = "does not answer"


class Failed(Exception):
    """What a rank raised, as its traceback says."""


class Ranks:
    """`size` processes. Functions are to be found by name in their modules; what they give is handed back."""

    def __init__(self, size: int, timeout: float = TIMEOUT):
        self.size, self.timeout = size, timeout
        context = mp.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, size, store, timeout, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(*args) on all ranks at once: what each gives. Raises Failed if one raises, or does not answer."""
        for pipe in self.pipes:
            pipe.send((function, args))
        found = [self.answer(rank) for rank in range(self.size)]
        if any(x == SILENT for _, x in found):
            self.close()
        failed = [f"rank {rank}: {x}" for rank, (is_good, x) in enumerate(found) if not is_good]
        if failed:
            raise Failed("\n".join(failed))
        return [x for _, x in found]

    def answer(self, rank: int) -> tuple[bool, Any]:
        if not self.pipes[rank].poll(4 * self.timeout):
            return False, SILENT
        try:
            return self.pipes[rank].recv()
        except EOFError:
            return False, "is gone"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def serve(rank: int, size: int, store: str, timeout: float, pipe: Any) -> None:
    """What a rank does."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
