"""Whether the Programs of several tensor classes agree on the values that they share.

A value of scope group or all is one value. What a static `if`, a `match`, or a count makes another value for some of its tensors is a value of each tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeGuard

from updsl.core.diagnostic import Diagnostic
from updsl.core.ir import Apply, Binding, Every, Expr, Program, Reduce, Statement, bindings, is_joint, is_shared
from updsl.core.ops import OPS

Gathered: TypeAlias = Reduce | Apply
"""A reduction or `largest` over the cells of several tensors."""


def finer(programs: Iterable[Program]) -> frozenset[str]:
    """What is one value for several tensors in one class, and in another is of each tensor or another value, by its name in Facts.finer."""
    seen: dict[str, set[object]] = {}
    for program in {id(p): p for p in programs}.values():
        for name, meaning in _shared(program):
            seen.setdefault(name, set()).add(meaning)
    return frozenset(name for name, meanings in seen.items() if len(meanings) > 1)


def _shared(program: Program) -> Iterator[tuple[str, object]]:
    """Everything with a name, and how it is got; None where it is of each tensor."""
    commits = dict(program.commits)
    for s in program.states:
        yield s.name, (s.init, commits[s.name], s.type) if is_shared(s.type) else None
    for x in program.watches:
        yield f"watch {x.label}", x.expr if is_shared(x.expr.type) else None
    yield from _shared_values(program.body)


def _shared_values(statements: tuple[Statement, ...]) -> Iterator[tuple[str, object]]:
    for s in statements:
        match s:
            case Binding(name=name, expr=e) if not is_gathered(e):
                yield f"value {name}", e if is_shared(e.type) else None
            case Every(count=count, start=start, body=body, yields=yields):
                yield from _shared_values(body)
                yield from ((f"value {y.name}", (y.inner, y.outer, count, start) if is_shared(y.type) else None) for y in yields)


def is_gathered(e: Expr) -> TypeGuard[Gathered]:
    """Whether a value is made of the cells of several tensors."""
    match e:
        case Reduce(args=args):
            return is_shared(e.type) and not any(a.type.window for a in args)
        case Apply(op="largest"):
            return is_joint(e)
        case _:
            return False


def mixed(passes: Sequence[dict[str, Program]]) -> list[Diagnostic]:
    """Reductions over several tensors that the tensors ask for in two ways. `passes`: the Program of each tensor; in later ones the values on which the
    classes did not agree are of each tensor, so that nobody could say how often they count here."""
    first: dict[str, tuple[str, Gathered]] = {}
    found: dict[str, Diagnostic] = {}
    for programs in passes:
        tensors = {id(programs[t]): t for t in reversed(programs)}
        for tensor in reversed(tensors.values()):
            for b in bindings(programs[tensor].body):
                if is_gathered(b.expr):
                    mistake = _disagreement(*first.setdefault(b.name, (tensor, b.expr)), tensor, b.expr)
                    if mistake is not None:
                        found.setdefault(b.name, mistake)
    return list(found.values())


def _disagreement(tensor: str, e: Gathered, other: str, f: Gathered) -> Diagnostic | None:
    """Why two reductions of one name are not one value; None if they are."""
    was, now = e.args[0].type.scope, f.args[0].type.scope
    help_ = "give both branches of the `if` before it one scope, such as `(norm(g) per tensor)` in each"
    if was != now and tensor != other and any(is_shared(x.args[0].type) for x in (e, f)):
        message = f"what is reduced here is {was.one_for_each} for `{tensor}`, and {now.one_for_each} for `{other}`"
    elif is_shared(e.args[0].type) and (was != now or _told(e, numbers=False) != _told(f, numbers=False)):
        message = f"what is reduced here is {was.one_for_each}, and not the same for all tensors"
    elif (e.static, _told(e, numbers=True)) != (f.static, _told(f, numbers=True)):
        message = f"this `{f.op}` runs over several tensors, and what is written beside its operand is not the same for `{tensor}` and `{other}`"
        help_ = "write one number for all of them, or a reduction of its own in each branch of a static `if`"
    else:
        return None
    return Diagnostic("mixed-scope", message, f.span, help=help_)


def _told(e: Gathered, numbers: bool) -> tuple[Expr, ...]:
    """The arguments that are a number for each cell of the result, or those that are not: its operands."""
    return tuple(a for name, a in zip(OPS[e.op].args, e.args, strict=True) if (name in OPS[e.op].numbers) == numbers)
