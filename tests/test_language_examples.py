"""The rule texts of the language's definition, in the interpreter and the torch backend, against their meaning and their laws in NumPy, by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from agreement import Given, Step, distance, furthest, run

import updsl

BACKENDS = ("interpret", "torch")
TOLERANCE = 1e-9
SHAPES = {"lm_head.weight": (3, 5), "body.weight": (6, 4), "body.bias": (4,), "conv.weight": (2, 3, 2, 2)}
Stream = list[dict[str, np.ndarray]]

TEXTS = {
    "clip_norm": """rule clip_norm(c = 1) = clip norm > c per all
law bounded: norm(out) <= c per all
law idle: norm(g) <= c per all implies out == g
""",
    "autoclip": """rule autoclip(p = 10%, window = 10000) = clip norm > quantile(norm(it) → history(window), p) per all
""",
    "sinkgd": """rule sinkgd(rounds = 5) = repeat rounds times (rms per row → rms per column)
""",
    "ema": """rule ema(beta = 0.9, debias = true):
    state m = 0
    m ← beta*m + (1 - beta)*g
    return if debias then m / (1 - beta^t) else m
""",
    "adam": '''rule adam(beta1 = 0.9, beta2 = 0.999, eps = 1e-8):
    """Adam (Kingma & Ba 2015)."""
    state m = 0, v = 0
    m ← beta1*m + (1 - beta1)*g
    v ← beta2*v + (1 - beta2)*g^2
    m̂ = m / (1 - beta1^t)
    v̂ = v / (1 - beta2^t)
    return m̂ / (sqrt(v̂) + eps)
''',
    "adamw": """rule adamw(beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01):
    u = g → adam(beta1, beta2, eps)
    w ← w - lr*(u + weight_decay*w)
""",
    "scale": """rule scale(beta = 0.9):
    match:
        name ~ "lm_head": ema(beta, debias = false) → norm per column
        ndim < 2:         adam
        else:             norm per column
""",
    "adagc": """rule adagc(ratio = 1.05, beta = 0.98, warmup = 100, max_norm = 1):
    state γ = inf
    x = if t <= warmup then (g → clip norm > max_norm per all) else (g → clip norm > ratio*γ per tensor)
    n = norm(x) per tensor
    γ ← if t <= warmup or γ == inf then min(γ, n) else beta*γ + (1 - beta)*n
    return x
""",
    "orthogonalize": '''rule orthogonalize(steps = 5):
    """Quintic Newton–Schulz iteration towards the nearest semi-orthogonal matrix (Jordan 2024)."""
    let x = if rows > cols then g.T else g
    x ← x / (norm(x) + 1e-7) per tensor
    repeat steps times:
        a = x @ x.T
        x ← 3.4445*x + (-4.7750*a + 2.0315*a @ a) @ x
    return if rows > cols then x.T else x
''',
    "galore": """rule galore(rank = 128, gap = 200, scale = 0.25):
    state P = 0
    every gap from 1:
        P ← left_basis(g, rank)
    u = P.T @ g → adam
    return scale * (P @ u)
""",
    "dp_sgd": """rule dp_sgd(max_norm = 1, noise = 1):
    input samples
    clipped = samples → clip norm > max_norm per all
    return sample_mean(clipped) + gaussian(noise*max_norm / batch)
""",
}
HEADLINE = ("norm per column → clip z > 2.5 → EMA\n", "norm per column -> clip z>2.5 -> EMA\n")


def stream(shapes: Mapping[str, tuple[int, ...]] = SHAPES, steps: int = 14, seed: int = 0) -> Stream:
    """Gradients of all sizes: spikes, tensors and rows that are 0, a step that is 0 altogether."""
    rng = np.random.default_rng(seed)
    found = [{name: rng.normal(size=shape) * np.exp(rng.normal()) for name, shape in shapes.items()} for _ in range(steps)]
    found[4] = {name: 1e4 * g for name, g in found[4].items()}
    first = next(iter(shapes))
    found[6][first] = 0 * found[6][first]
    found[9][first][0] = 0
    if steps > 11:
        found[11] = {name: 0 * g for name, g in found[11].items()}
    return found


def weights(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def given(
    text: str, backend: str, grads: Stream, params: Mapping[str, Any] | None = None, inputs: Mapping[str, list] | None = None, lr: float = 0.1
) -> list[Given]:
    steps = [Step(g, {name: values[t] for name, values in (inputs or {}).items()}) for t, g in enumerate(grads)]
    shapes = {name: g.shape for name, g in grads[0].items()}
    return run(updsl.parse(text, **(params or {})), backend, weights(shapes), steps, lr)


def outs(*args: Any, **more: Any) -> Stream:
    return [step.out for step in given(*args, **more)]


def check(found: Stream, expected: Iterator[dict[str, np.ndarray]] | Stream) -> None:
    for t, (out, want) in enumerate(zip(found, expected, strict=True), start=1):
        for name in want:
            assert distance(out[name], want[name]) <= TOLERANCE, f"step {t}, {name}"


# --- the parts of the references -------------------------------------------------------------------------------------


def total(g: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(x * x) for x in g.values())))


def matrix(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1)


def over(x: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x / size, 0 where size is."""
    return np.where(size == 0, 0, x / np.where(size == 0, 1, size))


def norm_columns(x: np.ndarray) -> np.ndarray:
    return over(matrix(x), np.sqrt((matrix(x) ** 2).sum(0, keepdims=True))).reshape(x.shape)


def shrink(x: np.ndarray, measure: float, bound: float) -> np.ndarray:
    return x * (bound / measure) if measure > bound else x


class Ema:
    def __init__(self, beta: float = 0.9, debias: bool = True):
        self.beta, self.debias, self.m, self.t = beta, debias, 0.0, 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = self.beta * self.m + (1 - self.beta) * g
        return self.m / (1 - self.beta**self.t) if self.debias else self.m


class Adam:
    def __init__(self, eps: float = 1e-8):
        self.m, self.v, self.eps = Ema(0.9), Ema(0.999), eps

    def __call__(self, g: np.ndarray) -> np.ndarray:
        return self.m(g) / (np.sqrt(self.v(g * g)) + self.eps)


# --- each rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", HEADLINE, ids=["letters", "ASCII"])
def test_the_headline(text, backend) -> None:
    averages = {name: Ema() for name in SHAPES}

    def clipped(x):
        z = np.abs(x - x.mean()) / x.std() if x.std() > 0 else np.zeros(x.shape)
        return x.mean() + (x - x.mean()) * np.where(z > 2.5, 2.5 / np.where(z > 0, z, 1), 1)

    grads = stream()
    grads[2]["body.weight"][0, 0] = 500.0
    check(outs(text, backend, grads), ({n: averages[n](clipped(norm_columns(x))) for n, x in g.items()} for g in grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_norm(backend) -> None:
    grads = stream()
    out = outs(TEXTS["clip_norm"], backend, grads, {"c": 2.0})
    check(out, ({n: shrink(x, total(g), 2.0) for n, x in g.items()} for g in grads))
    for g, o in zip(grads, out, strict=True):
        assert total(o) <= 2.0 * (1 + TOLERANCE)
        if total(g) <= 2.0:
            assert all(np.array_equal(g[n], o[n]) for n in g)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autoclip(backend) -> None:
    norms: list[float] = []

    def expected(g):
        norms.append(total(g))
        return {n: shrink(x, norms[-1], float(np.quantile(norms[-5:], 0.3))) if norms[-1] else x for n, x in g.items()}

    grads = stream()
    check(outs(TEXTS["autoclip"], backend, grads, {"p": 0.3, "window": 5}), map(expected, grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkgd(backend) -> None:
    def expected(x):
        y = matrix(x)
        for _ in range(5):
            y = over(y, np.sqrt((y**2).mean(1, keepdims=True)))
            y = over(y, np.sqrt((y**2).mean(0, keepdims=True)))
        return y.reshape(x.shape)

    grads = stream()
    out = outs(TEXTS["sinkgd"], backend, grads)
    check(out, ({n: expected(x) for n, x in g.items()} for g in grads))
    columns = matrix(out[0]["body.weight"])
    assert np.allclose((columns**2).mean(0), 1, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("debias", [True, False])
def test_ema(backend, debias) -> None:
    averages = {name: Ema(0.7, debias) for name in SHAPES}
    grads = stream()
    check(outs(TEXTS["ema"], backend, grads, {"beta": 0.7, "debias": debias}), ({n: averages[n](x) for n, x in g.items()} for g in grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam(backend) -> None:
    methods = {name: Adam() for name in SHAPES}
    grads = stream()
    out = outs(TEXTS["adam"], backend, grads)
    check(out, ({n: methods[n](x) for n, x in g.items()} for g in grads))
    assert all(np.abs(o[n]).max() <= 1 for o in out[:1] for n in o)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw(backend) -> None:
    methods, w, lr = {name: Adam() for name in SHAPES}, weights(), 0.1
    grads = stream()
    for step, g in zip(given(TEXTS["adamw"], backend, grads, lr=lr), grads, strict=True):
        before = dict(w)
        w = {n: x - lr * (methods[n](g[n]) + 0.01 * x) for n, x in w.items()}
        check([step.w, step.out], [w, {n: before[n] - w[n] for n in w}])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale(backend) -> None:
    head, bias = Ema(0.9, debias=False), Adam()

    def expected(name, x):
        return norm_columns(head(x)) if "lm_head" in name else bias(x) if x.ndim < 2 else norm_columns(x)

    grads = stream()
    check(outs(TEXTS["scale"], backend, grads), ({n: expected(n, x) for n, x in g.items()} for g in grads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adagc(backend) -> None:
    bound = dict.fromkeys(SHAPES, np.inf)

    def expected(t, g):
        found = {}
        for name, x in g.items():
            y = shrink(x, total(g), 1.0) if t <= 4 else shrink(x, total({"": x}), 1.05 * bound[name])
            n = total({"": y})
            bound[name] = min(bound[name], n) if t <= 4 or bound[name] == np.inf else 0.98 * bound[name] + 0.02 * n
            found[name] = y
        return found

    grads = stream()
    check(outs(TEXTS["adagc"], backend, grads, {"warmup": 4}), (expected(t, g) for t, g in enumerate(grads, start=1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthogonalize(backend) -> None:
    def expected(x):
        y = matrix(x)
        tall = y.shape[0] > y.shape[1]
        y = y.T if tall else y
        y = y / (np.linalg.norm(y) + 1e-7)
        for _ in range(5):
            a = y @ y.T
            y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
        return (y.T if tall else y).reshape(x.shape)

    grads = stream()
    out = outs(TEXTS["orthogonalize"], backend, grads)
    check(out, ({n: expected(x) for n, x in g.items()} for g in grads))
    assert 0.5 < np.linalg.svd(out[0]["body.weight"], compute_uv=False).min() < np.linalg.svd(out[0]["body.weight"], compute_uv=False).max() < 1.3


@pytest.mark.parametrize("backend", BACKENDS)
def test_galore(backend) -> None:
    basis: dict[str, np.ndarray] = {}
    methods = {name: Adam() for name in SHAPES}

    def signed(u):
        return u * np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])

    def expected(t, g):
        found = {}
        for name, x in g.items():
            if t % 5 == 1:
                u, s, _ = np.linalg.svd(matrix(x), full_matrices=False)
                basis[name] = signed(u[:, :2]) * (s[:2] > 1e-12 * s[0])
            found[name] = (0.25 * basis[name] @ methods[name](basis[name].T @ matrix(x))).reshape(x.shape)
        return found

    grads = stream()
    check(outs(TEXTS["galore"], backend, grads, {"rank": 2, "gap": 5}), (expected(t, g) for t, g in enumerate(grads, start=1)))


def samples_of(shapes: Mapping[str, tuple[int, ...]], steps: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{name: rng.normal(size=(2 + t, *shape)) for name, shape in shapes.items()} for t in range(steps)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dp_sgd_without_noise(backend) -> None:
    samples = samples_of(SHAPES, 4)
    samples[1] = {n: 1e-3 * s for n, s in samples[1].items()}

    def expected(step):
        sizes = np.sqrt(sum((s.reshape(len(s), -1) ** 2).sum(1) for s in step.values()))
        factor = np.where(sizes > 1.5, 1.5 / sizes, 1)
        return {n: (s * factor.reshape(-1, *[1] * (s.ndim - 1))).mean(0) for n, s in step.items()}

    means = [{n: s.mean(0) for n, s in step.items()} for step in samples]
    check(outs(TEXTS["dp_sgd"], backend, means, {"noise": 0.0, "max_norm": 1.5}, {"samples": samples}), map(expected, samples))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dp_sgd_adds_noise_of_its_scale(backend) -> None:
    shapes = {"w": (100, 100)}
    samples = samples_of(shapes, 3)
    means = [{n: s.mean(0) for n, s in step.items()} for step in samples]
    noisy, plain = (outs(TEXTS["dp_sgd"], backend, means, {"noise": noise}, {"samples": samples}) for noise in (2.0, 0.0))
    draws = [a["w"] - b["w"] for a, b in zip(noisy, plain, strict=True)]
    for step, draw in zip(samples, draws, strict=True):
        assert abs(draw.std() / (2.0 / len(step["w"])) - 1) < 0.05
        assert abs(draw.mean()) < 5 * draw.std() / 100
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.05


def test_both_backends_draw_the_same() -> None:
    samples = samples_of(SHAPES, 3)
    means = [{n: s.mean(0) for n, s in step.items()} for step in samples]
    assert furthest(*(given(TEXTS["dp_sgd"], backend, means, {}, {"samples": samples}) for backend in ("torch", "interpret")))[0] <= TOLERANCE


# --- the laws of the definition, on the rules that keep them ---------------------------------------------------------


def scaled(grads: Stream, k: float) -> Stream:
    return [{n: k * x for n, x in g.items()} for g in grads]


def moved(grads: Stream, matrices: Mapping[str, np.ndarray]) -> Stream:
    return [{n: (matrices[n] @ matrix(x)).reshape(x.shape) for n, x in g.items()} for g in grads]


ODD = ("clip_norm", "autoclip", "sinkgd", "ema", "adam", "adagc", "orthogonalize")
SCALE_FREE = ("sinkgd",)
EQUIVARIANT = ("autoclip", "ema")
TURNED = ("clip_norm", "autoclip", "ema", "adagc", "orthogonalize")
ANY_ORDER = (*TURNED, "sinkgd", "adam", "scale")


@pytest.mark.parametrize("backend", BACKENDS)
class TestLaws:
    @pytest.mark.parametrize("rule", ODD)
    def test_odd(self, rule, backend) -> None:
        """rule(-g) == -rule(g)"""
        check(outs(TEXTS[rule], backend, scaled(stream(), -1)), scaled(outs(TEXTS[rule], backend, stream()), -1))

    @pytest.mark.parametrize("k", [1e-3, 0.37, 1e3])
    @pytest.mark.parametrize("rule", SCALE_FREE)
    def test_scale(self, rule, k, backend) -> None:
        """rule(k*g) == rule(g)"""
        check(outs(TEXTS[rule], backend, scaled(stream(), k)), outs(TEXTS[rule], backend, stream()))

    @pytest.mark.parametrize("k", [1e-3, 1e3])
    @pytest.mark.parametrize("rule", EQUIVARIANT)
    def test_equivariance(self, rule, k, backend) -> None:
        """rule(k*g) == k*rule(g)"""
        check(outs(TEXTS[rule], backend, scaled(stream(), k)), scaled(outs(TEXTS[rule], backend, stream()), k))

    @pytest.mark.parametrize("rule", TURNED)
    def test_turn(self, rule, backend) -> None:
        """rule(q @ g) == q @ rule(g) for q orthogonal"""
        rng = np.random.default_rng(1)
        q = {n: np.linalg.qr(rng.normal(size=(s[0], s[0])))[0] for n, s in SHAPES.items()}
        check(outs(TEXTS[rule], backend, moved(stream(), q)), moved(outs(TEXTS[rule], backend, stream()), q))

    @pytest.mark.parametrize("rule", ANY_ORDER)
    def test_perm(self, rule, backend) -> None:
        """rule(p @ g) == p @ rule(g) for p permutation"""
        rng = np.random.default_rng(2)
        p = {n: np.eye(s[0])[rng.permutation(s[0])] for n, s in SHAPES.items()}
        check(outs(TEXTS[rule], backend, moved(stream(), p)), moved(outs(TEXTS[rule], backend, stream()), p))

    @pytest.mark.parametrize("text", [TEXTS["clip_norm"], "norm per column\n", "clip abs > 1\n"])
    def test_twice(self, text, backend) -> None:
        """rule(rule(g)) == rule(g)"""
        once = outs(text, backend, stream())
        check(outs(text, backend, once), once)

    def test_late(self, backend) -> None:
        """norm(out) <= 3*norm(g) per all, with warmup = 2"""
        grads = stream()
        for g, o in zip(grads, outs(TEXTS["adagc"], backend, grads, {"warmup": 2}), strict=True):
            assert total(o) <= 3 * total(g)

    def test_worked_examples(self, backend) -> None:
        """[[3, 4]] gives [[0.6, 0.8]] · (beta = 0.9, debias = false): [1]; [1] gives [0.1]; [0.19]"""
        check(outs("norm\n", backend, [{"x": np.array([[3.0, 4.0]])}]), [{"x": np.array([[0.6, 0.8]])}])
        ones = [{"x": np.array([1.0])}] * 2
        check(outs(TEXTS["ema"], backend, ones, {"beta": 0.9, "debias": False}), [{"x": np.array([0.1])}, {"x": np.array([0.19])}])


def test_a_law_that_is_not_true_is_seen() -> None:
    with pytest.raises(AssertionError):
        TestLaws().test_scale("clip_norm", 1e-3, "interpret")


LAWS = """rule clip_norm(c = 1) = clip norm > c per all
law bounded: norm(out) <= c per all
law idle:    norm(g) <= c per all implies out == g
law odd:     rule(-g) == -rule(g)
law scale:   rule(k*g) == rule(g) for k in [1e-3, 1e3]
law turn:    rule(q @ g) == q @ rule(g) for q orthogonal
law perm:    rule(p @ g) == p @ rule(g) for p permutation
law twice:   rule(rule(g)) == rule(g)
example: [[3, 4]] gives [[0.6, 0.8]]

rule ema(beta = 0.9, debias = true):
    state m = 0
    m ← beta*m + (1 - beta)*g
    return if debias then m / (1 - beta^t) else m
example(beta = 0.9, debias = false): [1]; [1] gives [0.1]; [0.19]

rule adagc(warmup = 100) = if t <= warmup then (clip norm > 1 per all) else (clip norm > 2 per tensor)
law late(warmup = 2): norm(out) <= 3*norm(g) per all
"""


def test_the_laws_of_the_definition_are_read() -> None:
    assert updsl.parse(LAWS, name="clip_norm").name == "clip_norm"
