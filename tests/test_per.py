"""The laws of `per`, against loops over cells written by hand: on every scope, into rules and functions, and up to a nearer `per`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from agreement import Step, distance, engine_of, run

import updsl

BACKENDS = ("interpret", "torch")
SHAPES = {"one.scale": (), "two.bias": (7,), "three.weight": (4, 5), "four.conv": (2, 3, 2, 2), "five.weight": (4, 5)}
GROUPS = [{"params": ["three.weight", "two.bias"]}, {"params": ["four.conv"]}]
GROUP_OF = {"three.weight": 0, "two.bias": 0, "four.conv": 1, "one.scale": 2, "five.weight": 2}
SCOPES = ("row", "column", "block(1)", "block(3)", "block(4)", "block(100)", "tensor", "group", "all")
Cell = list[tuple[str, int]]
"""Entries, as the tensor's name and the place in row-major order."""

REDUCTIONS: dict[str, Callable[[np.ndarray], float]] = {
    "norm(g)": lambda x: float(np.sqrt(sum(v * v for v in x))),
    "norm(g, 1)": lambda x: sum(abs(v) for v in x),
    "norm(g, inf)": lambda x: max(abs(v) for v in x),
    "mean(g)": lambda x: sum(x) / len(x),
    "sum(g)": sum,
    "rms(g)": lambda x: float(np.sqrt(sum(v * v for v in x) / len(x))),
    "max(g)": max,
    "min(g)": min,
    "absmax(g)": lambda x: max(abs(v) for v in x),
    "median(g)": lambda x: float(np.median(x)),
    "quantile(g, 30%)": lambda x: float(np.quantile(x, 0.3)),
    "std(g)": lambda x: float(np.sqrt(sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x))),
    "var(g)": lambda x: sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x),
    "count(g > 0)": lambda x: sum(v > 0 for v in x),
    "any(g > 1)": lambda x: float(any(v > 1 for v in x)),
    "dot(g, g)": lambda x: sum(v * v for v in x),
    "cosine(g, -g)": lambda x: -1.0,
}


def gradients(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def cells(scope: str) -> Iterator[Cell]:
    """The cells of a scope, one entry after another: a row is an index of the first dimension, a column one of all the others together."""
    found: dict[object, Cell] = {}
    for name, shape in SHAPES.items():
        rows = shape[0] if shape else 1
        cols = int(np.prod(shape[1:]))
        for i in range(rows):
            for j in range(cols):
                at = i * cols + j
                size = int(scope[6:-1]) if scope.startswith("block") else 1
                key = {
                    "element": (name, at),
                    "row": (name, i),
                    "column": (name, j),
                    "block": (name, at // size),
                    "tensor": name,
                    "group": GROUP_OF[name],
                    "all": "",
                }[scope.split("(")[0]]
                found.setdefault(key, []).append((name, at))
    yield from found.values()


def spread(scope: str, g: dict[str, np.ndarray], of: Callable[[np.ndarray], float]) -> dict[str, np.ndarray]:
    """Every cell's number at each of its entries."""
    found = {name: np.zeros(x.size) for name, x in g.items()}
    for cell in cells(scope):
        value = of(np.array([g[name].ravel()[at] for name, at in cell]))
        for name, at in cell:
            found[name][at] = value
    return {name: x.reshape(SHAPES[name]) for name, x in found.items()}


def out(text: str, backend: str, g: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run(updsl.parse(text), backend, g, [Step(g)], 0.1, GROUPS)[0].out


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in SHAPES:
        assert distance(found[name], expected[name]) <= 1e-12, name


# --- every scope -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_reduction_runs_over_the_cells_of_its_scope(scope, backend) -> None:
    g = gradients()
    watch = run(updsl.parse(table(scope)), backend, g, [Step(g)], 0.1, GROUPS)[0]
    expected: dict[str, np.ndarray | float] = dict.fromkeys(SHAPES, 0.0)
    for i, f in enumerate(REDUCTIONS.values()):
        each = spread(scope, g, f)
        expected = {name: expected[name] + np.cos(i + each[name]) * 2.0**-i for name in SHAPES}
    same(watch.out, expected)


def table(scope: str) -> str:
    """A rule that adds up a function of every reduction, each with a weight of its own."""
    terms = [f"cos({i} + ({reduction} per {scope}))*{2.0**-i!r}" for i, reduction in enumerate(REDUCTIONS)]
    return f"rule r = g*0 + {' + '.join(terms)}\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_rule_norm_divides_each_cell_by_its_norm(scope, backend) -> None:
    g = gradients(1)
    g["three.weight"][1] = 0
    sizes = spread(scope, g, REDUCTIONS["norm(g)"])
    same(out(f"norm per {scope}\n", backend, g), {n: np.where(sizes[n] == 0, 0, g[n] / np.where(sizes[n] == 0, 1, sizes[n])) for n in SHAPES})


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_per_the_scope_is_the_tensor(backend) -> None:
    g = gradients(2)
    same(out("rule r = g / norm(g)\n", backend, g), out("rule r = g / norm(g) per tensor\n", backend, g))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_largest_are_taken_in_each_cell(scope, backend) -> None:
    g = gradients(3)
    expected = {name: np.zeros(x.size) for name, x in g.items()}
    for cell in cells(scope):
        for name, at in sorted(cell, key=lambda place: -abs(g[place[0]].ravel()[place[1]]))[:2]:
            expected[name][at] = g[name].ravel()[at]
    same(out(f"rule r = if (largest(g, 2) per {scope}) then g else 0\n", backend, g), {n: x.reshape(SHAPES[n]) for n, x in expected.items()})


# --- cells of cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("inner", "outer"), [("column", "all"), ("row", "tensor"), ("block(3)", "group"), ("tensor", "all"), ("tensor", "group"), ("group", "all")]
)
def test_a_reduction_runs_over_cells_not_entries(inner, outer, backend) -> None:
    """One number for each inner cell is added up, once."""
    g = gradients(4)
    first = list(cells(inner))
    norms = [REDUCTIONS["norm(g)"](np.array([g[n].ravel()[i] for n, i in cell])) for cell in first]
    whole = [dict.fromkeys(cell) for cell in cells(outer)]
    totals = [sum(v for v, cell in zip(norms, first, strict=True) if cell[0] in entries) for entries in whole]
    expected = {name: np.zeros(x.size) for name, x in g.items()}
    for total, entries in zip(totals, whole, strict=True):
        for name, at in entries:
            expected[name][at] = total
    same(out(f"rule r = g*0 + (sum(norm(g) per {inner}) per {outer})\n", backend, g), {n: x.reshape(SHAPES[n]) for n, x in expected.items()})


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_and_columns_meet_at_the_entry(backend) -> None:
    g = gradients(5)
    rows, cols = spread("row", g, sum), spread("column", g, sum)
    same(out("rule r = (sum(g) per row) * (sum(g) per column)\n", backend, g), {n: rows[n] * cols[n] for n in SHAPES})


# --- how far it reaches ----------------------------------------------------------------------------------------------

INTO_RULES = "rule inner = g / norm(g) - 0.1*mean(g)\nrule outer = inner\nrule r = outer per {scope}\n"
INTO_ARGUMENTS = "rule by(x) = g*x\nrule r = (g → by(norm(g) + mean(g))) per {scope}\n"
INTO_FUNCTIONS = "fn f(x) = x / norm(x)\nfn h(x) = f(x) - 0.1*mean(x)\nrule r = h(g) per {scope}\n"
INTO_PIPELINES = "rule inner = g / norm(g) - 0.1*mean(g)\nrule r = (it*2 → it / 2 → inner) per {scope}\n"
INTO_DEFAULTS = "fn h(x, n = norm(x), m = 0.1*mean(x)) = x / n - m\nrule r = h(g) per {scope}\n"
INTO_CHOICES = "rule r = if isfinite(g) then g / norm(g) - 0.1*mean(g) else 0 per {scope}\n"
PLAIN = "rule r = g / (norm(g) per {scope}) - 0.1*(mean(g) per {scope})\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "text", [INTO_RULES, INTO_FUNCTIONS, INTO_PIPELINES, INTO_DEFAULTS, INTO_CHOICES], ids=["rules", "functions", "pipelines", "defaults", "choices"]
)
def test_it_reaches_into(text, scope, backend) -> None:
    g = gradients(6)
    sizes, means = spread(scope, g, REDUCTIONS["norm(g)"]), spread(scope, g, REDUCTIONS["mean(g)"])
    same(out(text.format(scope=scope), backend, g), {n: g[n] / sizes[n] - 0.1 * means[n] for n in SHAPES})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_it_reaches_into_arguments(scope, backend) -> None:
    g = gradients(7)
    sizes, means = spread(scope, g, REDUCTIONS["norm(g)"]), spread(scope, g, REDUCTIONS["mean(g)"])
    same(out(INTO_ARGUMENTS.format(scope=scope), backend, g), {n: g[n] * (sizes[n] + means[n]) for n in SHAPES})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["row", "column", "block(4)", "group", "all"])
def test_a_nearer_one_wins(scope, backend) -> None:
    g = gradients(8)
    means = spread(scope, g, REDUCTIONS["mean(g)"])
    for near in ("row", "column", "tensor", "all"):
        sizes = spread(near, g, REDUCTIONS["norm(g)"])
        for text in (
            f"rule inner = g / (norm(g) per {near}) - mean(g)\nrule r = inner per {scope}\n",
            f"fn f(x) = x / (norm(x) per {near}) - mean(x)\nrule r = f(g) per {scope}\n",
        ):
            same(out(text, backend, g), {n: g[n] / sizes[n] - means[n] for n in SHAPES})


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_covers_the_expression_that_it_ends(backend) -> None:
    g = gradients(9)
    rows, tensors = spread("row", g, sum), spread("tensor", g, sum)
    same(out("rule r = g + sum(g) - 2*sum(g) per row\n", backend, g), {n: g[n] - rows[n] for n in SHAPES})
    same(out("rule r = g + sum(g) - (2*sum(g) per row)\n", backend, g), {n: g[n] + tensors[n] - 2 * rows[n] for n in SHAPES})
    same(out("rule r = max(sum(g) per row, sum(g))*1\n", backend, g), {n: np.maximum(rows[n], tensors[n]) for n in SHAPES})
    same(out("rule r = if sum(g) > 0 then sum(g) else -sum(g) per row\n", backend, g), {n: np.abs(rows[n]) for n in SHAPES})
    same(out("rule r = it + sum(it) per row → it + sum(it)\n", backend, g), {n: g[n] + rows[n] + (g[n] + rows[n]).sum() for n in SHAPES})


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_keep_the_scope_that_reached_them(backend) -> None:
    """A rule's state is one number for each cell of the scope under which it is applied."""
    g = gradients(10)
    for scope in ("row", "column", "block(3)", "tensor", "group", "all"):
        text = f"rule s = (rms(g) → ema(0.5)) per {scope}\nrule r = g*0 + s\n"
        given = run(updsl.parse(text), backend, g, [Step(g)], 0.1, GROUPS)
        kept = [x for (name, _), x in given[-1].states.items() if name.endswith("m")]
        assert sum(x.size for x in kept) == len(list(cells(scope)))


def test_a_vector_is_a_column_and_a_number_one_cell() -> None:
    g = gradients(11)
    for backend in BACKENDS:
        rows = out("norm per row\n", backend, g)
        assert np.allclose(np.abs(rows["two.bias"]), 1)
        assert abs(rows["one.scale"]) == 1
        assert np.allclose(np.linalg.norm(out("norm per column\n", backend, g)["two.bias"]), 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_an_arm_all_is_the_tensors_that_take_it(backend) -> None:
    g = gradients(12)
    found = out("rule r:\n    match:\n        ndim < 2: g / norm(g) per all\n        else:     g / norm(g) per group\n", backend, g)
    small = np.sqrt(sum((g[n] ** 2).sum() for n in ("one.scale", "two.bias")))
    for name in ("one.scale", "two.bias"):
        assert distance(found[name], g[name] / small) <= 1e-12
    for name in ("three.weight", "four.conv", "five.weight"):
        assert distance(found[name], g[name] / np.linalg.norm(g[name])) <= 1e-12


# --- where it has no meaning -----------------------------------------------------------------------------------------


REFUSED = (
    "rule r = g*0 + (mean(norm(g) per row) per column)\n",
    "rule r = mean(norm(g) per all)\n",
    "rule r = g*0 + (sum(sum(g) per block(2)) per block(3))\n",
    "rule r = it*2 per row\n",
    "rule r = g / (norm(g) per row) per column\n",
    "rule r = norm(g) → ema per all\n",
    "rule r = norm(g) per row per column\n",
    "rule r = norm(norm(g))\n",
)


@pytest.mark.parametrize("text", REFUSED)
def test_a_scope_that_nothing_can_take_is_refused(text) -> None:
    with pytest.raises(updsl.UpdslError):
        engine_of(updsl.parse(text), SHAPES)
