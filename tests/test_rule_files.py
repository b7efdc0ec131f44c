"""Every file of the library: it checks without a warning, is formatted, cites, claims, and shows."""

import re

import pytest

from updsl.core.resources import folder
from updsl.front import syntax
from updsl.front.claims import laws_of
from updsl.front.files import library, load_module, open_unit, read_source
from updsl.front.format import format_source
from updsl.laws.check import check_unit
from updsl.laws.lint import LINTS

FILES = sorted(folder("rules").glob("*/*.upd"))
RULES = sorted(library().rules)
ELEMENTARY = frozenset("absmax accumulate center clip_z delay norm prev scale_by standardize".split())
"""Rules that nobody published, since they are one operation of arithmetic."""
WORK = re.compile(r"[A-Z][\w'-]+ (?:et al\. )?\d{4}, (?:arXiv:\d{4}\.\d{4,5}|doi:10\.|https://|JMLR \d)")
LONGEST_BLOCK = 30


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_checks_without_a_warning_and_is_formatted(path):
    """As published, units may contradict one another, and lints find something: test_units.py and test_lint.py say in which rules. Examples and laws are
    tests of their own: rules/ is collected."""
    assert [d for d in check_unit(open_unit(path), examples=False) if d.code not in ("unit-conflict", *LINTS)] == []
    source = read_source(path)
    assert format_source(source) == source.text
    assert max(map(len, source.lines)) <= 160


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_stands_for_the_rule_or_function_of_its_name(path):
    unit = library().find(path.stem)
    if path.stem in RULES:
        assert unit.main.name == path.stem
        assert all(p.default is not None for p in load_module(path.stem).parameters.values())
    else:
        assert list(unit.fns) == [path.stem]
        assert unit.source.text.startswith("#") or path.stem == "z"


@pytest.mark.parametrize("name", RULES)
def test_it_cites_who_published_it(name):
    doc = " ".join(load_module(name).doc.split())
    assert bool(WORK.search(doc)) != (name in ELEMENTARY)


@pytest.mark.parametrize("name", RULES)
def test_it_has_two_laws_and_an_example(name):
    module = load_module(name)
    claims = [d for rule, d in laws_of(module.unit) if rule is module.rule]
    assert sum(isinstance(d, syntax.Law) for d in claims) >= 2
    assert module.inputs or any(isinstance(d, syntax.Example) for d in claims)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_block_is_long(path):
    for d in library().find(path.stem).file.declarations:
        assert len(d.span.text.strip().split("\n")) <= LONGEST_BLOCK


def test_names_are_found_in_any_case_and_once():
    assert len({p.stem.casefold() for p in FILES}) == len(FILES)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", p.stem) for p in FILES)
