"""Values kept in the cache folder: what comes back is what would be made, and what is not whole, not ours or not of these files is made again."""

import pickle

import pytest
import torch

import updsl
from updsl import pipeline
from updsl.core import kept
from updsl.core.frame import Tensor
from updsl.core.source import NOWHERE, Source, Span
from updsl.front.elaborate import elaborate
from updsl.runtime.rule import library

TEXTS = ["norm per column → clip z > 2.5 → ema(0.9)", "zclip(warmup = 1)", "clip_grad_norm → adamw", "clip norm > quantile(abs(g), 0.9) → ema"]
SHAPES = [Tensor("layers.0.weight", (6, 4)), Tensor("layers.0.bias", (6,)), Tensor("scale", ())]


@pytest.fixture
def stamp(tmp_path, monkeypatch):
    """Values are kept, in a folder of their own. Sets what stands for updsl's files."""
    monkeypatch.setenv("UPDSL_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "_kept", set())

    def set_(files: str) -> None:
        monkeypatch.setattr(kept, "fingerprint", lambda: files)

    set_("files")
    return set_


def made(of=("a", 1)) -> bool:
    """Whether the value is made, and not found."""
    found = []
    assert kept.kept("value", of, lambda: found.append(of) or list(of)) == list(of)
    return bool(found)


def test_a_value_is_made_once(stamp):
    assert [made(), made(), made(("b", 1)), made(), made(("b", 1))] == [True, False, True, False, False]


def test_changed_files_make_it_again(stamp):
    assert [made(), made()] == [True, False]
    stamp("other files")
    assert [made(), made()] == [True, False]


@pytest.mark.parametrize("damage", ["short", "another", "empty", "writable by all"])
def test_what_is_not_whole_or_not_ours_is_made_again(stamp, tmp_path, damage):
    assert [made(), made(("b", 2))] == [True, True]
    mine, other = sorted(tmp_path.iterdir(), key=lambda file: b"b" in file.read_bytes()[32:])
    content = {"short": mine.read_bytes()[:-1], "another": other.read_bytes(), "empty": b""}.get(damage)
    if content is None:
        mine.chmod(0o666)
    else:
        mine.write_bytes(content)
    assert [made(), made()] == [True, False]


def test_an_error_is_not_kept(stamp):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.kept("value", 0, lambda: 1 / 0)
    assert made((0,))


def test_what_cannot_be_kept_is_made(stamp, tmp_path):
    for _ in range(2):
        assert kept.kept("value", 0, lambda: made) is made
        assert kept.kept("value", 1, lambda: lambda: 2)() == 2
    tmp_path.chmod(0o500)
    assert made(("c",))
    tmp_path.chmod(0o700)


def test_what_is_too_deep_for_a_key_is_made(stamp):
    deep = ()
    for _ in range(100_000):
        deep = (deep,)
    assert [kept.kept("value", deep, lambda: 1), kept.kept("value", 1, lambda: len(deep))] == [1, 1]


def test_a_process_keeps_so_many(stamp, tmp_path):
    for n in range(kept.MOST + 10):
        assert made((n,))
    assert len(list(tmp_path.iterdir())) == kept.MOST


def test_the_fingerprint_is_of_all_files(monkeypatch, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.py").write_text("a")
    before = list(kept.files_in(str(tmp_path)))
    assert [path for path, _, _ in before] == [str(tmp_path / "below" / "a.py")]
    (tmp_path / "below" / "a.py").write_text("ab")
    assert list(kept.files_in(str(tmp_path))) != before


def test_nowhere_stays_nowhere():
    assert pickle.loads(pickle.dumps(NOWHERE)) is NOWHERE
    span = pickle.loads(pickle.dumps(Span(Source("a", "text"), 1, 3)))
    assert (span.text, span.line) == ("ex", 1)


@pytest.mark.parametrize("name", library())
def test_a_copied_rule_means_the_same(name):
    rule = updsl.load(name)
    copy = pickle.loads(pickle.dumps(rule.module))
    assert meaning(copy, rule.params) == meaning(rule.module, rule.params)


def meaning(module, params):
    """Programs, or why there are none."""
    try:
        found = elaborate(module, SHAPES, params)
    except updsl.UpdslError as e:
        return [(d.code, d.message) for d in e.diagnostics]
    return found.programs, found.class_of, found.constants, [[r.span.text for r in of] for of in found.reductions]


def steps(text):
    """Three steps: the generated texts, and all that they give and leave."""
    torch.manual_seed(0)
    weights = {t.name: torch.randn(t.shape) for t in SHAPES}
    y = updsl.compile(updsl.parse(text), weights, backend="cpp", lr=0.1)
    watches, grads = [], {}
    for _ in range(3):
        grads = {name: torch.randn_like(w) for name, w in weights.items()}
        watches.append({label: dict(x) if isinstance(x, dict) else x for label, x in y.step(grads).items()})
    return (y.backend, y.source, str(y.plan)), (watches, grads, weights, y.state.values)


@pytest.mark.parametrize("text", TEXTS)
def test_a_step_that_is_found_is_the_step_that_would_be_made(stamp, monkeypatch, text):
    first = steps(text)

    def refuse(*_):
        raise AssertionError("is made again")

    monkeypatch.setattr(pipeline, "elaborate", refuse)
    monkeypatch.setattr(pipeline, "load_unit", refuse)
    again = steps(text)
    assert again[0] == first[0]
    torch.testing.assert_close(again[1], first[1], rtol=0, atol=0)
