"""Writes docs/laws.md: the laws of the library with what is found about them, and how many wrong variants of each rule they and the examples tell from it.

Run `python docs/write_laws.py`, or `make laws`; it takes many minutes. `python docs/write_laws.py RULE…` looks at these files alone, and leaves the rows of the
others as they are. `--examples N`: streams that each law is tried on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TypeAlias

from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.front.files import library, open_unit
from updsl.laws.decide import decide_all
from updsl.laws.mutants import MutantReport, mutants
from updsl.laws.verdict import Verdict

PAGE = Path(__file__).resolve().parent / "laws.md"
EXAMPLES = 40
LONGEST = 250
"""Characters of an argument."""

HEAD = """# The laws of the library

Written by `docs/write_laws.py`. What a law says, and how it is decided, is told in the [guide to laws](laws-guide.md). `updsl check --laws RULE` decides
those of a rule anew, `updsl check --mutants RULE` says [how good they are](mutants.md)."""

VERDICTS = """A law is **proved** over the real numbers, by the argument beside it, and then tried on streams all the same; or **tested** on so many streams of
gradients, of so many steps, in float64 and then in float32. Where float32 fails, it says so."""

MUTANTS = """Wrong variants of a rule's text (a sign flipped, an ε dropped, stages swapped, a scope or a constant changed …) are run through its examples and
laws. A variant is killed if one of these fails for it. Left out are variants that are no rules, and those that are the rule itself: the same program."""

Row: TypeAlias = tuple[str, ...]
LAWS: Row = ("rule", "law", "text", "verdict", "by")
SCORES: Row = ("rule", "killed", "survivors", "score", "the same", "no rules")


def listed(name: str) -> Iterator[Row]:
    """Rule, law and text, of every law of a file."""
    for rule, law in laws_of(open_unit(name)):
        if isinstance(law, syntax.Law):
            text = " ".join(law.span.text.split()).removeprefix("law ").removeprefix(law.name).removeprefix(":").strip()
            yield rule.name, law.name, f"`{cell(text)}`"


def law_rows(name: str, verdicts: list[Verdict]) -> list[Row]:
    return [(*law, v.kind, cell(shorten(v.detail, LONGEST, placeholder=" …"))) for law, v in zip(listed(name), verdicts, strict=True)]


def score_row(name: str, report: MutantReport) -> Row:
    counts = len(report.killed), len(report.survivors), f"{report.score:.0%}", report.same, report.invalid
    return name, *map(str, counts)


def cell(text: str) -> str:
    """As a cell of a table says it."""
    return text.replace("\n", " ").replace("|", "\\|")


def table(head: Row, rows: list[Row]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def rows_of(page: str, head: Row) -> list[Row]:
    """The rows of the table of a page that has this head."""
    _, _, rest = page.partition(f"| {' | '.join(head)} |\n")
    lines = rest.partition("\n\n")[0].strip().split("\n")[1:]
    return [tuple(c.replace("\0", "\\|").strip() for c in line.strip("|").replace("\\|", "\0").split("|")) for line in lines]


def page(laws: list[Row], scores: list[Row]) -> str:
    kinds = Counter(row[3] for row in laws)
    killed, survivors = (sum(int(row[i]) for row in scores) for i in (1, 2))
    said = f"{len(laws)} laws of {len(scores)} rules: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}."
    score = f"{killed} of {killed + survivors} wrong variants killed, {killed / max(killed + survivors, 1):.1%}."
    parts = [HEAD, f"{said} {score}", "## Verdicts", VERDICTS, table(LAWS, laws), "## Wrong variants", MUTANTS, table(SCORES, scores)]
    return "\n\n".join(parts) + "\n"


def merged(old: list[Row], new: Mapping[str, list[Row]]) -> list[Row]:
    """The rows in the order of the library, those of some files anew."""
    return [row for name in sorted(library().rules) for row in new.get(name, [r for r in old if r[0] == name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", metavar="RULE")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    given = parser.parse_args()
    laws: dict[str, list[Row]] = {}
    scores: dict[str, list[Row]] = {}
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    for name in given.rules or sorted(library().rules):
        laws[name] = law_rows(name, list(decide_all(open_unit(name), given.examples, None)))
        report = mutants(name)
        scores[name] = [score_row(name, report)]
        print(f"{name}: {report}", file=sys.stderr, flush=True)
        PAGE.write_text(page(merged(rows_of(old, LAWS), laws), merged(rows_of(old, SCORES), scores)), encoding="utf-8")


if __name__ == "__main__":
    main()
