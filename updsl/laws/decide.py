"""Whether a law holds: by a proof, by drawn streams."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from updsl.front import syntax
from updsl.front.claim import RESULT, Claim, claim_of, parameters_of
from updsl.front.claims import laws_of
from updsl.front.contents import nodes
from updsl.front.module import Module, module_of
from updsl.front.unit import Constant, Unit
from updsl.laws.check import defaults
from updsl.laws.prove import prove
from updsl.laws.verdict import Counterexample, Kind, Verdict

if TYPE_CHECKING:
    from updsl.laws.sample import Search

TIMEOUT = 60.0
"""Seconds for a law, unless a caller says otherwise."""
BESIDE = "float32"
"""The type that laws are tried in after float64, on fewer streams, unless a caller names one."""
FEWER = 4
"""One stream in so many: in that type, and of a law that is proved."""


def decide_all(unit: Unit, examples: int, seed: int | None, timeout: float = TIMEOUT, dtype: str | None = None) -> Iterator[Verdict]:
    """The laws of a file that has no mistakes, one after the other, with the defaults of the rules' parameters."""
    for rule, law in laws_of(unit):
        if isinstance(law, syntax.Law):
            module = module_of(unit, rule)
            yield decide(module, law, defaults(module), examples, seed, timeout=timeout, dtype=dtype)


def decide(
    module: Module,
    law: syntax.Law,
    values: Mapping[str, Constant],
    examples: int = 200,
    seed: int | None = None,
    *,
    timeout: float = TIMEOUT,
    dtype: str | None = None,
) -> Verdict:
    """What is found about a law with these values of the rule's parameters, where it sets none itself.

    examples: streams that it is tried on. seed: of the streams; else one for each law, always the same. timeout: seconds for the streams, after which it has
    been tested on as many as there are by then; proofs have limits of their own. dtype: the one type that the rule is run in, "float64", "float32", "bfloat16"
    or "float16"; by default float64, and where the law holds there, float32 too, on a quarter of the streams: if it fails there, the verdict stays and says so,
    and shows where.
    """
    begun = time.perf_counter()
    parameters = parameters_of(law, values)

    def verdict(kind: Kind, detail: str, counterexample: Counterexample | None = None) -> Verdict:
        return Verdict(module.name, law.name, kind, detail, counterexample, time.perf_counter() - begun)

    claim = claim_of(module, law)
    if not any(isinstance(n, syntax.Name) and (n.id == "out" or n.id.startswith(RESULT)) for n in nodes(claim.text)):
        return verdict("vacuous", "it says nothing of what the rule gives")
    from updsl.laws.sample import Search, ground_of

    argument = prove(module, law, parameters)
    until = time.perf_counter() + timeout
    number = number_of(module, law) if seed is None else seed
    ground = ground_of(module, claim, parameters)

    def searched(dtype: str, examples: int) -> Search:
        search = Search(module, claim, parameters, ground, dtype)
        search.run(examples, number, until)
        return search

    search = searched(dtype or "float64", examples if argument is None else fewer(examples))
    if argument and not (search.compared or search.timed_out):
        search = searched(dtype or "float64", examples)  # a premise that seldom holds
    found = counterexample(module, claim, search)
    if found and argument is None:
        return verdict("refuted", f"on stream {search.streams}{in_type(search)}", found)
    if found and search.dtype == "float64":
        return verdict("refuted", f"{argument}; in float64 it fails", found)
    if not (found or search.compared or search.timed_out):
        return verdict("vacuous", f"its premise held nowhere in {search.streams} streams, {search.steps} steps, none longer than {search.longest}")
    said = counted(search, number, timeout)
    detail = f"{argument}; {said}" if argument and search.timed_out else argument or said
    if dtype is None and not search.timed_out:
        search = searched(BESIDE, fewer(examples))
        found = counterexample(module, claim, search)
    return verdict("proved" if argument else "tested", f"{detail}; in {search.dtype} it fails" if found else detail, found)


def number_of(module: Module, law: syntax.Law) -> int:
    """The seed of a law's streams, unless a caller says otherwise."""
    return zlib.crc32(f"{module.name}.{law.name}".encode())


def counterexample(module: Module, claim: Claim, search: Search) -> Counterexample | None:
    """What the search has found."""
    if search.found is None:
        return None
    setting, outcome = search.found
    assert outcome.breach is not None
    return Counterexample(setting, outcome.breach, module, claim)


def fewer(examples: int) -> int:
    return max(5, examples // FEWER) if examples > 1 else 1


def counted(search: Search, number: int, timeout: float) -> str:
    """On what it was tested."""
    nowhere = "; its premise held nowhere" if search.streams and not search.compared else ""
    late = f"{nowhere}; out of time after {timeout:g} s" if search.timed_out else ""
    return f"{search.streams} streams, {search.steps} steps{in_type(search)}, seed {number}{late}"


def in_type(search: Search) -> str:
    return "" if search.dtype == "float64" else f", in {search.dtype}"
