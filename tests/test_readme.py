"""What README.md shows is true."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import updsl
from updsl import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(begin: str) -> str:
    """The indented block whose first line begins so."""
    match = re.search(rf"^    {re.escape(begin)}.*\n(?:(?:    .*)?\n)*", README, re.MULTILINE)
    return "\n".join(line[4:] for line in match.group().rstrip().split("\n")) + "\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.upd").write_text(block("rule mine"), encoding="utf-8")
    return tmp_path


def test_the_first_line_is_a_rule(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.upd").write_text(block("norm per column"), encoding="utf-8")
    assert cli.run(["check", "a.upd"]) == 0


def test_the_rule_checks_and_is_formatted(here, capsys):
    assert cli.run(["check", "mine.upd"]) == 0
    assert cli.run(["fmt", "--check", "mine.upd"]) == 0
    assert cli.run(["explain", "mine.upd"]) == 0


def test_its_example_holds(here):
    rule = updsl.load("mine.upd", beta=0, z_max=float("inf"))
    out, *_ = rule.interpret.update({"w": np.array([[3.0], [4.0]])}, rule.interpret.init({"w": np.zeros((2, 1))}))
    np.testing.assert_allclose(out["w"], [[0.6], [0.8]])


def test_the_loop_runs(here):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    code = code.replace("...\n", "loss = model(torch.ones(2, 4)).sum()\n")
    exec(code, {"model": model})
    assert not torch.equal(model.weight, before)


def test_the_optimizer_named_runs(here):
    (line,) = re.findall(r"`(updsl\.Optimizer\(.*?\))`", README)
    model = torch.nn.Linear(4, 3)
    optimizer = eval(line, {"model": model, "updsl": updsl})
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
