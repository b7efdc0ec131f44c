"""The op table: one row an op. Adding an op is adding a row.

`reference` is the meaning, in NumPy float64: elementwise ops take broadcast arrays; reductions reduce the *last* axis, which holds the cells;
selections keep it; matrix functions take one matrix (two axes); random draws take the words of rng.py before their operands.
`torch` is a template over tensors that holds the same meaning; where an op needs more than an expression, it is "" and the function of its name in back/torch_runtime.py is called.
`cpp` is one over numbers, with the functions of back/cpp_prelude.py; `triton` over blocks of them, with those of back/triton_prelude.py ("": not covered).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal


class Late:
    """A module of functions that is loaded when the first of them is called: texts are checked without NumPy, which takes as long as all else."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: list[Callable[..., Any]] = []

        def late(*args: Any, **static: Any) -> Any:
            if not found:
                found.append(getattr(import_module(self._module), name))
            return found[0](*args, **static)

        return late


if TYPE_CHECKING:
    import numpy as np

    from updsl.core import numeric, rng
else:
    np, numeric, rng = (Late(name) for name in ("numpy", "updsl.core.numeric", "updsl.core.rng"))

Units = Literal["same", "any-none", "none-none", "equal-none", "product", "quotient", "left-quotient", "power"]
"""How the unit of a result follows from those of the operands: "same": all are equal, and the result's; "…-none": the result has none, whatever the operands
have ("any"), if they have none either ("none"), or if theirs are equal ("equal"); the others combine them: "left-quotient" is the second over the first."""


@dataclass(frozen=True)
class Op:
    """name: of `Apply.op` or `Reduce.op`. args: names of its operands (expressions), in order. optional: those that may be left out in a text.
    text: how a text writes it, "call" (by name) or an infix template; "" where texts cannot write it. boolean: gives true or false.
    conditions: its operands must be boolean. numbers: those operands that are one number for each cell of the result (for a matrix
    function, for the matrix). units: how units combine (LANGUAGE.md §7)."""

    name: str
    args: tuple[str, ...]
    kind: Literal["elementwise", "reduction", "selection", "matrix", "samples", "random", "core"]
    doc: str
    reference: Callable[..., np.ndarray | float] | None
    text: str = "call"
    torch: str = ""
    cpp: str = ""
    triton: str = ""
    boolean: bool = False
    conditions: bool = False
    units: Units = "same"
    static: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


def _elementwise(name: str, args: str, doc: str, reference: Callable, torch: str, **more) -> Op:
    return Op(name, tuple(args.split()), "elementwise", doc, reference, torch=torch, **more)


# fmt: off
_ROWS = [
    # --- arithmetic ---
    _elementwise("neg", "x", "minus x", np.negative, "-{x}", text="-{x}", cpp="-{x}", triton="-{x}"),
    _elementwise("add", "x y", "x plus y", np.add, "{x} + {y}", text="{x} + {y}", cpp="{x} + {y}", triton="{x} + {y}"),
    _elementwise("sub", "x y", "x minus y", np.subtract, "{x} - {y}", text="{x} - {y}", cpp="{x} - {y}", triton="{x} - {y}"),
    _elementwise("mul", "x y", "x times y", np.multiply, "{x} * {y}", text="{x} * {y}", units="product", cpp="{x} * {y}", triton="{x} * {y}"),
    _elementwise("div", "x y", "x over y, as IEEE 754 has it at 0", numeric.divide, "{x} / {y}", text="{x} / {y}", units="quotient", cpp="{x} / {y}",
                 triton="divide({x}, {y})"),
    _elementwise("pow", "x y", "x to the power y", numeric.power, "", text="{x} ^ {y}", units="power", cpp="power({x}, {y})", triton="power({x}, {y})"),
    _elementwise("minimum", "x y", "the smaller; NaN if one is", np.minimum, "torch.minimum({x}, {y})", text="min({x}, {y})", cpp="smaller({x}, {y})",
                 triton="smaller({x}, {y})"),
    _elementwise("maximum", "x y", "the larger; NaN if one is", np.maximum, "torch.maximum({x}, {y})", text="max({x}, {y})", cpp="larger({x}, {y})",
                 triton="larger({x}, {y})"),
    _elementwise("clamp", "x lo hi", "x held between lo and hi; hi where lo > hi", lambda x, lo, hi: np.minimum(np.maximum(x, lo), hi),
                 "torch.minimum(torch.maximum({x}, {lo}), {hi})", cpp="smaller(larger({x}, {lo}), {hi})", triton="smaller(larger({x}, {lo}), {hi})"),
    _elementwise("mod", "a b", "remainder with the sign of b", numeric.mod, "", cpp="modulo({a}, {b})", triton="modulo({a}, {b})"),
    # --- comparison and choice ---
    _elementwise("lt", "x y", "x < y", np.less, "{x} < {y}", text="{x} < {y}", boolean=True, units="equal-none", cpp="{x} < {y}", triton="{x} < {y}"),
    _elementwise("le", "x y", "x ≤ y", np.less_equal, "{x} <= {y}", text="{x} <= {y}", boolean=True, units="equal-none", cpp="{x} <= {y}", triton="{x} <= {y}"),
    _elementwise("gt", "x y", "x > y", np.greater, "{x} > {y}", text="{x} > {y}", boolean=True, units="equal-none", cpp="{x} > {y}", triton="{x} > {y}"),
    _elementwise("ge", "x y", "x ≥ y", np.greater_equal, "{x} >= {y}", text="{x} >= {y}", boolean=True, units="equal-none", cpp="{x} >= {y}",
                 triton="{x} >= {y}"),
    _elementwise("eq", "x y", "x = y", np.equal, "{x} == {y}", text="{x} == {y}", boolean=True, units="equal-none", cpp="{x} == {y}", triton="{x} == {y}"),
    _elementwise("ne", "x y", "x ≠ y", np.not_equal, "{x} != {y}", text="{x} != {y}", boolean=True, units="equal-none", cpp="{x} != {y}", triton="{x} != {y}"),
    _elementwise("and", "x y", "both", np.logical_and, "{x} & {y}", text="{x} and {y}", boolean=True, conditions=True, units="any-none", cpp="{x} & {y}",
                 triton="{x} & {y}"),
    _elementwise("or", "x y", "one or both", np.logical_or, "{x} | {y}", text="{x} or {y}", boolean=True, conditions=True, units="any-none", cpp="{x} | {y}",
                 triton="{x} | {y}"),
    _elementwise("not", "x", "not x", np.logical_not, "~{x}", text="not {x}", boolean=True, conditions=True, units="any-none", cpp="!{x}", triton="{x} == 0"),
    _elementwise("isfinite", "x", "neither NaN nor infinite", np.isfinite, "torch.isfinite({x})", boolean=True, units="any-none", cpp="is_finite({x})",
                 triton="is_finite({x})"),
    _elementwise("select", "c x y", "x where c holds, else y; what is not selected does not leak", np.where, "torch.where({c}, {x}, {y})",
                 text="if {c} then {x} else {y}", cpp="{c} ? {x} : {y}", triton="tl.where({c}, {x}, {y})"),
    _elementwise("average", "b m c x", "b·m + c·x, where b + c = 1; in float32 m + c·(x - m), since b and c, each rounded, do not add up to 1", numeric.average, "",
                 text="core.average({b}, {m}, {c}, {x})", cpp="average({b}, {m}, {c}, {x})", triton="average({b}, {m}, {c}, {x})"),
    # --- functions ---
    _elementwise("abs", "x", "magnitude", np.abs, "torch.abs({x})", cpp="std::abs({x})", triton="tl.abs({x})"),
    _elementwise("sign", "x", "-1, 0 or 1; NaN at NaN", np.sign, "torch.where(torch.isnan({x}), {x}, torch.sign({x}))", units="any-none", cpp="sign({x})",
                 triton="sign({x})"),
    _elementwise("sqrt", "x", "square root; NaN below 0", numeric.sqrt, "torch.sqrt({x})", units="power", cpp="std::sqrt({x})", triton="root({x})"),
    _elementwise("exp", "x", "exponential", numeric.exp, "torch.exp({x})", units="none-none", cpp="std::exp({x})", triton="tl.exp({x})"),
    _elementwise("log", "x", "natural logarithm; NaN below 0", numeric.log, "torch.log({x})", units="none-none", cpp="std::log({x})", triton="tl.log({x})"),
    _elementwise("tanh", "x", "hyperbolic tangent; odd, between -1 and 1", np.tanh, "torch.tanh({x})", units="none-none", cpp="std::tanh({x})", triton="tanh({x})"),
    _elementwise("sigmoid", "x", "1 / (1 + exp(-x))", numeric.sigmoid, "torch.sigmoid({x})", units="none-none", cpp="1 / (1 + std::exp(-{x}))",
                 triton="sigmoid({x})"),
    _elementwise("sin", "x", "sine", numeric.sin, "torch.sin({x})", units="none-none", cpp="std::sin({x})", triton="tl.sin({x})"),
    _elementwise("cos", "x", "cosine", numeric.cos, "torch.cos({x})", units="none-none", cpp="std::cos({x})", triton="tl.cos({x})"),
    _elementwise("floor", "x", "largest integer not above x", np.floor, "torch.floor({x})", units="none-none", cpp="std::floor({x})", triton="tl.floor({x})"),
    _elementwise("round", "x", "nearest integer, halves to even", np.round, "torch.round({x})", units="none-none", cpp="std::nearbyint({x})", triton="nearest({x})"),
    _elementwise("atan2", "y x", "angle of the point (x, y)", np.arctan2, "torch.atan2({y}, {x})", units="equal-none", cpp="std::atan2({y}, {x})"),
    # --- reductions over the cells of the operand ---
    Op("sum", ("x",), "reduction", "sum", numeric.sum),
    Op("mean", ("x",), "reduction", "mean", numeric.mean),
    Op("norm", ("x",), "reduction", "p-norm, 2 unless given; neither overflows nor underflows unless the result does", numeric.norm, static=("p",)),
    Op("rms", ("x",), "reduction", "root of the mean square", numeric.rms),
    Op("var", ("x",), "reduction", "variance of the population", numeric.var, units="power"),
    Op("std", ("x",), "reduction", "root of the variance of the population", numeric.std),
    Op("min", ("x",), "reduction", "smallest", numeric.min),
    Op("max", ("x",), "reduction", "largest", numeric.max),
    Op("absmax", ("x",), "reduction", "largest magnitude", numeric.absmax),
    Op("median", ("x",), "reduction", "50 % quantile", numeric.median),
    Op("quantile", ("x", "q"), "reduction", "quantile, interpolated linearly", numeric.quantile, numbers=("q",)),
    Op("dot", ("x", "y"), "reduction", "sum of the products", numeric.dot, units="product"),
    Op("cosine", ("x", "y"), "reduction", "dot(x, y) / (norm(x)·norm(y)); 0 with a zero vector", numeric.cosine, units="any-none"),
    Op("count", ("c",), "reduction", "how many hold", numeric.count, conditions=True, units="any-none"),
    Op("any", ("c",), "reduction", "whether one holds", numeric.any, boolean=True, conditions=True, units="any-none"),
    # --- selection: static = (scope, percent) ---
    Op("largest", ("x", "k"), "selection", "true on the entries of largest magnitude of each cell: k of them, or the fraction k below 1; ties to the lower index; NaN is largest",
       numeric.largest, boolean=True, units="any-none", static=("scope", "percent"), numbers=("k",)),
    # --- samples: the leading dimension goes ---
    Op("sample_mean", ("x",), "samples", "mean over the samples", numeric.sample_mean),
    Op("sample_sum", ("x",), "samples", "sum over the samples; 0 over none", numeric.sample_sum),
    # --- matrix functions on the grid ---
    Op("matmul", ("x", "y"), "matrix", "matrix product", numeric.matmul, text="{x} @ {y}", units="product"),
    Op("transpose", ("x",), "matrix", "transposed", numeric.transpose, text="{x}.T"),
    Op("left_basis", ("x",), "matrix", "the k leading left singular vectors as columns, the entry of largest magnitude positive", numeric.left_basis, units="any-none", static=("k",)),
    Op("right_basis", ("x",), "matrix", "the k leading right singular vectors as columns, the entry of largest magnitude positive", numeric.right_basis, units="any-none", static=("k",)),
    Op("polar", ("x",), "matrix", "U·Vᵀ of the thin SVD: the nearest semi-orthogonal matrix", numeric.polar, units="any-none"),
    Op("orthonormal", ("x",), "matrix", "Q of the thin QR with positive diagonal of R", numeric.orthonormal, units="any-none"),
    Op("matrix_power", ("x", "a"), "matrix", "x^a of a symmetric positive semi-definite matrix", numeric.matrix_power, units="power", numbers=("a",)),
    Op("solve", ("a", "b"), "matrix", "a⁻¹·b; NaN where a is singular", numeric.solve, units="left-quotient"),
    Op("trace", ("x",), "matrix", "sum of the diagonal", numeric.trace),
    Op("diag", ("x",), "matrix", "the diagonal, a value per row", numeric.diag),
    Op("eye", ("x",), "matrix", "the identity of x's grid", numeric.eye, units="any-none"),
    Op("rows", ("x",), "matrix", "rows of x's grid", numeric.rows, units="any-none"),
    Op("cols", ("x",), "matrix", "columns of x's grid", numeric.cols, units="any-none"),
    # --- random draws: static = (key,), the place in the text with its instance; the cells of the type of the Apply (rng.py) ---
    Op("gaussian", ("std",), "random", "normal draw of mean 0", rng.gaussian),
    Op("uniform", ("lo", "hi"), "random", "uniform draw from [lo, hi)", rng.uniform),
    Op("bernoulli", ("p",), "random", "1 with probability p, else 0", rng.bernoulli, units="none-none"),
    # --- core: what elaboration makes ---
    Op("spread", ("x",), "core", "x as a value of the Apply's own (finer) type", None, text=""),
    Op("store", ("x",), "core", "x rounded to the type of a state (`state`), of the weight (`weight`) or a named dtype, spread to the Apply's type; `of` is the state, or w", None, text="", static=("dtype", "of")),
    Op("push", ("window", "x"), "core", "the window with x as its newest value, its oldest dropped when full", None, text="core.push({window}, {x})"),
    Op("empty", (), "core", "an empty window", None, text="core.empty"),
    Op("total", ("x",), "core", "what the ranks have of a reduction, made one by a collective: static = (how,)", None, text="core.total({x})", static=("how",)),
    Op("pooled", ("n", "mean", "x"), "core", "the variance over all ranks of their counts, means and variances", None, text="core.pooled({n}, {mean}, {x})"),
    Op("gathered", ("x",), "core", "x of the whole tensor, of which every rank has a part", None, text="core.gathered({x})"),
]
# fmt: on

OPS: dict[str, Op] = {op.name: op for op in _ROWS}
REDUCTIONS = frozenset(op.name for op in _ROWS if op.kind == "reduction")
