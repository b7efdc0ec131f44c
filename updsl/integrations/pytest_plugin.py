"""Rule files as tests: pytest collects `*.upd`, with an item for the text, its lints, and each law and example.

`pytest "rules/zclip.upd::zclip::bounded"` runs one law. Only parsing happens while tests are collected: NumPy and Hypothesis are loaded when a law or an
example is run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from updsl.core.diagnostic import Diagnostic, UpdslError, render, render_all

if TYPE_CHECKING:
    from updsl.front import syntax
    from updsl.front.unit import Unit
    from updsl.laws.verdict import Verdict

SUFFIX = ".upd"
PROFILES = {"quick": 40, "ci": 200, "nightly": 2000}
"""Streams of gradients that each law is tried on."""


class RuleWarning(pytest.PytestWarning):
    """A warning of `updsl check`, or a law that holds in float64 and fails in float32."""


class LawFails(Exception):
    """A law that is refuted, or says nothing, or where it is strict fails in float32."""

    def __init__(self, verdict: Verdict, place: str):
        super().__init__(f"{verdict}\n  --> {place}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("updsl", "rule files (*.upd)")
    streams = ", ".join(f"{name} ({n})" for name, n in PROFILES.items())
    group.addoption("--updsl-profile", choices=tuple(PROFILES), help=f"How many streams of gradients each law is tried on: {streams}.")
    group.addoption("--updsl-strict", action="store_true", help="Warnings of `updsl check` are failures.")
    parser.addini("updsl_profile", f"how many streams of gradients each law is tried on: {streams}", default="quick")
    parser.addini("updsl_strict", "warnings of `updsl check` are failures", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    if config.getini("updsl_profile") not in PROFILES:
        raise pytest.UsageError(f"updsl_profile is {config.getini('updsl_profile')!r}: choose {', '.join(PROFILES)}")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> RuleFile | None:
    return RuleFile.from_parent(parent, path=file_path) if file_path.suffix == SUFFIX else None


class RuleFile(pytest.File):
    """A file: its text, its lints, and a collector for each rule that has laws or examples. One that cannot be parsed is one failing item."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        yield Text.from_parent(self, name="text")
        try:
            unit = self.unit
        except UpdslError:
            return
        yield Lint.from_parent(self, name="lint")
        from updsl.front.claims import laws_of

        for rule, group in groupby(laws_of(unit), key=lambda pair: pair[0]):
            yield RuleTests.from_parent(self, name=rule.name, rule=rule, claims=[claim for _, claim in group])

    @cached_property
    def unit(self) -> Unit:
        """The parsed file. Raises UpdslError where it has no structure."""
        from updsl.front.files import read_unit

        near = os.path.relpath(self.path)
        return read_unit(self.path if near.startswith(os.pardir) else Path(near))

    @cached_property
    def found(self) -> list[Diagnostic]:
        """What `updsl check` says of the file, examples apart: they are items of their own."""
        from updsl.laws.check import check_unit

        try:
            return check_unit(self.unit, examples=False)
        except UpdslError as error:
            return error.diagnostics

    def of_severity(self, severity: str) -> list[Diagnostic]:
        return [d for d in self.found if d.severity == severity]

    def has_no_mistakes(self) -> None:
        """Raises UpdslError if there is one."""
        if mistakes := self.of_severity("error"):
            raise UpdslError(mistakes)


class RuleTests(pytest.Collector):
    """The laws and examples of one rule."""

    def __init__(self, *, rule: syntax.Rule, claims: list[syntax.Law | syntax.Example], **more: Any):
        super().__init__(**more)
        self.rule, self.claims = rule, claims

    def collect(self) -> Iterable[pytest.Item]:
        from updsl.front import syntax

        examples = 0
        for claim in self.claims:
            if isinstance(claim, syntax.Law):
                yield Law.from_parent(self, name=claim.name, rule=self.rule, claim=claim)
            else:
                examples += 1
                yield Example.from_parent(self, name=f"example[{examples}]", rule=self.rule, claim=claim)


class RuleItem(pytest.Item):
    """Fails with what updsl says, and not with where in updsl it says so."""

    @property
    def file(self) -> RuleFile:
        found = self.getparent(RuleFile)
        assert found is not None
        return found

    @property
    def is_strict(self) -> bool:
        return bool(self.config.getoption("updsl_strict") or self.config.getini("updsl_strict"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        match excinfo.value:
            case UpdslError(diagnostics=diagnostics):
                return render_all(diagnostics)
            case LawFails() as error:
                return str(error)
            case _:
                return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, 0, f"{self.path.stem}: {self.name}"


class Text(RuleItem):
    """The text has no mistakes; neither have its laws and examples, as far as names and scopes go."""

    def runtest(self) -> None:
        self.file.has_no_mistakes()


class Lint(RuleItem):
    """What `updsl check` warns of: pytest's warnings, or failures where it is strict."""

    def runtest(self) -> None:
        found = self.file.of_severity("warning")
        if found and self.is_strict:
            raise UpdslError(found)
        for d in found:
            warnings.warn_explicit(RuleWarning(render(d)), None, str(self.path), d.line or 1)


class ClaimItem(RuleItem):
    """A law or an example of a rule."""

    def __init__(self, *, rule: syntax.Rule, claim: syntax.Law | syntax.Example, **more: Any):
        super().__init__(**more)
        self.rule = rule
        self.claim: Any = claim

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, self.claim.span.line - 1, f"{self.rule.name}.{self.name}"


class Law(ClaimItem):
    """A law holds on every stream that it is tried on, and says something."""

    def runtest(self) -> None:
        self.file.has_no_mistakes()
        from updsl.front.module import module_of
        from updsl.laws.check import defaults
        from updsl.laws.decide import decide

        module = module_of(self.file.unit, self.rule)
        streams = PROFILES[self.config.getoption("updsl_profile") or self.config.getini("updsl_profile")]
        verdict = decide(module, self.claim, defaults(module), streams)
        if verdict.kind in ("refuted", "vacuous") or (verdict.counterexample and self.is_strict):
            raise LawFails(verdict, f"{self.claim.span.source.name}:{self.claim.span.line}")
        if verdict.counterexample:
            warnings.warn_explicit(RuleWarning(str(verdict)), None, str(self.path), self.claim.span.line)


class Example(ClaimItem):
    """An example gives what it says."""

    def runtest(self) -> None:
        self.file.has_no_mistakes()
        from updsl.front.module import module_of
        from updsl.laws.examples import example_mistakes

        if mistakes := list(example_mistakes(module_of(self.file.unit, self.rule), self.claim)):
            raise UpdslError(mistakes)
