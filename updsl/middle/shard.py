"""Programs of which every rank runs a part: reductions over what lies on several ranks become what each rank has, and the collective that makes it one.

    norm(g) per all  →  n = norm(g);  total["norm 2"](n)

Reductions are monoids: sums add up; of magnitudes there is a largest; norms are norms of norms; variances are pooled. What is no monoid (quantiles,
`largest`, matrix functions) takes the whole tensor, `gathered`. Each cell is to be counted on one rank: where several have it, the others have what changes
nothing. Sizes of a tensor are those of the whole: core/ranks.py names the inputs that a rank is given for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from updsl.core import schedule
from updsl.core.ir import Apply, Binding, Const, Expr, Program, Reduce, Ref, Type, bindings, is_joint, joined, rebuild, rewrite
from updsl.core.ops import OPS
from updsl.core.ranks import AXES, SIZES, Cut, along, axes_of, cells, counted, is_on_grid, own, size
from updsl.core.scope import TENSOR
from updsl.middle.flat import Programs, tidy, with_roots

ZERO = Const(0.0)
NUMBER, CONDITION = Type(TENSOR), Type(TENSOR, boolean=True)


def shard(programs: Programs, cuts: Mapping[int, Cut]) -> Programs:
    """The step's Programs, without blocks, as each rank runs them."""
    if all(cut.is_whole for cut in cuts.values()):
        return programs
    joint = {step.name for step in schedule.merge({c: p.body for c, p in programs.items()}) if isinstance(step, schedule.Shared) and _crosses(step, cuts)}
    return tidy({c: Shard(p, cuts[c], joint).program() for c, p in programs.items()})


def _crosses(step: schedule.Shared, cuts: Mapping[int, Cut]) -> bool:
    """Whether a value of several tensors takes cells that not every rank has."""
    return any(cuts[c].away or any(axes_of(a.type) & cuts[c].axes for a in operands(b.expr)) for c, b in step.bindings.items() if operands(b.expr))


def operands(e: Expr) -> tuple[Expr, ...]:
    """What a reduction, or a selection, runs over the cells of."""
    match e:
        case Reduce(op=op, args=args) if not any(a.type.window for a in args):
            return tuple(a for name, a in zip(OPS[op].args, args, strict=True) if name not in OPS[op].numbers)
        case Apply(op="largest", args=(x, _)):
            return (x,)
        case _:
            return ()


class Shard:
    """The bindings of one class of tensors, as far as they are known. joint: the values of several tensors that take a collective."""

    def __init__(self, program: Program, cut: Cut, joint: set[str]):
        self.original, self.cut, self.joint = program, cut, joint
        self.taken = {b.name for b in bindings(program.body)}
        self.made: list[Binding] = []
        self.prefix = ""

    def program(self) -> Program:
        for b in self.original.body:
            assert isinstance(b, Binding)
            self.made.append(replace(b, expr=self.whole(b.name, b.expr)))
        made = with_roots(self.original, lambda r: rewrite(r.expr, self.node))
        return replace(made, body=tuple(self.made))

    def whole(self, name: str, e: Expr) -> Expr:
        """The expression of a binding."""
        if not (isinstance(e, (Reduce, Apply)) and is_joint(e) and operands(e)):
            return rewrite(e, self.node)
        made = rebuild(e, tuple(rewrite(a, self.node) for a in e.args))
        return self.one(made, name) if name in self.joint and isinstance(made, (Reduce, Apply)) else made

    def node(self, n: Expr) -> Expr:
        """One node, over operands that are done."""
        match n:
            case Ref(name, "builtin") if name in SIZES or name.startswith("dim("):
                return n if self.cut.is_whole else Ref(size(name), "input", n.type)
            case Reduce() | Apply(op="largest") if not is_joint(n) and self.is_cut(n):
                return self.one(n, "")
            case _:
                return n

    def is_cut(self, e: Reduce | Apply) -> bool:
        """Whether a reduction to the cells of a tensor takes cells that lie on several ranks."""
        scope = e.scope if isinstance(e, Reduce) else e.static[0]
        if not all(is_on_grid(a.type) for a in operands(e)):
            return False
        gone = frozenset().union(*(axes_of(a.type) for a in operands(e))) - (scope.indices & frozenset(AXES))
        return bool(gone & self.cut.axes) or (self.cut.away and bool(operands(e)))

    # --- reductions, as collectives of what each rank has --------------------------------------------------------------

    def one(self, e: Reduce | Apply, joint: str) -> Expr:
        """The reduction over all ranks. joint: the name of the value of several tensors; "" for one of each tensor."""
        if isinstance(e, Apply) or e.op in ("median", "quantile"):
            return rebuild(e, tuple(Apply("gathered", (a,), a.type) if a in operands(e) else a for a in e.args))
        return Spread(self, e, joint).expr()

    def bound(self, e: Expr, wish: str, joint: str) -> Expr:
        """A name for a value; the same in all classes, where it is of several tensors."""
        name, n = f"[{joint} {wish}]" if joint else f"[{wish}]", 1
        while name in self.taken:
            n += 1
            name = f"[{wish} {n}]"
        self.taken.add(name)
        self.made.append(Binding(name, e))
        return Ref(name, "value", e.type)


@dataclass(frozen=True)
class Spread:
    """A reduction whose cells lie on several ranks."""

    home: Shard
    e: Reduce
    joint: str

    def expr(self) -> Expr:
        """What all ranks have, of what each has."""
        e, x = self.e, self.e.args[0]
        match e.op:
            case "sum":
                return self.total("sum", "sum", self.masked(x))
            case "count":
                return self.total("sum", "count", self.where(x))
            case "any":
                return Apply("gt", (self.total("sum", "count", self.where(x)), ZERO), e.type)
            case "dot":
                return self.total("sum", "dot", self.masked(x), e.args[1])
            case "mean":
                return self.over(self.total("sum", "sum", self.masked(x)))
            case "norm":
                return self.norm(x, float(e.static[0]) if e.static else 2.0)
            case "rms":
                return Apply("div", (self.norm(x, 2.0), Apply("sqrt", (self.number(),), self.number().type)), self.type)
            case "absmax":
                return self.total("max", "absmax", self.masked(x))
            case "max" | "min":
                return self.total(e.op, e.op, self.masked(x, -math.inf if e.op == "max" else math.inf))
            case "var":
                return self.variance(x)
            case "std":
                return Apply("sqrt", (self.variance(x),), self.type)
            case "cosine":
                return self.cosine(x, e.args[1])
            case _:
                raise AssertionError(e.op)

    @property
    def type(self) -> Type:
        return replace(self.e.type, boolean=False)

    def total(self, how: str, op: str, *args: Expr, static: tuple = ()) -> Expr:
        """The collective of a reduction of what this rank has; both by name, as all parts of the step read them."""
        part = self.home.bound(Reduce(op, args, self.e.scope, self.type, static), f"{op} here", self.joint)
        return self.home.bound(Apply("total", (part,), self.type, (how,)), op, self.joint)

    def masked(self, x: Expr, nothing: float = 0.0) -> Expr:
        """x, where this rank counts it; else what changes nothing."""
        return Apply("select", (self.counts(x), x, Const(nothing)), replace(x.type, boolean=False)) if self.is_shared(x) else x

    def where(self, c: Expr) -> Expr:
        """A condition, where this rank counts it."""
        return Apply("and", (self.counts(c), c), c.type) if self.is_shared(c) else c

    def is_shared(self, x: Expr) -> bool:
        return along(x.type) in self.home.cut.shared

    def counts(self, x: Expr) -> Expr:
        return Apply("gt", (Ref(counted(along(x.type)), "input", NUMBER), ZERO), CONDITION)

    def number(self) -> Expr:
        """How many cells there are in all."""
        have = joined(*(a.type for a in operands(self.e)))
        gone = along(have) if self.joint else "".join(a for a in along(have) if a not in self.e.scope.indices)
        each = Ref(cells(gone), "input", NUMBER)
        if not self.joint:
            return each
        return self.home.bound(Reduce("sum", (each,), self.e.scope, self.type), "cells", self.joint)

    def over(self, total: Expr) -> Expr:
        return Apply("div", (total, self.number()), self.type)

    def norm(self, x: Expr, p: float) -> Expr:
        if p == math.inf:
            return self.total("max", "absmax", self.masked(x))
        if p == 0:
            return self.total("sum", "norm", self.masked(x), static=self.e.static)
        if p == -math.inf:
            return self.total("min", "norm", self.masked(x, math.inf), static=self.e.static)
        return self.total(f"norm {p:g}", "norm", self.masked(x, 0.0 if p > 0 else math.inf), static=self.e.static if self.e.op == "norm" else ())

    def variance(self, x: Expr) -> Expr:
        """Of several tensors by the mean of all first; else pooled: one collective for both."""
        if self.joint:
            mean = self.home.bound(self.over(self.total("sum", "sum", self.masked(x))), "mean", self.joint)
            apart = Apply("sub", (x, mean), joined(x.type, mean.type))
            squares = Apply("mul", (apart, apart), apart.type)
            return self.over(self.total("sum", "sum", self.masked(squares)))
        gone = "".join(a for a in along(x.type) if a not in self.e.scope.indices)
        mean, var = (self.home.bound(Reduce(op, (x,), self.e.scope, self.type), f"{op} here", "") for op in ("mean", "var"))
        return self.home.bound(Apply("pooled", (Ref(own(along(x.type), gone), "input", NUMBER), mean, var), self.type), "var", "")

    def cosine(self, x: Expr, y: Expr) -> Expr:
        """0 with a zero vector."""
        across = self.total("sum", "dot", self.masked(x), y)
        nx, ny = (self.total("norm 2", "norm", self.masked(v)) for v in (x, y))
        condition = replace(self.type, boolean=True)
        zero = Apply("or", (Apply("eq", (nx, ZERO), condition), Apply("eq", (ny, ZERO), condition)), condition)
        product = Apply("mul", (nx, ny), self.type)
        return Apply("select", (zero, Apply("mul", (product, ZERO), self.type), Apply("div", (across, product), self.type)), self.type)
