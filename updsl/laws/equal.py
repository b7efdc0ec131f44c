"""Whether two rules do the same: by their texts, by their Programs, or on drawn streams of gradients; else the first step at which they differ."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Program
from updsl.front.canonical import canonical_digest
from updsl.front.elaborate import PROBES, elaborate
from updsl.front.module import Module
from updsl.front.probes import programs_of, walks_of
from updsl.front.unit import Constant
from updsl.laws.contrast import differences, told_apart
from updsl.laws.decide import fewer
from updsl.laws.ranges import Ranges
from updsl.laws.symbolic import Steps, leaf_range
from updsl.laws.term import Term
from updsl.laws.terms import Terms
from updsl.middle.alike import digests, has_joint_values

Values = Mapping[str, Constant]
Kind = Literal["algebra", "tested", "different"]


@dataclass(frozen=True)
class Equivalence:
    """first, second: what the rules are called. kind: "algebra", "tested" or "different". detail: the argument, the streams tried, or why they cannot be
    compared. counterexample: the smallest stream found on which they differ, step by step. differences: of parameters, inputs, states and texts. Lines, for
    people."""

    first: str
    second: str
    kind: Kind
    detail: str
    counterexample: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        return self.kind != "different"

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        head = f"{self.first} and {self.second}: {'different' if not self else 'equal by algebra' if self.kind == 'algebra' else 'equal where tested'}"
        return "\n".join([f"{head} ({self.detail})", *(f"    {line}".rstrip() for line in (*self.counterexample, *self.differences))])

    def data(self) -> dict:
        """As plain data."""
        return {
            "rules": [self.first, self.second],
            "equal": self.equal,
            "kind": self.kind,
            "detail": self.detail,
            "counterexample": list(self.counterexample) or None,
            "differences": list(self.differences),
            "seconds": self.seconds,
        }


def compared(a: Module, b: Module, of_a: Values, of_b: Values, examples: int = 200, seed: int | None = None) -> Equivalence:
    """Two rules, each with values of its parameters. Raises UpdslError where one can be used for no tensor."""
    begun = time.perf_counter()
    unlike = tuple(differences(a, b, of_a, of_b))

    def found(kind: Kind, detail: str, counterexample: tuple[str, ...] = ()) -> Equivalence:
        return Equivalence(*told_apart(a, b), kind, detail, counterexample, unlike, time.perf_counter() - begun)

    clash = next((n for n in a.inputs if n in b.inputs and a.inputs[n] != b.inputs[n]), None)
    if clash:
        return found("different", f"not comparable: the input `{clash}` is `{a.inputs[clash]}` in one and `{b.inputs[clash]}` in the other")
    argument = by_text(a, b, of_a, of_b)
    if argument:
        return found("algebra", argument)
    argument = by_programs(a, b, of_a, of_b)
    from updsl.laws.pair import Comparison

    search = Comparison(a, b, of_a, of_b)
    if not search.sets:
        for module, values in ((a, of_a), (b, of_b)):
            programs_of(module, values)  # raises what is wrong with it
        return found("different", "not comparable: no tensor can be used with both")
    number = zlib.crc32(f"{a.text}\n{b.text}".encode("utf-8", "surrogatepass")) if seed is None else seed
    search.run(fewer(examples) if argument else examples, number)
    if search.found is not None:
        return found(
            "different", f"{f'{argument}; in float64 they differ ' if argument else ''}on stream {search.streams} of seed {number}", tuple(search.shown())
        )
    if argument:
        return found("algebra", argument)
    weights = "; the weights after each step" if search.optimizers else ""
    return found("tested", f"{search.streams} streams, {search.steps} steps, seed {number}{weights}")


def by_text(a: Module, b: Module, of_a: Values, of_b: Values) -> str | None:
    if tuple(a.inputs) == tuple(b.inputs) and canonical_digest(a, of_a) == canonical_digest(b, of_b):
        return "one text, up to names, layout and the order of what does not depend on one another"
    return None


def by_programs(a: Module, b: Module, of_a: Values, of_b: Values) -> str | None:
    """The argument that two rules are equal for all streams of gradients, if their Programs give one."""
    walks = walks_of(a, of_a), walks_of(b, of_b)
    walked = [w for found in walks for w in found.values()]
    names = {t.name: Tensor(t.name, PROBES[0]) for found in walks for t in found}
    asked = {predicate for w in walked for predicate in w.predicates}
    if a.writes_weights != b.writes_weights or len(asked) > 1 or any(w.of_shape or w.counted or w.program is None for w in walked):
        return None  # a few tensors do not stand for all
    pairs = [(elaborate(a, [t], of_a).programs[0], elaborate(b, [t], of_b).programs[0]) for t in names.values()]
    if any(len({p[i] for p in pairs}) > 1 and any(has_joint_values(p[i]) for p in pairs) for i in (0, 1)):
        return None  # which tensors have a value together is not seen where they are looked at one by one
    if all(_alike(p, q, of_a, of_b) for p, q in pairs):
        return "one Program, up to names, for tensors of every shape"
    if all(_equal_over_the_reals(p, q, of_a, of_b) for p, q in pairs):
        return "over the real numbers: what they give, and what their states become, has one normal form"
    return None


def _alike(p: Program, q: Program, of_p: Values, of_q: Values) -> bool:
    rounds = len(p.states) + len(q.states)
    out, weight = digests(p, of_p, rounds)
    other, other_weight = digests(q, of_q, rounds)
    return weight == other_weight and (bool(weight) or out == other)


def _equal_over_the_reals(p: Program, q: Program, of_p: Values, of_q: Values) -> bool:
    """By terms: states of both that start alike are taken for one, and told apart where their new values differ, until no more are."""
    terms = Terms()
    both = Steps(terms, [p], of_p, {}), Steps(terms, [q], of_q, {})
    kind = {(i, k): (id(first), s.type, s.dtype) for i, steps in enumerate(both) for k, s in steps.states.items() for first in [_start(steps, k)]}
    while True:
        number = {k: n for n, k in enumerate(dict.fromkeys(kind.values()))}
        made = []
        for i, steps in enumerate(both):
            before = {k: terms.leaf("state", f"of kind {number[kind[i, k]]}", s.type) for k, s in steps.states.items()}
            made.append(steps.step(terms.leaf("builtin", "g", GRID), before))
        finer = {(i, k): (number[x], id(made[i].commits[k])) for (i, k), x in kind.items()}
        if len(set(finer.values())) == len(number):
            break
        kind = finer
    x, y = made
    ranges = Ranges({t: leaf_range(t, {}) for t in terms.table.values() if t.op == "leaf"})
    if not all(ranges.of(t).finite for t in terms.dropped):
        return False  # what cancels in one of them may be no number
    return x.weights[0] is y.weights[0] if x.weights else x.out[0] is y.out[0]


def _start(steps: Steps, key: tuple[int, str]) -> Term | None:
    """What a state starts from; of a window nothing."""
    return None if steps.states[key].init is None else steps.first()[key]
