"""What elaboration carries: values, environments, the facts found so far, and the Program under construction."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace

from updsl.core import ir
from updsl.core.diagnostic import Diagnostic, Label, UpdslError
from updsl.core.frame import Tensor
from updsl.core.ir import Binding, Const, Dim, Expr, Ref, Type, joined, of_each_tensor
from updsl.core.scope import TENSOR, Scope
from updsl.core.source import Span
from updsl.front import syntax
from updsl.front.module import Module
from updsl.front.sites import Sites
from updsl.front.unit import Constant, Unit

MAX_BINDINGS = 20_000


@dataclass(frozen=True, slots=True)
class Value:
    """An elaborated expression. `static`: its value, if literals, attributes and parameters decide it; `needs`: the parameters that must be constant for that.
    `poisoned`: a mistake was reported inside; whatever comes of it is not reported again."""

    expr: Expr
    static: Constant | None = None
    needs: frozenset[str] = frozenset()
    poisoned: bool = False

    @property
    def type(self) -> Type:
        return self.expr.type

    def at(self, span: Span) -> Value:
        """The same, with this place in the text as its own."""
        match self.expr:
            case Const(value=value, of=of) as literal:
                e: Expr = Const(value, of=of or literal, span=span)
            case Ref(name, kind, type_):
                e = Ref(name, kind, type_, span=span)
            case e:
                e = replace(e, span=span)
        return Value(e, self.static, self.needs, self.poisoned)


POISON = Value(Const(float("nan")), poisoned=True)


class Flag:
    """Whether something was used."""

    def __init__(self) -> None:
        self.used = False


@dataclass(frozen=True, slots=True)
class Default:
    """The scope that a reduction takes here, and the `per` it came from (None: the default, tensor)."""

    scope: Scope
    span: Span | None = None


@dataclass
class Slot:
    """A name of a block: kind "local", "let", "state" or "input". A state's value is in Context.current; `depth` counts the arms around its declaration."""

    kind: str
    value: Value
    span: Span
    state: str = ""
    depth: int = 0


@dataclass
class Instance:
    """A rule at one place of its caller. `names` are the open blocks, innermost last; `subtree` the states of this instance and of all it applies."""

    rule: syntax.Rule
    unit: Unit
    path: str
    parameters: Mapping[str, Value]
    g: Value
    own_clock: bool
    names: list[dict[str, Slot]] = field(default_factory=lambda: [{}])
    subtree: list[str] = field(default_factory=list)
    skips: list[tuple[Value, Span]] = field(default_factory=list)
    watches: dict[str, syntax.Watch] = field(default_factory=dict)
    clock: Expr | None = None
    begun: Span | None = None
    depth: int = 0

    def slot(self, name: str) -> Slot | None:
        return next((block[name] for block in reversed(self.names) if name in block), None)


@dataclass(frozen=True)
class Env:
    """Where an expression stands. `instance` is None in a fn, whose parameters are `arguments`."""

    unit: Unit
    sites: Sites
    path: str
    instance: Instance | None
    default: Default
    per_used: Flag
    it: Value | None = None
    it_read: Flag = field(default_factory=Flag)
    arguments: Mapping[str, Value] = field(default_factory=dict)
    rounds: str = ""
    population: str = ""
    guarded: bool = False
    calls: tuple[str, ...] = ()
    in_law: bool = False

    @property
    def place(self) -> str:
        """What holds this expression, where nothing flows."""
        return "a `fn`" if self.instance is None else "the start of a state"


@dataclass
class Facts:
    """What earlier passes found. Elaboration repeats until nothing is added: states refine, parameters turn out constant, sizes of inputs are tied."""

    states: dict[str, Type] = field(default_factory=dict)
    subtrees: dict[str, tuple[str, ...]] = field(default_factory=dict)
    known: dict[str, ir.State] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    clocks: set[str] = field(default_factory=set)
    ties: dict[Dim, Dim] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    mistaken: dict[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    """States with a mistake in an update, and what was reported until there: what reads them reports nothing further."""
    finer: frozenset[str] = frozenset()
    """What is of each tensor here because it is so, or another value, in another class: states by name, "watch …", and "value …" for bindings
    and what a block leaves."""
    changed: bool = False


@dataclass(frozen=True)
class Reduction:
    """For `explain`: a reduction of the text, its scope, and the `per` that gave it."""

    span: Span
    op: str
    scope: Scope
    origin: Span | None


class Context:
    """One pass over a rule's text for one class of tensors."""

    def __init__(
        self,
        module: Module,
        tensor: Tensor,
        facts: Facts,
        parameters: Mapping[str, Constant],
        overridden: frozenset[str],
        lr: bool,
        counts: Mapping[str, int],
        checking: bool,
    ):
        self.module, self._tensor, self.facts = module, tensor, facts
        self.asked_shape = False
        self.warned_of_shape = False
        """Whether the pass depends on the tensor's shape."""
        self.parameters, self.overridden, self.lr = parameters, overridden, lr
        self.counts, self.checking = counts, checking
        self.diagnostics: list[Diagnostic] = []
        self.block: list[ir.Statement] = []
        self.current: dict[str, Expr] = {}
        self.states: dict[str, ir.State] = {}
        self.inputs: dict[str, ir.Input] = {}
        self.watches: dict[str, Expr] = {}
        self.weight: Expr | None = None
        self.wrote_weight = False
        self.returns = True
        self.predicates: set[tuple[str, str]] = set()
        self.populations: set[str] = {""}
        self.reductions: list[Reduction] = []
        self.hosts: set[str] = set()
        self.twins: dict[str, Type] = {}
        """Host values that depend on `t`, and the type of their twin, which reads the tensor's own count: `name@tensor`."""
        self.guarded_watches: list[str] = []
        self.spent = 0
        self.looked_at: set[int] = set()
        self.capped = False
        self.counted = False
        self.callers: list[tuple[str, Span]] = []
        self.mistaken: dict[str, tuple[Diagnostic, ...]] = {}
        self.stored: dict[str, tuple[str, Type]] = {}

    # --- the tensor ---

    @property
    def name(self) -> str:
        """The tensor's. What depends on it is in `predicates`."""
        return self._tensor.name

    @property
    def tensor(self) -> Tensor:
        """With its shape: a pass that asks for it is of tensors of this shape only."""
        self.asked_shape = True
        return self._tensor

    @property
    def tensor_of_warning(self) -> Tensor:
        """With its shape, for a warning: what is warned of is of tensors of this shape, the Program is of others too."""
        self.warned_of_shape = True
        return self._tensor

    # --- mistakes ---

    def error(self, code: str, message: str, span: Span, **more) -> Value:
        """Report a mistake once, and go on with a value that reports nothing further."""
        d = self.of_caller(Diagnostic(code, message, span, **more))
        if d not in self.diagnostics:
            self.diagnostics.append(d)
        return POISON

    @contextmanager
    def applying(self, what: str, span: Span):
        """Elaborate another text, applied at `span`."""
        self.callers.append((what, span))
        try:
            yield
        finally:
            self.callers.pop()

    def of_caller(self, d: Diagnostic) -> Diagnostic:
        """A mistake that shows in the text of the library is one of what applies it: told at the place in the user's own file."""
        own = self.module.unit.source
        caller = next(((what, span) for what, span in reversed(self.callers) if span.source is own), None)
        if caller is None or d.span.source is own or d.code in NAME_CODES:
            return d
        labels = (Label(d.span, d.note_here or "this is where it shows"), *d.labels)
        return replace(d, span=caller[1], note_here=caller[0], labels=labels)

    def spend(self, span: Span) -> None:
        """Count what is elaborated; a text that unfolds without bound ends here."""
        self.spent += 1
        if self.spent > MAX_BINDINGS:
            raise UpdslError(
                Diagnostic("too-large", f"this rule unfolds to more than {MAX_BINDINGS:,} steps", span, help="lower the count of the `repeat` around it")
            )

    def to_look_at(self, text: syntax.Node) -> bool:
        """Whether text that is not taken has still to be looked at for mistakes in its names: once is enough."""
        if not self.checking or id(text) in self.looked_at:
            return False
        self.looked_at.add(id(text))
        return True

    @contextmanager
    def discarded(self, env: Env):
        """Elaborate text that is not taken, for the mistakes in its names only: everything else is as before."""
        lasting = "diagnostics facts module parameters looked_at asked_shape warned_of_shape".split()
        kept = {k: copy(v) for k, v in vars(self).items() if k not in lasting}
        facts = {k: copy(v) for k, v in vars(self.facts).items()}
        instance = env.instance
        subtree, begun, watches = (instance.subtree.copy(), instance.begun, instance.watches.copy()) if instance else ([], None, {})
        before = len(self.diagnostics)
        try:
            yield
        finally:
            vars(self).update(kept)
            vars(self.facts).update(facts)
            if instance:
                instance.subtree[:], instance.begun, instance.watches = subtree, begun, watches
            self.diagnostics[before:] = [d for d in self.diagnostics[before:] if d.code in NAME_CODES]

    def population(self, env: Env, branch: syntax.Node) -> str:
        """The set of tensors for which a branch's text is evaluated, by its place: its instance, its round, and where it stands in its file."""
        name = f"{env.population}/{env.path}{env.rounds}:{branch.span.source.name}:{branch.span.start}"
        self.populations.add(name)
        return name

    # --- names ---

    def emit(self, env: Env, label: str, value: Value, span: Span) -> Value:
        """Give the value a name in the Program, if it is not one already."""
        if isinstance(value.expr, (Const, Ref)):
            return value
        self.spend(span)
        name = env.path + label + env.rounds
        expr = self.settle(self.refined(f"value {name}", value.expr))
        self.block.append(Binding(name, expr, span=span))
        if isinstance(expr, ir.Apply) and expr.op == "store":
            self.stored[name] = (expr.static[0], expr.type)
        if is_host(expr, self.hosts):
            self.hosts.add(name)
            if ir.is_shared(expr.type) and self._counts(expr):
                twin = self._of_tensor(expr)
                self.twins[name] = twin.type
                self.block.append(Binding(f"{name}@tensor", twin, span=span))
        return Value(Ref(name, "value", expr.type, span=span), value.static, value.needs, value.poisoned)

    def refined(self, what: str, e: Expr) -> Expr:
        """The value, of each tensor if it is not one value for all tensors of its cell."""
        return of_each_tensor(e) if what in self.facts.finer else e

    def twin(self, name: str, *expressions: Expr) -> tuple[Expr, ...] | None:
        """Where a value of several tensors depends on `t`: the same for each tensor's own count, which `name`@tensor is from here on."""
        if not any(ir.is_shared(e.type) and self._counts(e) for e in expressions):
            return None
        self.twins[name] = Type(TENSOR)
        return tuple(map(self._of_tensor, expressions))

    def settle(self, e: Expr) -> Expr:
        """The expression with every `t` read as the count of its value: of the tensor in values of scope tensor or finer, else of the run."""
        match e:
            case ir.Reduce(args=args) if ir.is_shared(e.type) and not any(a.type.window for a in args):
                return ir.rebuild(e, tuple(self.settle(a) for a in args))
            case ir.Apply(op="largest", args=(x, k)) if ir.is_joint(e):
                return ir.rebuild(e, (self.settle(x), k))
            case ir.Apply(op="store") if ir.is_shared(e.type):
                return e
            case _ if TENSOR <= e.type.scope:
                return self._of_tensor(e)
            case _:
                return e

    def _of_tensor(self, e: Expr) -> Expr:
        match e:
            case Ref(name="t", kind="builtin") if not TENSOR <= e.type.scope:
                return replace(e, type=Type(TENSOR))
            case Ref(name=name, kind="value") if name in self.twins:
                return replace(e, name=f"{name}@tensor", type=self.twins[name])
            case ir.Apply(args=args, op=op):
                new = tuple(self._of_tensor(a) for a in args)
                if all(a is b for a, b in zip(new, args, strict=True)):
                    return e
                shape = joined(*(a.type for a in new))
                own = e.type.scope | shape.scope if op != "spread" else e.type.scope
                return replace(e, args=new, type=replace(e.type, scope=own))
            case ir.Reduce(args=args):
                return ir.rebuild(e, tuple(self._of_tensor(a) for a in args))
            case _:
                return e

    def _counts(self, e: Expr) -> bool:
        """Whether a host value depends on `t`."""
        return any(isinstance(n, Ref) and ((n.name == "t" and n.kind == "builtin") or (n.kind == "value" and n.name in self.twins)) for n in ir.walk(e))

    # --- grids ---

    def dim(self, d: Dim | None) -> Dim | None:
        """The size that stands for `d` once inputs' sizes are tied."""
        while d in self.facts.ties:
            d = self.facts.ties[d]
        return d

    def size(self, d: Dim | None) -> int | None:
        """The number behind a size; None for a size of a matrix input."""
        d = self.dim(d)
        if isinstance(d, int) or d not in ("rows", "cols"):
            return d if isinstance(d, int) else None
        return self.tensor.grid[d == "cols"]

    def agree(self, a: Dim | None, b: Dim | None) -> bool:
        """Whether two sizes are one; a size of a matrix input is tied to the other."""
        a, b = self.dim(a), self.dim(b)
        if a is None or b is None or a == b:
            return True
        if self.size(a) is None or self.size(b) is None:
            loose, other = (a, b) if self.size(a) is None else (b, a)
            self.facts.ties[loose] = other
            self.facts.changed = True
            return True
        return self.size(a) == self.size(b)

    def grid(self, t: Type) -> str:
        """The grid of a type in the user's words, for mistakes of size."""
        if t.rows is None and t.cols is None:
            return t.scope.one_for_each
        rows, cols = (str(self.size(d) or d) for d in (t.rows, t.cols))
        if t.rows is not None and t.cols is not None:
            return f"{rows} × {cols}"
        return f"one value for each of {rows} rows" if t.rows is not None else f"one value for each of {cols} columns"

    def combine(self, values: list[Value], span: Span, what: str) -> Type | None:
        """The type of values combined cell by cell; None after reporting that their grids or windows do not agree."""
        types = [v.type for v in values]
        for i, t in enumerate(types):
            for u in types[:i]:
                if not (self.agree(t.rows, u.rows) and self.agree(t.cols, u.cols)):
                    self.error(
                        "grid-mismatch",
                        f"{what} needs grids that agree, and they are {self.grid(u)} and {self.grid(t)}",
                        span,
                        help="transpose one (`x.T`), or reduce it to a value per row, column or tensor",
                    )
                    return None
                if t.window and u.window and t.window != u.window:
                    self.error(
                        "window-mismatch", f"{what} combines windows of {u.window} and {t.window} steps", span, help="give both `history` the same length"
                    )
                    return None
        t = joined(*types)
        return replace(t, rows=self.dim(t.rows), cols=self.dim(t.cols)) if self.facts.ties else t


def is_host(e: Expr, hosts: Set[str]) -> bool:
    """Whether a value depends on no tensor: only on literals, parameters, lr, t and attributes."""
    for n in ir.walk(e):
        match n:
            case Const():
                continue
            case Ref(kind="param"):
                continue
            case Ref(kind="builtin", name=name) if name not in ("g", "w"):
                continue
            case Ref(kind="value", name=name) if name in hosts:
                continue
            case ir.Apply(op=op) if op not in ("gaussian", "uniform", "bernoulli", "store"):
                continue
            case _:
                return False
    return True


NAME_CODES = frozenset(
    "unknown-name unknown-function unknown-rule unknown-parameter missing-argument too-many-arguments used-before-set shadowed-name assign-unknown "
    "input-as-argument forbidden-name duplicate-name stage-ignores-input fn-not-pure rule-or-function misplaced-statement "
    "state-in-arm state-init bad-pattern arms-disagree writes-weights-inside".split()
)
