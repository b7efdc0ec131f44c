"""Who may import whom, and what is not loaded until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "updsl"

LAYERS = {"core": 0, "front": 1, "middle": 1, "back": 1, "laws": 2, "pipeline": 3, "runtime": 4}
"""Higher ones import lower ones. front, middle and back never import one another; everything that is not named is a door, above all."""
DOOR = 5

OWNERS = {
    "lark": lambda path: path == "front/parse.py",
    "sympy": lambda path: path == "middle/algebra.py",
    "hypothesis": lambda path: path == "laws/sample.py",
    "pytest": lambda path: path == "integrations/pytest_plugin.py",
    "torch": lambda path: path.startswith(
        ("back/torch_", "back/kernel_", "back/cpp_exec.py", "back/cpp_build.py", "back/triton_exec.py", "runtime/", "integrations/", "train/", "bench/")
    ),
    "matplotlib": lambda path: path == "train/plot.py",
    "click": lambda path: path in ("cli.py", "train/command.py"),
}
"""Heavy packages: the files that may import each."""


def part_of(module: str) -> str:
    """The layer that a module of ours is in: its package, or the name of a top-level module."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a text imports, at any depth, those for type checkers apart; with the line."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Import(names=names):
                yield from ((a.name, node.lineno) for a in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                if module == "updsl":
                    yield from (
                        (f"updsl.{a.name}" if (PACKAGE / a.name).exists() or (PACKAGE / f"{a.name}.py").exists() else "updsl", node.lineno) for a in names
                    )
                else:
                    yield module, node.lineno
            case ast.ImportFrom(level=level) if level:
                yield f"relative:{level}", node.lineno
        waiting.extend(() if is_type_checking(node) else ast.iter_child_nodes(node))


def violations(files: Mapping[str, str]) -> list[str]:
    """What breaks the order of layers in these files (path inside the package → text)."""
    found = []
    for path, text in files.items():
        own = Path(path).parts[0].removesuffix(".py")
        level = LAYERS.get(own, DOOR)
        for module, line in imported(ast.parse(text)):
            if module.startswith("relative:"):
                found.append(f"{path}:{line}: a relative import")
            elif module.split(".")[0] == "updsl":
                other = part_of(module)
                if other in ("__init__",) and level < DOOR:
                    found.append(f"{path}:{line}: imports the door `updsl`")
                elif other != own and (LAYERS.get(other, DOOR) > level or (LAYERS.get(other) == level < DOOR)):
                    found.append(f"{path}:{line}: {own} imports {other}")
            elif (owner := OWNERS.get(module.split(".")[0])) and not owner(path):
                found.append(f"{path}:{line}: imports {module.split('.')[0]}")
    return found


def sources() -> dict[str, str]:
    return {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}


def test_the_order_of_layers_holds() -> None:
    assert violations(sources()) == []


def test_every_layer_is_there() -> None:
    assert {Path(path).parts[0].removesuffix(".py") for path in sources()} >= set(LAYERS)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/ir.py", "from updsl.front.syntax import Name"),
        ("core/ir.py", "def f():\n    from updsl.runtime import rule"),
        ("front/parse.py", "import updsl.back.interpret"),
        ("back/interpret.py", "from updsl.middle import verify"),
        ("laws/check.py", "from updsl.runtime.rule import Rule"),
        ("laws/check.py", "from updsl import pipeline"),
        ("pipeline.py", "from updsl.runtime.rule import Rule"),
        ("runtime/rule.py", "from updsl import load"),
        ("runtime/rule.py", "from updsl.cli import main"),
        ("runtime/rule.py", "from . import state"),
        ("back/interpret.py", "import torch"),
        ("front/build.py", "from lark import Tree"),
        ("cli.py", "import torch"),
        ("middle/rewrite.py", "import sympy"),
        ("laws/lint.py", "from hypothesis import given"),
    ],
)
def test_the_check_can_fail(path: str, text: str) -> None:
    assert len(violations({path: text})) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("front/parse.py", "from updsl.core.source import Source\nimport lark"),
        ("runtime/rule.py", "from updsl import pipeline\nfrom updsl.back import interpret"),
        ("cli.py", "from updsl import __version__\nfrom updsl.runtime.rule import load"),
        ("back/torch_exec.py", "import torch"),
        ("core/ir.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from updsl.front import syntax"),
    ],
)
def test_what_the_order_allows(path: str, text: str) -> None:
    assert violations({path: text}) == []


def loaded_after(program: str) -> set[str]:
    """The top-level packages that a program has imported when it is done."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print('loaded:', *sorted({{m.split('.')[0] for m in sys.modules}}))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=120,
    )
    return set(shown.stdout.rsplit("loaded:", 1)[1].split())


HEAVY = {"torch", "sympy", "hypothesis", "matplotlib"}


def test_importing_updsl_loads_nothing_heavy() -> None:
    assert not loaded_after("import updsl; updsl.UpdslError; dir(updsl)") & (HEAVY | {"lark", "numpy", "click"})


def test_loading_a_rule_and_interpreting_it_needs_no_torch() -> None:
    program = "import updsl, numpy\nr = updsl.parse('clip norm > 1')\nr.interpret.update({'x': numpy.ones(3)}, r.interpret.init({'x': numpy.ones(3)}))"
    assert not loaded_after(program) & HEAVY


def test_check_loads_nothing_heavy(tmp_path: Path) -> None:
    file = tmp_path / "mine.upd"
    file.write_text("norm per column → clip z > 2.5 → EMA\n", encoding="utf-8")
    command = f"import sys\nfrom updsl.cli import main\nsys.argv = ['updsl', 'check', {str(file)!r}]\n"
    program = f"{command}try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code"
    assert not loaded_after(program) & (HEAVY | {"numpy"})


def test_public_names_are_found_and_others_are_not() -> None:
    import updsl

    assert set(updsl.__all__) <= set(dir(updsl))
    assert all(hasattr(updsl, name) for name in updsl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        updsl.nothing  # noqa: B018
