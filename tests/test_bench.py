"""The protocol of measurements, with a clock that the test turns; the page made of them; and `updsl bench`. No time is asserted."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from updsl import cli
from updsl.bench.protocol import LEAST, MOST, Contender, Samples, from_json, measure, ordered, ratio, steps_of_a_sample, summary, to_json
from updsl.bench.report import aligned
from updsl.bench.sets import shapes_of, thumbnail

ROOT = Path(__file__).resolve().parents[1]


class FakeClock:
    """Time passes when a contender says so, twice as much on the wall as of the CPU."""

    def __init__(self):
        self.wall = 0.0
        self.calls = []

    def __call__(self):
        return self.wall, self.wall / 2

    def contender(self, name, seconds):
        times = iter(seconds)

        def step():
            self.calls.append(name)
            self.wall += next(times)

        def before():
            self.wall += 1000.0  # nothing of it is counted

        return Contender(name, step, before)


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_every_other_round_goes_backwards_and_what_comes_before_is_not_timed():
    clock = FakeClock()
    a, b = clock.contender("a", [9, 9, 1, 2, 3]), clock.contender("b", [9, 9, 4, 4, 6])
    found = measure([a, b], rounds=3, warm_ups=2, clock=clock)
    assert clock.calls == list("abba") + list("abbaab")
    assert found["a"].wall == (1, 2, 3)
    assert found["a"].cpu == (0.5, 1, 1.5)
    assert found["b"].wall == (4, 4, 6)


def test_the_figure_is_the_median_of_the_ratios_of_rounds():
    slow, fast = Samples((8.0, 30.0, 9.0), (1.0, 1.0, 1.0)), Samples((2.0, 10.0, 1.0), (1.0, 1.0, 1.0))
    assert ratio(slow, fast) == 4  # of 4, 3, 9; the ratio of the medians is 4.5
    assert summary(slow) == {"wall_ms": 9000, "cpu_ms": 1000, "minimum_ms": 8000}


def test_short_steps_are_taken_often_and_counted_singly():
    clock = FakeClock()
    quick, slow = clock.contender("quick", [LEAST / 3.5] * 6), clock.contender("slow", [1.0] * 6)
    found = measure([quick, slow], rounds=1, warm_ups=2, clock=clock)
    assert clock.calls[4:] == ["quick"] * 4 + ["slow"] * 4
    assert found["quick"].wall == (pytest.approx(LEAST / 3.5),)
    assert found["slow"].wall == (1.0,)


@pytest.mark.parametrize(("fastest", "steps"), [(0.0, MOST), (LEAST / 1000, MOST), (LEAST / 2, 2), (LEAST, 1), (60.0, 1)])
def test_steps_of_a_sample(fastest, steps):
    assert steps_of_a_sample(fastest) == steps


def test_order():
    assert [ordered("abc", n) for n in range(3)] == ["abc", "cba", "abc"]


def test_samples_survive_json():
    found = {"a": Samples((0.1, 1 / 3), (1e-9, 2.0)), "b": Samples((), ())}
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


# --- the sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "shapes", "parameters"),
    [("P1", 148, 9, 124_439_808), ("P2", 200, 1, 819_200), ("P3", 1, 1, 4096**2), ("P4", 291, 5, 105_316_864), ("N2000", 2000, 5, None)],
)
def test_sets(name, tensors, shapes, parameters):
    found = shapes_of(name)
    sizes = [s[0] * (s[1] if len(s) > 1 else 1) for s in found.values()]
    assert (len(found), len(set(found.values()))) == (tensors, shapes)
    assert parameters in (None, sum(sizes))


def test_llama_is_whole_where_nothing_is_divided():
    assert sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes_of("P4", 1).values()) == 6_738_415_616


@pytest.mark.parametrize("name", ["P5", "N0", "N", "N-3", "", "N9999999"])
def test_no_such_set(name):
    with pytest.raises(ValueError, match="there is no set"):
        shapes_of(name)


def test_a_thumbnail_has_every_shape_once():
    assert thumbnail({"a": (100, 3), "b": (7,), "c": (100, 3), "d": (100, 300)}) == {"a": (40, 3), "b": (7,), "d": (40, 40)}


# --- the tensors -----------------------------------------------------------------------------------------------------


def test_gradients_are_made_anew_and_lie_in_stacks():
    import torch

    from updsl.bench.tensors import Tensors, distance

    made = Tensors({"a": (2, 3), "b": (4,), "c": (2, 3)}, seed=1)
    assert list(made.grads) == list(made.weights) == ["a", "b", "c"]
    assert made.grads["c"].data_ptr() == made.stacks[2, 3][1].data_ptr()
    assert made.numel == 16
    before = made.grads["c"].clone()
    made.grads["c"].zero_()
    made.scale = 3.0
    made.fill()
    assert torch.equal(made.grads["c"], 3 * before)
    assert distance(made.grads["c"], made.exact("c")) < 1e-7
    assert distance([0.0, float("inf")], [0.0, float("inf")]) == 0
    assert distance([0.0, float("nan")], [0.0, 1.0]) == float("inf")


def test_a_contender_that_is_wrong_is_seen():
    from updsl.bench.tensors import Tensors, farthest

    made = Tensors({"a": (2, 3)})
    same = Contender("same", lambda: None, made.fill, lambda: made.grads)
    assert farthest(same, [("a", made.exact("a"))], {}) < 1e-7
    assert farthest(same, [("a", 2 * made.exact("a"))], {}) == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["ema", "adamw", "sophia", "dp_sgd", "zclip"])
def test_backends_are_compared_with_the_interpreter(text):
    import updsl
    from updsl.bench.rules import disagreement

    assert disagreement(updsl.load(text), "torch", {"a.weight": (6, 4), "a.bias": (5,)}) < 1e-5


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return call


def test_bench(run):
    code, out, err = run("bench", "ema", "--backend", "torch", "--set", "N2", "--rounds", "2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("ema on N2: 2 tensors, 4,160 parameters, 2 rounds, ")
    assert lines[3].split()[0] == "torch"
    assert lines[3].split()[4] == "1.00"


def test_bench_as_json(run):
    code, out, _ = run("bench", "adamw", "--backend", "torch", "--set", "N1", "--rounds", "1", "--format", "json")
    data = json.loads(out)
    assert code == 0
    assert data["backends"]["torch"]["times_as_fast"] == 1
    assert data["backends"]["torch"]["error"] < 1e-5
    assert {"processor", "versions", "date"} <= set(data["machine"])


@pytest.mark.parametrize(("arguments", "said"), [(("ema", "--set", "P9"), "there is no set `P9`"), (("fira_with", "--set", "N1"), "is a matrix")])
def test_bench_says_what_it_cannot_do(run, arguments, said):
    code, _, err = run("bench", *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_an_unknown_backend_is_an_error_of_the_usual_kind(run):
    code, _, err = run("bench", "ema", "--set", "N1", "--backend", "cppp")
    assert code == 1
    assert err.startswith("error[unknown-backend]")


# --- benchmarks/ and its page ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    spec = importlib.util.spec_from_file_location("write_performance", ROOT / "docs" / "write_performance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(device="cpu", **samples):
    machine = dict.fromkeys(["processor", "cores", "memory_gib", "card", "cuda", "compiler"], "?") | {"versions": {"torch": "2"}}
    found = {name.replace("_", " "): Samples(tuple(wall), tuple(wall)) for name, wall in samples.items()}
    plan = {"bytes_per_parameter": 20.0, "idle_bytes_per_parameter": 20.0, "launches": 2}
    when = {"date": "2026-01-02", "commit": "abc"}
    job = {**when, "kind": "job", "name": "J1", "set": "P2", "parameters": 5, "samples": to_json(found)}
    job |= {"errors": {"updsl cpp": 1e-7}, "left_out": {"x": "no y"}}
    return {"device": device, "quick": False, "machine": machine, "results": [{**job, "plans": {"cpp": plan}}]}


def test_without_results_everything_is_not_measured_yet(writer):
    page = writer.page(None, None)
    assert "| J1 vs eager loop | not measured yet (≥ 8) | not measured yet (≥ 25) | not measured yet (≥ 12) |" in page
    assert "| binding 291 tensors | not measured yet (≤ 20.0 ms) |" in page
    assert "| J1, 20 bytes a parameter | not measured yet (≥ 0.8) |" in page


def test_figures_stand_beside_what_is_to_be_reached(writer):
    page = writer.page(results(updsl_cpp=[1, 2, 1], eager_loop=[30, 60, 90], compiled_list=[2, 2, 2]), None, "## Notes\n\nWhy.\n")
    assert "| J1 vs eager loop | not measured yet (≥ 8) | 30.00 (≥ 25) | not measured yet (≥ 12) |" in page
    assert "| 2.00 ✗ (≥ 5) |" in page
    assert "| updsl cpp | 1000.000 | 1000.000 | 1000.000 | 1e-07 |" in page
    assert "Left out: x (no y)." in page
    assert "| J1: bytes a parameter, and of idle steps | 20, 20 (≤ 20) |" in page
    assert page.endswith("## Notes\n\nWhy.\n")


def test_a_measurement_that_failed_is_not_measured(writer):
    data = results(updsl_cpp=[1.0])
    data["results"] = [{"kind": "binding", "backend": "cpp", "failed": "no"}, {"kind": "overhead", "name": "J1", "seconds": 2e-4}]
    data["results"] = [{"date": "2026-01-02", "commit": "abc", **r} for r in data["results"]]
    page = writer.page(data, None)
    assert "| binding 291 tensors | not measured yet (≤ 20.0 ms) |" in page
    assert "| J1: host overhead of a step, 300 tensors | 200 µs ✗ (≤ 100 µs) |" in page


def test_the_page_is_what_its_script_writes(writer):
    notes = writer.NOTES.read_text(encoding="utf-8") if writer.NOTES.exists() else ""
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(writer.latest("cpu"), writer.latest("cuda"), notes), "run `python docs/write_performance.py`"


def test_without_a_card_the_gpu_script_says_so_in_a_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--device", "cuda"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no CUDA card" in done.stderr


def test_columns_are_aligned():
    assert aligned([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
