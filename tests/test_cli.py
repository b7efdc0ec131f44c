"""The command line: exit codes, formats, what happens to bad files, and that it never shows a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from updsl.core.diagnostic import InternalError
from updsl.core.resources import folder
from updsl.front.files import library

ROOT = Path(__file__).resolve().parents[1]
GOOD = "norm per column -> clip z>2.5 -> EMA\n"
BAD = "norm per column → clip z > 2.5 → emma\n"


pytestmark = pytest.mark.usefixtures("here")


def command(*arguments: str, **more) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | more.pop("env", {})
    return subprocess.run([sys.executable, "-m", "updsl", *arguments], capture_output=True, timeout=120, env=env, **more)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [("check", "a.upd"), ("check", "--help"), ("list",), ("check", "bad.upd")])
def test_what_cannot_be_printed_is_no_error_of_ours(here, arguments):
    (here / "a.upd").write_text(GOOD)
    (here / "bad.upd").write_text(BAD)
    with FULL.open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "updsl", *arguments], stdout=full, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120
        )
    assert (run.returncode, run.stderr.decode()) == (2, "updsl: cannot print: No space left on device\n")


# --- check -----------------------------------------------------------------------------------------------------------


def test_the_headline_rule_checks(run, here):
    (here / "a.upd").write_text(GOOD)
    assert run("check", "a.upd") == (0, "a.upd: ok\n", "")


def test_mistakes_are_shown_with_place_and_repair(run, here):
    (here / "a.upd").write_text(BAD)
    (here / "b.upd").write_text(GOOD)
    code, out, err = run("check", "a.upd", "b.upd")
    assert (code, err) == (1, "")
    assert re.search(r"^error\[[a-z-]+\]: .*`emma`\n --> a.upd:1:34\n", out)
    assert out.endswith("b.upd: ok\n")


def test_check_as_json_and_for_github(run, here):
    (here / "a.upd").write_text(BAD)
    code, out, _ = run("check", "--format", "json", "a.upd")
    data = json.loads(out)
    assert (code, data["errors"], data["warnings"]) == (1, 1, 0)
    (found,) = data["files"][0]["diagnostics"]
    assert (found["file"], found["line"], found["column"]) == ("a.upd", 1, 34)
    code, out, _ = run("check", "--format", "github", "a.upd")
    assert code == 1
    assert out.startswith("::error file=a.upd,line=1,col=34,title=")


def test_laws_are_decided(run, here):
    (here / "a.upd").write_text("rule a = sign\nlaw odd: rule(-g) == -rule(g)\n")
    code, out, _ = run("check", "--laws", "--examples", "5", "--seed", "1", "a.upd")
    assert code == 0
    assert out.split("\n")[0] == "a.upd: ok"
    assert out.split("\n")[1].startswith("  a.odd: proved (by structure: ")


def test_options_of_laws_do_not_go_unheard(run, here):
    (here / "a.upd").write_text("rule a = sign\nlaw odd: rule(-g) == rule(g)\n")
    for option in (("--snippet",), ("--seed", "1"), ("--examples", "9"), ("--dtype", "float32"), ("--timeout", "5")):
        code, _, err = run("check", *option, "a.upd")
        assert code == 2
        assert f"`{option[0]}` is about deciding laws: add `--laws`" in err


def test_the_library_checks(run):
    code, out, _ = run("check", *map(str, sorted(folder("rules").glob("*/*.upd"))))
    assert code == 0, out


def test_a_file_of_functions_checks_as_one(run, here):
    (here / "a.upd").write_text("fn twice(x) = 2*x\n")
    assert run("check", "a.upd") == (0, "a.upd: ok\n", "")
    (here / "a.upd").write_text("fn twice(x) = 2*x\nfn twice(x) = 3*x\n")
    assert run("check", "a.upd")[0] == 1


def test_check_loads_nothing_heavy(here):
    (here / "a.upd").write_text(GOOD)
    program = "import sys; from updsl.cli import run; run(['check', 'a.upd']); print(sorted({'torch', 'sympy', 'hypothesis'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert done.stdout.split("\n")[-2] == "[]"


# --- files that are no rules -----------------------------------------------------------------------------------------


def unreadable(here: Path, what: str) -> str:
    path = here / "a.upd"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to itself":
            path.symlink_to(path)
        case "device":
            return "/dev/zero"
        case "no name":
            return "a\0.upd"
        case "long name":
            return "a" * 5000 + ".upd"
    return str(path)


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "link to itself", "device", "no name", "long name"])
@pytest.mark.parametrize("name", ["check", "fmt", "explain", "show", "train"])
def test_what_cannot_be_read_is_said_and_is_no_finding(run, here, name, what):
    path = unreadable(here, what)
    if what == "device" and name not in ("check", "fmt"):
        path = "/dev/../dev/zero"
    code, out, err = run(name, path)
    assert code == 2
    assert "error[unreadable-file]: cannot read" in out + err


@pytest.mark.parametrize(("name", "inside"), [(".", "here.upd"), ("..", "rules/mine.upd"), ("sub", os.path.join("sub", "there.upd"))])
def test_a_folder_is_no_rule(here, run, monkeypatch, name, inside):
    home = here / "home"
    (home / "sub").mkdir(parents=True)
    (home / "here.upd").write_text(GOOD)
    (home / "sub" / "there.upd").write_text(GOOD)
    monkeypatch.chdir(home)
    for command in ("check", "show", "explain"):
        code, out, err = run(command, name)
        assert (code, f"cannot read `{name}`: it is a folder\n  = help: give the path of a rule file, such as {inside}" in out + err) == (2, True)


def test_a_folder_with_the_name_of_a_rule_hides_nothing(here, run):
    (here / "ema").mkdir()
    assert run("show", "ema")[0] == 0


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_no_permission(here, run, monkeypatch):
    (here / "a.upd").write_text(GOOD)

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("updsl.front.files.os.open", refuse)
    code, out, _ = run("check", "a.upd")
    assert (code, "permission denied" in out) == (2, True)


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n", b"\xff\xfe\x00\x01", os.urandom(64), b"(" * 100_000, b"x" * 10_000_000, b"a = \xed\xb2\x80", "rule a = g‮²".encode(), b"\0" * 100],
    ids=["empty", "comment", "bytes", "random", "nested", "large", "surrogate", "invisible", "zeros"],
)
def test_no_text_gives_a_traceback(here, content):
    (here / "a.upd").write_bytes(content)
    done = command("check", "a.upd", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stdout.startswith(b"error[")
    assert not done.stderr


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [[], ["frob"], ["check"], ["check", "--frob"], ["show", "sign", "--after", "x"], ["show", "sign", "--after", "text", "--source", "torch"],
     ["explain", "sign", "--tensor", "x"], ["explain", "sign", "--tensor", "x=0"], ["explain", "sign", "--tensor", "x=2", "--tensor", "x=3"],
     ["explain", "no_such_thing"], ["show", "sing"], ["new", "a b"], ["new", "nowhere/a"], ["new", "a", "--like", "sing"], ["train", "--steps", "0"]],
)  # fmt: skip
def test_what_makes_no_sense_is_exit_code_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err


def test_the_nearest_name_is_offered(run):
    _, _, err = run("show", "zclp")
    assert "did you mean `zclip`?" in err


def test_a_mistake_of_ours_says_so(run, here, monkeypatch):
    def broken(*_):
        raise InternalError("the invariant")

    (here / "a.upd").write_text(GOOD)
    monkeypatch.setattr("updsl.laws.check.check_file", broken)
    code, _, err = run("check", "a.upd")
    assert code == 3
    assert err.startswith("internal error in updsl (please report it with the rule text): the invariant\n")


def test_a_closed_pipe_is_no_error():
    program = f"{sys.executable} -m updsl list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_nothing_is_coloured(here):
    (here / "a.upd").write_text(BAD)
    assert b"\x1b" not in command("check", "a.upd", env={"FORCE_COLOR": "1"}).stdout


# --- the other commands ----------------------------------------------------------------------------------------------


def test_list(run):
    code, out, _ = run("list")
    assert code == 0
    data = json.loads(run("list", "--format", "json")[1])
    assert set(data) == set(library().rules)
    assert all(d["doc"] and f"  {name} " in out for name, d in data.items())


def test_explain_a_rule(run, here):
    (here / "a.upd").write_text(GOOD)
    code, out, _ = run("explain", "a.upd", "--tensor", "w=6x4")
    assert code == 0
    assert "norm.upd" in out
    assert "norm per column, from `norm per column` at a.upd:1:1" in out
    assert "state: 4 bytes a parameter" in out
    assert "rule a:" in out
    data = json.loads(run("explain", "adam", "--format", "json")[1])
    assert data["classes"][0]["state_bytes_per_parameter"] == 8
    assert [p["name"] for p in data["parameters"]] == ["beta1", "beta2", "eps"]


def test_every_rule_of_the_library_explains(run):
    for name in library().rules:
        code, out, err = run("explain", name)
        assert (code, err) == (0, ""), name
        assert out.startswith(f"{name}: "), name
        assert json.loads(run("explain", name, "--format", "json")[1])["name"] == name


def test_explain_a_case_of_a_match(run):
    _, out, _ = run("explain", "scale", "--tensor", "lm_head.weight=8x4", "--tensor", "bias=3")
    assert out.count("\nfor ") == 2


def test_explain_every_error(run):
    pages = sorted(folder("docs/errors").glob("*.md"))
    for page in pages:
        assert run("explain", page.stem) == (0, page.read_text(encoding="utf-8").rstrip() + "\n", "")


def test_what_show_prints_is_a_rule(run, here):
    for name in ("zclip", "adamw", "sign"):
        code, out, _ = run("show", name, "--after", "program", "--tensor", "w=6x4")
        assert code == 0
        assert f"rule {name}" in out
    assert run("show", "sign", "--after", "text")[1].startswith("# sign\nrule sign")
    assert "Name id=" in run("show", "sign", "--after", "syntax")[1]


def test_show_generated_code(run):
    code, out, _ = run("show", "adam", "--source", "torch")
    assert code == 0
    assert "torch" in out


def test_new_writes_a_rule_that_checks_and_overwrites_nothing(run, here):
    assert run("new", "mine")[0] == 0
    assert run("check", "mine.upd")[0] == 0
    assert run("fmt", "--check", "mine.upd")[0] == 0
    code, _, err = run("new", "mine.upd")
    assert (code, "is there already" in err) == (2, True)
    assert run("new", "other", "--like", "zclip")[0] == 0
    assert "rule other(" in (here / "other.upd").read_text()
    assert run("check", "other.upd")[0] == 0


def test_fmt(run, here):
    (here / "a.upd").write_text(GOOD)
    assert run("fmt", "--check", "a.upd") == (1, "a.upd: not formatted\n", "")
    assert run("fmt", "a.upd") == (0, "a.upd: formatted\n", "")
    assert (here / "a.upd").read_text() == "norm per column → clip z > 2.5 → EMA\n"
    assert run("fmt", "--check", "a.upd") == (0, "", "")
    (here / "b.upd").write_text("rule a = (g")
    code, _, err = run("fmt", "b.upd")
    assert (code, err.startswith("error[")) == (1, True)
    assert (here / "b.upd").read_text() == "rule a = (g"


def test_version(run):
    from updsl import __version__

    assert run("--version") == (0, f"updsl, version {__version__}\n", "")


# --- train -----------------------------------------------------------------------------------------------------------


RULES = {
    "headline": GOOD,
    "clip": "rule a = clip norm > 0.5 per all\n",
    "optimizer": "rule a = adamw(weight_decay = 0.1)\n",
    "input": "rule a:\n    input loss per all\n    return g*loss\n",
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_train(run, here, rule):
    (here / "a.upd").write_text(rule)
    code, out, err = run("train", "a.upd", "--quick", "--out", "result")
    assert code == 0, err
    assert "20/40" in err
    assert [line.split("  ")[0] for line in out.split("\n") if line.startswith(("no clipping", "clip_grad", "rule a"))] == [
        "no clipping",
        "clip_grad_norm_(1.0)",
        "rule a",
    ]
    data = json.loads((here / "result" / "train.json").read_text())
    assert data["complete"]
    assert data["rules"] == {"rule a": rule}
    assert [len(r["loss"]) for r in data["runs"]] == [40, 40, 40]
    assert (here / "result" / "train.png").read_bytes().startswith(b"\x89PNG")


def test_train_refuses_inputs_that_it_does_not_have(run, here):
    (here / "a.upd").write_text("rule a:\n    input other\n    return g*other\n")
    code, _, err = run("train", "a.upd", "--quick")
    assert code == 2
    assert "needs inputs that this training does not have: other" in err


def test_train_says_where_it_cannot_write(run, here):
    (here / "taken").write_text("")
    code, _, err = run("train", "sign", "--quick", "--out", "taken")
    assert (code, "Traceback" in err) == (2, False)


@pytest.mark.parametrize("code", ["unreadable-file", "unknown-rule"])
def test_pages_of_errors_without_a_rule_show_what_is_said(run, code):
    page = (folder("docs/errors") / f"{code}.md").read_text(encoding="utf-8")
    blocks = [b.replace("\n    ", "\n")[4:] for b in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    call, message = blocks
    _, out, err = run(*call.split()[1:])
    assert (out + err).strip() == message.strip()


def test_ctrl_c_leaves_what_there_is(here):
    (here / "a.upd").write_text(GOOD)
    arguments = [sys.executable, "-m", "updsl", "train", "a.upd", "--quick", "--steps", "1000", "--out", "result"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as job:
        assert job.stderr.readline().startswith("seed 0")
        job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=120)
    assert (job.returncode, "Traceback" in err) == (130, False)
    assert "\ninterrupted after " in out
    assert "rule a" in out
    data = json.loads((here / "result" / "train.json").read_text())
    assert data["complete"] is False
    assert 100 <= len(data["runs"][0]["loss"]) < 1000
    assert (here / "result" / "train.png").exists()


def test_explain_counts_states_of_grids_of_their_own_and_lists_watches(run):
    code, out, _ = run("explain", "galore", "--tensor", "w=64x32", "--format", "json")
    (found,) = json.loads(out)["classes"]
    rank = [(s["rows"], s["cols"]) for s in found["states"]]
    sizes = {"rows": 64, "cols": 32}
    assert code == 0
    assert found["state_bytes_per_parameter"] == sum(4 * sizes.get(r, r) * sizes.get(c, c) for r, c in rank) / (64 * 32)
    assert "watches\n" in run("explain", "zclip")[1]
    assert {"name": "z", "scope": "all"} in json.loads(run("explain", "zclip", "--format", "json")[1])["classes"][0]["watches"]
