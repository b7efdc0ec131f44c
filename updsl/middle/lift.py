"""Bodies as the passes over memory need them: reductions stand alone, and elementwise expressions read what is coarser by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from updsl.core.ir import GRID, Apply, Binding, Const, Expr, Reduce, Ref, Statement, Type, bindings, children, is_joint, is_shared, rebuild
from updsl.core.scope import ELEMENT, TENSOR
from updsl.core.straight import Root
from updsl.middle.flat import Programs, is_joint_root, tidy, with_roots


def is_full(e: Expr) -> bool:
    """A value of its own for each entry: what a sweep computes."""
    return e.type.scope == ELEMENT


def is_streamed(root: Root) -> bool:
    """Stored for each entry, by a sweep."""
    return root.role in ("out", "weight") or (root.role == "state" and root.type is not None and root.type.scope == ELEMENT)


def lift(programs: Programs) -> Programs:
    """The Programs with each reduction, and each coarser operand of an elementwise op, bound to a name."""
    made = {}
    for c, p in programs.items():
        body = Lift(b.name for b in bindings(p.body))
        body.body(p.body)
        lifted = with_roots(p, lambda r, body=body: r.expr if is_joint_root(r) else body.root(r).expr)
        made[c] = replace(lifted, body=tuple(body.made))
    return tidy(made)


class Lift:
    """The bindings of one class of tensors, as far as they are known. Equal expressions are bound once."""

    def __init__(self, taken: Iterable[str]):
        self.taken = set(taken)
        self.made: list[Binding] = []
        self.known: dict[Expr, Ref] = {}

    def body(self, statements: Sequence[Statement]) -> None:
        """Each binding, after those that its expression needs."""
        for b in statements:
            assert isinstance(b, Binding)
            if is_joint(b.expr) and isinstance(b.expr, Reduce) and not is_of_one(b.expr):
                whole: Expr = self.reduced(b.expr)
            else:
                whole = self.full(b.expr) if is_full(b.expr) else self.coarse(b.expr, whole=True)
            self.made.append(replace(b, expr=whole))
            if isinstance(whole, Reduce) and not is_shared(whole.type):
                self.known.setdefault(whole, Ref(b.name, "value", whole.type, span=b.span))

    def root(self, root: Root) -> Root:
        """What leaves the step, of bindings: a name, so that nothing is read that another has overwritten."""
        if not is_streamed(root):
            return replace(root, expr=self.named(root.expr))
        return replace(root, expr=self.full(root.expr if is_full(root.expr) else Apply("spread", (root.expr,), GRID)))

    def reduced(self, e: Reduce) -> Expr:
        """A reduction of elementwise values, and then of names of coarser ones; or of coarser values alone."""
        if any(map(is_full, e.args)):
            return rebuild(e, tuple(self.full(a) if is_full(a) else self.named(a) for a in e.args))
        return rebuild(e, tuple(map(self.coarse, e.args)))

    def full(self, e: Expr) -> Expr:
        """An elementwise expression over streams, elementwise values, numbers, and names of coarser values."""
        match e:
            case Ref():
                return e
            case Reduce():
                return self.full(of_one(e))
            case _:
                return rebuild(e, tuple(self.full(a) if is_full(a) else self.named(a) for a in children(e)))

    def named(self, e: Expr) -> Expr:
        """A coarser operand of an elementwise op: a number, or a name. What is of no tensor is bound for each, so that nobody else waits for it."""
        match e:
            case Const() | Ref(kind="value"):
                return e
            case _:
                e = self.coarse(e)
                if isinstance(e, Ref) and e.kind == "value":
                    return e
                return self.bound(Apply("spread", (e,), Type(TENSOR, boolean=e.type.boolean)) if is_shared(e.type) else e, "factor")

    def coarse(self, e: Expr, whole: bool = False) -> Expr:
        """An expression of coarser scope; the reductions within have a name, unless it is one (whole)."""
        match e:
            case Reduce() if is_of_one(e):
                return self.coarse(of_one(e), whole)
            case Reduce():
                made = self.reduced(e)
                return made if whole else self.bound(made, e.op)
            case _:
                return rebuild(e, tuple(self.coarse(a) for a in children(e)))

    def bound(self, e: Expr, name: str) -> Ref:
        """e by name."""
        if e not in self.known:
            self.known[e] = Ref(self.fresh(name), "value", e.type)
            self.made.append(Binding(self.known[e].name, e))
        return self.known[e]

    def fresh(self, base: str) -> str:
        name, n = f"({base})", 1
        while name in self.taken:
            n += 1
            name = f"({base} {n})"
        self.taken.add(name)
        return name


def is_of_one(e: Reduce) -> bool:
    """Over a single cell."""
    return all(a.type.scope <= e.scope for a in e.args)


def of_one(e: Reduce) -> Expr:
    """A reduction of a single entry: f(x) over {x}."""

    def op(name: str, *args: Expr) -> Apply:
        return Apply(name, args, replace(e.type, boolean=name in ("ne", "gt")))

    x = e.args[0]
    match e.op:
        case "norm" if e.static == (0.0,):
            return op("select", op("eq", x, x), op("select", op("ne", x, ZERO), ONE, ZERO), x)
        case "norm" | "rms" | "absmax":
            return op("abs", x)
        case "var" | "std":
            return op("sub", x, x)
        case "dot":
            return op("mul", x, e.args[1])
        case "cosine":
            return op("mul", op("sign", x), op("sign", e.args[1]))
        case "count":
            return op("select", x, ONE, ZERO)
        case _:
            return x


ZERO, ONE = Const(0.0), Const(1.0)
