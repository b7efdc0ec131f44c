"""The main job: what it reads, that its runs can be compared, what it leaves when interrupted, and that its numbers are what they say."""

import hashlib
import json
import math
import sys

import pytest
import torch

from updsl.train import corpus, job, methods, plot, summary
from updsl.train.model import Size, make_model

TINY = job.Settings(steps=12, seeds=(0, 1), calm=3, bad_every=5, batch=2, size=Size(width=8, layers=1, heads=2, context=8), validation_batches=2, watched=4)


@pytest.fixture(scope="module")
def text():
    return corpus.read_corpus()


def silent(step, steps, runs):
    pass


def some_methods():
    return [methods.no_clipping(), methods.clip_grad_norm(0.5)]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_the_split_is_by_hash(tmp_path):
    contents = [f"x = {i}\n".encode() for i in range(60)]
    for i, content in enumerate(contents):
        (tmp_path / f"m{i}.py").write_bytes(content)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_m.py").write_text("not read")
    (tmp_path / "fast.so").write_bytes(b"\x00\x01\x02")
    found = corpus.read_corpus(tmp_path)
    held_out = b"".join(c for c in sorted(contents) if hashlib.sha256(c).digest()[0] % 10 == 0)
    assert sorted(found.validation.tolist()) == sorted(held_out)
    assert len(found.train) + len(found.validation) == sum(map(len, contents))
    assert found.files["train"] + found.files["validation"] == 60
    assert found.binary[:3].tolist() == [0, 1, 2]


def test_a_python_without_sources_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no source text"):
        corpus.read_corpus(tmp_path)


def test_this_python_has_enough_to_read(text):
    assert len(text.train) > 5 * len(text.validation) > 100_000
    assert len(text.binary) > 100_000


def test_targets_are_the_next_bytes():
    source = torch.arange(100, dtype=torch.uint8)
    inputs, targets = corpus.batch(source, 3, 5, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (3, 5)
    assert torch.equal(inputs + 1, targets)


# --- the runs --------------------------------------------------------------------------------------------------------


def test_bad_steps_come_from_the_seed():
    settings = job.Settings()
    assert job.bad_steps(settings, 3) == job.bad_steps(settings, 3) != job.bad_steps(settings, 4)
    assert min(job.bad_steps(settings, 3)) >= settings.calm
    rare = job.Settings(bad_every=10**9)
    assert len(job.bad_steps(rare, 0)) == 1
    assert job.bad_steps(job.Settings(steps=5, calm=5), 0) == ()


def test_a_model_is_its_seed_and_disturbs_nothing():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a, b = make_model(TINY.size, 1), make_model(TINY.size, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_equal_methods_give_equal_runs(text):
    twice = [methods.no_clipping(), methods.no_clipping()]
    runs, complete = job.train(TINY, twice, text, silent)
    assert complete
    assert [r.seed for r in runs] == [0, 0, 1, 1]
    for a, b in zip(runs[::2], runs[1::2], strict=True):
        assert (a.loss, a.norm, a.after_bad, a.validation) == (b.loss, b.norm, b.after_bad, b.validation)
    assert runs[0].loss != runs[2].loss


def test_all_methods_begin_alike_and_then_differ(text):
    runs, _ = job.train(TINY, some_methods(), text, silent)
    none, clipped = runs[:2]
    assert none.loss[0] == clipped.loss[0]
    assert none.norm[0] == pytest.approx(clipped.norm[0], rel=1e-6)
    assert none.loss[-1] != clipped.loss[-1]
    assert not any(none.clipped)
    assert clipped.clipped == [n > 0.5 for n in clipped.norm]


def test_what_is_measured_around_a_bad_batch(text):
    runs, _ = job.train(TINY, some_methods(), text, silent)
    for run in runs:
        assert len(run.after_bad) == len(run.bad_steps) >= 1
        ends = [*run.bad_steps[1:], TINY.steps]
        assert [len(a) for a in run.after_bad] == [1 + min(TINY.watched, end - s) for s, end in zip(run.bad_steps, ends, strict=True)]


def test_training_learns(text):
    settings = job.Settings(steps=60, seeds=(0,), batch=8, size=Size(width=32, layers=1, heads=2, context=32), validation_batches=2)
    (run,), _ = job.train(settings, [methods.no_clipping()], text, silent)
    assert run.validation < 3.5 < math.log(256) < run.loss[0] + 0.5


def test_interrupted_it_leaves_what_there_is(text, tmp_path):
    def interrupt(step, steps, runs):
        if step == 5 and runs[0].seed == 1:
            raise KeyboardInterrupt

    runs, complete = job.train(TINY, some_methods(), text, interrupt)
    assert not complete
    assert [len(r.loss) for r in runs] == [12, 12, 5, 5]
    assert all(r.validation is not None for r in runs)
    data = summary.to_json(TINY, some_methods(), text, runs, complete)
    assert json.loads(json.dumps(data, allow_nan=False))["complete"] is False
    assert plot.plot(runs, tmp_path / "p.png")


def test_interrupted_before_the_first_step(text, tmp_path):
    def start(model, lr):
        raise KeyboardInterrupt

    runs, complete = job.train(TINY, [methods.Method("never", start)], text, silent)
    assert not complete
    assert summary.table(summary.summarize(runs))
    assert json.dumps(summary.to_json(TINY, [], text, runs, complete), allow_nan=False)
    plot.plot(runs, tmp_path / "p.png")


def test_a_run_that_diverges_stands_still_and_says_so(text):
    def start(model, lr):
        def step(model, lr, loss):
            with torch.no_grad():
                next(model.parameters()).fill_(math.inf)
            return methods.Update(1.0, None, 0.0, 0.0)

        return step

    runs, complete = job.train(TINY, [methods.Method("bad", start)], text, silent)
    assert complete
    assert all(r.diverged == 1 and len(r.loss) == 2 and r.validation is None for r in runs)
    (found,) = summary.summarize(runs)
    assert found.diverged == 2
    assert "2 diverged" in summary.table([found])
    assert json.dumps(summary.to_json(TINY, [], text, runs, complete), allow_nan=False)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "steps"),
    [([2.0, 2.0], 0), ([2.0, 3.0, 2.5, 1.9], 2), ([2.0, 3.0], None), ([2.0, math.nan, 2.0], 1), ([2.0, 1.0, 3.0], 0)],
)
def test_steps_to_recover(losses, steps):
    assert summary.steps_to_recover(losses) == steps


def test_summary_of_known_runs():
    a = job.Run("m", 0, (1,), loss=[3, 9, 4], norm=[1, 5, 2], clipped=[False, True, True], rule_seconds=[1e-3, 2e-3, 9e-3], optimizer_seconds=[1e-3] * 3,
                after_bad=[[3, 5, 2]], validation=2.0)  # fmt: skip
    b = job.Run("m", 1, (2,), loss=[3, 3, 9], norm=[1, 1, 5], clipped=[False, False, False], rule_seconds=[2e-3] * 3, optimizer_seconds=[1e-3] * 3,
                after_bad=[[3, 7]], validation=4.0)  # fmt: skip
    (s,) = summary.summarize([a, b])
    assert s == summary.Summary("m", [2.0, 4.0], 7, 1, 1, 2, 2 / 6, 2.0, 1.0, 0)
    lines = summary.table([s]).split("\n")
    assert len({line.index("loss") + 4 for line in lines[1:2]} | {lines[2].index("1.000") + 5}) == 1
    assert lines[2].split() == ["m", "3.000", "±", "1.000", "7.00", "1.0", "(1", "of", "2", "never)", "33%", "2.00", "1.00"]


def test_clipped_goes_by_the_watches():
    assert methods.is_clipped({}) is None
    assert methods.is_clipped({"z": torch.tensor(3.0)}) is None
    assert methods.is_clipped({"zclip.clipped": torch.tensor(0.0), "clipped2": {"a": torch.tensor(0.0), "b": torch.tensor(0.5)}}) is True
    assert methods.is_clipped({"clipped": {"a": torch.tensor(0.0)}}) is False


def test_without_matplotlib_there_is_no_plot(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot.plot([], tmp_path / "p.png") is False
    assert not (tmp_path / "p.png").exists()
