"""Bodies of Programs as straight lines: blocks of one step put in or left out, what is said twice said once, what nobody reads left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from updsl.core.ir import Apply, Binding, Every, Expr, Program, Ref, Statement, Type, is_shared, returned, rewrite, walk
from updsl.core.schedule import Local, Shared, Step
from updsl.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Root:
    """What leaves the step: role "state", "watch", "out" or "weight"; name of the state or label of the watch; type that it is spread to."""

    role: str
    name: str
    expr: Expr
    type: Type | None = None


def values_read(e: Expr) -> list[str]:
    """The bindings that an expression reads."""
    return [n.name for n in walk(e) if isinstance(n, Ref) and n.kind == "value"]


# --- what leaves the step -----------------------------------------------------------------------------------------------


def local_roots(program: Program) -> list[Root]:
    """What leaves the step for each tensor."""
    types = {s.name: s.type for s in program.states}
    found = [Root("state", name, e, types[name]) for name, e in program.commits if not is_shared(types[name])]
    found += [Root("watch", w.label, w.expr) for w in program.watches if not is_shared(w.expr.type)]
    if program.weight is not None:
        found.append(Root("weight", "w", program.weight))
    found += [Root("out", "out", e) for e in returned(program)]
    return found


def shared_roots(programs: Mapping[int, Program]) -> dict[tuple[Scope, tuple[int, ...]], list[Root]]:
    """What leaves the step once for a group or for all, by its scope and the classes that have it."""
    owners: dict[tuple[str, str], list[int]] = {}
    roots: dict[tuple[str, str], Root] = {}
    for c, program in programs.items():
        types = {s.name: s.type for s in program.states}
        found = [Root("state", name, e, types[name]) for name, e in program.commits if is_shared(types[name])]
        found += [Root("watch", w.label, w.expr, w.expr.type) for w in program.watches if is_shared(w.expr.type)]
        for r in found:
            roots.setdefault((r.role, r.name), r)
            owners.setdefault((r.role, r.name), []).append(c)
    grouped: dict[tuple[Scope, tuple[int, ...]], list[Root]] = {}
    for key, r in roots.items():
        assert r.type is not None
        grouped.setdefault((r.type.scope, tuple(owners[key])), []).append(r)
    return grouped


# --- blocks that run and blocks that do not --------------------------------------------------------------------------


def blocks_due(programs: Mapping[int, Program], run: int) -> frozenset[tuple[int, str]]:
    """(class, block) of every block that runs on this step."""

    def of(c: int, statements: Sequence[Statement]) -> list[tuple[int, str]]:
        found = []
        for s in statements:
            if isinstance(s, Every) and s.is_due(run):
                found += [(c, s.name), *of(c, s.body)]
        return found

    return frozenset(pair for c, p in programs.items() for pair in of(c, p.body))


def flatten(c: int, statements: Sequence[Statement], running: frozenset[tuple[int, str]]) -> list[Binding]:
    """The statements without blocks: the body of one that runs, and what the rest sees of it. What classes share is due in all of them or in none."""
    flat: list[Binding] = []
    for s in statements:
        match s:
            case Binding():
                flat.append(s)
            case Every(name, body=body, yields=yields):
                runs = (c, name) in running
                if runs:
                    flat += flatten(c, body, running)
                flat += [Binding(y.name, Apply("spread", (y.inner if runs else y.outer,), y.type), span=s.span) for y in yields]
    return flat


# --- once, and only if needed ------------------------------------------------------------------------------------------


def once(order: Sequence[Step]) -> tuple[list[Step], Callable[[int | None, Expr], Expr]]:
    """The steps without bindings that say what an earlier one said; and the renaming of references that this takes, in a class (None: in none)."""
    names: dict[tuple[int | None, str], str] = {}
    said: dict[object, list[tuple[object, str]]] = {}

    def alias(c: int | None, e: Expr) -> Expr:
        def renamed(n: Expr) -> Expr:
            if not isinstance(n, Ref) or n.kind != "value":
                return n
            name = names.get((c, n.name)) or names.get((None, n.name)) or n.name
            return n if name == n.name else replace(n, name=name)

        return rewrite(e, renamed) if names else e

    def first(what: object, name: str) -> str:
        """Who said this first. Numbers that are equal may be different literals, 1 and true or 0 and -0."""
        known = said.setdefault(what, [])
        found = next((other for meant, other in known if repr(meant) == repr(what)), None)
        if found is None:
            known.append((what, name))
        return found or name

    kept: list[Step] = []
    for step in order:
        match step:
            case Local(c, b):
                b = replace(b, expr=alias(c, b.expr))
                if (name := first((c, b.expr), b.name)) != b.name:
                    names[c, b.name] = name
                else:
                    kept.append(Local(c, b))
            case Shared(name, bindings):
                bindings = {c: replace(b, expr=alias(c, b.expr)) for c, b in bindings.items()}
                if (earlier := first(tuple((c, b.expr) for c, b in bindings.items()), name)) != name:
                    names[None, name] = earlier
                else:
                    kept.append(Shared(name, bindings))
    return kept, alias


def needed(order: Sequence[Step], roots: Mapping[int, list[Root]], shared: Sequence[Root]) -> list[Step]:
    """The steps that something which leaves the step depends on."""
    reads = {(c, name) for c, found in roots.items() for r in found for name in values_read(r.expr)}
    joint = {name for r in shared for name in values_read(r.expr)}
    kept: list[Step] = []
    for step in reversed(order):
        match step:
            case Local(c, Binding(name, expr)) if (c, name) in reads:
                reads |= {(c, n) for n in values_read(expr)}
                kept.append(step)
            case Shared(name, bindings) if name in joint or any((c, name) in reads for c in roots):
                reads |= {(c, n) for c, b in bindings.items() for n in values_read(b.expr)}
                joint |= {n for b in bindings.values() if is_shared(b.expr.type) for n in values_read(b.expr)}
                kept.append(step)
    return kept[::-1]
