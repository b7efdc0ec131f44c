"""Programs → pieces of straight-line code and the joint steps between them, for one combination of blocks that run.

What a class of tensors computes between two joint steps (reductions over several tensors) is one piece; so is what is computed once for a group or for the
whole model. Every binding stands in the latest piece that still gives it to all its readers, so that little is carried from piece to piece; what nobody
reads is left out. A binding's level is the number of joint steps in a row that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeGuard

from updsl.core.ir import Apply, Binding, Expr, Program, Reduce, Ref, Type, is_joint, is_shared, rewrite, walk
from updsl.core.ops import OPS
from updsl.core.schedule import Local, Shared, Step, merge
from updsl.core.scope import GROUP, Scope
from updsl.core.straight import Root, flatten, local_roots, needed, once, shared_roots, values_read

BY_ORDER = ("median", "quantile")
"""Reductions of all cells at once: not of parts."""

Owner: TypeAlias = int | Scope
"""Whose piece it is: a class of tensors, each group (GROUP), or the whole model (ALL)."""


@dataclass(frozen=True)
class Piece:
    """Straight-line code: bindings, the operands that it contributes to joint steps, what leaves the step, and the names that later pieces read."""

    owner: Owner
    classes: tuple[int, ...]
    level: int
    bindings: tuple[Binding, ...]
    parts: tuple[tuple[str, Expr], ...] = ()
    roots: tuple[Root, ...] = ()
    carried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Join:
    """A reduction, or `largest`, over the operands that the pieces of its classes (or of each group) contributed. `number`: the shared value that holds its
    q or k."""

    name: str
    exprs: Mapping[int, Reduce | Apply]
    number: str | None

    @property
    def expr(self) -> Reduce | Apply:
        return next(iter(self.exprs.values()))

    @property
    def scope(self) -> Scope:
        """For each cell of which scope there is a result."""
        return self.expr.scope if isinstance(self.expr, Reduce) else self.expr.static[0]

    @property
    def over_groups(self) -> bool:
        """Its operands are one value for each group."""
        return is_shared(cells_of(self.expr))


@dataclass(frozen=True)
class Plan:
    """The order of one step; `hosts`: names of shared values that depend on no tensor."""

    steps: tuple[Piece | Join, ...]
    hosts: frozenset[str]
    programs: Mapping[int, Program]


def cells_of(e: Reduce | Apply) -> Type:
    """The type of the finest operand of a reduction or `largest`: of the cells it runs over."""
    operands = [a.type for name, a in zip(OPS[e.op].args, e.args, strict=True) if name not in OPS[e.op].numbers]
    return max(operands, key=lambda t: len(t.scope.indices))


# --- the plan --------------------------------------------------------------------------------------------------------


def plan(programs: Mapping[int, Program], running: frozenset[tuple[int, str]]) -> Plan:
    """The step of these classes with these blocks running."""
    bodies = {c: flatten(c, p.body, running) for c, p in programs.items()}
    return _ordered(programs, bodies, {c: local_roots(p) for c, p in programs.items()})


def first_plan(programs: Mapping[int, Program]) -> Plan:
    """The first values of all states that have an `init`; they leave as states."""
    firsts = {c: _first(p) for c, p in programs.items()}
    bodies = {c: [s for s in p.body if isinstance(s, Binding)] for c, p in firsts.items()}
    return _ordered(firsts, bodies, {c: [r for r in local_roots(p) if r.role == "state"] for c, p in firsts.items()})


def _first(program: Program) -> Program:
    """A program whose states after a step are the first values of the program's; reductions over several tensors within stand alone."""
    body: list[Binding] = []
    commits = []
    for s in program.states:
        if s.init is not None:

            def alone(e: Expr, name: str = s.name) -> Expr:
                if not is_join(e):
                    return e
                body.append(Binding(f"{name} first {len(body)}", e))
                return Ref(body[-1].name, "value", e.type)

            commits.append((s.name, rewrite(s.init, alone)))
    return replace(program, body=tuple(body), commits=tuple(commits), weight=None, watches=())


def _ordered(programs: Mapping[int, Program], bodies: Mapping[int, list[Binding]], locals_: Mapping[int, list[Root]]) -> Plan:
    order, alias = once(merge(bodies))
    roots = {c: [replace(r, expr=alias(c, r.expr)) for r in found] for c, found in locals_.items()}
    shared = {key: [replace(r, expr=alias(None, r.expr)) for r in found] for key, found in shared_roots(programs).items()}
    order = needed(order, roots, [r for found in shared.values() for r in found])
    levels = Levels(order)
    levels.place(order, roots)
    return Plan(_read_only((*_steps(levels, order, roots, programs), *_last(shared))), levels.hosts(), programs)


def _read_only(steps: Sequence[Piece | Join]) -> tuple[Piece | Join, ...]:
    """The steps, where pieces of a group or of the model carry only what others read."""
    read: set[str] = set()
    for s in steps:
        if isinstance(s, Join):
            read |= {s.number or ""}
            continue
        found = [*(b.expr for b in s.bindings if isinstance(s.owner, int)), *(e for _, e in s.parts), *(r.expr for r in s.roots)]
        read |= {n for e in found for n in values_read(e)}
    kept: list[Piece | Join] = []
    for s in reversed(steps):
        if isinstance(s, Piece) and not isinstance(s.owner, int):
            s = replace(s, carried=tuple(n for n in s.carried if n in read))
            read |= {n for b in s.bindings for n in values_read(b.expr)}
        kept.append(s)
    return tuple(kept[::-1])


@dataclass
class Levels:
    """When values are there: `local` of (class, name), the level of the piece that computes it at the earliest; `stage` of a joint name, the level
    after whose pieces it is computed (-1: before all); `placed` of (class, name), where it is computed."""

    order: Sequence[Step]
    local: dict[tuple[int, str], int] = field(default_factory=dict)
    stage: dict[str, int] = field(default_factory=dict)
    placed: dict[tuple[int, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for step in self.order:
            match step:
                case Local(c, Binding(name, expr)):
                    self.local[c, name] = self.ready(c, expr)
                case Shared(name, bindings):
                    self.stage[name] = max(self.stage_of(c, b.expr) for c, b in bindings.items())

    def ready(self, c: int, e: Expr) -> int:
        """The first level at which a class can evaluate e."""
        return max((self.stage[n] + 1 if n in self.stage else self.local[c, n] for n in values_read(e)), default=0)

    def stage_of(self, c: int, e: Expr) -> int:
        if is_join(e) and not is_shared(cells_of(e)):
            return max(max((self.stage[n] for n in values_read(a)), default=-1) if i in numbers(e) else self.ready(c, a) for i, a in enumerate(e.args))
        return max((self.stage[n] for n in values_read(e)), default=-1)

    def place(self, order: Sequence[Step], roots: Mapping[int, list[Root]]) -> None:
        """Each local binding at the level of its first reader."""

        def read(c: int, e: Expr, level: int) -> None:
            for n in values_read(e):
                if n not in self.stage:
                    self.placed[c, n] = min(level, self.placed.get((c, n), level))

        for c, found in roots.items():
            for r in found:
                read(c, r.expr, self.ready(c, r.expr))
        for step in reversed(order):
            match step:
                case Local(c, Binding(name, expr)):
                    read(c, expr, self.placed[c, name])
                case Shared(name, bindings):
                    for c, b in bindings.items():
                        read(c, b.expr, self.stage[name])

    def hosts(self) -> frozenset[str]:
        """Shared values that depend on no tensor: made of parameters, literals, lr, t, attributes alone."""
        found: set[str] = set()
        private: set[tuple[int, str]] = set()
        for step in self.order:
            match step:
                case Local(c, Binding(name, expr)) if is_host(expr, lambda n, c=c: n in found or (c, n) in private):
                    private.add((c, name))
                case Shared(name, bindings):
                    if all(is_host(b.expr, lambda n, c=c: n in found or (c, n) in private) for c, b in bindings.items()):
                        found.add(name)
        return frozenset(found)


def is_host(e: Expr, known: Callable[[str], bool]) -> bool:
    """Depends on no tensor: on parameters, literals, lr, t, attributes alone."""
    for n in walk(e):
        match n:
            case Ref(name, "value") if not known(name):
                return False
            case Ref(_, "state" | "input") | Ref("g" | "w", "builtin"):
                return False
            case Apply(op) if OPS[op].kind in ("random", "selection") or op in ("store", "push", "empty"):
                return False
    return True


def is_join(e: Expr) -> TypeGuard[Reduce | Apply]:
    """Combines what several pieces contribute: a reduction to group or all (not one over time), or `largest` over them."""
    match e:
        case Reduce():
            return is_joint(e) and not any(a.type.window for a in e.args)
        case _:
            return is_joint(e) and isinstance(e, Apply) and e.op == "largest"


def numbers(e: Reduce | Apply) -> list[int]:
    """Which operands of a reduction or `largest` are a number for each cell of the result."""
    return [i for i, name in enumerate(OPS[e.op].args) if name in OPS[e.op].numbers]


# --- pieces ----------------------------------------------------------------------------------------------------------


def _steps(levels: Levels, order: Sequence[Step], roots: Mapping[int, list[Root]], programs: Mapping[int, Program]) -> list[Piece | Join]:
    """For each level the pieces of the classes, then the joint steps that wait for them."""
    top = max([-1, *levels.stage.values(), *levels.placed.values(), *(levels.ready(c, r.expr) for c, found in roots.items() for r in found)])
    steps: list[Piece | Join] = []
    for level in range(-1, top + 1):
        pieces = [_piece(levels, order, roots[c], c, level) for c in programs]
        steps += [p for p in pieces if p.bindings or p.parts or p.roots]
        for step in order:
            if isinstance(step, Shared) and levels.stage[step.name] == level:
                _append_joint(steps, step, level)
    return steps


def _piece(levels: Levels, order: Sequence[Step], roots: Sequence[Root], c: int, level: int) -> Piece:
    own = [s.binding for s in order if isinstance(s, Local) and s.owner == c and levels.placed[c, s.binding.name] == level]
    later = [s.binding.expr for s in order if isinstance(s, Local) and s.owner == c and levels.placed[c, s.binding.name] > level]
    parts = []
    for s in order:
        if isinstance(s, Shared) and c in s.bindings:
            e = s.bindings[c].expr
            if is_join(e) and not is_shared(cells_of(e)) and levels.stage[s.name] >= level:
                if levels.stage[s.name] == level:
                    parts.append((s.name, e))
                else:
                    later.append(e)
    now = [r for r in roots if levels.ready(c, r.expr) == level]
    later += [r.expr for r in roots if levels.ready(c, r.expr) > level]
    read_later = {n for e in later for n in values_read(e)}
    return Piece(c, (c,), level, tuple(own), tuple(parts), tuple(now), tuple(b.name for b in own if b.name in read_later))


def _append_joint(steps: list[Piece | Join], step: Shared, level: int) -> None:
    """A joint step: a Join, with a piece for its number and, over groups, for its operands; or a binding of the last shared piece, or of a new one."""
    expr = next(iter(step.bindings.values())).expr
    classes = tuple(step.bindings)
    if not is_join(expr):
        _append_shared(steps, Piece(expr.type.scope, classes, level, (Binding(step.name, expr),), carried=(step.name,)))
        return
    assert isinstance(expr, Reduce | Apply)
    number = None
    for i in numbers(expr):
        number = f"{step.name} {OPS[expr.op].args[i]}"
        scope = expr.scope if isinstance(expr, Reduce) else expr.static[0]
        _append_shared(steps, Piece(scope, classes, level, (Binding(number, expr.args[i]),), carried=(number,)))
    if is_shared(cells_of(expr)):
        steps.append(Piece(GROUP, classes, level, (), ((step.name, expr),)))
    exprs = {c: b.expr for c, b in step.bindings.items() if isinstance(b.expr, Reduce | Apply)}
    steps.append(Join(step.name, exprs, number))


def _append_shared(steps: list[Piece | Join], piece: Piece) -> None:
    last = steps[-1] if steps else None
    if isinstance(last, Piece) and (last.owner, last.classes, last.level, last.parts) == (piece.owner, piece.classes, piece.level, ()):
        steps[-1] = Piece(piece.owner, piece.classes, piece.level, last.bindings + piece.bindings, carried=last.carried + piece.carried)
    else:
        steps.append(piece)


def _last(shared: Mapping[tuple[Scope, tuple[int, ...]], list[Root]]) -> list[Piece]:
    """What leaves the step once for a group or for all."""
    return [Piece(scope, classes, 0, (), roots=tuple(roots)) for (scope, classes), roots in shared.items()]
