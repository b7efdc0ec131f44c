"""docs/tutorial.md, run from top to bottom: its files written, its commands and its Python run, and the outputs it shows compared."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from updsl import cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
TUTORIAL = DOCS.joinpath("tutorial.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write(content: str) -> None:
    """A rule's text into the file that its first line names."""
    head, _, text = content.partition("\n")
    name, at_end = re.fullmatch(r"# (\w+\.upd)(, at its end)?", head).groups()
    before = Path(name).read_text(encoding="utf-8") if at_end else ""
    Path(name).write_text(before + text, encoding="utf-8")


def printed(action) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        action()
    return out.getvalue()


def shown(content: str) -> str:
    """A console's block as it is when its commands are run."""
    commands = re.findall(r"^\$ updsl (.*)$", content, re.MULTILINE)
    return "".join(f"$ updsl {c}\n{printed(lambda c=c: cli.run(c.split()))}" for c in commands)


def run(text: str) -> list[tuple[str, str]]:
    """The blocks of a tutorial as they are when it is run; a block `text` is what the Python above it printed."""
    names: dict = {}
    found, output = [], ""
    for language, content in blocks(text):
        match language:
            case "updsl":
                write(content)
            case "console":
                content = shown(content)
            case "python":
                output = printed(lambda code=content: exec(code, names))
            case "text":
                content = output
        found.append((language, content))
    return found


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_runs_as_shown():
    assert run(TUTORIAL) == blocks(TUTORIAL)


def test_it_has_five_steps_and_an_error_message():
    assert re.findall(r"^## (\d)\.", TUTORIAL, re.MULTILINE) == list("12345")
    assert "error[" in TUTORIAL
    assert {language for language, _ in blocks(TUTORIAL)} == {"updsl", "console", "python", "text"}


def test_every_file_it_ends_with_checks():
    """Without a warning, but for the idea, whose warning the page shows."""
    run(TUTORIAL)
    for file in Path().glob("*.upd"):
        assert cli.run(["check", "--strict", str(file)]) == (1 if file.stem == "idea" else 0)
        assert cli.run(["fmt", "--check", str(file)]) == 0


def test_a_wrong_output_is_seen():
    wrong = "```updsl\n# a.upd\nclip norm > 1\n```\n\n```console\n$ updsl check a.upd\na.upd: good\n```\n\n```python\nprint(2)\n```\n\n```text\n3\n```\n"
    assert [a == b for a, b in zip(run(wrong), blocks(wrong), strict=True)] == [True, False, True, False]


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TUTORIAL):
        assert (DOCS / target).exists(), target
