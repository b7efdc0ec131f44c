"""Common and dead bindings: what is reduced or multiplied twice is computed once, what nothing reads is not computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from updsl.core.ir import Apply, Binding, Every, Expr, Program, Reduce, Ref, Statement, bindings, children, is_joint, is_shared, rebuild, roots, walk
from updsl.core.ops import OPS


def share(program: Program) -> Program:
    """The program with each reduction and matrix function of one value computed once, and without bindings that nothing reads.

    A value of several tensors is left alone: other classes may have it too, and each of its names stands for its own set of tensors.
    """
    return without_dead(with_common(program))


def with_common(program: Program) -> Program:
    """f(x), f(x) → y = f(x); y, y, for reductions and matrix functions f in one block."""
    repeated = {e for e, n in Counter(_costly(program.body)).items() if n > 1}
    if not repeated:
        return program
    names = {b.name for b in bindings(program.body)}
    body = _share(program.body, repeated, {}, names)
    return program if body == program.body else replace(program, body=body)


def without_dead(program: Program) -> Program:
    """Without the bindings that neither the program's results nor a value of several tensors read."""
    while True:
        read = {n.name for e in roots(program) for n in walk(e) if isinstance(n, Ref) and n.kind == "value"}
        body = tuple(_living(program.body, read))
        if body == program.body:
            return program
        program = replace(program, body=body)


def is_costly(e: Expr) -> bool:
    """Whether computing e twice would read a tensor twice: reductions and matrix functions, of one tensor."""
    match e:
        case Reduce():
            return not is_joint(e)
        case Apply(op=op):
            return OPS[op].kind == "matrix" and op != "transpose"
        case _:
            return False


def _costly(statements: tuple[Statement, ...]) -> Iterator[Expr]:
    """Every costly expression that stands in the block itself."""
    for s in statements:
        if isinstance(s, Binding):
            yield from (n for n in walk(s.expr) if is_costly(n))


def _share(statements: tuple[Statement, ...], repeated: set[Expr], known: dict[Expr, Ref], names: set[str]) -> tuple[Statement, ...]:
    """The block with a binding before the first use of each repeated expression. `known` are those bound so far."""
    made: list[Statement] = []

    def bound(e: Expr, whole: bool) -> Expr:
        original = e
        if original in known:
            return known[original]
        e = rebuild(e, tuple(bound(a, False) for a in children(e)))
        if original not in repeated or whole:
            return e
        name = _fresh(f"shared.{original.op}", names)  # type: ignore[union-attr]
        made.append(Binding(name, e, span=original.span))
        known[original] = Ref(name, "value", original.type, span=original.span)
        return known[original]

    for s in statements:
        match s:
            case Binding(name=name, expr=e):
                original = e
                made.append(replace(s, expr=bound(e, True)))
                if original in repeated:
                    known.setdefault(original, Ref(name, "value", original.type, span=original.span))
            case Every():
                made.append(s)
    return tuple(made)


def _fresh(base: str, names: set[str]) -> str:
    name, n = base, 1
    while name in names:
        n += 1
        name = f"{base}{n}"
    names.add(name)
    return name


def _living(statements: tuple[Statement, ...], read: set[str]) -> Iterator[Statement]:
    for s in statements:
        match s:
            case Binding(name=name, expr=e):
                if name in read or is_joint(e):
                    yield s
            case Every(body=body, yields=yields):
                kept = tuple(y for y in yields if y.name in read or is_shared(y.type))
                inside = {n.name for y in kept for n in walk(y.inner) if isinstance(n, Ref)} | read
                new = tuple(_living(body, inside))
                if kept == yields and new == body:
                    yield s
                elif kept or any(is_joint(b.expr) for b in bindings(new)):
                    yield replace(s, body=new, yields=kept)
