"""Program → text of the language that parses back to an equal Program.

Every reduction names its scope, every operator its brackets. What the language's sugar hides is spelled as calls that only this text has:
`core.store(x, m)` (x rounded to the type of the state m, or of w), `core.push(h, x)` and `core.empty(n)` (windows; `core.empty(n, h)` has the cells
of the state h), `core.spread(x, tensor)` (a number as one for each tensor).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from updsl.core.ir import Apply, Binding, Const, Every, Expr, Program, Reduce, Ref, State, Statement, Yield, bindings, returned, roots, walk
from updsl.core.ops import OPS
from updsl.core.scope import ALL, TENSOR

RESERVED = (
    frozenset(
        "rule fn law example use per if then else and or not clip for implies gives in repeat times every from let state as input match skip "
        "when watch reset return about true false inf "
        "g it w lr t rows cols numel ndim name tensors batch pi core".split()
    )
    | frozenset(OPS)
    | {"dim", "history"}
)
NEVER = 2**62


def show(program: Program, parameters: Mapping[str, float | bool | str] | None = None) -> str:
    """The Program as a rule file. parameters: values of the parameters that it reads, written as their defaults (1 where not given)."""
    return "\n".join(_Printer(program, parameters or {}).lines()) + "\n"


class _Printer:
    def __init__(self, program: Program, parameters: Mapping[str, float | bool | str]):
        self.program = program
        self.values = parameters
        self.params = tuple(dict.fromkeys(n.name for e in _everything(program) for n in walk(e) if isinstance(n, Ref) and n.kind == "param"))
        kept = {*self.params, *(i.name for i in program.inputs)}
        self.taken: set[str] = {*RESERVED, *kept}
        self.names: dict[tuple[str, str], str] = {("param", n): n for n in self.params} | {("input", i.name): i.name for i in program.inputs}
        for s in program.states:
            self.names["state", s.name] = self.fresh(s.name)
        self.plain = dict(self._plain_stores())
        self.shown: dict[str, str] = {}

    def fresh(self, path: str) -> str:
        """An identifier for a path such as `zclip#1.m`, not used yet."""
        base = path.rstrip("'")
        primes = path[len(base) :]
        for mark in ".#@'":
            base = base.replace(mark, "_")
        name, n = base + primes, 1
        while name in self.taken:
            n += 1
            name = f"{base}_{n}{primes}"
        self.taken.add(name)
        return name

    def _plain_stores(self) -> Iterator[tuple[str, str]]:
        """Stores that read as `m ← …`: the only one of their state, at the top level, after the last reading of the old value."""
        body = self.program.body
        stores: dict[str, list[int]] = {}
        for b in bindings(body):
            if isinstance(b.expr, Apply) and b.expr.op == "store":
                stores.setdefault(b.expr.static[1], []).append(-1)
        for i, s in enumerate(body):
            match s:
                case Binding(name=name, expr=Apply(op="store", static=(_, of))) if len(stores[of]) == 1:
                    old = Ref(of, "builtin" if of == "w" else "state", s.expr.type)
                    later = [e for t in body[i + 1 :] for e in _of_statement(t)] + [e for _, e in self.program.commits] + [w.expr for w in self.program.watches]
                    later += returned(self.program)
                    if not any(isinstance(n, Ref) and (n.name, n.kind) == (old.name, old.kind) for e in later for n in walk(e)):
                        final = self.program.weight if of == "w" else dict(self.program.commits).get(of)
                        if isinstance(final, Ref) and final.name == name:
                            yield name, of

    # --- lines ---

    def lines(self) -> Iterator[str]:
        p = self.program
        head = ", ".join(f"{n} = {self.default(n)}" for n in self.params)
        yield f"rule {_rule_name(p.name)}({head}):" if head else f"rule {_rule_name(p.name)}:"
        if p.inputs:
            yield "    input " + ", ".join(_input(i) for i in p.inputs)
        for s in p.states:
            yield f"    state {self.names['state', s.name]} = {self.start(s)}" + (f" as {s.dtype}" if s.dtype else "")
        for s in p.body:
            yield from self.statement(s, "    ")
        for w in p.watches:
            yield f"    watch {self.fresh(w.label)} = {self.text(w.expr)}"
        commits = [
            (name, e) for name, e in p.commits if not (isinstance(e, Ref) and ((e.kind == "state" and e.name == name) or self.plain.get(e.name) == name))
        ]
        yield from self.before(commits)
        for name, e in commits:
            yield f"    {self.committed[name]} ← {self.text(e)}"
        if p.weight is not None and not (isinstance(p.weight, Ref) and p.weight.name in self.plain):
            yield f"    w ← {self.text(p.weight)}"
        for e in returned(p):
            yield f"    return {self.text(e, outer=True)}"

    def before(self, commits: list[tuple[str, Expr]]) -> Iterator[str]:
        """Names for the old values of states that are read after (or while) new ones are set."""
        p = self.program
        self.committed = {name: self.names["state", name] for name, _ in commits}
        shown = [e for _, e in commits] + ([p.weight] if p.weight is not None else []) + returned(p)
        read = {n.name for e in shown for n in walk(e) if isinstance(n, Ref) and n.kind == "state"}
        for name, _ in commits:
            if name in read:
                old = self.fresh(f"{name}.before")
                yield f"    {old} = {self.names['state', name]}"
                self.names["state", name] = old

    def default(self, name: str) -> str:
        value = self.values.get(name, 1.0)
        return str(value).lower() if isinstance(value, bool) else _number(float(value))

    def start(self, s: State) -> str:
        if s.type.window:
            return f"core.empty({s.type.window})"
        assert s.init is not None
        return self.text(s.init, outer=not isinstance(s.init, Reduce))  # a bare `per` would be the state's own

    def statement(self, s: Statement, indent: str) -> Iterator[str]:
        match s:
            case Binding(name=name, expr=Apply(op="store", args=(x,), static=(_, of))) if name in self.plain:
                self.names["value", name] = "w" if of == "w" else self.names["state", of]
                yield f"{indent}{self.names['value', name]} ← {self.text(x, outer=True)}"
            case Binding(name=name, expr=e):
                text = self.text(e, outer=True)
                if not self.is_twin(name, text):
                    self.names["value", name] = self.fresh(name)
                    yield f"{indent}{self.names['value', name]} = {text}"
            case Every(count=count, start=start, body=body, yields=yields):
                yields = tuple(y for y in yields if not self.is_twin(y.name, self.text(y.outer, outer=True)))
                for y in yields:
                    self.names["value", y.name] = self.fresh(y.name)
                    yield f"{indent}let {self.names['value', y.name]} = {self.text(y.outer, outer=True)}"
                yield f"{indent}every {'inf' if count == NEVER else count}" + (f" from {start}:" if start != count else ":")
                for inner in body:
                    yield from self.statement(inner, indent + "    ")
                for y in yields:
                    yield f"{indent}    {self.names['value', y.name]} ← {self.text(y.inner, outer=True)}"

    def is_twin(self, name: str, text: str) -> bool:
        """Whether the value is another's for each tensor's own count of steps, of the same text: reading the other makes it."""
        self.shown[name] = text
        base = name.removesuffix("@tensor")
        if base == name or self.shown.get(base) != text:
            return False
        self.names["value", name] = self.names["value", base]
        return True

    # --- expressions ---

    def text(self, e: Expr, outer: bool = False) -> str:
        """The expression; in brackets unless it is a name, number or call, or stands alone (outer)."""
        match e:
            case Const(value=bool(v)):
                return str(v).lower()
            case Const(value=v):
                return _number(v)
            case Ref(kind="builtin", name=name):
                return name
            case Ref(kind=kind, name=name):
                return self.names[kind, name]
            case Reduce(op="sum", args=(Apply(op="spread", args=(Const(value=1.0),), type=t),), scope=scope) if scope == ALL and t.scope == TENSOR:
                return "tensors"
            case Reduce(args=args):
                over = any(a.type.window for a in args)
                inner = f"{e.op}({self.arguments(e)})"
                return inner if over else _bracket(f"{inner} per {self.scope(e.scope)}", outer)
            case Apply():
                return self.apply(e, outer)

    def arguments(self, e: Apply | Reduce) -> str:
        shown = [self.text(a, outer=True) if not isinstance(a, Reduce) else self.text(a) for a in e.args]
        if e.op == "norm" and e.static != (2.0,):
            shown.append(_number(e.static[0]))
        if e.op in ("left_basis", "right_basis"):
            shown.append(str(e.static[0]))
        return ", ".join(shown)

    def scope(self, scope) -> str:
        return str(scope)

    def apply(self, e: Apply, outer: bool) -> str:
        match e:
            case Apply(op="store", args=(x,), static=(_, of)):
                return f"core.store({self.text(x, outer=True)}, {'w' if of == 'w' else self.names['state', of]})"
            case Apply(op="spread", args=(x,)):
                return f"core.spread({self.text(x, outer=True)}, {e.type.scope})"
            case Apply(op="empty"):
                alike = next((self.names["state", t.name] for t in self.program.states if t.type == e.type), None)
                return f"core.empty({e.type.window})" if alike is None else f"core.empty({e.type.window}, {alike})"
            case Apply(op="transpose", args=(x,)):
                return f"{self.text(x)}.T"
            case Apply(op="largest", args=(x, k), static=(scope, percent)):
                count = f"{_number(k.value * 100)}%" if percent and isinstance(k, Const) else self.text(k)
                return _bracket(f"largest({self.text(x)}, {count}) per {scope}", outer)
            case Apply(op=("gaussian" | "uniform" | "bernoulli"), type=t):
                rest = [self.text(a) for a in e.args]
                if t.scope in (ALL, TENSOR):
                    rest.append(f"each = {t.scope}")
                elif isinstance(t.rows, int) and isinstance(t.cols, int):
                    rest += [str(t.rows), str(t.cols)]
                return f"{e.op}({', '.join(rest)})"
        form = OPS[e.op].text
        if form == "call":
            return f"{e.op}({self.arguments(e)})"
        filled = form.format(**{n: self.text(a) for n, a in zip(OPS[e.op].args, e.args, strict=True)})
        return filled if form[0].isalpha() and form.endswith(")") else _bracket(filled, outer)


def _bracket(text: str, outer: bool) -> str:
    return text if outer else f"({text})"


def _number(v: float) -> str:
    if v != v:
        return "(inf - inf)"
    if v in (float("inf"), float("-inf")):
        return "inf" if v > 0 else "-inf"
    return str(int(v)) if v == int(v) and abs(v) < 1e15 else repr(v)


def _input(i) -> str:
    match i.kind:
        case "stream":
            return i.name
        case "per":
            return f"{i.name} per {i.type.scope}"
        case kind:
            return f"{i.name} as {kind}"


def _rule_name(name: str) -> str:
    return name if name not in OPS else f"{name}_"


def _of_statement(s: Statement) -> Iterator[Expr]:
    match s:
        case Binding(expr=e):
            yield e
        case Every(body=body, yields=yields):
            for t in body:
                yield from _of_statement(t)
            for y in yields:
                yield from (y.inner, y.outer)


def _everything(program: Program) -> Iterator[Expr]:
    yield from (s.init for s in program.states if s.init is not None)
    yield from roots(program)


# --- equality up to names --------------------------------------------------------------------------------------------


def canonical(program: Program) -> Program:
    """The Program with its own names numbered in order, so that Programs that differ in names alone are equal. Parameters and inputs keep theirs."""
    names: dict[tuple[str, str], str] = {("state", s.name): f"s{i}" for i, s in enumerate(program.states)}

    def named(kind: str, name: str) -> str:
        return names.setdefault((kind, name), f"{kind}{len(names)}")

    def expr(e: Expr) -> Expr:
        match e:
            case Ref(kind="value" | "state" as kind, name=name):
                return replace(e, name=named(kind, name))
            case Apply(op=("gaussian" | "uniform" | "bernoulli"), args=args):
                return replace(e, args=tuple(map(expr, args)), static=())
            case Apply(op="store", args=args, static=(dtype, of)):
                return replace(e, args=tuple(map(expr, args)), static=(dtype, of if of == "w" else named("state", of)))
            case Apply(args=args) | Reduce(args=args):
                return replace(e, args=tuple(map(expr, args)))
            case _:
                return e

    def statement(s: Statement) -> Statement:
        match s:
            case Binding(name=name, expr=e):
                return Binding(named("value", name), expr(e))
            case Every():
                body = tuple(map(statement, s.body))
                yields = tuple(Yield(named("value", y.name), expr(y.inner), expr(y.outer), y.type) for y in s.yields)
                return replace(s, name=named("value", s.name), body=body, yields=yields)

    states = tuple(replace(s, name=names["state", s.name], init=None if s.init is None else expr(s.init)) for s in program.states)
    body = tuple(map(statement, program.body))
    return replace(
        program,
        name="",
        states=states,
        body=body,
        commits=tuple((names["state", n], expr(e)) for n, e in program.commits),
        out=None if program.out is None else expr(program.out),
        weight=None if program.weight is None else expr(program.weight),
        watches=tuple(replace(w, label="", expr=expr(w.expr)) for w in program.watches),
    )
