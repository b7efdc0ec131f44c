"""Laws that hold by the structure of a rule: how each of its values changes when the gradients of every step do.

A reading of a value is a way in which it changes that is known to be right; a value may have several (0 has all). Each op has a row: from readings of its
operands to one of its result. States are by induction: of the readings of their `init` those are left that every step keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from updsl.laws.symbolic import Step1, Steps
from updsl.laws.term import Term, is_nonnegative, walk

Reading = Hashable
LIMIT = 64
"""Combinations of readings of operands that are looked at."""


@dataclass(frozen=True)
class Symmetry:
    """universe: the readings of 0; still: those of what does not depend on the gradients; moved: that of the gradients; weight: those of the weight before
    the first step of a rule that moves it; of: an op's row; words: the argument."""

    universe: frozenset[Reading]
    still: frozenset[Reading]
    moved: Reading
    weight: frozenset[Reading]
    of: Callable[[Term, Sequence[Reading]], Reading | None]
    words: str


def readings(s: Symmetry, steps: Steps, step: Step1, first: Mapping[tuple[int, str], Term], at_first: bool) -> Callable[[Term], frozenset[Reading]]:
    """The readings of every term of a step, those of the states being kept by every step. at_first: the step is the first, from the states `first`."""
    if at_first:
        return of_terms(s, {}, list(step.out.values())).__getitem__
    held: dict[Term, frozenset[Reading]] = {}
    if step.weights:  # each run of the rule moves weights of its own
        held[steps.weight] = s.weight
    start = of_terms(s, held, list(first.values()))
    after = [(t, step.commits[k]) for k, t in steps.before().items()] + [(steps.weight, w) for w in step.weights.values()]
    for k, t in steps.before().items():
        known = s.universe if steps.states[k].init is None else start[first[k]]
        held[t] = held[t] & known if t in held else known
    while True:
        found = of_terms(s, held, [*(e for _, e in after), *step.out.values()])
        kept = dict(held)
        for t, e in after:
            kept[t] = kept[t] & found[e]
        if kept == held:
            return found.__getitem__
        held = kept


def of_terms(s: Symmetry, held: Mapping[Term, frozenset[Reading]], terms: Sequence[Term]) -> dict[Term, frozenset[Reading]]:
    found: dict[Term, frozenset[Reading]] = {}
    for t in walk(*terms):
        if t in held:
            found[t] = held[t]
        elif t.op == "leaf" and t.data == ("builtin", "g"):
            found[t] = frozenset((s.moved,))
        elif t.op == "const" and t.value == 0 and not isinstance(t.value, bool):
            found[t] = s.universe
        elif not t.args:
            found[t] = s.still
        else:
            choices = list(product(*(sorted(found[a], key=str) for a in t.args)))[:LIMIT]
            got = {r for c in choices if (r := s.of(t, c)) is not None}
            found[t] = frozenset(got)
    return found


# --- signs -----------------------------------------------------------------------------------------------------------

SAME = "same"


def about(c: Fraction | int) -> Reading:
    """As c times the first weight and something else that is odd, or linear, in the gradients."""
    return ("about", Fraction(c))


OTHER = about(0)
ODD_OPS = frozenset("sign tanh sin round sum mean median transpose polar trace diag sample_mean sample_sum store average push part".split())
EVEN_OF_ODD = frozenset("abs cos norm rms absmax std var".split())
PRODUCTS = frozenset("dot cosine matmul solve".split())


def parity(t: Term, r: Sequence[Reading]) -> Reading | None:
    """Whether it stays, or is its negative, when all gradients are theirs."""
    if all(x == SAME for x in r):
        return SAME
    if any(x not in (SAME, OTHER) for x in r):
        return around(t, r)
    odd = [x == OTHER for x in r]
    match t.op:
        case "lin":
            return OTHER if all(odd) and not t.data[-1] else None
        case "mul":
            return (
                None
                if any(o and p.denominator > 1 for o, p in zip(odd, t.data, strict=True))
                else _sign(sum(o * int(p) for o, p in zip(odd, t.data, strict=True)) % 2)
            )
        case "select":
            return OTHER if not odd[0] and all(odd[1:]) else None
        case "joint":
            return None if not all(odd) else OTHER if t.data in ODD_OPS else SAME if t.data in EVEN_OF_ODD | {"largest"} else None
        case op if op in ODD_OPS:
            return OTHER if all(odd) else None
        case op if op in EVEN_OF_ODD:
            return SAME
        case op if op in PRODUCTS:
            return _sign(sum(odd) % 2)
        case "eq":
            return SAME if all(odd) or _other_is_zero(t, odd) else None
        case "quantile":
            return OTHER if t.args[1].value == Fraction(1, 2) and not odd[1] else None
        case "isfinite":
            return SAME
        case "largest" | "left_basis" | "right_basis":
            return SAME if odd == [True] or (len(odd) == 2 and not odd[1]) else None
        case "rows" | "cols" | "eye":
            return SAME
        case "clamp":
            _, low, high = t.args
            return OTHER if odd[0] and not any(odd[1:]) and _are_opposite(low, high) else None
    return None


def around(t: Term, r: Sequence[Reading]) -> Reading | None:
    """Of values about some share of the first weight: their sums, and choices of them."""
    shares = [x[1] if isinstance(x, tuple) else None for x in r]
    match t.op:
        case "lin" if None not in shares and not t.data[-1]:
            return about(sum((c * x for c, x in zip(t.data, shares, strict=False) if x is not None), Fraction(0)))
        case "select":
            return r[1] if shares[0] is None and r[1] == r[2] else None
    return None


def _sign(odd: int | bool) -> Reading:
    return OTHER if odd else SAME


def _are_opposite(low: Term, high: Term) -> bool:
    """Whether low is -high, in normal form, and not above it."""
    if not is_nonnegative(high):
        return False
    if isinstance(low.value, Fraction) and isinstance(high.value, Fraction):
        return low.value == -high.value
    of = lambda t: dict(zip(t.args, t.data, strict=False)) if t.op == "lin" else {t: Fraction(1)}
    rest = lambda t: t.data[-1] if t.op == "lin" else 0
    return of(low) == {t: -c for t, c in of(high).items()} and rest(low) == -rest(high)


def _other_is_zero(t: Term, odd: Sequence[bool]) -> bool:
    return any(o and t.args[1 - i].value == 0 for i, o in enumerate(odd))


SIGNS = Symmetry(
    frozenset((SAME, OTHER)),
    frozenset((SAME,)),
    OTHER,
    frozenset((SAME, about(1))),
    parity,
    "everything it computes is odd or even in the gradients, step by step, its states too",
)

# --- numbers ---------------------------------------------------------------------------------------------------------

LINEAR_OPS = frozenset("sum mean transpose trace diag sample_mean sample_sum average push part".split())


def linearity(t: Term, r: Sequence[Reading]) -> Reading | None:
    """Whether it does not depend on the gradients, or is linear in those of all steps."""
    if all(x == SAME for x in r):
        return SAME
    if any(x not in (SAME, OTHER) for x in r):
        return around(t, r)
    moves = [x == OTHER for x in r]
    match t.op:
        case "lin":
            return OTHER if all(moves) and not t.data[-1] else None
        case "mul":
            return OTHER if sum(moves) == 1 and t.data[moves.index(True)] == 1 else None
        case "select":
            return OTHER if not moves[0] and all(moves[1:]) else None
        case op if op in LINEAR_OPS:
            return OTHER if all(moves) else None
        case "joint":
            return OTHER if all(moves) and t.data in LINEAR_OPS else None
        case "dot" | "matmul":
            return OTHER if sum(moves) == 1 else None
        case "solve":
            return OTHER if moves == [False, True] else None
    return None


LINEAR = Symmetry(
    frozenset((SAME, OTHER)),
    frozenset((SAME,)),
    OTHER,
    frozenset((SAME, about(1))),
    linearity,
    "what it gives is a sum of the gradients of all steps with factors that do not depend on them",
)

# --- rows in another order, or turned ----------------------------------------------------------------------------------

Axes = tuple[bool, bool]
STILL = (False, False)
SYMMETRIC = frozenset("sum mean norm rms var std min max absmax median quantile dot cosine count any".split())
ROTATION_FREE = frozenset("norm rms dot cosine".split())


def has_axes(t: Term) -> tuple[bool, bool]:
    """Whether its cells have a first and a second index."""
    return "i" in t.scope.indices, "j" in t.scope.indices


def _together(t: Term, r: Sequence[Reading]) -> Reading | None:
    """What combines cell by cell moves as all operands that have an axis."""
    found: list[bool] = []
    for axis in (0, 1):
        moved = {x[axis] for a, x in zip(t.args, r, strict=True) if has_axes(a)[axis]}  # type: ignore[index]
        if len(moved) > 1:
            return None
        found.append(moved == {True})
    return tuple(found)


def _of_blocks(t: Term) -> bool:
    """Runs of entries are others once rows are in another order."""
    return any(x.scope.size for x in (t, *t.args))


def _matrix(t: Term, r: Sequence[Reading], turned: bool) -> Reading | None:
    match t.op, r:
        case "transpose", ((a, b),):
            return (b, a) if t.scope.name == "element" else None
        case "matmul", ((a, b), (c, d)):
            return (a, d) if b == c else None
        case "polar", (x,):
            return x
        case "solve", ((a, b), (c, d)):
            return (a, d) if a == b == c else None
        case "matrix_power", ((a, b), power):
            return (a, b) if a == b and power == STILL else None
        case "trace", ((a, b),):
            return STILL if a == b else None
        case "diag", ((a, b),):
            return (a, False) if a == b and not turned else None
        case "eye", ((a, b),):
            return (a, b) if a == b else STILL
        case "rows" | "cols", _:
            return STILL
    return None


def permuted(t: Term, r: Sequence[Reading]) -> Reading | None:
    """Which axes are in the other order."""
    if all(x == STILL for x in r):
        return STILL
    if t.op in MATRIX:
        return _matrix(t, r, False)
    if _of_blocks(t) or t.op in UNFIT or (t.op == "joint" and t.data not in SYMMETRIC):
        return None
    if t.op in SYMMETRIC or t.op == "joint":
        whole = _together(t, r)
        return None if whole is None else tuple(m and h for m, h in zip(whole, has_axes(t), strict=True))  # type: ignore[arg-type]
    return _together(t, r)


MATRIX = frozenset("transpose matmul polar solve matrix_power trace diag eye rows cols".split())
UNFIT = frozenset("left_basis right_basis orthonormal largest gaussian uniform bernoulli".split())
"""What depends on the order of entries: draws are of places, ties go to the first."""


def turned(t: Term, r: Sequence[Reading]) -> Reading | None:
    """Which axes are turned by the orthogonal matrix."""
    if all(x == STILL for x in r):
        return STILL
    moving = [a for a, x in zip(t.args, r, strict=True) if x != STILL]
    match t.op:
        case op if op in MATRIX:
            return _matrix(t, r, True)
        case "lin":
            return r[0] if len(set(r)) == 1 and not t.data[-1] and all(a.scope == t.scope for a in t.args) else None
        case "average":
            return r[0]
        case "mul":
            (at, *more) = [i for i, x in enumerate(r) if x != STILL]
            fits = not more and t.data[at] == 1 and all(not _along(a, r[at]) for a in t.args if a is not t.args[at])
            return r[at] if fits else None
        case "select":
            c, x, y = r
            spread = any(a.scope != t.scope and a.value != 0 for a in t.args[1:])
            return x if c == STILL and x == y and not _along(t.args[0], x) and not spread else None
        case op if op in ROTATION_FREE and (op != "norm" or t.data == (2.0,)):
            whole = set(r)
            kept = [h for h, m in zip(has_axes(t), r[0], strict=True) if m]  # type: ignore[call-overload]
            return STILL if len(whole) == 1 and len(moving) == len(t.args) and not any(kept) and not _of_blocks(t) else None
        case "joint" if t.data in ROTATION_FREE:
            return STILL
    return None


def _along(t: Term, axes: Reading) -> bool:
    """Whether it differs along an axis that is turned."""
    return any(h and m for h, m in zip(has_axes(t), axes, strict=True)) or bool(t.scope.size)  # type: ignore[call-overload]


def _of_axes(of: Callable[[Term, Sequence[Reading]], Reading | None], words: str) -> Symmetry:
    still: frozenset[Reading] = frozenset((STILL,))
    return Symmetry(frozenset(product((False, True), repeat=2)), still, (True, False), still, of, words)


PERMUTED = _of_axes(permuted, "every reduction is symmetric, and everything else is entry by entry, its states too")
TURNED = _of_axes(turned, "what it gives is made of the gradients by maps that a turn of the rows commutes with, its states too")
