"""Rules that do the same, rules that do not, and the hash of what a text says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import examples, texts
from test_layers import HEAVY, loaded_after

import updsl
from updsl.core.source import Source
from updsl.front.format import format_source
from updsl.laws.equal import by_programs, by_text
from updsl.laws.pair import Comparison

EXAMPLES = 30


def rule(text: str, **parameters) -> updsl.Rule:
    return updsl.parse(text, **parameters)


def compared(a: str, b: str, examples: int = EXAMPLES):
    return updsl.equivalent(rule(a), rule(b), examples=examples)


EMA = "rule f(beta = 0.9):\n    state m = 0\n    m ← beta*m + (1 - beta)*g\n    return m"
CLIP = "rule f(c = 1) = clip norm > c per all"

EQUAL = {
    "names": (EMA, EMA.replace("beta", "decay").replace("m", "k")),
    "a stage, and its text": ("rule f = norm per row → ema(0.5)", "rule f:\n    x = g → norm per row\n    return x → ema(0.5)"),
    "a parameter, and its value": (CLIP, "rule f = clip norm > 1 per all"),
    "a clip, and what it is": (CLIP, "rule f(c = 1):\n    n = norm(g) per all\n    return if n > c then g*(c/n) else g"),
    "operands in the other order": (EMA, EMA.replace("beta*m + (1 - beta)*g", "g*(1 - beta) + m*beta")),
    "states in the other order": (
        "rule f:\n    state a = 0, b = 1\n    a ← a + g\n    b ← b - g\n    return a + 2*b",
        "rule f:\n    state b = 0\n    state a = 1\n    a ← a - g\n    b ← b + g\n    return b + 2*a",
    ),
    "a state that is there twice": (
        EMA.replace("return m", "return m + m^2"),
        EMA.replace("m = 0", "m = 0, k = 0").replace("return m", "k ← beta*k + (1 - beta)*g\n    return m + k^2"),
    ),
    "arithmetic": (EMA, EMA.replace("beta*m + (1 - beta)*g", "m + (g - m)*(1 - beta)")),
    "roots and powers": ("rule f(eps = 1):\n    return g / sqrt(g^2 + eps)", "rule f(eps = 1):\n    return g*(g*g + eps)^(-0.5)"),
    "a block": (
        "rule f:\n    state m = 0\n    every 2:\n        m ← m + g\n    return m",
        "rule f:\n    state k = 0\n    every 2:\n        x = g + k\n        k ← x\n    return k",
    ),
    "a choice by parameters": (
        'rule f(mode = "a", kind = "b") = if mode == "a" and kind == "b" then 2*g else g',
        'rule f(kind = "b", mode = "a", c = 2) = if mode == "b" or kind != "b" then g else c*g',
    ),
    "weights": ("rule f:\n    w ← w - lr*g", "rule f:\n    u = lr*g\n    w ← w - u"),
}
TESTED = {
    "units of a state": (
        EMA,
        "rule f(beta = 0.9):\n    state m = 0\n    m ← beta*m + g\n    return (1 - beta)*m",
    ),
    "a guard that never matters": (CLIP, "rule f(c = 1):\n    n = norm(g) per all\n    return g*(if n > c then c/n else 1)"),
    "a transform and the optimizer of it": ("rule f = sign", "rule f:\n    w ← w - lr*sign(g)"),
    "an input that only one reads": ("rule f:\n    input loss per all\n    return g + 0*loss", "rule f = g + 0"),
    "shapes": ("rule f = if ndim > 1 then norm per row else g", "rule f = if ndim < 2 then g else norm per row"),
}
DIFFERENT = {
    "a constant": (EMA, EMA.replace("0.9", "0.8")),
    "an op": (EMA, EMA.replace("+", "-", 1)),
    "a scope": ("rule f = norm per row", "rule f = norm per column"),
    "a start": (EMA, EMA.replace("m = 0", "m = 1")),
    "a block's count": (
        "rule f:\n    state m = 0\n    every 2:\n        m ← m + g\n    return m",
        "rule f:\n    state m = 0\n    every 3:\n        m ← m + g\n    return m",
    ),
    "states that change places": (
        "rule f:\n    state a = 0, b = 1\n    x = a\n    a ← b + g\n    b ← x\n    return a",
        "rule f:\n    state a = 0, b = 1\n    a ← a + g\n    b ← b\n    return a",
    ),
    "a name": ('rule f:\n    match:\n        name ~ "^lm": 2*g\n        else: g', "rule f = g"),
    "two names": (
        'rule f:\n    match:\n        name ~ "x": 2*g\n        name ~ "0": 3*g\n        else: g',
        'rule f:\n    match:\n        name ~ "x": 2*g\n        name ~ "0": 4*g\n        else: g',
    ),
    "an optimizer and a transform": ("lion", "sign"),
    "what tensors have together": (
        'rule f:\n    n = norm(g) per all\n    match:\n        name == "x": g + n\n        else: g - n',
        'rule f:\n    match:\n        name == "x": g + norm(g) per all\n        else: g - (norm(g) per all)',
    ),
    "how many tensors there are": ("rule f = g / tensors", "rule f = g"),
}


@pytest.mark.parametrize(("a", "b"), EQUAL.values(), ids=EQUAL)
def test_equal_by_algebra(a: str, b: str) -> None:
    found = compared(a, b)
    assert found.kind == "algebra", str(found)
    assert found
    assert found.equal


@pytest.mark.parametrize(("a", "b"), TESTED.values(), ids=TESTED)
def test_equal_where_tested(a: str, b: str) -> None:
    found = compared(a, b)
    assert found, str(found)
    assert found.kind == "algebra" or f"{EXAMPLES} streams" in found.detail


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(a: str, b: str) -> None:
    found = updsl.equivalent(*(rule(x) if x.startswith("rule") else x for x in (a, b)), examples=100)
    assert found.kind == "different", str(found)
    assert not found
    assert found.counterexample[-3].startswith("step ")


def test_the_stream_is_small_and_shown_step_by_step() -> None:
    found = updsl.equivalent(rule(EMA), rule(EMA.replace("rule f", "rule late").replace("return m", "return if t > 2 then 2*m else m")), examples=100)
    assert [line[:11] for line in found.counterexample if line.startswith("step")] == ["step 1: g =", "step 2: g =", "step 3: g ="]
    assert len(found.counterexample) == 9
    *_, f, late = found.counterexample
    assert float(late.split("[")[1][:-1]) == 2 * float(f.split("[")[1][:-1]) != 0
    assert "step 3" in str(found)


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parents[1] / "docs" / "diff.md").read_text(encoding="utf-8")
    said = page.partition("$ updsl diff adam adamw\n")[2].partition("        …")[0]
    assert dedent(said).strip() in str(updsl.equivalent("adam", "adamw", examples=EXAMPLES))


def test_a_difference_tells_the_rules_apart() -> None:
    shown = str(updsl.equivalent("adam", "adamw", examples=EXAMPLES))
    for line in (
        "adam and adamw: different",
        "only adamw writes the weights itself: they are compared as optimizers",
        "parameter weight_decay (0.01): only in adamw",
        "state adam.m (per element): only in adamw",
        "    +    w ← w - lr*(u + weight_decay*w)",
    ):
        assert line in shown
    shown = str(compared("rule f(c = 1 in [0, 2]) = clip norm > c", "rule f(c = 2) = clip norm > c"))
    assert "the first and the second: different" in shown
    assert "parameter c: 1 in [0, 2] in the first, 2 in the second" in shown


def test_what_cannot_be_compared() -> None:
    found = compared("rule f:\n    input loss per all\n    return g*loss", "rule f:\n    input loss\n    return g*loss")
    assert found.detail == "not comparable: the input `loss` is `all` in one and `stream` in the other"
    found = compared("rule f:\n    match:\n        ndim > 1: g", "rule f:\n    match:\n        ndim == 1: g")
    assert found.detail == "not comparable: no tensor can be used with both"
    with pytest.raises(updsl.UpdslError, match="unknown name or stage `nrm`"):
        compared("rule f = clip norm > 1", "rule f = clip nrm > 1")


def test_parameters_count_by_their_values() -> None:
    assert updsl.equivalent(updsl.load("clip_norm", max_norm=2), rule("rule f = clip norm > 2 per all"))
    assert not updsl.equivalent(updsl.load("clip_norm", max_norm=2), "clip_norm", examples=EXAMPLES)
    assert updsl.equivalent("zclip", updsl.load("zclip")).kind == "algebra"


def test_the_command(run, here: Path) -> None:
    (here / "a.upd").write_text(EMA, encoding="utf-8")
    (here / "b.upd").write_text(EMA.replace("0.9", "0.8"), encoding="utf-8")
    code, shown, _ = run("diff", "a.upd", "a.upd")
    assert (code, shown) == (
        0,
        "the first and the second: equal by algebra (one text, up to names, layout and the order of what does not depend on one another)\n",
    )
    code, shown, _ = run("diff", "a.upd", "b.upd", "--examples", "30", "--seed", "3")
    assert code == 1
    assert "a.upd and b.upd: different (on stream" in shown
    assert "parameter beta: 0.9 in a.upd, 0.8 in b.upd" in shown
    code, shown, _ = run("diff", "a.upd", "b.upd", "--examples", "30", "--format", "json")
    data = json.loads(shown)
    assert (data["equal"], data["kind"], data["rules"]) == (False, "different", ["a.upd", "b.upd"])
    assert data["counterexample"][0] == "step 1: g = [1.]"
    assert run("diff", "a.upd", "none.upd")[0] == 2
    assert run("diff", "a.upd")[0] == 2


# --- the hash --------------------------------------------------------------------------------------------------------

TEXTS = {
    "a constant": (EMA, EMA.replace("0*", "1*").replace("(1 - beta)", "(2 - beta)")),
    "a default": (EMA, EMA.replace("0.9", "0.8")),
    "an op": (EMA, EMA.replace("1 - beta", "1 + beta")),
    "a function": ("rule f = exp(g)", "rule f = tanh(g)"),
    "a start": (EMA, EMA.replace("m = 0", "m = 1")),
    "the type of a state": (EMA, EMA.replace("m = 0", "m = 0 as bfloat16")),
    "the scope of a state": ("rule f:\n    state m = norm(w) per row\n    return g*m", "rule f:\n    state m = norm(w) per column\n    return g*m"),
    "a scope": ("rule f = clip norm > 1 per row", "rule f = clip norm > 1 per column"),
    "a comparison": ("rule f = clip norm > 1", "rule f = clip norm < 1"),
    "a stage": ("rule f = norm per row → ema", "rule f = norm per row → ema(0.8)"),
    "the order of stages": ("rule f = ema → sign", "rule f = sign → ema"),
    "an arm's pattern": ('rule f:\n    match:\n        name ~ "x": 2*g\n        else: g', 'rule f:\n    match:\n        name ~ "y": 2*g\n        else: g'),
    "an arm of large tensors": ("rule f = if rows > 1000 then 2*g else g", "rule f = if rows > 1000 then 3*g else g"),
    "a count": ("rule f = repeat 2 times (0.5*it)", "rule f = repeat 3 times (0.5*it)"),
    "a block": (
        "rule f:\n    state m = 0\n    every 2:\n        m ← m + g\n    return m",
        "rule f:\n    state m = 0\n    every 2 from 1:\n        m ← m + g\n    return m",
    ),
    "a skip": ("rule f:\n    skip when norm(g) > 1\n    return g", "rule f:\n    skip when norm(g) > 2\n    return g"),
    "a watch": ("rule f:\n    watch n = norm(g)\n    return g", "rule f:\n    watch n = rms(g)\n    return g"),
    "a rule of the file": ("rule h = 2*g\n\nrule f = h → h", "rule h = 3*g\n\nrule f = h → h"),
    "a function of the file": ("fn h(x) = 2*x\n\nrule f = h(g)", "fn h(x) = 3*x\n\nrule f = h(g)"),
    "the old value, and the new": (
        "rule f:\n    state m = 0\n    x = m\n    m ← m + g\n    return x",
        "rule f:\n    state m = 0\n    m ← m + g\n    x = m\n    return x",
    ),
    "one draw, and two": ("rule f:\n    a = gaussian(1)\n    return g + a - a", "rule f:\n    a = gaussian(1)\n    b = gaussian(1)\n    return g + a - b"),
    "which parameter": ("rule f(a = 1, b = 1) = a*g + b*g^2", "rule f(a = 1, b = 1) = a*g + a*g^2"),
    "which input": ("rule f:\n    input h, k\n    return h + g*k", "rule f:\n    input h, k\n    return h + g*h"),
    "which state": (
        "rule f:\n    state a = 0, b = 0\n    a ← a + g\n    b ← b - g\n    return a - 2*b",
        "rule f:\n    state a = 0, b = 0\n    a ← a + g\n    b ← b - g\n    return b - 2*a",
    ),
    "within a block, and before it": (
        "rule f:\n    state m = 0\n    x = g → ema\n    every 2:\n        y = g → ema\n        m ← x - y\n    return m",
        "rule f:\n    state m = 0\n    x = g → ema\n    every 2:\n        y = g → ema\n        m ← x - x\n    return m",
    ),
}


@pytest.mark.parametrize(("a", "b"), TEXTS.values(), ids=TEXTS)
def test_the_hash_changes_with(a: str, b: str) -> None:
    assert a != b
    assert updsl.canonical_hash(rule(a)) != updsl.canonical_hash(rule(b))


ALIKE = {
    "layout": ("norm per column → clip z > 2.5 → EMA", "# a comment\nrule f:\n    return norm per column\n        -> clip z >= 2.5 |> ema\n"),
    "documentation, laws and examples": (CLIP, f"{CLIP.replace('rule f', 'rule h')}\n\nlaw bounded: norm(out) <= c per all\nexample: [1] gives [1]\n"),
    "names": (EMA, EMA.replace("beta", "b2").replace("m", "μ")),
    "names of rules and functions": (
        "fn h(x, y) = x + 2*y\n\nrule a(c = 1) = c*g\n\nrule f = a(c = 2) → h(it, 1)",
        "rule q(k = 1) = k*g\n\nfn r(u, v) = u + 2*v\n\nrule f = q(2) → r(it, 1)",
    ),
    "names of inputs, and their order": ("rule f:\n    input h, k\n    return h - g*k", "rule f:\n    input h\n    input k\n    return k - g*h"),
    "order of arms' own states": (
        "rule f:\n    match:\n        ndim > 1:\n            state a = 0, b = 1\n            a ← g\n            return a*b\n        else: g",
        "rule f:\n    match:\n        ndim > 1:\n            state y = 1\n            state x = 0\n            x ← g\n            return x*y\n        else: g",
    ),
    "lets of a loop": (
        "rule f:\n    let a = g\n    let b = 1\n    repeat 3 times:\n        a ← a/2\n        b ← b + 1\n    return a*b",
        "rule f:\n    let y = 1\n    let x = g\n    repeat 3 times:\n        y ← y + 1\n        x ← x/2\n    return x*y",
    ),
}


@pytest.mark.parametrize(("a", "b"), ALIKE.values(), ids=ALIKE)
def test_the_hash_ignores(a: str, b: str) -> None:
    assert updsl.canonical_hash(rule(a)) == updsl.canonical_hash(rule(b))


@st.composite
def bodies(draw: st.DrawFn) -> list[tuple[str, str, list[str]]]:
    """Straight-line rules: (what is given a value, what it is given, what that reads), names as n0, n1, …; each reads what is before it."""
    starts = draw(st.lists(st.sampled_from(("0", "1", "2")), min_size=1, max_size=3))
    lines = [(f"s{i}", start, []) for i, start in enumerate(starts)]
    readable = ["g", *(name for name, *_ in lines)]
    for i in range(draw(st.integers(1, 4))):
        x, y = draw(st.sampled_from(readable)), draw(st.sampled_from(readable))
        op = draw(st.sampled_from(("{} + 2*{}", "{}*{}", "tanh({} - {})", "(norm(g*{}) + {} per row)", "max({}, {})")))
        lines.append((f"n{i}", op.format(x, y), [x, y]))
        readable.append(f"n{i}")
    for i in range(len(starts)):
        x = draw(st.sampled_from(readable))
        lines.append((f"s{i} ←", f"0.5*s{i} + {x}", [f"s{i}", x]))
    return lines


def written(lines: list[tuple[str, str, list[str]]], order: list[int], names: dict[str, str], tight: bool) -> str:
    """The lines in that order, under those names. States are read before any is given its new value."""
    states = [(n, e) for n, e, _ in lines if n.startswith("s") and not n.endswith("←")]
    body = [lines[i] for i in order]
    text = ["rule f:"]
    text += [f"    state {', '.join(f'{n} = {e}' for n, e in states)}"] if tight else [f"    state {n} = {e}" for n, e in sorted(states, reverse=True)]
    read = [n for n, *_ in lines if n.startswith("n")]
    text += [f"    {n} = {e}" for n, e, _ in body if n.startswith("n")]
    text += [f"    {n}' = {e}" for n, e, _ in ((n.removesuffix(" ←"), e, r) for n, e, r in body if n.endswith("←"))]
    text += [f"    {n} ← {n}'" for n in (n.removesuffix(" ←") for n, *_ in body if n.endswith("←"))]
    text.append(f"    return {' - '.join(read)} + g")
    found = "\n".join(text) + "\n"
    for old, new in names.items():
        found = found.replace(old, new)
    return found


@st.composite
def rewritten(draw: st.DrawFn) -> tuple[str, str]:
    """A rule, and the same with other names, in another order and layout."""
    lines = draw(bodies())
    own = [i for i, (n, *_) in enumerate(lines) if n.startswith("n") or n.endswith("←")]
    waiting, order, known = draw(st.permutations(own)), [], {"g", *(n for n, *_ in lines if n.startswith("s"))}
    while waiting:
        i = next(i for i in waiting if set(lines[i][2]) <= known)
        waiting.remove(i)
        order.append(i)
        known.add(lines[i][0])
    old = [f"s{i}" for i in range(3)] + [f"n{i}" for i in range(4)]
    new = draw(st.permutations(["alpha", "β", "zz", "m̂", "k_2", "Q", "u"]))
    return written(lines, own, {}, True), written(lines, order, dict(zip(old, new, strict=True)), draw(st.booleans()))


@examples(0.4)
@given(pair=rewritten())
def test_the_hash_ignores_names_layout_and_order(pair: tuple[str, str]) -> None:
    a, b = pair
    assert updsl.canonical_hash(rule(a)) == updsl.canonical_hash(rule(b))


CHANGES = {
    "0.5*": "0.25*",
    " + g": " - g",
    "tanh(": "abs(",
    "max(": "min(",
    "per row)": "per column)",
    "state ": "state extra = 0\n    state ",
    "= 2\n": "= 3\n",
}


@examples(0.4)
@given(pair=rewritten(), change=st.sampled_from(sorted(CHANGES)))
def test_the_hash_sees_every_change(pair: tuple[str, str], change: str) -> None:
    a, b = pair
    changed = b.replace(change, CHANGES[change], 1)
    assert (updsl.canonical_hash(rule(a)) == updsl.canonical_hash(rule(changed))) == (changed == b)


@examples(0.4)
@given(pair=rewritten())
def test_rules_of_one_hash_are_equivalent(pair: tuple[str, str]) -> None:
    found = updsl.equivalent(*map(rule, pair))
    assert found.kind == "algebra"


@settings(examples(0.12), suppress_health_check=list(HealthCheck))
@given(file=texts(), at=st.integers(0, 1000))
def test_any_file_is_hashed_and_compared(file: tuple[str, dict[str, str]], at: int) -> None:
    """Formatting changes nothing; a number changed changes what a file says, unless it is of no use to the main rule. What is proved holds on streams."""
    text = file[0]
    a = updsl.parse(text, name="main")
    assert updsl.canonical_hash(a) == updsl.canonical_hash(updsl.parse(format_source(Source("main", text)) + "# end\n", name="main"))
    numbers = list(re.finditer(r"(?<![\w.])0\.\d+\b(?!%)", text))
    if not numbers:
        return
    n = numbers[at % len(numbers)]
    try:
        b = updsl.parse(f"{text[: n.start()]}{n.group()}1{text[n.end() :]}", name="main")
    except updsl.UpdslError:  # it is a bound
        return
    sides = a.module, b.module, a.params, b.params
    argument = by_text(*sides) or by_programs(*sides)
    assert argument or updsl.canonical_hash(a) != updsl.canonical_hash(b)
    if argument:
        search = Comparison(*sides)
        search.run(3, 0)
        assert search.found is None, "\n".join((argument, *search.shown()))


def test_the_hash_is_the_same_in_every_process() -> None:
    program = "import updsl; print(updsl.canonical_hash('zclip'), updsl.canonical_hash(updsl.parse('rule f(c = 1) = clip norm > c per all')))"
    shown = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": str(n), "PYTHONPATH": str(Path(updsl.__file__).parents[1])}, text=True,
                       capture_output=True, check=True, timeout=120).stdout
        for n in (0, 1)
    ]  # fmt: skip
    assert shown[0] == shown[1]
    assert shown[0].split()[1] == updsl.canonical_hash(rule(CLIP))


def test_the_hash_differs_from_the_text_s() -> None:
    other = CLIP.replace("rule f", "rule h")
    assert updsl.canonical_hash(rule(CLIP)) == updsl.canonical_hash(rule(other))
    assert rule(CLIP).hash != rule(other).hash
    assert updsl.canonical_hash(rule(CLIP, c=2)) == updsl.canonical_hash(rule(CLIP.replace("1", "2")))


def test_rules_of_the_library_are_all_different() -> None:
    names = list(updsl.library())
    assert len({updsl.canonical_hash(name) for name in names}) == len(names)


def test_hashing_and_algebra_need_nothing_heavy() -> None:
    assert not loaded_after("import updsl; updsl.canonical_hash('zclip'); assert updsl.equivalent('zclip', 'zclip')") & HEAVY


def test_what_two_rules_differ_on_is_as_small_as_it_can_be() -> None:
    found = updsl.equivalent(updsl.parse("clip norm > 1"), updsl.parse("clip norm > 1 per all"))
    assert not found
    assert "step 1: g = weight: [1.], x: [1.]" in str(found)
