"""Terms: what a rule computes in one step as a graph over real numbers, in a normal form in which much that is equal is the same object.

Literals are exact. A sum is `lin`: numbers times terms, and a number; a product is `mul`: terms to powers, where what is divided by stays apart from what is
multiplied by, so that nothing is cancelled that could be 0. Where a sum cancels a term, or a product has the factor 0, the term is kept in `dropped`: what
is then said holds where it is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from updsl.core.ir import CONDITION, NUMBER, Type, joined
from updsl.core.ops import OPS, REDUCTIONS
from updsl.core.scope import COLUMN, ELEMENT, ROW, TENSOR, Scope
from updsl.laws.term import FLIPPED, HALF, MEASURES, Term, exact_root, finite_literals, is_count, is_even, is_nonnegative, monomial, plain, walk


class Exhausted(Exception):
    """More terms would be made than may be."""


@dataclass
class Terms:
    """Makes terms, each once, and at most so many. dropped: what cancelled."""

    most: float = math.inf
    table: dict[tuple, Term] = field(default_factory=dict)
    dropped: dict[Term, None] = field(default_factory=dict)

    def make(self, op: str, args: tuple[Term, ...], data: Any, type_: Type) -> Term:
        key = (op, tuple(map(id, args)), data, type_)
        if key not in self.table:
            if len(self.table) >= self.most:
                raise Exhausted
            self.table[key] = Term(op, args, data, type_, len(self.table))
        return self.table[key]

    def const(self, value: Any) -> Term:
        if isinstance(value, float):
            value = Fraction(repr(value)) if math.isfinite(value) else value
        elif not isinstance(value, bool):
            value = Fraction(value)
        return self.make("const", (), value, CONDITION if isinstance(value, bool) else NUMBER)

    def leaf(self, kind: str, name: str, type_: Type) -> Term:
        return self.make("leaf", (), (kind, name), type_)

    # --- sums --------------------------------------------------------------------------------------------------------

    def lin(self, parts: Iterable[tuple[Fraction, Term]]) -> Term:
        """The sum of numbers times terms."""
        found: dict[Term, Fraction] = {}
        number = Fraction(0)
        types: list[Type] = []
        for c, t in parts:
            types.append(t.type)
            if isinstance(t.value, Fraction | bool):
                number += c * Fraction(t.value)
            elif t.op == "lin":
                *factors, rest = t.data
                number += c * rest
                for f, x in zip(factors, t.args, strict=True):
                    found[x] = found.get(x, Fraction(0)) + c * f
            else:
                found[t] = found.get(t, Fraction(0)) + c
        self.dropped.update(dict.fromkeys(t for t, c in found.items() if not c))
        kept = sorted(((t, c) for t, c in found.items() if c), key=lambda p: p[0].index)
        if not kept:
            return self.const(number)
        if len(kept) == 1 and kept[0][1] == 1 and not number:
            return kept[0][0]
        return self.make("lin", tuple(t for t, _ in kept), (*(c for _, c in kept), number), plain(joined(*(t.type for t, _ in kept))))

    def add(self, *terms: Term) -> Term:
        return self.lin((Fraction(1), t) for t in terms)

    def scaled(self, c: Fraction | int, t: Term) -> Term:
        if t.value is not None and not isinstance(t.value, Fraction | bool):
            return self.const(t.value * math.copysign(1, c)) if c else self.lost(t)
        return self.lin([(Fraction(c), t)])

    def sub(self, x: Term, y: Term) -> Term:
        return self.lin([(Fraction(1), x), (Fraction(-1), y)])

    def lost(self, *terms: Term) -> Term:
        self.dropped.update(dict.fromkeys(terms))
        return self.const(0)

    # --- products ----------------------------------------------------------------------------------------------------

    def mul(self, parts: Iterable[tuple[Term, Fraction]]) -> Term:
        """The product of terms to powers."""
        number, radicand, found = Fraction(1), Fraction(1), {}
        for t, power in self.rooted(parts):
            if isinstance(t.value, Fraction) and power.denominator == 2 and t.value > 0:
                number *= t.value ** math.floor(power)
                radicand *= t.value
                continue
            if t.op == "pow" and power.denominator == 1 and t.args[1].value == HALF and isinstance(t.args[0].value, Fraction) and t.args[0].value > 0:
                number *= t.args[0].value ** (int(power) // 2)
                radicand *= t.args[0].value ** (int(power) % 2)
                continue
            c, inner = monomial(t, power)
            number *= c
            if t.op == "mul" and power != 1 and any(p.denominator > (p * power).denominator for p in t.data):
                self.dropped[t] = None
            for x, p in inner:
                whole = found.get((x, p > 0), Fraction(0)) + p
                if p.denominator > whole.denominator:  # √x·√x is x where x is at least 0
                    self.dropped[self.make("mul", (x,), (abs(p),), plain(x.type))] = None
                found[x, p > 0] = whole
        if radicand != 1:
            exact = exact_root(radicand)
            number *= exact or 1
            if exact is None:
                found[self.make("pow", (self.const(radicand), self.const(HALF)), (), NUMBER), True] = Fraction(1)
        for x in [x for x, up in found if up and (x, False) in found and is_count(x)]:
            p = found.pop((x, True)) + found.pop((x, False))
            if p:
                found[x, p > 0] = p
        kept = sorted(found.items(), key=lambda p: (p[0][0].index, p[0][1]))
        if not number:
            return self.lost(*(self.power_term(x, p) for (x, _), p in kept))
        if not kept:
            return self.const(number)
        if len(kept) == 1 and kept[0][1] == 1:
            return self.scaled(number, kept[0][0][0]) if number != 1 else kept[0][0][0]
        product = self.make("mul", tuple(x for (x, _), _ in kept), tuple(p for _, p in kept), plain(joined(*(x.type for (x, _), _ in kept))))
        return product if number == 1 else self.lin([(number, product)])

    def power_term(self, x: Term, p: Fraction) -> Term:
        return x if p == 1 else self.make("mul", (x,), (p,), x.type)

    def times(self, *terms: Term) -> Term:
        return self.mul((t, Fraction(1)) for t in terms)

    def over(self, x: Term, y: Term) -> Term:
        if y.value == 0 and not isinstance(y.value, bool):
            return self.make("div", (x, y), (), plain(x.type))
        return self.mul([(x, Fraction(1)), (y, Fraction(-1))])

    def power(self, x: Term, y: Term) -> Term:
        """x^y: a product where y is a fraction, else a term of its own."""
        p = y.value
        if isinstance(p, Fraction) and not isinstance(p, bool):
            if not p:
                self.dropped[x] = None
                return self.const(1)
            if isinstance(x.value, Fraction) and (p.denominator != 1 or abs(p) > 16 or not x.value):
                return self.make("pow", (x, y), (), NUMBER) if x.value != 1 else x
            return self.root(x) if p == HALF else self.mul([(x, p)])
        return self.make("pow", (x, y), (), plain(joined(x.type, y.type)))

    def root(self, x: Term) -> Term:
        """√x, factor by factor where each is at least 0."""
        c, parts = monomial(x, Fraction(1))
        if c < 0 or not all(p.numerator % 2 == 0 or is_nonnegative(t) for t, p in parts) or not parts:
            return self.mul([(x, HALF)])
        number = self.make("pow", (self.const(c), self.const(HALF)), (), NUMBER)
        return self.mul([(number, Fraction(1)), *((self.abs(t) if is_even(p) else t, p / 2) for t, p in parts)])

    def rooted(self, parts: Iterable[tuple[Term, Fraction]]) -> Iterator[tuple[Term, Fraction]]:
        """The parts of a product, with the roots of products taken apart where each factor is at least 0."""
        for t, power in parts:
            if power.denominator == 2 and t.op in ("lin", "mul"):
                c, inner = monomial(t, Fraction(1))
                if c > 0 and inner != [(t, 1)] and all(p.numerator % 2 == 0 or is_nonnegative(x) for x, p in inner):
                    yield self.make("pow", (self.const(c), self.const(HALF)), (), NUMBER), 2 * power
                    yield from ((self.abs(x) if is_even(p) else x, p * power) for x, p in inner)
                    continue
            yield t, power

    def average(self, weights: Fraction, x: Term, still: Callable[[Term], bool]) -> Term:
        """The average of x over the steps so far, the earlier by powers of `weights` less. still: what never changes."""
        if x.op == "lin":
            *factors, number = x.data
            return self.lin([*((c, self.average(weights, t, still)) for c, t in zip(factors, x.args, strict=True)), (Fraction(1), self.const(number))])
        c, parts = monomial(x, Fraction(1))
        outer, inner = [p for p in parts if still(p[0])], [p for p in parts if not still(p[0])]
        if not inner:
            return x
        inside = self.mul(inner)
        return self.mul([(self.const(c), Fraction(1)), *outer, (self.make("average", (inside,), weights, plain(inside.type)), Fraction(1))])

    # --- everything --------------------------------------------------------------------------------------------------

    def apply(self, op: str, args: Sequence[Term], static: tuple, type_: Type) -> Term:
        """An op of the table over these terms."""
        a = tuple(args)
        match op, a:
            case "neg", (x,):
                return self.scaled(-1, x)
            case "add", (x, y) if finite_literals(x, y):
                return self.add(x, y)
            case "sub", (x, y) if finite_literals(x, y):
                return self.sub(x, y)
            case "mul", (x, y) if finite_literals(x, y):
                return self.times(x, y)
            case "div", (x, y) if finite_literals(x, y):
                return self.over(x, y)
            case "pow", (x, y) if finite_literals(x, y):
                return self.power(x, y)
            case "sqrt", (x,):
                return self.power(x, self.const(HALF))
            case ("minimum" | "maximum", (x, y)) if x is y:
                return x
            case ("spread", (x,)) | ("store", (x,)) if op == "spread" or static[0] in ("state", "weight", "float64"):
                return x
            case "gt" | "ge" as word, (x, y):
                return self.apply("lt" if word == "gt" else "le", (y, x), (), type_)
            case "ne", (x, y):
                return self.negated(self.apply("eq", (x, y), (), type_))
            case "not", (x,):
                return self.negated(x)
            case "and" | "or" as word, (x, y):
                return self.both(word == "and", x, y, type_)
            case "select", (c, x, y):
                return self.select(c, x, y)
            case "abs", (x,):
                return self.abs(x)
            case "gaussian", (x,) if x.value == 0:
                return x
            case "sign", (x,):
                return self.sign(x)
            case "lt" | "le" | "eq" as word, (x, y) if x.value is not None and y.value is not None:
                return self.const(bool({"lt": x.value < y.value, "le": x.value <= y.value, "eq": x.value == y.value}[word]))
            case "lt" | "le" | "eq", (x, y) if isinstance(x.value, Fraction) or isinstance(y.value, Fraction):
                a = self.without_factor(x, y)
            case "std" | "var", (x,) if not x.type.window and not x.type.boolean:
                spread = self.reduce("rms", (self.sub(x, self.reduce("mean", (x,), (), type_)),), (), type_)
                return spread if op == "std" else self.mul([(spread, Fraction(2))])
            case "minimum" | "maximum" as word, (x, y) if x.value is not None and y.value is not None:
                return self.const((min if word == "minimum" else max)(x.value, y.value))
            case "mod", (x, y) if x.value is not None and isinstance(y.value, Fraction) and y.value and isinstance(x.value, Fraction):
                return self.const(x.value - y.value * math.floor(x.value / y.value))
        if op in REDUCTIONS and not any(x.type.window for x in a):
            return self.reduce(op, a, static, type_)
        if op in ("mul", "pow", "neg") and not finite_literals(*a):
            if all(x.value is not None for x in a):
                return self.const(float({"mul": math.prod, "neg": lambda v: -v[0], "pow": lambda v: v[0] ** v[1]}[op]([float(x.value) for x in a])))
            op = f"{op} of what may be infinite"
        return self.make(op, a, static, type_)

    def without_factor(self, x: Term, y: Term) -> tuple[Term, Term]:
        """c·x and a number, compared: x and another, in their order, or turned round for a negative c."""
        one, number = (x, y) if isinstance(y.value, Fraction) else (y, x)
        if one.op != "lin" or len(one.args) != 1 or one.data[-1]:
            return x, y
        pair = one.args[0], self.const(number.value / one.data[0])
        return pair if (one is x) == (one.data[0] > 0) else pair[::-1]

    def negated(self, x: Term) -> Term:
        if isinstance(x.value, bool):
            return self.const(not x.value)
        return x.args[0] if x.op == "not" else self.make("not", (x,), (), x.type)

    def spread(self, x: Term, type_: Type) -> Term:
        """x as what a reduction runs over, whose cells are counted: of the type that it is written for, also where it turns out to be coarser."""
        return x if x.scope == type_.scope or x.value == 0 or x.type.window else self.make("spread", (x,), (), replace(type_, boolean=x.type.boolean))

    def both(self, every: bool, x: Term, y: Term, type_: Type) -> Term:
        for a, b in ((x, y), (y, x)):
            if isinstance(a.value, bool):
                return b if a.value == every else a
        return x if x is y else self.make("and" if every else "or", (x, y), (), type_)

    def select(self, c: Term, x: Term, y: Term) -> Term:
        if isinstance(c.value, bool):
            return x if c.value else y
        if c.op == "not":
            return self.select(c.args[0], y, x)
        return (
            x
            if x is y
            else self.make(
                "select", (c, x, y), (), joined(c.type, x.type, y.type) if not x.type.boolean else replace(joined(c.type, x.type, y.type), boolean=True)
            )
        )

    def abs(self, x: Term) -> Term:
        c, parts = monomial(x, Fraction(1))
        if isinstance(x.value, Fraction | bool) or len(parts) != 1 or c != 1 or parts[0][1] != 1:
            return self.mul([(self.const(abs(c)), Fraction(1)), *((self.abs_term(t) if p.denominator == 1 else t, p) for t, p in parts)])
        return self.abs_term(x)

    def abs_term(self, x: Term) -> Term:
        return x if is_nonnegative(x) else self.make("abs", (x,), (), plain(x.type))

    def sign(self, x: Term) -> Term:
        c, parts = monomial(x, Fraction(1))
        if isinstance(x.value, Fraction):
            return self.const((x.value > 0) - (x.value < 0))
        if x.op == "sign":
            return x
        if c != 1 and len(parts) >= 1 and x.op == "lin":
            return self.scaled(1 if c > 0 else -1, self.sign(self.mul(parts)))
        return self.make("sign", (x,), (), plain(x.type))

    def reduce(self, op: str, args: tuple[Term, ...], static: tuple, type_: Type) -> Term:
        """A reduction: factors that its cells share stand before it, sums of a mean or a sum are sums."""
        x, scope = args[0], type_.scope
        if op in ("mean", "min", "max", "median", "absmax", "rms") and (x.scope <= scope) and not x.type.boolean:
            return x if op not in MEASURES else self.abs(x)
        if op in ("sum", "mean") and x.op == "lin":
            *factors, number = x.data
            alike = all(t.scope == x.scope or (op == "mean" and t.scope <= scope) for t in x.args)
            if alike and (op == "mean" or not number):
                parts = [(c, self.reduce(op, (t,), static, type_)) for c, t in zip(factors, x.args, strict=True)]
                return self.lin([*parts, (Fraction(1), self.const(number))])
        if op in MEASURES | {"sum", "mean", "dot"} and not (op == "norm" and static and static[0] == 0):
            outer, inner = zip(*(self.shared_factors(a, scope) for a in args), strict=True)
            if any(f.value != 1 for f in outer) and all(i.scope | scope == a.scope | scope for i, a in zip(inner, args, strict=True)):
                made = self.make(op, inner, static, type_) if all(i.value is None for i in inner) else self.counted(op, inner, static, type_)
                return self.times(*((self.abs(f) if op in MEASURES else f) for f in outer), made)
        if op in ("min", "max", "median"):
            c, parts = monomial(x, Fraction(1))
            if c != 1 and x.op == "lin" and len(x.args) == 1:
                return self.scaled(c, self.reduce(op if c > 0 else FLIPPED.get(op, op), (self.mul(parts),), static, type_))
        return self.counted(op, args, static, type_)

    def counted(self, op: str, args: tuple[Term, ...], static: tuple, type_: Type) -> Term:
        if op in MEASURES | {"sum"} and args[0].value == 0:
            return self.const(0)
        cells = self.cells(args[0].type, type_) if op == "rms" else None
        if cells is not None:
            return self.mul([(self.reduce("norm", args, (2.0,), type_), Fraction(1)), (self.root(cells), Fraction(-1))])
        return self.make(op, args, static, type_)

    def cells(self, of: Type, into: Type) -> Term | None:
        """How many cells of one type lie in each of another, where that is known: entries, in a row, a column or a tensor."""
        if of.scope != ELEMENT or into.scope not in (ROW, COLUMN, TENSOR):
            return None
        sizes = {TENSOR: (of.rows, of.cols), ROW: (of.cols,), COLUMN: (of.rows,)}[into.scope]
        if not all(isinstance(n, int) or n in ("rows", "cols") for n in sizes):
            return None
        return self.times(*(self.const(n) if isinstance(n, int) else self.leaf("builtin", str(n), Type(TENSOR)) for n in sizes))

    def shared_factors(self, x: Term, scope: Scope) -> tuple[Term, Term]:
        """What of a product is the same in each cell of the scope, and the rest; of a sum, what all its products share so."""
        if x.op == "lin" and len(x.args) > 1 and x.data[0] != 1:
            outer, inner = self.shared_factors(self.scaled(1 / x.data[0], x), scope)
            return self.scaled(x.data[0], outer), inner
        if x.op == "lin" and len(x.args) > 1 and not x.data[-1]:
            each = [monomial(t, Fraction(1))[1] for t in x.args]
            same = [p for p in each[0] if p[0].scope <= scope and all(p in other for other in each[1:])]
            if same:
                rest = [self.mul([p for p in parts if p not in same]) for parts in each]
                return self.mul(same), self.lin(zip(x.data[:-1], rest, strict=True))
        c, parts = monomial(x, Fraction(1))
        outer = [(t, p) for t, p in parts if t.scope <= scope]
        inner = [(t, p) for t, p in parts if not t.scope <= scope]
        if not inner:
            return self.const(1), x
        return self.mul([(self.const(c), Fraction(1)), *outer]), self.mul(inner)


def rebuilt(terms: Terms, t: Term, args: Sequence[Term]) -> Term:
    """The same of other operands, in normal form."""
    if all(map(lambda a, b: a is b, args, t.args)):
        return t
    match t.op:
        case "lin":
            *factors, number = t.data
            return terms.lin([*zip(factors, args, strict=True), (Fraction(1), terms.const(number))])
        case "mul":
            return terms.mul(zip(args, t.data, strict=True))
        case "joint" | "average" | "part":
            return terms.make(t.op, tuple(args), t.data, t.type)
        case op if op in REDUCTIONS:
            return terms.apply(op, [terms.spread(x, old.type) for x, old in zip(args, t.args, strict=True)], t.data, t.type)
        case "spread":
            return terms.spread(args[0], t.type)
        case op if op in OPS:
            return terms.apply(op, args, t.data, t.type)
    return terms.make(t.op, tuple(args), t.data, t.type)


def substituted(terms: Terms, t: Term, known: Mapping[Term, Term]) -> Term:
    """With other terms for some."""
    made: dict[Term, Term] = {}
    for x in walk(t):
        made[x] = known[x] if x in known else rebuilt(terms, x, [made[a] for a in x.args])
    return made[t]
