"""Rules as values: load, parse, init, update, interpret, compile, library."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import updsl

G = torch.float64


def tensor(*values, dtype=G) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def code(raised) -> str:
    return raised.value.diagnostics[0].code


def refused(expected: str, match: str | None = None):
    """A block that must raise an UpdslError of this code; `match` is searched in the whole message."""

    class Refused:
        def __enter__(self):
            self.inner = pytest.raises(updsl.UpdslError, match=match)
            self.found = self.inner.__enter__()
            return self.found

        def __exit__(self, *args):
            done = self.inner.__exit__(*args)
            assert code(self.found) == expected
            return done

    return Refused()


# --- rules -----------------------------------------------------------------------------------------------------------


def test_a_rule_tells_about_itself() -> None:
    rule = updsl.parse(
        'rule mine(beta = 0.9 in [0, 1], on = true, mode = "a"):\n    """What it does."""\n    input loss per all, h\n    return g*beta*loss + h\n', beta=0.5
    )
    assert rule.name == "mine"
    assert rule.doc.strip() == "What it does."
    assert rule.params == {"beta": 0.5, "on": True, "mode": "a"}
    assert rule.inputs == {"loss": "all", "h": "stream"}
    assert rule.writes_weights is False
    assert rule.text.startswith("rule mine(")
    assert updsl.parse("rule r:\n    w ← w - lr*g\n").writes_weights is True


def test_a_bare_pipeline_is_called_as_it_is_told() -> None:
    assert updsl.parse("norm per column", name="columns").name == "columns"


def test_the_hash_is_of_the_folded_text_and_the_parameters() -> None:
    first = updsl.parse("rule r(ϵ = 2) = g*ε")
    assert len(first.hash) == 64
    assert first.hash == updsl.parse("rule r(ε = 2) = g*ε").hash
    assert first.hash != updsl.parse("rule r(ε = 2) = g*ε", ε=3.0).hash
    assert first.hash != updsl.parse("rule r(ε = 2) = g*ε*1").hash


def test_a_default_may_use_the_parameters_before_it() -> None:
    assert updsl.parse("rule r(a = 1, b = 2*a) = g*b").params == {"a": 1.0, "b": 2.0}
    assert updsl.parse("rule r(a = 1, b = 2*a) = g*b", a=3).params == {"a": 3.0, "b": 6.0}


def test_files_are_loaded_by_path_with_what_they_use(tmp_path) -> None:
    (tmp_path / "half.upd").write_text("rule half(by = 0.5) = g*by\n", encoding="utf-8")
    (tmp_path / "twice.upd").write_text("use half\nrule twice = half → half\n", encoding="utf-8")
    rule = updsl.load(tmp_path / "twice.upd")
    out, *_ = rule.update({"x": tensor(4.0)}, rule.init({"x": tensor(0.0)}))
    assert out["x"].item() == 1.0
    assert pickle.loads(pickle.dumps(rule)).hash == rule.hash
    with refused("unreadable-file"):
        updsl.load(tmp_path / "none.upd")
    with refused("unknown-rule", "did you mean `zclip`"):
        updsl.load("zclp")


def test_a_rule_survives_pickling_and_copying() -> None:
    rule = updsl.load("ema", beta=0.5)
    again = pickle.loads(pickle.dumps(rule))
    assert (again.name, again.params, again.hash) == (rule.name, rule.params, rule.hash)
    assert copy.deepcopy(rule) is rule


def test_the_library_is_listed() -> None:
    found = updsl.library()
    assert {"zclip", "ema", "adamw"} <= set(found)
    assert list(found) == sorted(found)
    assert all("\n" not in line for line in found.values())


# --- parameters ------------------------------------------------------------------------------------------------------

BOUNDED = """rule r(beta = 0.9 in [0, 1], rounds = 2, on = true, mode = "a"):
    let x = g*beta
    repeat rounds times:
        x ← x*2
    return if on and mode == "a" then x else g
"""


@pytest.mark.parametrize(
    ("given", "expected", "match"),
    [
        ({"bta": 0.5}, "unknown-parameter", "did you mean `beta`"),
        ({"weight_decay": 0.1}, "unknown-parameter", r"append `→ weight_decay\(0.01\)`"),
        ({"beta": 1.5}, "parameter-out-of-bounds", r"\[0, 1\]"),
        ({"beta": float("nan")}, "parameter-type", "`beta` is NaN"),
        ({"beta": "0.9"}, "parameter-type", "a number"),
        ({"beta": True}, "parameter-type", "a number"),
        ({"on": 1.0}, "parameter-type", "true or false"),
        ({"mode": 1.0}, "parameter-type", "a text"),
    ],
)
def test_parameters_are_checked_at_load(given, expected, match) -> None:
    with refused(expected, match):
        updsl.parse(BOUNDED, **given)


def test_a_text_is_one_that_the_rule_knows() -> None:
    with refused("parameter-out-of-bounds", "`mode` is `nonsense`.*it knows `zscore`, `percentile`(.|\n)*choose one of zscore, percentile"):
        updsl.load("zclip", mode="nonsense")
    with refused("parameter-out-of-bounds", "did you mean `percentile`"):
        updsl.load("zclip", mode="percentil")
    for mode in ("zscore", "percentile"):
        assert updsl.load("zclip", mode=mode).params["mode"] == mode
    text = 'rule r(mode = "a", by = "a"):\n    let x = if mode != "b" then g else 2*g\n    return if by == "a" then x else if mode == "c" then 0*x else x\n'
    assert updsl.parse(text, mode="c", by="anything").params == {"mode": "c", "by": "anything"}
    with refused("parameter-out-of-bounds", "it knows `a`, `b`, `c`"):
        updsl.parse(text, mode="d")


def test_a_text_that_is_handed_on_may_be_any() -> None:
    text = 'rule part(how = "a") = if how == "b" then g else 2*g\nrule r(mode = "a"):\n    let x = if mode == "b" then g else 2*g\n    return x → part(mode)\n'
    assert updsl.parse(text, name="r", mode="z").params == {"mode": "z"}


def test_a_parameter_without_default_must_be_given() -> None:
    with refused("missing-parameter", "pass `a=…`"):
        updsl.parse("rule r(a) = g*a")
    assert updsl.parse("rule r(a) = g*a", a=2).params == {"a": 2.0}


def test_parameters_are_set_for_one_update() -> None:
    rule = updsl.parse(BOUNDED)
    state = rule.init({"x": tensor(0.0)})
    assert rule.update({"x": tensor(1.0)}, state)[0]["x"].item() == pytest.approx(3.6)
    assert rule.update({"x": tensor(1.0)}, state, set={"beta": 0.5})[0]["x"].item() == 2.0
    assert rule.update({"x": tensor(1.0)}, state, set={"beta": torch.tensor(0.5)})[0]["x"].item() == 2.0
    with refused("parameter-out-of-bounds"):
        rule.update({"x": tensor(1.0)}, state, set={"beta": 2.0})
    for name, value in {"rounds": 3, "on": False, "mode": "b"}.items():
        with refused("constant-parameter", "when the rule is loaded"):
            rule.update({"x": tensor(1.0)}, state, set={name: value})


def test_groups_have_parameters_and_learning_rates_of_their_own() -> None:
    rule = updsl.parse("rule r(c = 1) = g*c*lr")
    shapes = {name: tensor(0.0) for name in "abc"}
    state = rule.init(shapes, groups=[{"params": ["b"], "c": 10.0, "lr": 3.0}])
    g = {name: tensor(1.0) for name in "abc"}
    out, *_ = rule.update(g, state, lr=2.0)
    assert [out[n].item() for n in "abc"] == [2.0, 30.0, 2.0]
    out, *_ = rule.update(g, state, lr=2.0, set={"c": 5.0})
    assert [out[n].item() for n in "abc"] == [10.0, 30.0, 10.0]
    out, *_ = rule.update(g, state, lr=2.0, groups=[{"params": ["a"], "c": 7.0}])
    assert [out[n].item() for n in "abc"] == [14.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("groups", "expected", "match"),
    [
        ([{"params": ["d"]}], "unknown-tensor", "the tensors are called `a`"),
        ([{"params": ["a"]}, {"params": ["a"]}], "bad-group", "group 0 and in group 1"),
        ([{"params": "a"}], "bad-group", "which tensors"),
        ({"params": ["a"]}, "bad-group", "no list(.|\\n)*groups=\\["),
        (["a"], "bad-group", "which tensors"),
        (3, "bad-group", "the groups are int"),
        ([{"params": [tensor(0.0)]}], "bad-group", "a Tensor, and not a tensor's name"),
        ([{"params": ["a"], "lr": "x"}], "parameter-type", "`lr` takes a number"),
        ([{"params": ["a"], "d": 1.0}], "unknown-parameter", "no parameter `d`"),
        ([{"params": ["a"], "c": 3.0}], "parameter-out-of-bounds", "c"),
    ],
)
def test_groups_are_checked(groups, expected, match) -> None:
    rule = updsl.parse("rule r(c = 1 in [0, 2], n = 1):\n    let x = g*c\n    repeat n times:\n        x ← x + 1\n    return x\n")
    with refused(expected, match):
        rule.init({"a": tensor(0.0)}, groups=groups)


def test_a_constant_is_not_set_in_a_group() -> None:
    rule = updsl.parse(BOUNDED)
    state = rule.init({"a": tensor(0.0)}, groups=[{"params": ["a"], "rounds": 3}])
    with refused("constant-parameter", "in a group"):
        rule.update({"a": tensor(1.0)}, state)


# --- update ----------------------------------------------------------------------------------------------------------


def test_update_is_pure_and_keeps_types() -> None:
    rule = updsl.parse("ema(0.5)")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        g = {"x": torch.ones(3, dtype=dtype)}
        state = rule.init(g)
        out, after, weights, watch = rule.update(g, state)
        assert out["x"].dtype == dtype
        assert weights is None
        assert watch == {}
        assert state.run == 0
        assert not state.values
        assert (after.run, dict(after.t)) == (1, {"x": 1})
        assert after.values["ema.m"]["x"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(g["x"], torch.ones(3, dtype=dtype))
        assert torch.equal(rule.update(g, state)[0]["x"], out["x"])


def test_params_are_a_dict_pairs_or_a_module() -> None:
    rule, module = updsl.parse("clip norm > 1 per all"), torch.nn.Linear(2, 2)
    g = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    outs = [rule.update(g, rule.init(params))[0]["bias"] for params in (module, module.named_parameters(), dict(module.named_parameters()))]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    with refused("unnamed-tensor"):
        rule.init(module.parameters())
    with refused("duplicate-tensor"):
        rule.init([("a", tensor(0.0)), ("a", tensor(0.0))])


def test_tensors_without_a_gradient_or_entries_take_no_part() -> None:
    rule = updsl.parse("rule r:\n    state n = 0\n    n ← n + 1\n    return g/norm(g)*n per all\n")
    state = rule.init({"a": torch.zeros(1), "b": torch.zeros(1), "e": torch.zeros(0, 4)})
    out, state, *_ = rule.update({"a": torch.tensor([3.0]), "b": None, "e": torch.zeros(0, 4)}, state)
    assert out["a"].tolist() == [1.0]
    assert "b" not in out
    assert out["e"].shape == (0, 4)
    out, state, *_ = rule.update({"b": torch.tensor([3.0])}, state)
    assert dict(state.t) == {"a": 1, "b": 1}
    assert state.run == 2
    assert rule.update({}, state)[0] == {}


@pytest.mark.parametrize(
    ("g", "expected", "match"),
    [
        (torch.ones(2, dtype=torch.int64), "tensor-type", "int64"),
        (torch.ones(2, dtype=torch.bool), "tensor-type", "bool"),
        (torch.ones(2, dtype=torch.complex64), "tensor-type", "complex64"),
        (torch.ones(2).to_sparse(), "tensor-type", "sparse"),
        (np.ones(2, complex), "tensor-type", "complex128"),
        (torch.ones(3), "tensor-shape", r"\(3,\)"),
    ],
)
def test_gradients_are_checked(g, expected, match) -> None:
    rule = updsl.parse("it")
    state = rule.init({"x": torch.zeros(2)})
    for of in (rule, rule.interpret):
        with refused(expected, match):
            of.update({"x": g}, state)
        with refused("unknown-tensor", "did you mean `x`"):
            of.update({"X": torch.zeros(2)}, state)


def test_what_is_read_must_be_handed_over() -> None:
    g = {"x": tensor(1.0)}
    for text, expected, match in (("rule r = g + w", "missing-weights", "pass `params=`"), ("rule r = g*lr", "no-learning-rate", "lr")):
        rule = updsl.parse(text)
        with refused(expected, match):
            rule.update(g, rule.init(g))
    with refused("no-state"):
        updsl.parse("it").update({"x": tensor(1.0)}, {})


def test_a_rule_that_writes_w_gives_new_weights() -> None:
    rule = updsl.parse("rule r:\n    w ← w - lr*g\n")
    w = {"x": tensor(1.0, 2.0)}
    out, _, weights, _ = rule.update({"x": tensor(1.0, 1.0)}, rule.init(w), params=w, lr=0.5)
    assert weights["x"].tolist() == [0.5, 1.5]
    assert out["x"].tolist() == [0.5, 0.5]
    assert w["x"].tolist() == [1.0, 2.0]


def test_watches_have_the_form_of_their_scope() -> None:
    rule = updsl.parse("rule r:\n    watch a = norm(g) per all\n    watch t = norm(g)\n    watch q = norm(g) per group\n    return g\n")
    g = {"x": tensor(3.0), "y": tensor(4.0)}
    for of in (rule, rule.interpret):
        *_, watch = of.update(g, of.init(g, groups=[{"params": ["y"]}]))
        assert float(watch["a"]) == 5.0
        assert watch["a"].ndim == 0
        assert {k: float(v) for k, v in watch["t"].items()} == {"x": 3.0, "y": 4.0}
        assert {k: float(v) for k, v in watch["q"].items()} == {0: 4.0, 1: 3.0}


def test_the_interpreter_takes_both_kinds_and_gives_float64() -> None:
    rule = updsl.parse("ema(0.5)")
    state = rule.interpret.init({"x": np.zeros(2)})
    for g in (np.ones(2, np.float32), torch.ones(2, dtype=torch.bfloat16), np.ones(2)):
        out, after, *_ = rule.interpret.update({"x": g}, state)
        assert type(out["x"]) is np.ndarray
        assert out["x"].dtype == np.float64
        assert after.values["ema.m"]["x"].dtype == np.float64


def test_the_seed_is_of_the_run() -> None:
    rule, g = updsl.parse("rule r = g*0 + gaussian(1)"), {"x": torch.zeros(64)}
    first, second, other = (rule.update(g, rule.init(g, seed=s))[0]["x"] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert np.allclose(rule.interpret.update(g, rule.interpret.init(g, seed=1))[0]["x"], first.numpy(), atol=1e-6)


def test_the_state_of_another_rule_is_refused() -> None:
    g = {"x": tensor(1.0)}
    a, b = updsl.parse("ema(0.5)"), updsl.parse("ema(0.6)")
    for of in (a, a.interpret):
        with refused("another-rule", f"{b.text_hash:015x}.*{a.text_hash:015x}"):
            of.update(g, b.init(g))
    text = "rule r(beta = 0.5) = ema(beta)"
    assert updsl.parse(text, beta=0.0).update(g, updsl.parse(text).init(g))[0]["x"].item() == 1.0


def test_a_state_is_a_tree_of_tensors() -> None:
    from torch.utils import _pytree as trees

    rule = updsl.parse("rule r = mean((ema → history(3))) + 0*g")
    g = {"x": torch.ones(2)}
    _, state, *_ = rule.update(g, rule.init(g))
    leaves, spec = trees.tree_flatten(state)
    assert all(isinstance(x, torch.Tensor) for x in leaves)
    again = trees.tree_unflatten(leaves, spec)
    assert torch.equal(rule.update(g, again)[0]["x"], rule.update(g, state)[0]["x"])


def test_update_runs_under_vmap() -> None:
    rule, made = updsl.parse("ema(0.9) → clip norm > 1 per all"), torch.Generator().manual_seed(0)
    shapes = {"x": torch.zeros(3), "y": torch.zeros(3), "m": torch.zeros(2, 3)}
    start = rule.init(shapes)
    grads = [{n: torch.randn(5, *z.shape, generator=made) for n, z in shapes.items()} for _ in range(2)]
    out, state = torch.func.vmap(lambda g: rule.update(g, start)[:2])(grads[0])
    out, state = torch.func.vmap(lambda g, s: rule.update(g, s)[:2])(grads[1], state)
    assert state.run == 2
    for i in range(5):
        _, one, *_ = rule.update({n: g[i] for n, g in grads[0].items()}, start)
        alone, *_ = rule.update({n: g[i] for n, g in grads[1].items()}, one)
        for name, x in alone.items():
            torch.testing.assert_close(out[name][i], x)


G1 = {"x": torch.ones(1)}
E = updsl.parse("ema(0.5)")


@pytest.mark.parametrize(
    ("call", "expected", "match"),
    [
        (lambda: updsl.load(3), "parameter-type", "a library name or a path, not int 3"),
        (lambda: updsl.attach(torch.optim.SGD([torch.zeros(1)]), None), "parameter-type", "not NoneType"),
        (lambda: updsl.parse(b"it"), "parameter-type", "`text` takes a text, not bytes(.|\\n)*decode"),
        (lambda: updsl.parse("it", name=3), "parameter-type", "`name` takes a text"),
        (lambda: updsl.compile(E, G1, backend=None), "unknown-backend", "not None"),
        (lambda: updsl.compile("ema", G1, bta=0.5), "unknown-parameter", "did you mean `beta`"),
        (lambda: updsl.compile(E, []), "no-tensors", "no tensors to compile"),
        (lambda: updsl.compile(E, {}), "no-tensors", "no tensors to compile"),
        (lambda: updsl.compile(E, torch.nn.ReLU()), "no-tensors", "no tensors to compile"),
        (lambda: updsl.compile(E, G1, lr="x"), "parameter-type", "`lr` takes a number, not str"),
        (lambda: updsl.compile(E, G1).step([torch.ones(1)]), "unnamed-tensor", "list(.|\\n)*{name: tensor}"),
        (lambda: E.init(G1, seed="x"), "parameter-type", "`seed` takes an integer"),
        (lambda: E.init(3), "unnamed-tensor", "(.|\\n)*a module"),
        (lambda: E.init([torch.ones(1)]), "unnamed-tensor", "needs a name"),
        (lambda: E.init({"a": 3}), "tensor-type", "`a` is of the type int, and no tensor"),
        (lambda: E.update([torch.ones(1)], E.init(G1)), "unnamed-tensor", "list(.|\\n)*{name: tensor}"),
        (lambda: E.update(torch.ones(1), E.init(G1)), "unnamed-tensor", "Tensor"),
        (lambda: E.update({"x": "a"}, E.init(G1)), "tensor-type", "is str"),
        (lambda: E.update(G1, E.init(G1), lr="x"), "parameter-type", "`lr`"),
        (lambda: E.update(G1, E.init(G1), lr=torch.ones(2)), "parameter-type", "`lr`"),
        (lambda: E.update(G1, E.init(G1), set=3), "parameter-type", "`set`"),
        (lambda: updsl.Optimizer([torch.zeros(1)], "ema", lr="x"), "parameter-type", "`lr`"),
        (lambda: updsl.Optimizer([torch.zeros(1)], "ema", lr=-1), "parameter-out-of-bounds", "`lr` is -1, below 0"),
        (lambda: updsl.Optimizer([{"params": [torch.zeros(1)], "lr": -1.0}], "ema"), "parameter-out-of-bounds", "below 0"),
        (lambda: updsl.Optimizer([torch.zeros(1)], "ema", seed=1.5), "parameter-type", "`seed`"),
        (lambda: updsl.Optimizer([torch.zeros(1)], "ema", names=3), "unnamed-tensor", "a module"),
        (lambda: updsl.Optimizer([torch.zeros(1)], "ema", nonfinite=None), "unknown-policy", "None"),
    ],
)
def test_calls_of_wrong_types_are_refused(call, expected, match) -> None:
    with refused(expected, match):
        call()


# --- inputs ----------------------------------------------------------------------------------------------------------

INPUTS = """rule r:
    input h, a per all, b per group, c per tensor, d per row, e per column, f per block(3), P as matrix
    return h + a + b + c + d + e + f + trace(P)
"""


def given() -> dict:
    return {
        "h": {"x": torch.zeros(2, 2, dtype=G)},
        "a": 1.0,
        "b": [1.0],
        "c": {"x": 1.0},
        "d": {"x": tensor(1.0, 2.0)},
        "e": {"x": tensor(1.0, 2.0)},
        "f": {"x": [1.0, 2.0]},
        "P": {"x": torch.eye(3, dtype=G)},
    }


def test_inputs_have_the_form_of_their_scope() -> None:
    rule = updsl.parse(INPUTS)
    assert rule.inputs == {"h": "stream", "a": "all", "b": "group", "c": "tensor", "d": "row", "e": "column", "f": "block", "P": "matrix"}
    g = {"x": torch.zeros(2, 2, dtype=G)}
    for of in (rule, rule.interpret):
        out, *_ = of.update(g, of.init(g), **given())
        assert np.asarray(out["x"]).tolist() == [[9.0, 10.0], [10.0, 12.0]]
        out, *_ = of.update(g, of.init(g), **given() | {"a": torch.tensor(1.0), "b": {0: 1}, "c": {"x": np.float32(1)}})
        assert np.asarray(out["x"]).tolist() == [[9.0, 10.0], [10.0, 12.0]]


@pytest.mark.parametrize(
    ("change", "expected", "match"),
    [
        ({"a": None}, "missing-input", "`a`.*not given"),
        ({"h": {}}, "missing-input", "`h` is not given for `x`"),
        ({"b": []}, "missing-input", "group 0"),
        ({"hh": {}}, "unknown-input", "did you mean `h`"),
        ({"h": torch.zeros(2, 2)}, "input-shape", "{name: tensor}"),
        ({"h": {"x": torch.zeros(2)}}, "input-shape", r"\(2,\)"),
        ({"h": {"y": torch.zeros(2, 2)}}, "unknown-tensor", "`y`"),
        ({"h": {"x": torch.zeros(2, 2, dtype=torch.int32)}}, "tensor-type", "int32"),
        ({"a": [1.0, 2.0]}, "input-shape", "one number"),
        ({"a": "a"}, "input-shape", "is str, and must be real"),
        ({"a": {"x": 1}}, "input-shape", "is dict"),
        ({"a": 1j}, "input-shape", "is complex"),
        ({"a": torch.tensor(1j)}, "input-shape", "must be real"),
        ({"f": {"x": "ab"}}, "input-shape", "must be real"),
        ({"h": {"x": "ab"}}, "tensor-type", "is str"),
        ({"f": {"x": [1.0]}}, "input-shape", "must be 2"),
        ({"P": {"x": [1.0]}}, "input-shape", "n×n"),
    ],
)
def test_inputs_are_checked(change, expected, match) -> None:
    rule, g = updsl.parse(INPUTS), {"x": torch.zeros(2, 2, dtype=G)}
    state = rule.init(g)
    for of in (rule, rule.interpret):
        with refused(expected, match):
            of.update(g, state, **{k: v for k, v in (given() | change).items() if v is not None})


def test_a_tensor_whose_class_does_not_read_an_input_may_be_left_out() -> None:
    rule = updsl.parse("rule r:\n    input h\n    match:\n        ndim < 2: g\n        else:     g + h\n")
    g = {"v": torch.ones(2), "m": torch.ones(2, 2)}
    out, *_ = rule.update(g, rule.init(g), h={"m": torch.ones(2, 2)})
    assert out["v"].tolist() == [1.0, 1.0]
    assert out["m"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    with refused("missing-input", "for `m`"):
        rule.update(g, rule.init(g), h={"v": torch.ones(2)})


def test_the_gradient_is_the_mean_of_the_samples_where_it_is_left_out() -> None:
    rule = updsl.parse("rule r:\n    input samples\n    return g + 0*sample_mean(samples)\n")
    samples = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    for of in (rule, rule.interpret):
        out, *_ = of.update(None, of.init({"x": torch.zeros(2)}), samples={"x": samples})
        assert np.asarray(out["x"]).tolist() == [2.0, 4.0]
    with refused("input-shape", "samples"):
        rule.update(None, rule.init({"x": torch.zeros(2), "y": torch.zeros(2)}), samples={"x": samples, "y": samples[:1]})


# --- compile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "torch", "interpret"])
def test_compiled_rules_step_in_place(backend) -> None:
    rule = updsl.parse("rule r(c = 2):\n    watch n = norm(g)\n    return g*c → ema(0.5, debias = false)\n")
    y = updsl.compile(rule, {"x": torch.zeros(2)}, backend=backend)
    assert y.backend == backend
    grads = {"x": torch.tensor([3.0, 4.0])}
    held = grads["x"]
    assert float(y.step(grads)["n"]["x"]) == 5.0
    assert held.tolist() == [3.0, 4.0]
    y.set(c=4.0)
    y.step(grads)
    assert held.tolist() == [7.5, 10.0]
    assert y.state.run == 2
    assert all(isinstance(text, str) for text in y.source.values())
    assert bool(y.source) == (backend != "interpret")


def test_compiled_rules_that_write_w_write_it() -> None:
    w, g = {"x": torch.ones(2)}, {"x": torch.ones(2)}
    y = updsl.compile(updsl.parse("rule r:\n    w ← w - lr*g\n"), w, lr=0.5)
    y.step(g)
    y.step(g, lr=0.25)
    assert w["x"].tolist() == [0.25, 0.25]
    assert g["x"].tolist() == [1.0, 1.0]
    y = updsl.compile(updsl.parse("rule r:\n    w ← w - lr*g\n    return 7*g\n"), w, lr=0.5)
    y.step(g)
    assert g["x"].tolist() == [7.0, 7.0]
    assert w["x"].tolist() == [-0.25, -0.25]


def test_compile_takes_module_parameters_names_and_no_watches() -> None:
    module = torch.nn.Linear(2, 2)
    y = updsl.compile("clip_grad_norm", module, watches=False)
    grads = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    assert y.step(grads) == {}
    assert sum(float((g**2).sum()) for g in grads.values()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("backend", ["cuda", "intrepret"])
def test_other_backends_are_refused(backend) -> None:
    with refused("unknown-backend", "unknown backend"):
        updsl.compile("ema", {"x": torch.zeros(2)}, backend=backend)


def test_gradients_that_cannot_be_written_are_refused() -> None:
    shared = torch.ones(2)
    y = updsl.compile(updsl.parse("it*2"), {"x": torch.zeros(2), "y": torch.zeros(2)})
    with refused("not-writable", "expanded"):
        y.step({"x": torch.ones(1).expand(2)})
    with refused("not-writable", "same memory"):
        y.step({"x": shared, "y": shared})
    with torch.inference_mode():
        inference = torch.ones(2)
    with refused("not-writable", "inference mode"):
        y.step({"x": inference})
    assert shared.tolist() == [1.0, 1.0]
    assert y.state.run == 0


def test_explain_tells_of_a_rule() -> None:
    assert "clipped" in updsl.explain(updsl.load("zclip"))


def test_compile_takes_parameters_by_keyword() -> None:
    params = {"x": torch.zeros(2)}
    for rule in ("ema", updsl.load("ema")):
        y = updsl.compile(rule, params, beta=0.5, debias=False)
        assert (y.rule.params["beta"], y.rule.params["debias"]) == (0.5, False)
