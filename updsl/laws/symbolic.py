"""One step of a rule as terms: at the first step, or at any, with the ranges of what states can hold by then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from updsl.core.diagnostic import UpdslError
from updsl.core.frame import Tensor
from updsl.core.ir import GRID, NUMBER, Apply, Binding, Const, Expr, Program, Reduce, Ref, State, is_shared
from updsl.core.schedule import Guarded, Local, Shared, Step, merge
from updsl.front.elaborate import elaborate
from updsl.front.module import Module
from updsl.front.unit import Constant
from updsl.laws.intervals import ANYTHING, INF, REAL, Range
from updsl.laws.ranges import Ranges
from updsl.laws.term import Term, walk
from updsl.laws.terms import Exhausted, Terms

COUNTS = frozenset("t rows cols numel ndim batch".split())
DRAWS = frozenset("gaussian uniform bernoulli".split())
ROUNDS = 24
"""Of the search for ranges of states that every step keeps."""

Numbers: TypeAlias = Mapping[str, tuple[float, float]]
"""Quantified numbers, with their ranges."""


@dataclass
class Step1:
    """A step of a rule: what it gives, and what its states then hold, by class."""

    out: dict[int, Term] = field(default_factory=dict)
    commits: dict[tuple[int, str], Term] = field(default_factory=dict)
    values: dict[tuple[int, str], Term] = field(default_factory=dict)
    weights: dict[int, Term] = field(default_factory=dict)


class Steps:
    """The Programs of the classes of a rule as terms. parameters: their values; numbers: those that are quantified, and stay names."""

    def __init__(self, terms: Terms, programs: Sequence[Program], parameters: Mapping[str, Constant], numbers: Numbers):
        self.terms, self.programs, self.parameters, self.numbers = terms, tuple(programs), parameters, numbers
        self.states = {(c, s.name): s for c, p in enumerate(programs) for s in p.states}
        self.averaged: frozenset[tuple[int, str]] = frozenset()
        """States that are taken as averages."""

    def averages(self) -> frozenset[tuple[int, str]]:
        """The states that start at 0 and are given a value once, at every step, and keep it as it is."""
        found = set()
        for c, p in enumerate(self.programs):
            commits = dict(p.commits)
            stores = [(b.name, b.expr.static[1]) for b in p.body if isinstance(b, Binding) and isinstance(b.expr, Apply) and b.expr.op == "store"]
            for s in p.states:
                own = [name for name, of in stores if of == s.name]
                match commits.get(s.name), own:
                    case Ref(name=name), [one] if name == one and s.init == Const(0.0) and s.dtype is None:
                        found.add((c, s.name))
        return frozenset(found)

    def is_still(self, t: Term) -> bool:
        """Whether it is the same at every step."""
        moves = self.weight if any(p.weight is not None for p in self.programs) else None
        return all(_is_still_leaf(x) and x is not moves if not x.args else x.op not in DRAWS for x in walk(t))

    def state(self, c: int, s: State) -> Term:
        """A state before the step; one that all classes share is one."""
        return self.terms.leaf("state", s.name if is_shared(s.type) else f"{c} {s.name}", s.type)

    def before(self) -> dict[tuple[int, str], Term]:
        return {k: self.state(k[0], s) for k, s in self.states.items()}

    def first(self) -> dict[tuple[int, str], Term]:
        """The states before the first step; windows are left as they are."""
        found = self.before()
        for (c, name), s in self.states.items():
            if s.init is not None:
                found[c, name] = Run(self, c, {}, {}, {}).expr(s.init)
        return found

    def step(self, g: Mapping[int, Term] | Term, before: Mapping[tuple[int, str], Term], more: Mapping[tuple[str, str], Term] | None = None) -> Step1:
        """One step on these gradients, from these states. more: other leaves, by kind and name."""
        made = Step1()
        run = Run(self, 0, before, made.values, dict(more or {}))
        for c in range(len(self.programs)):
            run.g[c] = g if isinstance(g, Term) else g[c]
        run.steps(merge({c: p.body for c, p in enumerate(self.programs)}))
        for c, p in enumerate(self.programs):
            run.c = c
            w = None if p.weight is None else run.expr(p.weight)
            if w is not None:
                made.weights[c] = w
            if p.out is not None and (p.returns or w is None):
                made.out[c] = run.expr(p.out)
            else:
                assert w is not None
                made.out[c] = self.difference(w)
            commits = dict(p.commits)
            for s in p.states:
                made.commits[c, s.name] = run.expr(commits[s.name]) if s.name in commits else before[c, s.name]
        return made

    def difference(self, w: Term) -> Term:
        """The weight before less this one."""
        if w.op == "select":
            return self.terms.select(w.args[0], *(self.difference(x) for x in w.args[1:]))
        return self.terms.sub(self.weight, w)

    @property
    def weight(self) -> Term:
        return self.terms.leaf("builtin", "w", GRID)


def _is_still_leaf(t: Term) -> bool:
    if t.op != "leaf":
        return t.op == "const"
    kind, name = t.data
    return kind == "param" or (kind == "builtin" and (name in ("rows", "cols", "ndim", "w") or name.startswith("dim(")))


class Run:
    """The terms of the expressions of one step; c: the class that is looked at."""

    whose = "rule"
    """What the classes are of."""

    def __init__(self, steps: Steps, c: int, before: Mapping[tuple[int, str], Term], values: dict[tuple[int, str], Term], more: dict[tuple[str, str], Term]):
        self.of, self.terms, self.c, self.before, self.values, self.more = steps, steps.terms, c, before, values, more
        self.g: dict[int, Term] = {}

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Local(c, Binding(name, e)):
                    self.c = c
                    self.values[c, name] = self.expr(e)
                case Shared(name, bindings):
                    self.shared(name, {c: b.expr for c, b in bindings.items()})
                case Guarded(_, blocks, body):
                    self.steps(body)
                    for c, block in blocks.items():
                        self.c = c
                        due = self.due(block.count, block.start)
                        for y in block.yields:
                            self.values[c, y.name] = self.terms.select(due, self.expr(y.inner), self.expr(y.outer))

    def due(self, count: int, start: int) -> Term:
        """Whether this is a step start, start + count, …; the run's steps and those of the rule that is looked at are the same."""
        t, boolean = self.expr(Ref("t", "builtin", NUMBER)), replace(NUMBER, boolean=True)
        since = self.terms.apply("sub", (t, self.terms.const(start)), (), NUMBER) if start % count else t
        if count == 1:
            whole = self.terms.const(True)
        else:
            whole = self.terms.apply("eq", (self.terms.apply("mod", (since, self.terms.const(count)), (), NUMBER), self.terms.const(0)), (), boolean)
        begun = self.terms.const(True) if start <= count and not start % count else self.terms.apply("le", (self.terms.const(start), t), (), boolean)
        return self.terms.both(True, whole, begun if start > 1 else self.terms.const(True), boolean)

    def shared(self, name: str, exprs: Mapping[int, Expr]) -> None:
        """A value of several classes: a reduction over the cells of all of them, where they are the same terms, else over what they are."""
        found: dict[int, Term] = {}
        for c, e in exprs.items():
            self.c = c
            found[c] = self.expr(e)
        first = next(iter(found.values()))
        if spreads_differ(self, exprs):
            raise Exhausted
        if any(t is not first for t in found.values()):
            e = next(iter(exprs.values()))
            op = e.op if isinstance(e, Reduce | Apply) else "joint"
            own = {c: self.terms.make("joint", tuple(found.values()), op, t.type) for c, t in found.items()}
            found = own if is_shared(e.type) else {c: self.terms.make("joint", (t, *found.values()), op, t.type) for c, t in found.items()}
        part = (self.whose, *sorted(exprs)) if len(exprs) < len(self.of.programs) else None
        for c, t in found.items():
            reduced = part and any(isinstance(e, Reduce) or (isinstance(e, Apply) and e.op == "largest") for e in exprs.values())
            self.values[c, name] = self.terms.make("part", (t,), part, t.type) if reduced else t

    def expr(self, e: Expr) -> Term:
        match e:
            case Const(value):
                return self.terms.const(value)
            case Ref():
                return self.ref(e)
            case Reduce(op=op, args=args):
                return self.terms.apply(op, [self.terms.spread(self.expr(a), a.type) for a in args], e.static, e.type)
            case Apply(op="store", args=(x,), static=(_, of)) if (self.c, of) in self.of.averaged:
                return self.averaged(of, self.expr(x))
            case Apply(op="select", args=(c, x, y)):
                chosen = self.expr(c)
                if isinstance(chosen.value, bool):
                    return self.expr(x if chosen.value else y)
                return self.terms.select(chosen, self.expr(x), self.expr(y))
            case Apply(op=op, args=args):
                return self.terms.apply(op, [self.expr(a) for a in args], e.static, e.type)

    def averaged(self, name: str, after: Term) -> Term:
        """a·m + x, what a state m that starts at 0 is given at every step, as (1 - a^t) times an average of x / (1 - a)."""
        m, terms = self.before[self.c, name], self.terms
        if after.op != "lin" or m not in after.args:
            return after
        a = after.data[after.args.index(m)]
        rest = terms.sub(after, terms.scaled(a, m))
        if not 0 < a < 1 or m in walk(rest):
            return after
        t = self.expr(Ref("t", "builtin", NUMBER))
        grown = terms.sub(terms.const(1), terms.power(terms.const(a), t))
        return terms.times(grown, terms.average(a, terms.scaled(1 / (1 - a), rest), self.of.is_still))

    def ref(self, e: Ref) -> Term:
        if (e.kind, e.name) in self.more:
            return self.more[e.kind, e.name]
        match e.kind:
            case "value":
                return self.values[self.c, e.name]
            case "state":
                return self.before[self.c, e.name]
            case "param" if e.name not in self.of.numbers:
                value = self.of.parameters[e.name]
                return self.terms.const(0 if isinstance(value, str) else value)
            case "builtin" if e.name == "g":
                return self.g[self.c]
            case "builtin" if e.name == "t":
                return self.terms.leaf("builtin", "t", NUMBER)
            case "builtin" if e.name == "numel":
                return self.terms.times(*(self.terms.leaf("builtin", n, e.type) for n in ("rows", "cols")))
            case _:
                return self.terms.leaf(e.kind, e.name, e.type)


def spreads_differ(run: Run, exprs: Mapping[int, Expr]) -> bool:
    """Whether it is a std or var of what differs from class to class: that of all cells says more than each class's own."""
    operands: set[Term] = set()
    for c, e in exprs.items():
        if isinstance(e, Reduce) and e.op in ("std", "var"):
            run.c = c
            operands.add(run.expr(e.args[0]))
    return len(operands) > 1


# --- ranges of leaves ------------------------------------------------------------------------------------------------


def leaf_range(t: Term, numbers: Numbers) -> Range:
    """Of what is handed over at a step: real numbers; counts (of samples too) are at least 1, the learning rate is above 0."""
    kind, name = t.data
    match kind:
        case "param" if name in numbers:
            low, high = numbers[name]
            return Range(low, high, low <= 0 <= high)
        case "builtin" if name in COUNTS or name.startswith("dim("):
            return Range(0.0 if name == "ndim" else 1.0, INF, name == "ndim")
        case "builtin" if name == "lr":
            return Range(0.0, INF, False)
        case "state":
            return ANYTHING
        case _:
            return REAL


def ranges_after(steps: Steps, step: Step1) -> Ranges:
    """Ranges of the leaves at any step: those of states such that every step keeps them."""
    terms, numbers = steps.terms, steps.numbers
    before, first = steps.before(), steps.first()
    leaves = {t: leaf_range(t, numbers) for t in terms.table.values() if t.op == "leaf" and t.data[0] != "state"}
    start = Ranges(leaves)
    held: dict[Term, Range] = {}
    for k, s in steps.states.items():
        r = Range(INF, -INF, False, empty=True) if s.init is None else start.of(first[k])
        held[before[k]] = held[before[k]] | r if before[k] in held else r
    for round_ in range(ROUNDS):
        ranges = Ranges({**leaves, **held})
        after: dict[Term, Range] = {}
        for k, t in before.items():
            r = ranges.of(step.commits[k])
            after[t] = after[t] | r if t in after else r
        grown = {t: held[t] | r for t, r in after.items()}
        if grown == held:
            break
        held = {t: widened(held[t], r) if round_ >= 2 else r for t, r in grown.items()}
    else:
        held = dict.fromkeys(held, ANYTHING)
    return Ranges({**leaves, **held})


def widened(old: Range, new: Range) -> Range:
    low = new.low if new.low == old.low else next((x for x in (0.0, -1.0) if x <= new.low), -INF)
    high = new.high if new.high == old.high else next((x for x in (0.0, 1.0) if x >= new.high), INF)
    return replace(new, low=low, high=high, zero=new.zero or low < 0 < high)


# --- sets of tensors -------------------------------------------------------------------------------------------------


EDGES = ((1,), (1, 1), (1, 5), (5, 1), (3, 3), (1, 1, 1), (2, 3, 2), (5000,), (300, 200), (2, 1, 3, 1, 2, 2), (1, 2, 1, 2, 1, 2, 2))
"""Shapes of which a text may ask more than of those that it is loaded with."""


def sets_of(usable: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """All of them at once, each alone, and one of each edge."""
    taken: set[str] = set()
    together: list[Tensor] = []
    for k, t in enumerate(usable):
        together.append(replace(t, name=t.name if t.name not in taken else f"{t.name}.{k}"))
        taken.add(together[-1].name)
    yield tuple(together)
    for t in usable:
        yield (t,)
    yield from ((Tensor(usable[0].name, shape),) for shape in EDGES)


def programs_of_sets(
    module: Module, usable: Sequence[Tensor], parameters: Mapping[str, Constant], numbers: Numbers
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Program, ...], Mapping[str, int]] | None]:
    """The Programs for each set of tensors, each tuple of Programs once; None where a quantified number is fixed when they are made. Raises UpdslError where
    a set cannot be used."""
    seen: set[tuple[Program, ...]] = set()
    for tensors in sets_of(usable):
        try:
            found = elaborate(module, tensors, parameters)
        except UpdslError:
            if tensors[0].shape in EDGES and len(tensors) == 1:
                continue  # the rule is not for such tensors
            raise
        if found.constants & numbers.keys():
            yield None
        elif found.programs not in seen:
            seen.add(found.programs)
            yield tensors, found.programs, found.class_of
