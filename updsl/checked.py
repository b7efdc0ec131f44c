"""What `updsl check` finds in a file: mistakes, verdicts on laws, wrong variants. Each is looked for when it is asked for: laws load NumPy, which takes as long
as all else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from updsl.core.diagnostic import Diagnostic, UpdslError, to_json

if TYPE_CHECKING:
    from updsl.laws.mutants import MutantReport
    from updsl.laws.verdict import Verdict


@dataclass
class Checked:
    """verdicts, variants: None until they are asked for."""

    file: str
    diagnostics: list[Diagnostic]
    verdicts: list[Verdict] | None = None
    variants: MutantReport | None = None

    @property
    def errors(self) -> int:
        return sum(d.severity == "error" for d in self.diagnostics)

    @property
    def refuted(self) -> bool:
        return any(v.kind == "refuted" for v in self.verdicts or ())

    @property
    def doubtful(self) -> bool:
        """Whether a law is vacuous, or fails somewhere, or a wrong variant survives."""
        return any(v.kind == "vacuous" or v.counterexample for v in self.verdicts or ()) or bool(self.variants and self.variants.survivors)

    def decide(self, examples: int, seed: int | None, timeout: float, dtype: str | None) -> Iterator[Verdict]:
        """The verdicts, one after the other, as they come; none of a text that has mistakes."""
        self.verdicts = []
        if self.errors:
            return
        from updsl.front.files import open_unit
        from updsl.laws.decide import decide_all

        for verdict in decide_all(open_unit(self.file), examples, seed, timeout, dtype):
            self.verdicts.append(verdict)
            yield verdict

    def vary(self) -> MutantReport:
        """Which wrong variants laws and examples tell from the text."""
        from updsl.laws.mutants import mutants

        self.variants = mutants(self.file)
        return self.variants

    def data(self) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = {"file": self.file, "diagnostics": [to_json(d) for d in self.diagnostics]}
        if self.verdicts is not None:
            found["laws"] = [v.data() for v in self.verdicts]
        if self.variants is not None:
            found["mutants"] = self.variants.data()
        return found


def checked(file: str, lint: bool) -> Checked:
    """A file and what is wrong with its text. lint: with all that lints find in it, and not the loud ones alone."""
    from updsl.laws.check import check_file
    from updsl.laws.lint import LINTS, LOUD

    try:
        return Checked(file, check_file(file, LINTS if lint else LOUD))
    except UpdslError as error:
        return Checked(file, error.diagnostics)
