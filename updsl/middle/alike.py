"""Programs up to the names of bindings and states: two of one digest give the same, to the bit, on every step of every stream.

A binding counts by its expression, and a state by what it starts from and becomes, refined until that settles: states of one digest then have the same value
for ever, as states of an automaton that no input tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from updsl.core.digest import digest
from updsl.core.ir import Apply, Binding, Const, Every, Expr, Program, Reduce, Ref, Statement, Type, bindings, is_joint, returned
from updsl.core.scope import Scope

SYMMETRIC = frozenset("add mul minimum maximum eq ne and or dot cosine".split())
"""Ops whose two operands may change places, to the bit."""
TYPED = frozenset("spread store gaussian uniform bernoulli empty push".split())
"""Ops whose result's type does not follow from their operands'."""


def digests(program: Program, values: Mapping[str, float | bool | str], rounds: int) -> tuple[str, str]:
    """Of what becomes of the gradient, and of the weight ("" where it is not written). values: numbers in the place of parameters, where they are given.
    rounds: at least as many as the Programs that are compared have states."""
    known: dict[str, str] = {}
    for _ in range(rounds + 1):
        reading = Reading(program, values, known)
        known = reading.states()
    reading = Reading(program, values, known)
    return digest(*map(reading.of, returned(program))), "" if program.weight is None else reading.of(program.weight)


def has_joint_values(program: Program) -> bool:
    """Whether a value of it needs all tensors, those of other Programs too."""
    return any(is_joint(b.expr) for b in bindings(program.body))


class Reading:
    """One reading of a Program. known: digests of its states, of the reading before."""

    def __init__(self, program: Program, values: Mapping[str, float | bool | str], known: Mapping[str, str]):
        self.program, self.values, self.known = program, values, known
        self.dtypes = {s.name: s.dtype for s in program.states}
        self.bound: dict[str, str] = {}
        self.read(program.body)

    def read(self, statements: tuple[Statement, ...]) -> None:
        for s in statements:
            match s:
                case Binding(name=name, expr=e):
                    self.bound[name] = self.of(e)
                case Every(count=count, start=start, body=body, yields=yields):
                    self.read(body)
                    self.bound |= {y.name: digest("every", count, start, self.of(y.inner), self.of(y.outer), _type(y.type)) for y in yields}

    def states(self) -> dict[str, str]:
        commits = dict(self.program.commits)
        return {
            s.name: digest("state", "" if s.init is None else self.of(s.init), _type(s.type), s.dtype, self.of(commits[s.name])) for s in self.program.states
        }

    def of(self, e: Expr) -> str:
        match e:
            case Const(value=v):
                return digest("const", str(v) if isinstance(v, bool) else float(v).hex())
            case Ref(name=name, kind="value"):
                return self.bound[name]
            case Ref(name=name, kind="state", type=type_):
                return digest("before", self.known.get(name, ""), _type(type_))
            case Ref(name=name, kind="param") if name in self.values:
                return self.of(Const(float(self.values[name])))
            case Ref(name=name, kind=kind, type=type_):
                return digest(kind, name, _type(type_))
            case Apply(op="store", args=(x,), static=(dtype, of)):
                return digest("store", dtype, self.dtypes.get(of), _type(e.type), self.of(x))
            case Apply(op=op, args=args, static=static):
                found = [self.of(a) for a in args]
                type_ = _type(e.type) if op in TYPED else ""
                return digest(op, *(sorted(found) if op in SYMMETRIC else found), [_static(x) for x in static], type_)
            case Reduce(op=op, args=args, scope=scope, static=static):
                found = [self.of(a) for a in args]
                return digest("reduce", op, *(sorted(found) if op in SYMMETRIC else found), str(scope), [_static(x) for x in static])


def _type(t: Type) -> list:
    return [str(t.scope), t.rows, t.cols, t.samples, t.window]


def _static(x: object) -> str:
    return str(x) if isinstance(x, Scope) else float(x).hex() if isinstance(x, (int, float)) and not isinstance(x, bool) else repr(x)
