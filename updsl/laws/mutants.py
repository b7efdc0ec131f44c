"""How good the laws and examples of a rule are: which wrong variants of its text they tell from it.

Every variant is tried on the examples first, and then, with the same streams for all of them, on the laws; what none of these tells from the rule survives.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from os import PathLike
from typing import Any

import numpy as np

from updsl.core.diagnostic import UpdslError
from updsl.core.ir import Program
from updsl.core.source import Source
from updsl.front import syntax
from updsl.front.claim import Claim, claim_of, parameters_of
from updsl.front.claims import laws_of
from updsl.front.contents import nodes
from updsl.front.elaborate import elaborate
from updsl.front.files import open_unit
from updsl.front.module import Module, module_of
from updsl.front.parse import parse
from updsl.front.probes import by_tensor, programs_of
from updsl.front.unit import Constant, Unit
from updsl.laws import examples
from updsl.laws.check import check_unit, defaults
from updsl.laws.decide import number_of
from updsl.laws.mutations import Edit, edits
from updsl.laws.sample import Search, ground_of
from updsl.laws.trial import OutOfTime, Setting, Trial, finite_max
from updsl.middle.share import share

STREAMS = 16
"""On which each law is tried, unless a caller says otherwise."""
STEPS = 400
"""Of all tensors together, that each law is tried for: short streams come first."""
ROUNDS = 4
"""As many seeds: streams of one seed are much alike."""
LARGEST = 1e6
"""Of the entries of a stream."""
VALUES = (0.0, 1.0, 2.0, 0.5)
"""Of a constant parameter, beside its default: a variant that is the rule with all of them is the rule."""


@dataclass(frozen=True)
class Mutant:
    """A variant of a rule's text. mutation: the name of what made it; killer: the law or example that tells it from the rule, "" of a survivor."""

    mutation: str
    source: Source
    text: str
    killer: str = ""

    def diff(self) -> str:
        """The lines that differ."""
        lines = difflib.unified_diff(self.source.text.splitlines(), self.text.splitlines(), self.source.name, self.mutation, lineterm="", n=0)
        return "\n".join(lines)


@dataclass(frozen=True)
class MutantReport:
    """killed: variants that an example or a law tells from the rule; survivors: those that none does; same: how many turned out to be the rule itself; invalid:
    how many are no rules. unsound: laws that do not hold of the rule itself, and were left out."""

    killed: tuple[Mutant, ...]
    survivors: tuple[Mutant, ...]
    same: int = 0
    invalid: int = 0
    unsound: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The share killed, 1 where there is nothing to kill."""
        every = len(self.killed) + len(self.survivors)
        return len(self.killed) / every if every else 1.0

    def __str__(self) -> str:
        left_out = f", {self.same} the same, {self.invalid} no rules"
        head = f"{len(self.killed)} of {len(self.killed) + len(self.survivors)} variants killed ({self.score:.0%}){left_out}"
        more = [f"`{law}` does not hold, and was left out" for law in self.unsound]
        return "\n".join([head, *more, *(line for m in self.survivors for line in m.diff().split("\n"))])

    def data(self) -> dict:
        """As plain data."""
        survivors = [{"mutation": m.mutation, "diff": m.diff()} for m in self.survivors]
        return {"killed": len(self.killed), "survivors": survivors, "score": self.score, "same": self.same, "invalid": self.invalid, "unsound": [*self.unsound]}


def mutants(rule: str | PathLike[str] | Unit, streams: int = STREAMS) -> MutantReport:
    """Wrong variants of a rule file, and which of them its examples and laws tell from it.

    rule: a path, the name of a rule of the library, or a parsed file. streams: on which each law is tried. Variants that are the rule, or no rule, are
    counted by themselves: a variant is the rule where their Programs are equal, for tensors of all kinds and each value that a constant parameter may have.
    Raises UpdslError where the file cannot be read, or has mistakes.
    """
    unit = rule if isinstance(rule, Unit) else open_unit(rule)
    mistakes = [d for d in check_unit(unit) if d.severity == "error"]
    if mistakes:
        raise UpdslError(mistakes)
    return Court(unit, streams).report()


def variants(unit: Unit) -> Iterator[Mutant]:
    """Every variant of the bodies of a file's rules and functions, each once. Inputs, and what is watched, are left as they are: no law sees them."""
    text, seen = unit.source.text, {unit.source.text}
    for part in parts(unit):
        for mutation, edit in edits(part):
            made = applied(text, edit)
            if made not in seen:
                seen.add(made)
                yield Mutant(mutation.__name__, unit.source, made)


def parts(unit: Unit) -> Iterator[object]:
    """What mutations may change. A file of functions alone promises nothing itself."""
    for d in unit.file.declarations if unit.main is not None else ():
        match d:
            case syntax.Rule(body=tuple(body)):
                yield replace(d, parameters=(), body=tuple(s for s in body if not isinstance(s, syntax.Watch | syntax.Input)))
            case syntax.Rule(body=body) | syntax.Fn(body=body, about=None):
                yield body
            case syntax.Fn(body=body, about=about):
                yield body, about


def applied(text: str, edit: Edit) -> str:
    return text[: edit.start] + edit.new + text[edit.end :]


@dataclass
class Witness:
    """A law, and the streams on which it holds of the rule itself, the shortest first."""

    law: syntax.Law
    claim: Claim
    parameters: Mapping[str, Constant]
    streams: list[tuple[Setting, Trial]]
    holds: bool = True


class Court:
    """A file's examples and laws against its variants."""

    def __init__(self, unit: Unit, streams: int):
        self.unit, self.streams = unit, streams
        self.made: dict[int, dict[Any, Program]] = {}

    def report(self) -> MutantReport:
        killed, survivors, same, invalid = [], [], 0, 0
        for mutant in variants(self.unit):
            try:
                other = self.elaborated(mutant)
                killer = self.killer(other)
                if killer:
                    killed.append(replace(mutant, killer=killer))
                elif self.is_same(other):
                    same += 1
                else:
                    survivors.append(mutant)
            except UpdslError:
                invalid += 1
        unsound = tuple(w.law.name for w in self.witnesses if not w.holds) if survivors else ()
        return MutantReport(tuple(killed), tuple(survivors), same, invalid, unsound)

    def elaborated(self, mutant: Mutant) -> Unit:
        """The variant as a file. Raises UpdslError where it is none."""
        source = Source(mutant.source.name, mutant.text)
        return replace(self.unit, source=source, file=parse(source), sites={})

    def killer(self, other: Unit) -> str:
        """The first example, else the first law, that tells a variant from the rule."""
        for module, example in self.examples:
            found, expected = examples.run(changed(module, other), example)
            if not all(h.shape == w.shape and examples.is_close(h, w) for h, w in zip(found, expected, strict=True)):
                return "example"
        for module, witness in zip(self.law_modules, self.witnesses, strict=True):
            if breaks(changed(module, other), witness):
                return witness.law.name
        return ""

    @cached_property
    def about(self) -> list[tuple[Module, syntax.Law | syntax.Example]]:
        return [(module_of(self.unit, rule), about) for rule, about in laws_of(self.unit)]

    @cached_property
    def examples(self) -> list[tuple[Module, syntax.Example]]:
        return [(m, e) for m, e in self.about if isinstance(e, syntax.Example)]

    @cached_property
    def law_modules(self) -> list[Module]:
        return [m for m, law in self.about if isinstance(law, syntax.Law)]

    @cached_property
    def witnesses(self) -> list[Witness]:
        return [witness(m, law, self.streams) for m, law in self.about if isinstance(law, syntax.Law)]

    # --- the rule itself ---------------------------------------------------------------------------------------------

    def is_same(self, other: Unit) -> bool:
        """Whether a variant is the rule: the same Programs, with every value of the parameters that decides what there is.

        Raises UpdslError if it is no rule."""
        assert self.unit.main is not None
        module = module_of(self.unit, self.unit.main)
        programs_of(changed(module, other), defaults(module))
        return all(canonical(changed(module, other), values) == self.programs(module, i, values) for i, values in enumerate(settings(module)))

    def programs(self, module: Module, number: int, values: Mapping[str, Constant]) -> dict[Any, Program]:
        """Those of the rule, with the values of this number."""
        if number not in self.made:
            self.made[number] = canonical(module, values)
        return self.made[number]


def changed(module: Module, other: Unit) -> Module:
    """The rule of the same name in a variant of its file."""
    return module_of(other, other.rules[module.name.casefold()])


def witness(module: Module, law: syntax.Law, streams: int) -> Witness:
    """The streams for a law."""
    claim, parameters = claim_of(module, law), parameters_of(law, defaults(module))
    recorder = Recorder(module, claim, parameters, ground_of(module, claim, parameters))
    for i in range(ROUNDS):
        recorder.wanted = streams * (i + 1) // ROUNDS
        recorder.run(streams, number_of(module, law) + i)
    found = sorted(recorder.kept, key=lambda s: len(s[0].steps) * len(s[0].tensors))
    until = accumulate(len(s.steps) * len(s.tensors) for s, _ in found)
    return Witness(law, claim, parameters, [s for s, n in zip(found, until, strict=True) if n <= STEPS and recorder.holds], recorder.holds)


class Recorder(Search):
    """Keeps `wanted` of the streams that it draws, such that the law says something of them: half of them of several tensors. Where entries are so large that
    rounding hides the rest, a stream tells little."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.kept: list[tuple[Setting, Trial]] = []
        self.wanted, self.holds = 0, True

    def attempt(self, data: Any) -> None:
        setting = self.drawn(data.draw)
        if len(self.kept) >= self.wanted:
            raise OutOfTime
        largest = max(finite_max(x) for g in setting.steps for x in g.values())
        alike = sum((len(s.tensors) > 1) == (len(setting.tensors) > 1) for s, _ in self.kept)
        mixed = any(len(tensors) > 1 for tensors in self.sets)
        if 0 < largest <= LARGEST and (not mixed or alike < (self.wanted + 1) // 2):
            outcome = self.trial(setting).run(setting)
            self.holds &= outcome.breach is None
            if outcome.compared:
                self.kept.append((setting, self.trial(setting)))


def breaks(module: Module, witness: Witness) -> bool:
    """Whether the law fails for a variant, on some stream on which it holds of the rule."""
    made: dict[int, Trial] = {}
    for setting, trial in witness.streams:
        if id(trial) not in made:
            rule = elaborate(module, trial.tensors, setting.parameters)
            made[id(trial)] = trial.of(tuple([replace(p, watches=()) for p in rule.programs]), rule.class_of)
        with np.errstate(all="ignore"):
            if made[id(trial)].run(setting).breach is not None:
                return True
    return False


def settings(module: Module) -> Iterator[dict[str, Constant]]:
    """Values of the parameters: the defaults, and each other value of one that decides which parts of the text there are."""
    base = defaults(module)
    texts = {n.value for d in module.unit.file.declarations if isinstance(d, syntax.Rule) for n in nodes(d) if isinstance(n, syntax.Text)}
    yield base
    for name, p in module.parameters.items():
        match base[name]:
            case bool(value):
                yield {**base, name: not value}
            case str(value):
                yield from ({**base, name: other} for other in sorted(texts - {value}))
            case value:
                yield from ({**base, name: other} for other in VALUES if other != value and p.low <= other <= p.high)


def canonical(module: Module, values: Mapping[str, Constant]) -> dict[Any, Program]:
    """The Programs of a rule by tensor, without what nobody reads; none where the rule cannot be used so."""
    try:
        return {t: share(replace(p, watches=())) for t, p in by_tensor(module, values).items()}
    except UpdslError:
        return {}
