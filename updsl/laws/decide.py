"""Whether a law holds: by units, else on drawn streams."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping

from updsl.front import syntax
from updsl.front.claim import RESULT, claim_of
from updsl.front.claims import laws_of
from updsl.front.contents import nodes
from updsl.front.module import Module, module_of
from updsl.front.statics import constant
from updsl.front.unit import Constant, Unit
from updsl.laws.check import defaults
from updsl.laws.prove import prove
from updsl.laws.verdict import Counterexample, Verdict


def decide_all(unit: Unit, examples: int, seed: int | None) -> Iterator[Verdict]:
    """The laws of a file that has no mistakes, one after the other, with the defaults of the rules' parameters."""
    for rule, law in laws_of(unit):
        if isinstance(law, syntax.Law):
            module = module_of(unit, rule)
            yield decide(module, law, defaults(module), examples, seed)


def decide(module: Module, law: syntax.Law, values: Mapping[str, Constant], examples: int = 200, seed: int | None = None) -> Verdict:
    """What is found about a law with these values of the rule's parameters, where it sets none itself. seed: of the streams; else one for each law, and always
    the same."""
    begun = time.perf_counter()
    parameters = dict(values)
    for s in law.settings:
        assert s.name is not None
        parameters[s.name] = constant(s.value, parameters)

    def verdict(kind, detail: str, counterexample: Counterexample | None = None) -> Verdict:
        return Verdict(module.name, law.name, kind, detail, counterexample, time.perf_counter() - begun)

    claim = claim_of(module, law)
    if not any(isinstance(n, syntax.Name) and (n.id == "out" or n.id.startswith(RESULT)) for n in nodes(claim.text)):
        return verdict("vacuous", "it says nothing of what the rule gives")
    argument = prove(module, law, parameters)
    from updsl.laws.sample import Search

    search = Search(module, claim, parameters)
    number = zlib.crc32(f"{module.name}.{law.name}".encode()) if seed is None else seed
    search.run(examples if argument is None else max(1, examples // 8), number)
    if search.found is not None:
        setting, outcome = search.found
        assert outcome.breach is not None
        detail = f"{argument}; in float64 it fails" if argument else f"on stream {search.streams}"
        return verdict("refuted", detail, Counterexample(setting, outcome.breach))
    if not search.compared:
        return verdict("vacuous", f"its premise held nowhere in {search.streams} streams of {search.steps} steps")
    if argument:
        return verdict("proved", argument)
    return verdict("tested", f"{search.streams} streams, {search.steps} steps, seed {number}")
