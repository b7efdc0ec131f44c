"""Bodies in which what kernels do not cover stands alone, so that a step can be cut there.

x · polar(a·g + b)  →  o = a·g + b;  p = polar(o);  x · p
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from updsl.core.ir import Apply, Binding, Const, Expr, Program, Reduce, Ref, bindings, children, is_joint, is_shared, of_each_tensor, rebuild, walk
from updsl.core.ranks import is_gathered
from updsl.middle.flat import Programs, is_joint_root, tidy, with_roots
from updsl.middle.lift import is_full

Foreign = Callable[[Expr], bool]
"""Whether kernels do not cover this node, whatever its operands."""


def separated(programs: Programs, foreign: Foreign) -> Programs:
    """The step's Programs, where each foreign node, each reduction of entries, and each longer elementwise operand of a foreign node has a name. A value of
    several tensors that needs a foreign node is left whole."""
    return tidy({c: Separate(p, foreign).program() for c, p in programs.items()})


def is_summed(e: Expr) -> bool:
    """A reduction over entries: a sweep adds it up."""
    return isinstance(e, Reduce) and any(map(is_full, e.args))


def any_foreign(e: Expr, foreign: Foreign) -> bool:
    return any(map(foreign, walk(e)))


class Separate:
    """The bindings of one class of tensors, as far as they are known. Equal expressions are bound once."""

    def __init__(self, program: Program, foreign: Foreign):
        self.original, self.foreign = program, foreign
        self.taken = {b.name for b in bindings(program.body)}
        self.made: list[Binding] = []
        self.known: dict[Expr, Ref] = {}

    def program(self) -> Program:
        for b in self.original.body:
            assert isinstance(b, Binding)
            self.made.append(replace(b, expr=self.whole(b.expr)))
        last: list[Binding] = []
        made = with_roots(self.original, lambda r: self.of_several(f"({r.role} {r.name})", r.expr, last) if is_joint_root(r) else self.inner(r.expr))
        return replace(made, body=(*self.made, *sorted(last, key=lambda b: b.name)))

    def of_several(self, name: str, e: Expr, last: list[Binding]) -> Expr:
        """A value of several tensors that leaves the step: all classes that have it have this binding."""
        if isinstance(e, Ref) or not any_foreign(e, self.foreign):
            return e
        last.append(Binding(name, e))
        return Ref(name, "value", e.type)

    def whole(self, e: Expr) -> Expr:
        """The expression of a binding."""
        if is_shared(e.type):
            return rebuild(e, tuple(self.summed(a) for a in children(e))) if is_summed(e) else e
        return self.alone(e) if self.foreign(e) or is_summed(e) else self.inside(e)

    def summed(self, e: Expr) -> Expr:
        """An operand of a reduction to several tensors, which is done where whole tensors are if it takes them."""
        return e if is_shared(e.type) else self.alone(e) if is_gathered(e) else self.inner(e)

    def inner(self, e: Expr) -> Expr:
        """A part of an expression: by name, if it is to stand alone."""
        if self.foreign(e) or is_summed(e):
            return self.bound(self.alone(e), e.op if isinstance(e, Apply | Reduce) else "given")
        return self.inside(e)

    def inside(self, e: Expr) -> Expr:
        """What is neither foreign nor a reduction of entries: over names of what is computed of coarser values, where torch may be the one that reads it."""
        return rebuild(e, tuple(self.coarser(a) if is_full(e) and not is_full(a) else self.inner(a) for a in children(e)))

    def coarser(self, e: Expr) -> Expr:
        e = self.inner(e)
        return e if is_leaf(e) or is_of_numbers(e) or is_shared(e.type) else self.bound(e, "operand")

    def alone(self, e: Expr) -> Expr:
        """What stands alone: a reduction of entries, or foreign nodes, over names and what costs torch no more passes than a kernel."""
        if is_joint(e):
            return e
        return rebuild(e, tuple(map(self.operand if self.foreign(e) else self.inner, children(e))))

    def operand(self, e: Expr) -> Expr:
        if self.foreign(e):
            return self.alone(e)
        if not is_full(e):
            return self.coarser(e)
        e = self.inside(e)
        return e if is_one_pass(e) else self.bound(e, "operand")

    def bound(self, e: Expr, name: str) -> Ref:
        e = of_each_tensor(e)
        if e not in self.known:
            self.known[e] = Ref(self.fresh(name), "value", e.type)
            self.made.append(Binding(self.known[e].name, e))
        return self.known[e]

    def fresh(self, base: str) -> str:
        name, n = f"[{base}]", 1
        while name in self.taken:
            n += 1
            name = f"[{base} {n}]"
        self.taken.add(name)
        return name


EXACT = frozenset("neg add sub mul div minimum maximum clamp lt le gt ge eq ne and or not isfinite select abs sign sqrt floor round spread".split())
"""Ops that torch and kernels give the same bits for."""


def is_one_pass(e: Expr) -> bool:
    """One op over what is there: torch takes one pass for it, and has the bits of a kernel."""
    return is_leaf(e) or (is_exact(e) and all(is_leaf(a) or (not is_full(a) and is_of_numbers(a)) for a in children(e)))


def is_exact(e: Expr) -> bool:
    match e:
        case Apply("pow", (_, Const(2.0))):
            return True
        case Apply(op=op):
            return op in EXACT
        case _:
            return False


def is_leaf(e: Expr) -> bool:
    """A name or a literal, for the cells of whatever scope."""
    return not children(e) or (isinstance(e, Apply) and e.op == "spread" and is_leaf(e.args[0]))


def is_of_numbers(e: Expr, named: Callable[[str], bool] = lambda name: False) -> bool:
    """Whether it depends on no tensor; of values by name, what `named` says."""

    def one(n: Expr) -> bool:
        match n:
            case Ref(name, "value"):
                return named(name)
            case Ref(kind=kind):
                return kind == "param" or (kind == "builtin" and not is_full(n))
            case _:
                return not isinstance(n, Reduce)

    return all(map(one, walk(e)))
