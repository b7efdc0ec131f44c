"""Writes docs/laws.md: the laws of the library with what is found about them, and how many wrong variants of each rule they and the examples tell from it.

Run `python docs/write_laws.py`, or `make laws`; it takes many minutes. `--examples N`: streams that each law is tried on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.front.files import library, open_unit
from updsl.laws.decide import decide_all
from updsl.laws.mutants import MutantReport, mutants
from updsl.laws.verdict import Verdict

PAGE = Path(__file__).resolve().parent / "laws.md"
EXAMPLES = 100

HEAD = """# The laws of the library

Written by `docs/write_laws.py`. What a law may say is told in [language.md](language.md); `updsl check --laws RULE` decides those of a rule anew,
`updsl check --mutants RULE` says how good they are."""

VERDICTS = """A law is **proved** over the real numbers, by the argument beside it, and then tried on streams all the same; or **tested** on so many streams of
gradients, of so many steps, in float64 and then in float32. Where float32 fails, it says so."""

MUTANTS = """Wrong variants of a rule's text (a sign flipped, an ε dropped, stages swapped, a scope or a constant changed …) are run through its examples and
laws, as [mutants.md](mutants.md) tells. A variant is killed if one of these fails for it. Left out are variants that are no rules, and those that are the rule
itself: the same program."""


def listed(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Rule, law and the law's text, of the files of these names in order."""
    for name in names:
        for rule, law in laws_of(open_unit(name)):
            if isinstance(law, syntax.Law):
                yield rule.name, law.name, text_of(law)


def text_of(law: syntax.Law) -> str:
    """The law as the file has it, without its name, on one line and ready for a table."""
    text = " ".join(law.span.text.split()).removeprefix("law ").removeprefix(law.name)
    return text.removeprefix(":").strip().replace("|", "\\|")


def page(verdicts: list[Verdict], reports: dict[str, MutantReport]) -> str:
    kinds = Counter(v.kind for v in verdicts)
    texts = {(rule, law): text for rule, law, text in listed(reports)}
    killed, survivors = sum(len(r.killed) for r in reports.values()), sum(len(r.survivors) for r in reports.values())
    laws = [f"| {v.rule} | {v.law} | `{texts[v.rule, v.law]}` | {v.kind} | {v.detail} |" for v in verdicts]
    scores = [f"| {n} | {len(r.killed)} | {len(r.survivors)} | {r.score:.0%} | {r.same} | {r.invalid} |" for n, r in reports.items()]
    return (
        "\n\n".join(
            [
                HEAD,
                f"{len(verdicts)} laws of {len(reports)} files: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}. "
                f"{killed} of {killed + survivors} variants killed, {killed / max(killed + survivors, 1):.1%}.",
                "## Verdicts",
                VERDICTS,
                "\n".join(["| rule | law | text | verdict | by |", "|---|---|---|---|---|", *laws]),
                "## Wrong variants",
                MUTANTS,
                "\n".join(["| file | killed | survivors | score | the same | no rules |", "|---|---|---|---|---|---|", *scores]),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    examples = parser.parse_args().examples
    verdicts: list[Verdict] = []
    reports: dict[str, MutantReport] = {}
    for name in sorted(library().rules):
        verdicts += decide_all(open_unit(name), examples, None)
        reports[name] = mutants(name)
        print(name, f"{reports[name].score:.0%}", file=sys.stderr, flush=True)
    PAGE.write_text(page(verdicts, reports), encoding="utf-8")


if __name__ == "__main__":
    main()
