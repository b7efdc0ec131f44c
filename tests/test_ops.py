"""Every op of the table against a statement of its meaning in plain Python, on edge values. A new row without a statement here fails."""

import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updsl.core import numeric
from updsl.core.ops import OPS, REDUCTIONS
from updsl.front.statics import EXACT, fold

NAN, INF = math.nan, math.inf
TINY, SMALLEST, HUGE = 5e-324, 2.2250738585072014e-308, 1.7e308
EDGES = [NAN, INF, -INF, 0.0, -0.0, TINY, -TINY, SMALLEST, -SMALLEST, 1e-160, -1e160, HUGE, -HUGE, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.25, 0.1, 1e17]
BOTH = [False, True]


@pytest.fixture(autouse=True)
def _ieee():
    """Exceptions of IEEE 754 give their values silently, as in the interpreter."""
    with np.errstate(all="ignore"):
        yield


# --- elementwise: one number, or a few, to one -----------------------------------------------------------------------


def nan_in(f):
    """f, with NaN where an argument is NaN."""
    return lambda *x: NAN if any(map(math.isnan, x)) else f(*x)


def or_else(f, overflow=None, domain=NAN):
    """f, with a value where Python raises instead."""

    def total(*x):
        try:
            return f(*x)
        except OverflowError:
            return overflow(*x)
        except (ValueError, ZeroDivisionError):
            return domain(*x) if callable(domain) else domain

    return total


def quotient(x, y):
    if y != 0:
        return x / y
    return NAN if x == 0 else math.copysign(INF, x) * math.copysign(1, y)


def is_odd(y):
    return math.isfinite(y) and y == int(y) and int(y) % 2 == 1


def root_or_power(x, y):
    """x^y where Python's own raises: 0 to a negative power, or a negative number to a fraction."""
    if x != 0:
        return NAN
    return math.copysign(INF, x) if is_odd(y) else INF


def remainder(x, y):
    """x - y·floor(x / y), exactly."""
    if math.isinf(x) or y == 0:
        return NAN
    if math.isinf(y):
        return x if x == 0 or (x > 0) == (y > 0) else y
    a, b = Fraction(x), Fraction(y)
    return float(a - b * math.floor(a / b))


def half_to_even(x):
    return float(round(x)) if math.isfinite(x) else x


ELEMENTWISE = {
    "neg": lambda x: -x,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": nan_in(quotient),
    "pow": nan_in(or_else(math.pow, lambda x, y: -INF if x < 0 and is_odd(y) else INF, root_or_power)),
    "minimum": nan_in(min),
    "maximum": nan_in(max),
    "clamp": nan_in(lambda x, lo, hi: hi if lo > hi or x > hi else lo if x < lo else x),
    "mod": nan_in(remainder),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "and": lambda x, y: x and y,
    "or": lambda x, y: x or y,
    "not": lambda x: not x,
    "isfinite": math.isfinite,
    "select": lambda c, x, y: x if c else y,
    "average": lambda b, m, c, x: b * m + c * x,
    "abs": abs,
    "sign": nan_in(lambda x: float((x > 0) - (x < 0))),
    "sqrt": or_else(math.sqrt),
    "exp": or_else(math.exp, lambda x: INF),
    "log": lambda x: -INF if x == 0 else or_else(math.log)(x),
    "tanh": math.tanh,
    "sigmoid": lambda x: (1 + math.tanh(x / 2)) / 2,
    "sin": or_else(math.sin),
    "cos": or_else(math.cos),
    "floor": lambda x: float(math.floor(x)) if math.isfinite(x) else x,
    "round": half_to_even,
    "atan2": math.atan2,
}


INEXACT = {"pow", "exp", "log", "tanh", "sigmoid", "sin", "cos", "atan2"}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "elementwise"])
def test_elementwise(name):
    op = OPS[name]
    choices = [BOTH if op.conditions or (name == "select" and a == "c") else EDGES for a in op.args]
    points = list(itertools.product(*choices))
    found = op.reference(*(np.array(column) for column in zip(*points, strict=True)))
    expected = np.array([ELEMENTWISE[name](*p) for p in points])
    assert found.dtype == (bool if op.boolean else np.float64)
    if name in INEXACT:
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-16)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "elementwise" and not op.boolean and op.name != "select"])
def test_nan_in_gives_nan(name):
    op = OPS[name]
    for i, other in itertools.product(range(len(op.args)), [0.0, 1.0, INF]):
        assert np.isnan(op.reference(*(np.float64(NAN if j == i else other) for j in range(len(op.args)))))


@pytest.mark.parametrize("name", EXACT)
def test_constants_are_folded_to_the_bit(name):
    for x in itertools.product(EDGES, repeat=len(OPS[name].args)):
        found, expected = fold(name, *x), OPS[name].reference(*map(np.float64, x))
        assert type(found) is (bool if OPS[name].boolean else float)
        assert np.float64(found).tobytes() == np.float64(expected).tobytes() or (np.isnan(found) and np.isnan(expected))


def test_signs_of_zero():
    zero = np.array(0.0)
    assert OPS["div"].reference(np.array(1.0), -zero) == -INF
    assert np.signbit(OPS["neg"].reference(zero))
    assert not np.signbit(OPS["abs"].reference(-zero))
    assert OPS["sign"].reference(-zero) == 0


# --- reductions: the cells on the last axis --------------------------------------------------------------------------

CELLS = [
    [],
    [3.0],
    [-3.0, 4.0],
    [1.0, 2.0, 4.0, 8.0],
    [0.0, 0.0, 0.0],
    [-0.0],
    [2.0, 2.0, -2.0],
    [0.1] * 4,
    [1e200, -1e200, 3e200],
    [1e-200, 2e-200],
    [TINY, TINY],
    [1e-320, -3e-320, 0.0],
    [HUGE],
    [1e300, 1e-300, 0.0],
    [1.0, 1e-9, 1e9],
    [NAN],
    [1.0, NAN, 3.0],
    [NAN, INF],
    [INF, 1.0],
    [-INF, 5.0, 7.0],
    [INF, -INF],
    [INF, INF],
    [5.0, -INF, INF, 0.0],
]


def exactly(f):
    """f of the numbers as decimals of 60 digits, that neither overflow nor underflow; where a cell is not finite, what `limit` says."""

    def rounded(x, *static):
        with localcontext() as c:
            c.prec, c.Emin, c.Emax = 60, -(10**6), 10**6
            return float(f([Decimal(v) for v in x], *static))

    return rounded


def finite_or(limit):
    """The function, or limit(x) where a cell is infinite; NaN where one is NaN."""

    def decorate(f):
        def total(x, *static):
            if any(map(math.isnan, x)):
                return NAN
            return f(x, *static) if all(map(math.isfinite, x)) else limit(x)

        return total

    return decorate


def signed_infinity(x):
    return NAN if INF in x and -INF in x else INF if INF in x else -INF


def always(value):
    return lambda x: value


def none_is_nan(f):
    return lambda x, *static: f(x, *static) if len(x) else NAN


@finite_or(signed_infinity)
@exactly
def total(x):
    return sum(x, Decimal(0))


@none_is_nan
@finite_or(signed_infinity)
@exactly
def average(x):
    return sum(x) / len(x)


@finite_or(always(INF))
@exactly
def length(x, p=2):
    if p == 2:
        return sum((v * v for v in x), Decimal(0)).sqrt()
    return sum((abs(v) ** Decimal(p) for v in x if v), Decimal(0)) ** (1 / Decimal(p)) if any(x) else 0


@none_is_nan
@finite_or(always(INF))
@exactly
def root_mean_square(x):
    return (sum(v * v for v in x) / len(x)).sqrt()


@none_is_nan
@finite_or(always(NAN))
def variance(x, root=False):
    x = [Fraction(v) for v in x]
    value = sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x)
    with localcontext() as c:
        c.prec, c.Emin, c.Emax = 60, -(10**6), 10**6
        value = Decimal(value.numerator) / Decimal(value.denominator)
        return float(value.sqrt() if root else value)


def at_fraction(x, q):
    """The line through the points (i / (n - 1), i-th smallest), at q."""
    if not x or any(map(math.isnan, [*x, q])) or not 0 <= q <= 1:
        return NAN
    s = sorted(x)
    at = q * (len(s) - 1)
    low = int(at)
    if at == low or s[low] == s[low + 1]:
        return s[low]
    return s[low] * (low + 1 - at) + s[low + 1] * (at - low)


def inner(x, y):
    """The sum of the products, as they come."""
    s = 0.0
    for a, b in zip(x, y, strict=True):
        s += a * b
    return s


def angle(x, y):
    """The inner product of the unit vectors; of a zero vector 0."""
    a, b = length(x), length(y)
    if (a == 0 and not math.isnan(b)) or (b == 0 and not math.isnan(a)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return NAN
    with localcontext() as c:
        c.prec, c.Emin, c.Emax = 60, -(10**6), 10**6
        x, y = [Decimal(v) for v in x], [Decimal(v) for v in y]
        return float(sum(u * v for u, v in zip(x, y, strict=True)) / (sum(u * u for u in x) * sum(v * v for v in y)).sqrt())


def plain(f):
    """f of the numbers; NaN where one is, and where there are none."""
    return lambda x: f(x) if len(x) and not any(map(math.isnan, x)) else NAN


REDUCED = {
    "sum": total,
    "mean": average,
    "norm": length,
    "rms": root_mean_square,
    "var": variance,
    "std": lambda x: variance(x, True),
    "min": plain(min),
    "max": plain(max),
    "absmax": plain(lambda x: max(map(abs, x))),
    "median": lambda x: at_fraction(x, 0.5),
    "quantile": at_fraction,
    "dot": inner,
    "cosine": angle,
    "count": lambda c: float(sum(c)),
    "any": any,
}
FRACTIONS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0, -0.1, 1.1, NAN]


def operands(name):
    """Operands of a reduction: lists of cells, and a number for each `numbers` operand."""
    if OPS[name].conditions:
        return [([],), ([True],), ([False],), ([True, False, True],), ([False, False],)]
    if OPS[name].numbers:
        return [(x, q) for x in CELLS for q in FRACTIONS]
    if len(OPS[name].args) == 2:
        return [(x, y) for x in CELLS for y in CELLS if len(x) == len(y)]
    return [(x,) for x in CELLS]


def close(found, expected, scale):
    """Equal to rounding, relative to the result, and to the largest cell where the result is a difference of them."""
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=scale * 1e-15)


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "reduction"])
def test_reduction(name):
    for case in operands(name):
        found = OPS[name].reference(*(np.array(x, bool if OPS[name].conditions else float) for x in case))
        scale = max((abs(v) for v in case[0] if math.isfinite(v)), default=0) if name in ("sum", "mean", "std", "quantile", "median") else 0
        close(found, REDUCED[name](*case), scale)


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_reduction_of_each_row(name):
    """Leading axes are kept: each row is reduced on its own, with its own number."""
    for case in operands(name):
        x = [np.array(v, bool if OPS[name].conditions else float) for v in case]
        rows = [np.stack([v, v]) for v in x]
        found = OPS[name].reference(*rows)
        assert found.shape == (2,)
        np.testing.assert_array_equal(found, np.stack([OPS[name].reference(*x)] * 2))


NUMBERS = st.lists(st.floats(-1e150, 1e150) | st.sampled_from([0.0, 1.0, -1.0, NAN, INF, -INF]), min_size=1, max_size=9)


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "reduction" and not op.conditions])
@given(x=NUMBERS, y=NUMBERS, q=st.floats(0, 1))
def test_reduction_of_drawn_cells(name, x, y, q):
    """To rounding: of the result, or of the sums that it is the difference of."""
    n = min(len(x), len(y))
    case = (x, q) if OPS[name].numbers else (x[:n], y[:n]) if len(OPS[name].args) == 2 else (x,)
    with np.errstate(all="ignore"):
        found = OPS[name].reference(*map(np.array, case))
    most = [max((abs(v) for v in c if math.isfinite(v)), default=0.0) for c in (x, y)]
    scale = {"var": most[0] ** 2, "dot": most[0] * most[1], "cosine": 1.0, "norm": 0, "rms": 0}.get(name, most[0])
    np.testing.assert_allclose(found, REDUCED[name](*case), rtol=1e-13, atol=scale * 1e-14 + SMALLEST)


@pytest.mark.parametrize("p", [1, 1.5, 3, 4, 0.5, 100, 1000])
def test_norm_of_other_powers(p):
    for x in CELLS:
        close(numeric.norm(np.array(x), p), length(x, p), 0)


def test_norm_of_limiting_powers():
    x = np.array([[3.0, -4.0, 0.0], [1e-200, 2e-200, -5e-200]])
    np.testing.assert_array_equal(numeric.norm(x, INF), [4, 5e-200])
    np.testing.assert_array_equal(numeric.norm(x, -INF), [0, 1e-200])
    np.testing.assert_array_equal(numeric.norm(x, 0), [2, 3])
    np.testing.assert_allclose(numeric.norm(x, -1), [0, 1e-200 / (1 + 0.5 + 0.2)], rtol=1e-14)
    for p in (INF, -INF, 0, -1, 2):
        assert np.isnan(numeric.norm(np.array([1.0, NAN]), p))


# --- selection -------------------------------------------------------------------------------------------------------


def chosen(x, k, percent):
    """Walk from the largest magnitude, NaN first and the lower index first of equals, until k of them (or the fraction k, rounded up) are taken."""
    if math.isnan(k):
        return [False] * len(x)
    part = (percent or k < 1) and math.isfinite(k)
    wanted = math.ceil(Fraction(k).limit_denominator(10**9) * len(x)) if part else math.floor(k) if math.isfinite(k) else k
    order = sorted(range(len(x)), key=lambda i: (not math.isnan(x[i]), -abs(x[i]) if not math.isnan(x[i]) else 0, i))
    return [order.index(i) < wanted for i in range(len(x))]


SELECTED = {"largest": chosen}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "selection"])
@pytest.mark.parametrize("percent", BOTH)
def test_selection(name, percent):
    tied = [2.0, -3.0, 3.0, 0.0, -0.0, NAN, INF, -INF, 3.0, NAN]
    for x, k in itertools.product([*CELLS, tied], [0.0, 0.07, 0.1, 0.25, 0.3, 0.5, 1.0, 2.0, 2.7, 100.0, INF, -1.0, NAN]):
        found = OPS[name].reference(np.array(x), np.array(k), percent=percent)
        assert found.tolist() == SELECTED[name](x, k, percent), (x, k)


def test_fraction_rounded_up_is_of_the_number_meant():
    """7 % of 100 are 7, although the floating-point product is above 7."""
    assert numeric.largest(np.arange(100.0), np.array(0.07)).sum() == 7


# --- samples, draws --------------------------------------------------------------------------------------------------

SAMPLED = {
    "sample_sum": lambda columns: [math.fsum(c) for c in columns],
    "sample_mean": lambda columns: [math.fsum(c) / len(c) if c else NAN for c in columns],
}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "samples"])
def test_samples(name):
    for batch in ([[1.0, -2.0], [3.0, 5.0], [NAN, 0.5]], [[1.0, 2.0]], []):
        x = np.array(batch, float).reshape(-1, 2)
        np.testing.assert_allclose(OPS[name].reference(x), SAMPLED[name]([list(c) for c in x.T]))


def unit(words):
    return Fraction(words[0] * 2**21 + words[1] // 2**11, 2**53)


DRAWN = {
    "gaussian": lambda words, std: std * math.sqrt(-2 * math.log1p(-float(unit(words[:2])))) * math.cos(2 * math.pi * float(unit(words[2:]))),
    "uniform": lambda words, lo, hi: float(Fraction(lo) + (Fraction(hi) - Fraction(lo)) * unit(words)),
    "bernoulli": lambda words, p: float(unit(words) < Fraction(p)),
}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "random"])
def test_random(name):
    words = np.array([[0, 0, 0, 0], [2**32 - 1] * 4, [2**31, 0, 2**30, 5], [123456789, 987654321, 5, 2**32 - 1]], np.uint32)
    for numbers in ((0.25, 2.0), (-1.0, 1e-3), (0.5, 0.5)):
        given = numbers[: len(OPS[name].args)]
        expected = [DRAWN[name](tuple(map(int, w)), *given) for w in words]
        np.testing.assert_allclose(OPS[name].reference(words, *map(np.float64, given)), expected, rtol=1e-13, atol=1e-15)
        unknown = OPS[name].reference(words, *(np.float64(NAN) for _ in given))
        assert not unknown.any() if name == "bernoulli" else np.isnan(unknown).all()


# --- matrix functions ------------------------------------------------------------------------------------------------


def matrix(r, c, rank=None, seed=0):
    """A matrix of singular values rank, rank - 1, …, 1."""
    rng = np.random.default_rng([r, c, seed])
    rank = min(r, c) if rank is None else rank
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank] for n in (r, c))
    return (u * np.arange(rank, 0, -1)) @ v.T


GRIDS = [(1, 1), (1, 4), (4, 1), (3, 3), (3, 5), (5, 3)]
MATRICES = [matrix(r, c) for r, c in GRIDS] + [matrix(4, 5, rank=2), np.zeros((3, 2)), 1e-70 * matrix(3, 4), 1e70 * matrix(4, 3)]


def times(x, y):
    return [[math.fsum(x[i, k] * y[k, j] for k in range(x.shape[1])) for j in range(y.shape[1])] for i in range(x.shape[0])]


def leading(x, k):
    """Eigenvectors of x·xᵀ, largest eigenvalue first, 0 beyond the rank; of each the first of the largest entries positive."""
    x = x / (np.abs(x).max() or 1)
    values, vectors = np.linalg.eigh(x @ x.T)
    k = min(k, *x.shape)
    columns = vectors[:, ::-1][:, :k] * (values[::-1][:k] > 1e-12)
    for column in columns.T:
        top = next(v for v in column if abs(v) >= (1 - 1e-9) * np.abs(column).max())
        column *= -1 if top < 0 else 1
    return columns


def nearest_orthogonal(x):
    """x·(xᵀ·x)^(-1/2) on the directions that x has."""
    x = x / (np.abs(x).max() or 1)
    values, v = np.linalg.eigh(x.T @ x)
    return x @ (v * [1 / math.sqrt(s) if s > 1e-12 else 0 for s in values]) @ v.T


def gram_schmidt(x):
    x = x / (np.abs(x).max() or 1)
    q = []
    for column in x.T[: min(x.shape)]:
        for _ in range(2):
            column = column - sum((u * (u @ column) for u in q), np.zeros(len(column)))
        q.append(column / np.linalg.norm(column))
    return np.array(q).T


def of_grid(f):
    return lambda x: [[f(x, i, j) for j in range(x.shape[1])] for i in range(x.shape[0])]


def shifted(x):
    """A symmetric matrix of x's rows, well away from singular."""
    x = x / (np.abs(x).max() or 1)
    return np.eye(len(x)) + x @ x.T


STATED = {
    "matmul": lambda x: (np.array(times(x, x.T)), (x, x.T)),
    "transpose": lambda x: ([[x[i, j] for i in range(x.shape[0])] for j in range(x.shape[1])], (x,)),
    "trace": lambda x: (math.fsum(x[i, i] for i in range(min(x.shape))), (x,)),
    "diag": lambda x: ([x[i, i] if i < x.shape[1] else 0.0 for i in range(x.shape[0])], (x,)),
    "eye": lambda x: (of_grid(lambda x, i, j: float(i == j))(x), (x,)),
    "rows": lambda x: (float(len(list(x))), (x,)),
    "cols": lambda x: (float(len(list(x[0]))), (x,)),
    "left_basis": lambda x: (leading(x, 2), (x,)),
    "right_basis": lambda x: (leading(x.T, 2), (x,)),
    "polar": lambda x: (nearest_orthogonal(x), (x,)),
    "orthonormal": lambda x: (gram_schmidt(x), (x,)) if np.linalg.matrix_rank(x) == min(x.shape) else None,
    "matrix_power": lambda x: (np.array(times(x @ x.T, x @ x.T)), (x @ x.T, np.float64(2))),
    "solve": lambda x: (x, (shifted(x), shifted(x) @ x)),
}
"""name → matrix ↦ (what the op gives, the operands it gives it for), or None where the meaning leaves a choice."""
STATIC = {"left_basis": {"k": 2}, "right_basis": {"k": 2}}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "matrix"])
def test_matrix_function(name):
    for x in MATRICES:
        stated = STATED[name](x)
        if stated is not None:
            expected, given = stated
            found = OPS[name].reference(*given, **STATIC.get(name, {}))
            assert np.shape(found) == np.shape(expected)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.max(np.abs(expected), initial=0))


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "matrix" and op.name not in ("transpose", "rows", "cols")])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_matrix_function_of_a_bad_entry(name, bad):
    x = np.eye(3) + np.arange(9.0).reshape(3, 3)
    x[1, 2] = bad
    others = {"matmul": (np.eye(3),), "solve": (np.eye(3),), "matrix_power": (np.float64(0.5),)}
    found = np.asarray(OPS[name].reference(x, *others.get(name, ()), **STATIC.get(name, {})))
    assert np.isnan(found).all()
    if name in ("matmul", "solve"):
        assert np.isnan(OPS[name].reference(np.eye(3), x)).all()


def test_matrix_powers():
    x = matrix(4, 4) @ matrix(4, 4).T
    half = numeric.matrix_power(x, np.array(0.5))
    np.testing.assert_allclose(half @ half, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(numeric.matrix_power(x, np.array(-1.0)) @ x, np.eye(4), atol=1e-11)
    np.testing.assert_allclose(numeric.matrix_power(x, np.array(0.0)), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(numeric.matrix_power(np.diag([4.0, -9.0]), np.array(0.5)), np.diag([2.0, 0.0]), atol=1e-15)
    assert np.isnan(numeric.matrix_power(x, np.array(NAN))).all()


def test_solve_of_a_singular_matrix():
    assert np.isnan(numeric.solve(np.ones((2, 2)), np.eye(2))).all()


def test_rank_deficient_directions_contribute_nothing():
    x = np.outer([3.0, 4.0], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(numeric.polar(x), np.outer([0.6, 0.8], [0, 1, 0]), atol=1e-15)
    np.testing.assert_allclose(numeric.left_basis(x, 2), [[0.6, 0], [0.8, 0]], atol=1e-15)
    assert not numeric.polar(np.zeros((2, 3))).any()


def test_orthonormal_has_orthonormal_columns_also_where_the_rank_is_less():
    for x in MATRICES:
        q = numeric.orthonormal(x)
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-12)


# --- rounding, and that nothing is left out --------------------------------------------------------------------------


def nearest_bfloat16(x):
    """By search: the nearest number with 8 significant bits, the one with an even last bit of two."""
    if not math.isfinite(x) or x == 0:
        return x
    e = max(math.frexp(x)[1] - 1, -126) - 7
    y = Fraction(x) / Fraction(2) ** e
    low = math.floor(y)
    n = low + (y - low > Fraction(1, 2) or (y - low == Fraction(1, 2) and low % 2 == 1))
    value = n * Fraction(2) ** e
    return math.copysign(INF, x) if abs(value) >= 2**128 else math.copysign(float(value), x)


def test_rounding_to_bfloat16():
    ties = [1 + k / 256 for k in range(6)] + [2.0**-133 * k / 2 for k in range(6)]
    top = [(2 - 2.0**-7) * 2.0**127, (2 - 2.0**-8) * 2.0**127, (2 - 2.0**-8) * 2.0**127 * (1 - 2.0**-50)]
    drawn = list(np.random.default_rng(0).standard_normal(200) * 10.0 ** np.random.default_rng(1).uniform(-45, 39, 200))
    x = np.array(EDGES + ties + [-v for v in ties] + top + [math.nextafter(v, INF) for v in ties] + drawn)
    np.testing.assert_array_equal(numeric.rounded(x, "bfloat16"), [nearest_bfloat16(v) for v in x])


def test_rounding_to_the_other_types():
    x = np.array([1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e39, -1e39, NAN, 2049.0, 2051.0, 65520.0, 65519.0, 1e-8])
    np.testing.assert_array_equal(numeric.rounded(x, "float32")[:4], [1, 1 + 2.0**-22, INF, -INF])
    np.testing.assert_array_equal(numeric.rounded(x, "float16")[4:], [NAN, 2048, 2052, INF, 65504, 0])
    for same in ("state", "weight", "float64", None):
        assert numeric.rounded(x, same) is x
    flags = np.array([True, False])
    assert numeric.rounded(flags, "bfloat16") is flags


def test_every_op_has_a_statement():
    """Those of kind core are stated in test_interpret.py."""
    stated = ELEMENTWISE.keys() | REDUCED.keys() | SELECTED.keys() | SAMPLED.keys() | DRAWN.keys() | STATED.keys()
    assert stated == {op.name for op in OPS.values() if op.kind != "core"}
