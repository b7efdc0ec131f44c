"""Generated C++ is compiled once, kept, checked whenever it is loaded, and shares torch's threads; without a compiler the user is told what to install."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from updsl.back import cpp_build as kernels
from updsl.back.cpp_build import NoCompiler, build, cache_folder
from updsl.core.diagnostic import InternalError

ANSWER = 'extern "C" int answer() { return 42; }\n'
OTHER = 'extern "C" int answer() { return 43; }\n'
THREADS = """extern "C" int omp_get_max_threads();
extern "C" int limit() { return omp_get_max_threads(); }
extern "C" int running() {
    int n = 0;
    #pragma omp parallel reduction(+ : n)
    n += 1;
    return n;
}
"""
RUNTIMES = r"""
def runtimes():
    import re
    return sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(gomp|g0mp|omp|iomp5)\b[^/]*$", line)})
"""


class Wrapper:
    """g++ behind a script that counts its runs. `spoil`: shell commands that come first."""

    def __init__(self, folder: Path, spoil: str = ""):
        self.log, self.file = folder / "runs", folder / "wrapped-g++"
        self.file.write_text(f'#!/bin/sh\necho "$*" >> {self.log}\n{spoil}\nexec g++ "$@"\n')
        self.file.chmod(0o755)

    @property
    def runs(self) -> int:
        """How many texts were compiled."""
        return sum(" -c " in line for line in self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Makes the process like a new one: nothing is loaded yet, and the cache folder is of that name."""

    def start(cache="cache") -> Path:
        monkeypatch.setattr(kernels, "_loaded", {})
        monkeypatch.setenv("UPDSL_CACHE", str(tmp_path / cache))
        return tmp_path / cache

    start()
    return start


@pytest.fixture
def wrapper(tmp_path, monkeypatch, start) -> Wrapper:
    wrapper = Wrapper(tmp_path)
    monkeypatch.setenv("CXX", str(wrapper.file))
    return wrapper


def python(program: str, **environment: str) -> str:
    """What a new process prints."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250, env={**os.environ, "PYTHONPATH": root, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_text_is_compiled_once(wrapper, start):
    first = build(ANSWER, "mine")
    assert first.answer() == 42
    assert build(ANSWER, "mine") is first
    start()
    assert build(ANSWER, "mine") is not first
    assert wrapper.runs == 1


def test_the_text_lies_beside_the_library(start):
    library = Path(build(ANSWER, "../my rule·")._name)
    assert library.parent == start()
    assert library.with_suffix(".cpp").read_text() == ANSWER
    assert library.name.startswith("___my_rule_-")
    assert sorted(p.suffix for p in library.parent.iterdir()) == [".cpp", ".so"], "nothing else is left behind"


CHANGES = {
    "speed": lambda patch: build(ANSWER, "mine", "-O1"),
    "source": lambda patch: build(OTHER, "mine"),
    "flags": lambda patch: patch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-DX=1")),
    "cpu": lambda patch: patch.setattr(kernels, "cpu", lambda: ["x86_64", "flags : sse2"]),
    "version": lambda patch: patch.setattr("updsl.__version__", "0.0.0"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_key(change, wrapper, start, monkeypatch):
    build(ANSWER, "mine")
    start()
    change(monkeypatch)
    build(ANSWER, "mine")
    assert wrapper.runs == 2


def test_another_compiler_or_openmp_is_another_key(tmp_path):
    compiler, openmp = kernels.find_compiler("", os.environ["PATH"]), tmp_path / "libgomp.so.1"
    openmp.write_bytes(b"1")
    key = kernels.key_of(ANSWER, (), compiler, openmp)
    assert key == kernels.key_of(ANSWER, (), compiler, openmp)
    assert key != kernels.key_of(ANSWER, (), kernels.Compiler(compiler.command, f"{compiler.version}1"), openmp)
    assert key != kernels.key_of(ANSWER, (), kernels.Compiler(("/usr/bin/c++",), compiler.version), openmp)
    openmp.write_bytes(b"12")
    assert key != kernels.key_of(ANSWER, (), compiler, openmp), "a runtime renewed in place"


def flip(data: bytes) -> bytes:
    return data[:4000] + bytes([data[4000] ^ 1]) + data[4001:]


DAMAGE = {
    "truncated": lambda good, foreign: good[: len(good) // 2],
    "without its seal": lambda good, foreign: good[:-32],
    "empty": lambda good, foreign: b"",
    "overwritten": lambda good, foreign: b"\0" * len(good),
    "one bit": lambda good, foreign: flip(good),
    "of another text": lambda good, foreign: foreign,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(damage, wrapper, start):
    good, foreign = Path(build(ANSWER, "mine")._name), Path(build(OTHER, "mine")._name)
    sound, spoilt = start("sound"), start("spoilt")  # new folders, since a loader knows files it has loaded by their path
    for folder, data in ((sound, good.read_bytes()), (spoilt, damage(good.read_bytes(), foreign.read_bytes()))):
        folder.mkdir()
        (folder / good.name).write_bytes(data)
    start("sound")
    assert build(ANSWER, "mine").answer() == 42
    assert wrapper.runs == 2
    start("spoilt")
    library = build(ANSWER, "mine")
    assert (library.answer(), wrapper.runs) == (42, 3)
    assert library._name == str(spoilt / good.name)
    assert kernels._is_intact(spoilt / good.name, next(iter(kernels._loaded))), "repaired for the next process"


def test_a_folder_in_an_entry_s_place_does_no_harm(wrapper, start):
    name = Path(build(ANSWER, "mine")._name).name
    (start("new") / name).mkdir(parents=True)
    assert build(ANSWER, "mine").answer() == 42


@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_anybody_may_write_to_is_not_loaded(place, wrapper, start):
    library = Path(build(ANSWER, "mine")._name)
    (library if place == "file" else library.parent).chmod(0o777)
    start()
    again = build(ANSWER, "mine")
    assert (again.answer(), wrapper.runs) == (42, 2)
    assert place == "file" or Path(again._name).parent != library.parent


def test_a_folder_that_cannot_be_made(wrapper, start):
    blocked = start("blocked")
    blocked.write_text("a file")
    start("blocked/cache")
    library = build(ANSWER, "mine")
    assert library.answer() == 42
    private = Path(library._name).parent
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert private.parent == Path(tempfile.gettempdir())
    assert build(ANSWER, "mine") is library


def test_a_write_that_fails_leaves_nothing(wrapper, start, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert build(ANSWER, "mine").answer() == 42
    assert list(start().iterdir()) == []


READ_ONLY = f"""
import os, pathlib, sys
import torch
from updsl.back import cpp_build as kernels
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write everywhere
for text in ({ANSWER!r}, {OTHER!r}):
    library = kernels.build(text, "mine")
    print(library.answer(), library._name)
"""


def test_a_read_only_folder_is_used_and_left_alone(monkeypatch, start):
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("UPDSL_CACHE", folder)
        kept = build(ANSWER, "mine")._name
        before = sorted(os.listdir(folder))
        os.chmod(folder, 0o555)
        (first, where), (second, elsewhere) = (line.split(maxsplit=1) for line in python(READ_ONLY, UPDSL_CACHE=folder).splitlines())
        assert (first, where) == ("42", kept)
        assert second == "43"
        assert not elsewhere.startswith(folder)
        assert not os.path.exists(elsewhere), "a private folder goes with its process"
        assert sorted(os.listdir(folder)) == before
        os.chmod(folder, 0o755)


def race(barrier, answers) -> None:
    kernels.find_openmp()
    barrier.wait(timeout=200)
    for i in range(5):
        text = f'extern "C" int answer() {{ return {i}; }}\n'
        answers.put((i, build(text, "raced").answer()))


def test_two_processes_at_once(start):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=race, args=(barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=250) for _ in range(10)]
    for process in processes:
        process.join()
    assert sorted(found) == sorted((i, i) for i in range(5) for _ in range(2))
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counter(p.suffix for p in start().iterdir()) == {".cpp": 5, ".so": 5, ".kept": 1}, (
        "five texts, five libraries, what the compiler is, no parts of any"
    )


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("UPDSL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/ada/.cache/updsl")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/ada")
    assert cache_folder() == Path("/var/ada/updsl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPDSL_CACHE", "here")
    assert cache_folder() == tmp_path / "here"


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cxx", "path"), [("/nonexistent", os.environ["PATH"]), ("", ""), ("g++", "")])
def test_no_compiler(cxx, path, start, monkeypatch):
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("PATH", path)
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler found.*: install g\+\+ \(apt-get install g\+\+\) or set CXX"):
        build(ANSWER, "mine")


WITHOUT_OPENMP = 'for a; do shift; [ "$a" = -fopenmp ] || set -- "$@" "$a"; done'
FAILURES = {
    "OpenMP is off": WITHOUT_OPENMP,
    "no such option": 'case "$*" in *-march*) echo "error: no such option: -march=native"; exit 1;; esac',
    "--version fails": "exit 1",
    "took more than": 'case "$*" in *-c*) sleep 1000;; esac',
}


@pytest.mark.parametrize("message", FAILURES)
def test_a_compiler_that_does_not_serve(message, tmp_path, start, monkeypatch):
    monkeypatch.setattr(kernels, "LIMIT", 2.0)
    monkeypatch.setenv("CXX", str(Wrapper(tmp_path, FAILURES[message]).file))
    with pytest.raises(NoCompiler, match=message) as caught:
        build(ANSWER if message == "took more than" else 'extern "C" int f() { return 1 }', "mine")
    assert "install g++" in str(caught.value)


def test_a_file_that_is_no_program(tmp_path, start, monkeypatch):
    (tmp_path / "cc").write_bytes(b"\0\1\2")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cc"))
    with pytest.raises(NoCompiler, match="does not run"):
        build(ANSWER, "mine")


def test_nowhere_to_build(start, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(NoCompiler, match="set TMPDIR"):
        build(ANSWER, "mine")


def test_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NoCompiler, match="on Linux only"):
        build(ANSWER, "mine")


def test_a_text_that_is_not_cpp(start):
    with pytest.raises(InternalError, match=r"expected .;.") as caught:
        build('extern "C" int f() { return 1 }\n', "mine")
    refused = Path(str(caught.value).splitlines()[0].rsplit(" ", 1)[1])
    assert refused.read_text() == 'extern "C" int f() { return 1 }\n'
    refused.unlink()


def test_a_missing_symbol_is_found_when_building(start):
    with pytest.raises(InternalError, match="undefined reference") as caught:
        build('extern "C" int absent(); extern "C" int f() { return absent(); }\n', "mine")
    Path(str(caught.value).splitlines()[0].rsplit(" ", 1)[1]).unlink()


def test_arithmetic_is_that_of_the_text(start):
    text = """extern "C" double fused(double a, double b, double c) { return a * b + c; }
extern "C" int is_nan(double x) { return x != x; }
extern "C" double order(double a, double b) { return (a + b) - a; }
"""
    library = build(text, "mine")
    for function in (library.fused, library.order, library.is_nan):
        function.argtypes = [ctypes.c_double] * 3 if function is library.fused else [ctypes.c_double] * (1 if function is library.is_nan else 2)
    library.fused.restype = library.order.restype = ctypes.c_double
    x = 1 + 2.0**-30
    assert library.fused(x, x, -1.0) == x * x - 1.0
    assert library.fused(x, x, -(x * x)) == 0.0, "rounded once it is 2^-60"
    assert library.order(1e16, 1.0) == (1e16 + 1.0) - 1e16
    assert library.is_nan(float("nan"))


# --- threads ---------------------------------------------------------------------------------------------------------

SHARED = f"""
import torch
from updsl.back.cpp_build import build
{RUNTIMES}
before = runtimes()
library = build({THREADS!r}, "threads")
for n in (1, 2, 3):
    torch.set_num_threads(n)
    torch.ones(1 << 20).sum()
    print(n, library.limit(), library.running())
print(len(before), runtimes() == before)
"""


def test_one_openmp_runtime_whose_threads_are_torch_s(tmp_path):
    *threads, last = python(SHARED, UPDSL_CACHE=str(tmp_path), OMP_DYNAMIC="false", OMP_THREAD_LIMIT="8").splitlines()
    assert threads == ["1 1 1", "2 2 2", "3 3 3"]
    assert last == "1 True"


RENAMED = f"""
import ctypes, os, pathlib
from updsl.back import cpp_build as kernels
{RUNTIMES}
file = pathlib.Path(os.environ["RENAMED"])
ctypes.CDLL(str(file))
kernels.find_openmp = lambda: file
kernels.build({THREADS!r}, "threads").running()
print(*runtimes())
"""


def test_the_runtime_that_is_linked_is_torch_s_and_not_the_compiler_s(tmp_path):
    """Some wheels of torch bring a libgomp under another name; linked by -fopenmp, a kernel would load a second one beside it."""
    openmp = kernels.find_openmp()
    renamed = tmp_path / "libg0mp.so.1"
    renamed.write_bytes(openmp.read_bytes().replace(b"libgomp.so.1\0", b"libg0mp.so.1\0"))
    assert python(RENAMED, UPDSL_CACHE=str(tmp_path / "cache"), RENAMED=str(renamed)).split() == [str(renamed)]


def test_torch_s_runtime_is_the_one_it_has_loaded():
    assert str(kernels.find_openmp()) in Path("/proc/self/maps").read_text()
    torch.set_num_threads(torch.get_num_threads())
    assert ctypes.CDLL(str(kernels.find_openmp())).omp_get_max_threads() == torch.get_num_threads()
