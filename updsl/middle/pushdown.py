"""Reductions of products without a sweep of their own.

Where x is b times (or over, plus, minus) values that are constant on the cells of a scope C, the statistics of x in each cell follow from those of b, and the
statistics of x in a larger cell from those in its C-cells:

    sum(c·b) = c·sum(b)    std(c·b + d) = |c|·std(b)    norm(x) = norm of the cells' norms    std(x)² = rms(the cells' std)² + std(the cells' means)²

So in `norm per column → clip z > 2.5` mean and std need no pass over memory of their own: columns' means and deviations of g are added up beside their norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from updsl.core import schedule
from updsl.core.ir import Apply, Binding, Const, Expr, Reduce, Ref, Type, children, on_grid, rewrite
from updsl.core.scope import COLUMN, ROW, TENSOR, Scope
from updsl.middle.flat import Programs, bindings_of, is_joint_root, tidy, with_roots
from updsl.middle.lift import ZERO, is_full
from updsl.middle.rewrite import SIZES

EVEN = (TENSOR, ROW, COLUMN)
"""Scopes within one tensor: all of their finer cells have the same size."""
PUSHED = ("sum", "mean", "std", "var", "norm", "rms", "absmax", "min", "max")


def pushdown(programs: Programs) -> Programs:
    """The Programs with each reduction pushed down where that makes it known after fewer sweeps."""
    known: dict[int, dict[str, int]] = {c: {} for c in programs}
    meant: dict[int, dict[str, Expr]] = {c: {} for c in programs}
    bodies: dict[int, list[Binding]] = {c: [] for c in programs}

    def down(c: int, e: Expr) -> Expr:
        return with_pushed(e, lambda r: meant[c].get(r.name) if r.kind == "value" else None, Depth(known[c]))

    for step in schedule.merge({c: p.body for c, p in programs.items()}):
        made = [(c, replace(b, expr=down(c, b.expr))) for c, b in bindings_of(step)]
        depth = max(Depth(known[c])(b.expr) for c, b in made)
        for c in programs if isinstance(step, schedule.Shared) else [c for c, _ in made]:
            known[c][made[0][1].name] = depth
        for c, b in made:
            bodies[c].append(b)
            if is_full(b.expr):
                meant[c][b.name] = b.expr
    done = {c: with_roots(p, lambda r, c=c: r.expr if is_joint_root(r) else down(c, r.expr)) for c, p in programs.items()}
    return tidy({c: replace(p, body=tuple(bodies[c])) for c, p in done.items()})


def with_pushed(e: Expr, resolve: Callable[[Ref], Expr | None], depth: Callable[[Expr], int]) -> Expr:
    """reduce(f(b) per C) → f(reduce(b) per C) wherever that is known after fewer sweeps. resolve: a reference → what it stands for, elementwise."""

    def step(n: Expr) -> Expr:
        if not (isinstance(n, Reduce) and n.op in PUSHED and is_full(n.args[0]) and not is_full(n)):
            return n
        found = [pushed(n, cell, resolve) for cell in (n.scope, *EVEN) if cell in SIZES and n.scope <= cell]
        best = min((f for f in found if f is not None), key=depth, default=n)
        return best if depth(best) < depth(n) else n

    return rewrite(e, step)


def pushed(e: Reduce, cell: Scope, resolve: Callable[[Ref], Expr | None]) -> Expr | None:
    """The reduction by way of the cells of this scope; None where that is not exact."""
    if e.op == "var":
        std = pushed(replace(e, op="std"), cell, resolve)
        return None if std is None else Apply("mul", (std, std), e.type)
    within = Within(cell, e.args[0].type, resolve)
    if e.scope == cell:
        return within.of(e.op, e.static, e.args[0])
    if (e.scope not in EVEN and e.op in ("mean", "std", "rms")) or e.static == (0.0,):
        return None
    if e.op != "std":
        return replace(e, args=(within.of(e.op, e.static, e.args[0]),))
    inside, between = (reduced(op, within.of(how, (), e.args[0]), e) for op, how in (("rms", "std"), ("std", "mean")))
    return hypotenuse(inside, between, e.type)


def reduced(op: str, x: Expr, into: Reduce) -> Reduce:
    return Reduce(op, (x,), into.scope, into.type)


def hypotenuse(a: Expr, b: Expr, type_: Type) -> Expr:
    """sqrt(a² + b²) of numbers that are not negative, without overflow."""

    def op(name: str, *args: Expr) -> Expr:
        return Apply(name, args, replace(type_, boolean=name == "eq"))

    def square(x: Expr) -> Expr:
        return op("mul", x, x)

    most = op("maximum", a, b)
    ratio = op("sqrt", op("add", square(op("div", a, most)), square(op("div", b, most))))
    return op("select", op("eq", most, ZERO), ZERO, op("mul", most, ratio))


class Within:
    """Reductions to the cells of a scope, of expressions that are made of values constant on these cells and of others."""

    def __init__(self, cell: Scope, entry: Type, resolve: Callable[[Ref], Expr | None]):
        self.cell, self.resolve = cell, resolve
        self.type = on_grid(cell, entry.rows, entry.cols)
        self.size = Ref(SIZES[cell], "builtin", Type(TENSOR))

    def op(self, name: str, *args: Expr) -> Expr:
        return Apply(name, args, replace(self.type, boolean=name == "ge"))

    def of(self, how: str, static: tuple, x: Expr) -> Expr:
        """The reduction `how` of x in each cell."""
        if self.is_constant(x):
            return self.constant(how, static, x)
        match x:
            case Ref() if (meant := self.resolve(x)) is not None:
                found = self.of(how, static, meant)
                return self.base(how, static, x) if found == self.base(how, static, meant) else found
            case Apply("neg", (y,)):
                return self.scaled(how, static, Const(-1.0), y)
            case Apply("mul" | "div" as op, (y, c)) if self.is_constant(c):
                return self.scaled(how, static, c, y, op)
            case Apply("mul", (c, y)) if self.is_constant(c):
                return self.scaled(how, static, c, y)
            case Apply("add" | "sub" as sign, (y, c)) if self.is_constant(c) and how in ("sum", "mean", "std", "min", "max"):
                inner = self.of(how, static, y)
                return inner if how == "std" else self.op(sign, inner, self.constant(how, static, c))
            case Apply("add", (c, y)) if self.is_constant(c) and how in ("sum", "mean", "std", "min", "max"):
                return self.of(how, static, Apply("add", (y, c), x.type))
            case Apply("select", (c, a, b)) if self.is_constant(c):
                return self.op("select", c, self.of(how, static, a), self.of(how, static, b))
            case _:
                return self.base(how, static, x)

    def is_constant(self, x: Expr) -> bool:
        """On each cell."""
        return not is_full(x) and x.type.scope <= self.cell

    def base(self, how: str, static: tuple, x: Expr) -> Expr:
        return Reduce(how, (x,), self.cell, self.type, static)

    def scaled(self, how: str, static: tuple, c: Expr, y: Expr, op: str = "mul") -> Expr:
        """Of c·y, or y / c."""
        match how:
            case "sum" | "mean":
                return self.op(op, self.of(how, static, y), c)
            case "min" | "max":
                same, other = self.of(how, static, y), self.of("max" if how == "min" else "min", static, y)
                return self.op("select", self.op("ge", c, ZERO), self.op(op, same, c), self.op(op, other, c))
            case _ if static in ((0.0,), (float("-inf"),)):
                return self.base(how, static, Apply(op, (y, c), y.type))
            case _:
                return self.op(op, self.of(how, static, y), self.op("abs", c))

    def constant(self, how: str, static: tuple, x: Expr) -> Expr:
        """Of equal entries."""
        match how:
            case "sum":
                return self.op("mul", x, self.size)
            case "std":
                return self.op("sub", x, x)
            case "norm" if static in ((float("inf"),), (float("-inf"),)):
                return self.op("abs", x)
            case "norm" if static == (0.0,):
                return self.op("mul", self.op("abs", self.op("sign", x)), self.size)
            case "norm":
                return self.op("mul", self.op("abs", x), self.op("pow", self.size, Const(1 / static[0])))
            case "rms" | "absmax":
                return self.op("abs", x)
            case _:
                return x


class Depth:
    """After how many sweeps a coarse value is known, and in which sweep (counted from 0) an elementwise one is first computed. known: of bindings."""

    def __init__(self, known: Mapping[str, int]):
        self.known = known

    def __call__(self, e: Expr) -> int:
        inner = max((self(a) for a in children(e)), default=0)
        match e:
            case Ref(name, "value"):
                return self.known[name]
            case Reduce(args=args) if any(map(is_full, args)) and not is_full(e):
                return inner + 1
            case _:
                return inner
