"""The wheel, unpacked with nothing of the checkout beside it, holds all that the command needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from updsl.core.resources import folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(target), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(target / "site")
    return target / "site"


def updsl(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "updsl", *arguments], cwd=site.parent, capture_output=True, text=True, env=env, timeout=240, check=True)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["grammar", "rules", "docs/errors"])
def test_it_holds_the_texts(unpacked, name):
    assert files(unpacked / "updsl" / "data" / name) == files(folder(name))


def test_it_holds_no_tests_and_nothing_beside_the_package(unpacked):
    assert {p.name.partition("-")[0] for p in unpacked.iterdir()} == {"updsl"}


def test_it_checks_lists_explains_and_trains(unpacked):
    rule = unpacked.parent / "mine.upd"
    rule.write_text("norm per column → clip z > 2.5 → EMA\n", encoding="utf-8")
    assert updsl(unpacked, "check", str(rule)).stdout == f"{rule}: ok\n"
    assert "zclip" in updsl(unpacked, "list").stdout
    assert "norm per column" in updsl(unpacked, "explain", str(rule)).stdout
    assert "rule mine" in updsl(unpacked, "train", str(rule), "--quick", "--steps", "3").stdout
    where = subprocess.run(
        [sys.executable, "-c", "import updsl; print(updsl.__file__)"],
        cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(unpacked)
