"""What a law says of a step of its rule, as terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Ref, Type
from updsl.core.schedule import merge
from updsl.core.scope import TENSOR
from updsl.front.claim import PREMISE, STREAM, Claim, Elaborated, Leaf, Tree, elaborate_claim
from updsl.front.unit import Constant
from updsl.laws.symbolic import Numbers, Run, Step1, Steps
from updsl.laws.term import Term
from updsl.laws.terms import Exhausted, Terms, substituted


@dataclass(frozen=True)
class Said:
    """A claim about some tensors: its comparisons as a tree of terms, and what is to be given. premise: None where there is none."""

    premise: Term | None
    claim: Term


class Claims:
    """What a law says, as terms, of each pair of a class of the rule and one of the law, for each number of dimensions."""

    def __init__(
        self, terms: Terms, claim: Claim, tensors: Sequence[Tensor], class_of: Mapping[str, int], parameters: Mapping[str, Constant], numbers: Numbers
    ):
        more = dict.fromkeys((n for n in claim.module.parameters if n not in parameters), 1.0)
        said: Elaborated = elaborate_claim(claim, tensors, {**parameters, **more})
        if said.constants & numbers.keys():
            raise Exhausted  # another claim for each number
        self.trees, self.premise = said.trees, said.premise
        self.pairs = list(dict.fromkeys((class_of[t.name], said.class_of[t.name], len(t.shape)) for t in tensors))
        self.steps = Steps(terms, [said.programs[law] for _, law, _ in self.pairs], parameters, numbers)

    def given(self, g: Term, results: Mapping[str, Mapping[int, Term]], more: Mapping[tuple[str, str], Term]) -> list[Step1]:
        """The law's own step, where `out` and the results are these terms, by class of the rule."""
        found = []
        runs = merge({i: p.body for i, p in enumerate(self.steps.programs)})
        run = PairRun(self, self.steps.before(), results, dict(more))
        run.g = dict.fromkeys(range(len(self.pairs)), g)
        run.steps(runs)
        for i, p in enumerate(self.steps.programs):
            run.c = i
            commits = {(i, name): run.expr(e) for name, e in p.commits}
            found.append(Step1({}, commits, {}))
        return found

    def stream(self, k: int, g: Term, results: Mapping[str, Mapping[int, Term]], more: Mapping[tuple[str, str], Term]) -> dict[int, Term] | None:
        """The k-th other stream, by class of the rule; None where two classes of the law see it differently."""
        found: dict[int, Term] = {}
        for i, step in enumerate(self.given(g, results, more)):
            t = step.commits[i, f"{STREAM} {k}"]
            if found.setdefault(self.pairs[i][0], t) is not t:
                return None
        return found

    def said(self, g: Term, results: Mapping[str, Mapping[int, Term]], more: Mapping[tuple[str, str], Term]) -> list[Said]:
        terms = self.steps.terms
        made = []
        for i, step in enumerate(self.given(g, results, more)):
            premise = condition(terms, step.commits[i, PREMISE]) if self.premise else None
            made.append(Said(premise, self.tree(i, self.trees[self.pairs[i][1]], step)))
        return made

    def tree(self, i: int, tree: Tree, step: Step1) -> Term:
        terms, boolean = self.steps.terms, Type(GRID.scope, "rows", "cols", boolean=True)
        match tree:
            case Leaf(op="", states=(name,)):
                return condition(terms, step.commits[i, name])
            case Leaf(op=op, states=(a, b)):
                return terms.apply(op, (step.commits[i, a], step.commits[i, b]), (), boolean)
            case ("not", (part,)):
                return terms.negated(self.tree(i, part, step))
            case (op, (a, b)):
                return terms.both(op == "and", self.tree(i, a, step), self.tree(i, b, step), boolean)
        raise AssertionError(tree)


class PairRun(Run):
    """The law's step, in which what the rule gives is known for each pair."""

    whose = "law"

    def __init__(self, claims: Claims, before: Mapping[tuple[int, str], Term], results: Mapping[str, Mapping[int, Term]], more: dict[tuple[str, str], Term]):
        super().__init__(claims.steps, 0, before, {}, more)
        self.results, self.pairs = results, claims.pairs

    def ref(self, e: Ref) -> Term:
        if e.kind == "input" and e.name in self.results:
            ndim = self.terms.leaf("builtin", "ndim", Type(TENSOR))
            return substituted(self.terms, self.results[e.name][self.pairs[self.c][0]], {ndim: self.terms.const(self.pairs[self.c][2])})
        if e.kind == "builtin" and e.name == "ndim":
            return self.terms.const(self.pairs[self.c][2])
        return super().ref(e)


def condition(terms: Terms, number: Term) -> Term:
    """What a choice of 1 or 0 chooses by."""
    match number.op, number.args:
        case "select", (c, x, y) if x.value == 1 and y.value == 0:
            return c
        case "select", (c, x, y) if x.value == 0 and y.value == 1:
            return terms.negated(c)
        case "const", ():
            return terms.const(bool(number.value))
    return terms.negated(terms.apply("eq", (number, terms.const(0)), (), replace(number.type, boolean=True)))
