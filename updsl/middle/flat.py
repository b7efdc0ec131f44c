"""Programs as one step runs them: without blocks, without what is said twice, and without what nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from updsl.core import schedule
from updsl.core.ir import Apply, Binding, Expr, Program, Ref, Watch, is_shared, returned
from updsl.core.straight import Root, flatten, local_roots, needed, once, shared_roots

Programs: TypeAlias = Mapping[int, Program]
"""The Programs of the classes of tensors that take part in a step."""


def flat(programs: Programs, running: frozenset[tuple[int, str]]) -> Programs:
    """The step in which these blocks run: the bodies of those that do, and what the others leave as it was."""
    return tidy({c: replace(p, body=tuple(flatten(c, p.body, running))) for c, p in programs.items()})


def tidy(programs: Programs) -> Programs:
    """Each value once, and only if something that leaves the step depends on it. A state that keeps its value is committed as itself."""
    bodies = {c: [b for b in p.body if isinstance(b, Binding)] for c, p in programs.items()}
    order, alias = once(schedule.merge(bodies))
    kept = {c: {b.name: b.expr for b in body} for c, body in bodies.items()}
    changed = {
        c: with_roots(p, lambda r, c=c: unchanged(replace(r, expr=alias(None if is_joint_root(r) else c, r.expr)), kept[c])) for c, p in programs.items()
    }
    local = {c: list(changing(local_roots(p))) for c, p in changed.items()}
    order = needed(order, local, [r for found in shared_roots(changed).values() for r in changing(found)])
    return {c: replace(p, body=tuple(b for step in order for owner, b in bindings_of(step) if owner == c)) for c, p in changed.items()}


def bindings_of(step: schedule.Step) -> list[tuple[int, Binding]]:
    """(class, binding) of a step that is no block."""
    match step:
        case schedule.Local(c, b):
            return [(c, b)]
        case schedule.Shared(_, bindings):
            return list(bindings.items())
        case _:
            return []


def with_roots(program: Program, change: Callable[[Root], Expr]) -> Program:
    """The Program, with another expression for each thing that leaves the step."""
    types = {s.name: s.type for s in program.states}
    return replace(
        program,
        commits=tuple((name, change(Root("state", name, e, types[name]))) for name, e in program.commits),
        watches=tuple(Watch(w.label, change(Root("watch", w.label, w.expr, w.expr.type))) for w in program.watches),
        weight=None if program.weight is None else change(Root("weight", "w", program.weight)),
        out=next((change(Root("out", "out", e)) for e in returned(program)), program.out),
    )


def is_joint_root(root: Root) -> bool:
    """Leaves the step once for a group or for the model."""
    return root.type is not None and is_shared(root.type)


def unchanged(root: Root, values: Mapping[str, Expr]) -> Expr:
    """What is left of a state whose block does not run: the state itself."""
    e = root.expr
    while root.role == "state":
        match e:
            case Ref(name, "value") if name in values:
                e = values[name]
            case Apply("spread", (x,)) if x.type == e.type:
                e = x
            case Ref(root.name, "state"):
                return e
            case _:
                break
    return root.expr


def changing(roots: Iterator[Root] | list[Root]) -> Iterator[Root]:
    """Without the states that keep their value."""
    return (r for r in roots if not (r.role == "state" and isinstance(r.expr, Ref) and (r.expr.name, r.expr.kind) == (r.name, "state")))
