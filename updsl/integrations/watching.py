"""Writers of what a rule shows while training runs: to a CSV file, TensorBoard, W&B.

A writer keeps the tensors of a step where they are, and reads those of many steps in one transfer: to log each step costs a wait for the device in every
`interval` steps, not in each.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Self

import torch

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.runtime.parameters import typed

Row = tuple[int, dict[str, Any]]
"""A step and its numbers by name."""


def flat(watches: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """label → number, or label → key → number, as name → number: `clipped/layer.weight` of a tensor, `q/group0` of a group, `label` of the model."""
    found = {}
    for label, x in watches.items():
        if isinstance(x, Mapping):
            found |= {f"{prefix}{label}/{f'group{key}' if isinstance(key, int) else key}": value for key, value in x.items()}
        else:
            found[prefix + label] = x
    return found


def shown(source: Any) -> tuple[str, dict[str, Any]]:
    """What the names of a source begin with, and its watches; with its counts, of a handle or optimizer. Nothing is read."""
    return ("", dict(source)) if isinstance(source, Mapping) else (f"{source.rule.name}.", source.watch() | source.counts)


def read(*sources: Any) -> dict[str, float]:
    """What handles, optimizers or dicts of watches show, as numbers by name, for a logger of your own. Waits once for each device."""
    ((_, found),) = on_host([(0, one_row(map(shown, sources)))])
    return found


def one_row(parts: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The numbers by name of several sources."""
    return {name: x for prefix, watches in parts for name, x in flat(watches, prefix).items()}


def on_host(rows: Sequence[Row]) -> list[Row]:
    """The rows, with their tensors read: each device is waited for once, whatever the number of rows. Counts are integers, all else floats."""
    tensors: dict[torch.device, dict[torch.dtype, list[torch.Tensor]]] = {}
    for _, row in rows:
        for x in row.values():
            if isinstance(x, torch.Tensor):
                tensors.setdefault(x.device, {}).setdefault(x.dtype, []).append(x.detach().reshape(()))
    numbers = {(device, dtype): iter(xs) for device, kinds in tensors.items() for dtype, xs in moved(kinds).items()}

    def number(x: Any) -> float:
        x = next(numbers[x.device, x.dtype]) if isinstance(x, torch.Tensor) else x
        return x if type(x) is int else float(x)

    return [(step, {name: number(x) for name, x in row.items()}) for step, row in rows]


def moved(kinds: Mapping[torch.dtype, list[torch.Tensor]]) -> dict[torch.dtype, list[float]]:
    """The numbers of one device, by type, in one transfer."""
    wide = torch.float32 if next(iter(kinds.values()))[0].device.type == "mps" else torch.float64
    numbers = iter(torch.cat([torch.stack(xs).to(wide) for xs in kinds.values()]).tolist())
    return {dtype: [next(numbers) if dtype.is_floating_point else int(next(numbers)) for _ in xs] for dtype, xs in kinds.items()}


class Writer:
    """Keeps what rules show, and writes it when `interval` rows have come together, at `flush()` and at `close()`.

    every: the steps that are written are those that it divides. interval: after how many rows the device is waited for. In a `with` block it is closed
    at the end, after an exception too. Raises UpdslError for numbers of steps below 1.
    """

    def __init__(self, every: int = 1, interval: int = 100):
        for name, n in {"every": every, "interval": interval}.items():
            if isinstance(n, bool) or not isinstance(n, int):
                raise typed(name, n, "a number of steps", f"pass an integer, such as `{name}=10`")
            if n < 1:
                raise UpdslError(Diagnostic("parameter-out-of-bounds", f"`{name}` is {n}, below 1", help=f"pass `{name}=1` for every step"))
        self.every, self.interval = every, interval
        self._kept: list[tuple[int, list[tuple[str, dict[str, Any]]]]] = []
        self._calls = 0

    def write(self, *sources: Any, step: int | None = None, **more: Any) -> None:
        """Keep the numbers of a step, one row. Waits for no device, but where the interval is full.

        sources: handles, optimizers of rules, or the watches that a compiled step gave. step: the row's number; left out it is the first handle's step of
        the run, which a skipped step does not advance and a checkpoint brings back; without a handle the number of calls. more: numbers, or tensors of
        one entry, by name, such as `loss=loss`. Raises UpdslError for something else, and keeps nothing then.
        """
        for name, x in more.items():
            if not (isinstance(x, Real) or (isinstance(x, torch.Tensor) and x.numel() == 1)):
                raise typed(name, x, "a number", "pass a float, or a tensor of one entry")
        self._calls += 1
        if step is None:
            step = next((source.driver.state.run for source in sources if not isinstance(source, Mapping)), self._calls)
        if step % self.every == 0:
            now = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in more.items()}
            self._kept.append((step, [*map(shown, sources), ("", now)]))
            if len(self._kept) >= self.interval:
                self.flush()

    def flush(self) -> None:
        """Read and write what has come together; what cannot be written is kept."""
        if self._kept:
            self.put(on_host([(step, one_row(parts)) for step, parts in self._kept]))
            self._kept = []

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows of numbers."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what has come together."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CsvWriter(Writer):
    """A table: a row for each step, a column for each name, empty where a step has no such number. A file that is there is gone on with.

    Rows are appended by one write of whole lines. A name that comes later becomes the last column: the file is then written anew beside the old one, and put
    in its place in one go. So the file is a whole table whenever the process is killed, but for the last line of a write that was cut, which the next
    write takes away. Raises UpdslError, and writes nothing, for a file that is no such table.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1, interval: int = 100):
        super().__init__(every, interval)
        self.path = Path(path)
        self.names = self._header()

    def _header(self) -> list[str] | None:
        """The names of the columns after `step`; None of a file that is not there, or empty."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if not text:
            return None
        names = next(csv.reader([text.partition(b"\n")[0].decode("utf-8", "replace")]), [])
        if b"\n" not in text or names[:1] != ["step"]:
            message = f"`{self.path.name}` is there, and is no table of steps: it does not begin with a column `step`"
            raise UpdslError(Diagnostic("no-table", message, help="give the path of a file that is not there yet"))
        return names[1:]

    def put(self, rows: Sequence[Row]) -> None:
        before = self.names or []
        named = [(step, {" ".join(name.splitlines()): x for name, x in row.items()}) for step, row in rows]
        names = list(dict.fromkeys([*before, *(name for _, row in named for name in row)]))
        lines = b"".join(line([step, *(row.get(name, "") for name in names)]) for step, row in named)
        if names == self.names and self.path.exists():
            self._append(lines)
        else:
            old = self.path.read_bytes() if self.path.exists() else b""
            more = b"," * (len(names) - len(before)) + b"\n"
            self._replace(line(["step", *names]) + b"".join(row + more for row in old[: whole(old)].splitlines()[1:]) + lines)
            self.names = names

    def _append(self, lines: bytes) -> None:
        with self.path.open("r+b") as file:
            file.truncate(whole(file.read()))
            file.seek(0, os.SEEK_END)
            file.write(lines)

    def _replace(self, text: bytes) -> None:
        beside = self.path.with_name(f"{self.path.name}.new")
        with beside.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def line(cells: Sequence[Any]) -> bytes:
    """A line of a table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def whole(text: bytes) -> int:
    """Up to where there are whole lines."""
    return text.rfind(b"\n") + 1


class TensorBoardWriter(Writer):
    """Scalars in TensorBoard. log_dir: where its files are, or a `SummaryWriter`, which stays open at `close()`. Raises UpdslError where the package
    `tensorboard` is missing."""

    def __init__(self, log_dir: Any, every: int = 1, interval: int = 100):
        super().__init__(every, interval)
        self._own = not hasattr(log_dir, "add_scalar")
        self.board = board(os.fspath(log_dir)) if self._own else log_dir

    def put(self, rows: Sequence[Row]) -> None:
        for step, row in rows:
            for name, x in row.items():
                self.board.add_scalar(name, x, step)
        self.board.flush()

    def close(self) -> None:
        self.flush()
        if self._own:
            self.board.close()


def board(log_dir: str) -> Any:
    """A SummaryWriter. Raises UpdslError where there can be none."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        message = "TensorBoard's files are written by the package `tensorboard`, and it cannot be imported"
        raise UpdslError(Diagnostic("missing-package", message, help="`pip install 'updsl[watch]'`, or write a table: `CsvWriter`")) from error
    return SummaryWriter(log_dir)


class WandbWriter(Writer):
    """Metrics in W&B. run: what `wandb.init` gave, or the module: whatever has `log(dict, step=…)`.

    W&B drops what comes for an earlier step than its last. So each row is written at once here, and the device waited for; a larger `interval` is right where
    all that the run logs goes through this writer, by `write(handle, step=step, loss=loss)`.
    """

    def __init__(self, run: Any, every: int = 1, interval: int = 1):
        super().__init__(every, interval)
        if not callable(getattr(run, "log", None)):
            raise typed("run", run, "a run of W&B", "pass what `wandb.init(…)` gave")
        self.run = run

    def put(self, rows: Sequence[Row]) -> None:
        for step, row in rows:
            self.run.log(row, step=step)
