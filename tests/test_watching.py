"""Writers of what rules show: one read for many steps, tables that survive being killed, TensorBoard and W&B."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_tutorial import blocks, run

import updsl
from updsl.core.resources import folder
from updsl.integrations import watching
from updsl.integrations.watching import CsvWriter, TensorBoardWriter, WandbWriter, Writer, read

PAGE = (folder("docs") / "training.md").read_text(encoding="utf-8")
TEXT = "rule shown:\n    watch n = norm(g)\n    watch a = norm(g) per all\n    watch q = norm(g) per group\n    return g → clip norm > 1\n"
NAMES = ["shown.n/weight", "shown.n/bias", "shown.a", "shown.q/group0", "shown.bad", "shown.in_a_row", "shown.overflowed"]


class Kept(Writer):
    """Keeps the rows that it is given, and how many at a time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.times = [], []

    def put(self, rows):
        self.rows += rows
        self.times.append(len(rows))


class Run:
    """Takes what a run of W&B takes."""

    def __init__(self):
        self.logged = []

    def log(self, data, step=None, commit=None):
        self.logged.append((step, data))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def grads(model: torch.nn.Module, x: float) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, x)


def trained(steps: int, writer: Writer | None = None, text: str = TEXT, **options):
    """A handle after some steps, each written."""
    model = linear()
    o = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = updsl.attach(o, updsl.parse(text), names=model, **options)
    for i in range(steps):
        grads(model, i + 1.0)
        o.step()
        if writer is not None:
            writer.write(handle)
    return handle


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is kept, and when it is read ---------------------------------------------------------------------------------


def test_names_say_rule_label_and_tensor() -> None:
    handle = trained(2)
    (row,) = [read(handle)]
    assert set(NAMES) <= set(row)
    assert row["shown.n/bias"] == pytest.approx(math.sqrt(8))
    assert row["shown.a"] == row["shown.q/group0"] == pytest.approx(math.sqrt(32))
    assert row["shown.clipped/weight"] == 1.0
    assert (row["shown.bad"], type(row["shown.bad"])) == (0, int)


def test_an_optimizer_and_a_compiled_step_show_the_same() -> None:
    model = linear()
    grads(model, 2.0)
    o = updsl.Optimizer(model.named_parameters(), updsl.parse(TEXT))
    o.step()
    y = updsl.compile(updsl.parse(TEXT), model)
    of_step = read(y.step({name: p.grad for name, p in model.named_parameters()}))
    assert {f"shown.{name}": x for name, x in of_step.items()} | {"shown.bad": 0, "shown.in_a_row": 0, "shown.overflowed": 0} == read(o)


@pytest.mark.parametrize("backend", ["torch", "cpp", "interpret"])
def test_rows_of_many_steps_are_read_at_once(backend, monkeypatch) -> None:
    times = Counter()
    inner = watching.moved
    monkeypatch.setattr(watching, "moved", lambda kinds: times.update(["read"]) or inner(kinds))
    writer = Kept(interval=4)
    trained(6, writer, backend=backend)
    assert (times["read"], writer.times) == (1, [4])
    writer.close()
    assert (times["read"], writer.times) == (2, [4, 2])
    assert [step for step, _ in writer.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["shown.n/bias"] for _, row in writer.rows] == pytest.approx([i * math.sqrt(2) for i in range(1, 7)])
    alone = [read(trained(n, backend=backend)) for n in range(1, 7)]
    assert [row for _, row in writer.rows] == alone


def test_nothing_is_read_before_the_interval_is_full() -> None:
    """A tensor of the device `meta` cannot be read at all."""
    writer = Kept(interval=3)
    for _ in range(2):
        writer.write({"a": torch.empty((), device="meta")}, loss=torch.empty(1, device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        writer.write({"a": torch.empty((), device="meta")})
    assert writer.rows == []


def test_every_so_many_steps_and_numbers_of_ones_own() -> None:
    writer = Kept(every=3, interval=1)
    handle = trained(1)
    for step in range(1, 8):
        loss = torch.tensor(step / 2, requires_grad=True)
        writer.write(handle, {"x": torch.tensor(7)}, step=step, loss=loss * 1, lr=0.1, epoch=2)
    assert [(step, row["loss"], row["lr"], row["epoch"], row["x"]) for step, row in writer.rows] == [(3, 1.5, 0.1, 2, 7), (6, 3.0, 0.1, 2, 7)]
    assert all("shown.a" in row for _, row in writer.rows)


def test_bad_steps_are_counted_and_have_the_number_of_the_last_good_one() -> None:
    model = linear()
    o = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = updsl.attach(o, "zclip", names=model)
    with Kept() as writer:
        for x in (1.0, float("nan"), 2.0):
            grads(model, x)
            o.step()
            writer.write(handle)
    assert [(step, row["zclip.bad"], row["zclip.in_a_row"]) for step, row in writer.rows] == [(1, 0, 0), (1, 1, 1), (2, 1, 0)]


def test_what_is_kept_is_written_after_an_exception() -> None:
    writer = Kept()

    def train() -> None:
        with writer:
            writer.write({"a": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert writer.rows == [(1, {"a": 1.0})]


def test_what_cannot_be_written_is_kept() -> None:
    class Full(Kept):
        full = True

        def put(self, rows):
            if self.full:
                raise OSError("no space left")
            super().put(rows)

    writer = Full(interval=1)
    with pytest.raises(OSError, match="no space"):
        writer.write({"a": 1.0})
    writer.full = False
    writer.write({"a": 2.0})
    assert writer.rows == [(1, {"a": 1.0}), (2, {"a": 2.0})]


@pytest.mark.parametrize(
    "code, call",
    [
        ("parameter-out-of-bounds", lambda: Kept(every=0)),
        ("parameter-type", lambda: Kept(interval=2.5)),
        ("parameter-type", lambda: Kept().write({"a": 1.0}, loss="low")),
        ("parameter-type", lambda: Kept().write({"a": 1.0}, loss=torch.ones(2))),
        ("parameter-type", lambda: WandbWriter({})),
    ],
)
def test_mistakes_are_told(code, call) -> None:
    with pytest.raises(updsl.UpdslError) as raised:
        call()
    assert raised.value.diagnostics[0].code == code


# --- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_a_step_and_goes_on(tmp_path) -> None:
    path = tmp_path / "run.csv"
    for _ in range(2):
        with CsvWriter(path, interval=2) as writer:
            trained(3, writer)
    rows = table(path)
    assert [row["step"] for row in rows] == ["1", "2", "3"] * 2
    assert float(rows[1]["shown.a"]) == float(rows[4]["shown.a"]) == pytest.approx(math.sqrt(32))
    assert path.read_bytes().count(b"step") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_comes_later_is_the_last_column(tmp_path) -> None:
    path = tmp_path / "run.csv"
    with CsvWriter(path, interval=1) as writer:
        writer.write({"a": 1.0}, step=1)
        writer.write({"a": 2.0, "b,\n": {"x": float("inf"), 0: 3}}, step=2)
        writer.write({"b,\n": {"x": 4.0}}, step=3)
    assert path.read_text() == 'step,a,"b, /x","b, /group0"\n1,1.0,,\n2,2.0,inf,3\n3,,4.0,\n'
    assert table(path)[1] == {"step": "2", "a": "2.0", "b, /x": "inf", "b, /group0": "3"}


def test_a_line_that_was_cut_is_taken_away(tmp_path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("step,a\n1,0.5\n2,0.")
    with CsvWriter(path) as writer:
        writer.write({"a": 0.25}, step=2)
    assert path.read_text() == "step,a\n1,0.5\n2,0.25\n"
    path.write_text("step,a\n1,0.5\n2,0.")
    with CsvWriter(path) as writer:
        writer.write({"b": 0.25}, step=2)
    assert path.read_text() == "step,a,b\n1,0.5,\n2,,0.25\n"


@pytest.mark.parametrize("text", ["loss,a\n1,2\n", "step x\n1\n", "step", "\n"])
def test_what_is_no_table_is_left_alone(text, tmp_path) -> None:
    path = tmp_path / "run.csv"
    path.write_text(text)
    with pytest.raises(updsl.UpdslError, match="no table of steps"):
        CsvWriter(path)
    assert path.read_text() == text


def test_an_empty_file_and_a_file_that_is_taken_away_get_a_header(tmp_path) -> None:
    path = tmp_path / "run.csv"
    path.touch()
    writer = CsvWriter(path, interval=1)
    writer.write({"a": 1.0})
    path.unlink()
    writer.write({"a": 2.0})
    assert path.read_text() == "step,a\n2,2.0\n"


def test_a_killed_process_leaves_whole_lines(tmp_path) -> None:
    path = tmp_path / "run.csv"
    code = """
        import os, sys
        from updsl.integrations.watching import CsvWriter
        writer = CsvWriter(sys.argv[1], interval=2)
        for step in range(1, 10):
            writer.write({f"x{step // 4}": float(step)}, step=step)
            if step == 7:
                os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "step,x0,x1\n1,1.0,\n2,2.0,\n3,3.0,\n4,,4.0\n5,,5.0\n6,,6.0\n"


def test_a_new_header_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run.csv"
    writer = CsvWriter(path, interval=1)
    writer.write({"a": 1.0}, step=1)
    before = path.read_text()

    def broken(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="no space"):
            writer.write({"b": 1.0}, step=2)
    assert path.read_text() == before
    writer.flush()
    assert path.read_text() == "step,a,b\n1,1.0,\n2,,1.0\n"


# --- TensorBoard and W&B -----------------------------------------------------------------------------------------------


class Board:
    """Takes what a SummaryWriter takes."""

    def __init__(self):
        self.scalars, self.flushes, self.closed = [], 0, False

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        self.scalars.append((tag, scalar_value, global_step))

    def flush(self):
        self.flushes += 1

    def close(self):
        self.closed = True


def test_a_summary_writer_gets_scalars_and_stays_open() -> None:
    board = Board()
    with TensorBoardWriter(board, interval=2) as writer:
        writer.write({"a": {"w": 1.0}}, step=4)
        assert board.scalars == []
        writer.write({"a": {"w": 2.0}}, step=5, loss=torch.tensor(0.5))
    assert board.scalars == [("a/w", 1.0, 4), ("a/w", 2.0, 5), ("loss", 0.5, 5)]
    assert (board.flushes, board.closed) == (1, False)


def test_tensorboard_reads_what_was_written(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardWriter(tmp_path) as writer:
        trained(3, writer)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(NAMES) <= set(found.Tags()["scalars"])
    assert [(e.step, e.value) for e in found.Scalars("shown.a")] == [(i, pytest.approx(i * math.sqrt(8))) for i in (1, 2, 3)]


def test_a_run_of_wandb_gets_a_row_a_step_in_order() -> None:
    run = Run()
    writer = WandbWriter(run, every=2)
    handle = trained(5, writer)
    assert [step for step, _ in run.logged] == [2, 4]
    assert set(NAMES) <= set(run.logged[0][1])
    assert all(type(x) in (int, float) for _, row in run.logged for x in row.values())
    writer.write(handle, step=6, loss=torch.tensor(0.25))
    assert run.logged[-1][1]["loss"] == 0.25


def test_wandb_takes_it_offline(tmp_path, monkeypatch) -> None:
    """It commits a row when one of a later step comes, or at its end."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(project="updsl", dir=tmp_path, settings=wandb.Settings(silent=True))
    try:
        trained(4, WandbWriter(run))
        assert (run.step, run.offline) == (4, True)
        assert run.summary["shown.a"] == pytest.approx(3 * math.sqrt(8))
    finally:
        run.finish()


# --- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_runs_as_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    part = PAGE.split("\n## Watching a run\n")[1].split("\n## ")[0]
    assert run(part) == blocks(part)
    rows = table(tmp_path / "run.csv")
    assert [row["step"] for row in rows] == [str(2 * i) for i in range(1, 101)]
    assert all(0 <= float(row["pipeline.clipped/weight"]) <= 1 and float(row["loss"]) > 0 for row in rows)
