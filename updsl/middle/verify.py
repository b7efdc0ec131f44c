"""What holds of every Program: one value for each name, set before it is read, of the type it is read with. Tests run it after elaboration and every pass."""

from __future__ import annotations

from collections.abc import Iterator

from updsl.core.diagnostic import InternalError
from updsl.core.ir import Apply, Binding, Every, Expr, Program, Reduce, Ref, Statement, Type, is_shared, walk
from updsl.core.ops import OPS


def verify(program: Program) -> Program:
    """The program itself. Raises InternalError naming the first invariant that does not hold."""
    for mistake in mistakes(program):
        raise InternalError(f"in the program of `{program.name}`: {mistake}")
    return program


def mistakes(program: Program) -> Iterator[str]:
    """Every invariant that does not hold, in words."""
    known: dict[tuple[str, str], Type] = {("state", s.name): s.type for s in program.states} | {("input", i.name): i.type for i in program.inputs}
    if len({s.name for s in program.states}) < len(program.states):
        yield "two states have one name"
    yield from _block(program.body, known)
    for name, e in program.commits:
        yield from _expression(e, known, f"the commit of `{name}`")
        if e.type.scope != known["state", name].scope and not e.type.scope <= known["state", name].scope:
            yield f"the commit of `{name}` is finer than the state"
    for e in (*(e for e in (program.out, program.weight) if e is not None), *(w.expr for w in program.watches)):
        yield from _expression(e, known, "what the program gives")
    if {n for n, _ in program.commits} != {s.name for s in program.states}:
        yield "a state has no commit"


def _block(statements: tuple[Statement, ...], known: dict[tuple[str, str], Type]) -> Iterator[str]:
    for s in statements:
        if ("value", s.name) in known:
            yield f"`{s.name}` is set twice"
        match s:
            case Binding(name=name, expr=e):
                yield from _expression(e, known, f"`{name}`")
                known["value", name] = e.type
            case Every(body=body, yields=yields):
                inside = dict(known)
                yield from _block(body, inside)
                for y in yields:
                    yield from _expression(y.inner, inside, f"`{y.name}`")
                    yield from _expression(y.outer, known, f"`{y.name}`")
                    if ("value", y.name) in known:
                        yield f"`{y.name}` is set twice"
                    known["value", y.name] = y.type


def _expression(e: Expr, known: dict[tuple[str, str], Type], where: str) -> Iterator[str]:
    for n in walk(e):
        match n:
            case Ref(kind="value" | "state" | "input" as kind, name=name, type=t):
                if (kind, name) not in known:
                    yield f"{where} reads the {kind} `{name}` before it is set"
                elif known[kind, name] != t:
                    yield f"{where} reads `{name}` as {t}, and it is {known[kind, name]}"
            case Apply(op=op, args=args) | Reduce(op=op, args=args):
                if op not in OPS or len(args) != len(OPS[op].args):
                    yield f"{where} applies `{op}` to {len(args)} values"
                if isinstance(n, Reduce) and is_shared(n.type) and n is not e and not any(a.type.window for a in args):
                    yield f"in {where} a reduction over several tensors does not stand alone"
