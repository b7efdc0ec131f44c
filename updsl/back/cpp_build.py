"""Generated C++ → a loaded library: compiled once, kept in the user's cache folder, checked whenever it is loaded.

A kept library is followed by SHA-256(key, library), which loaders do not read: one file, renamed into place, is whole and the right one, or is made again.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from updsl.core.diagnostic import InternalError
from updsl.core.kept import is_ours, kept
from updsl.core.resources import cache_folder

FLAGS = ("-std=c++17", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
"""No -ffast-math, and a*b + c is rounded twice: results are those of the text, whatever the compiler prefers."""
LIMIT = 120.0
"""The seconds that a compiler may take."""
INSTALL = "install g++ (apt-get install g++) or set CXX"
PROBE = """#ifndef _OPENMP
#error "OpenMP is off"
#endif
extern "C" long probe(long n) {
    long sum = 0;
    #pragma omp parallel for reduction(+ : sum)
    for (long i = 0; i < n; ++i) sum += i;
    return sum;
}
"""
"""What every compiler that serves can build."""
IDENTITY = "vendor_id;cpu family;model;model name;stepping;flags;CPU implementer;CPU architecture;CPU variant;CPU part;CPU revision;Features;cpu;isa".split(";")
"""What /proc/cpuinfo says of a processor that -march=native looks at, on any architecture."""

_loaded: dict[str, ctypes.CDLL] = {}


class NoCompiler(Exception):
    """Kernels cannot be built on this machine; the message says what to install or set."""


@dataclass(frozen=True)
class Compiler:
    """A command and what it says of its version."""

    command: tuple[str, ...]
    version: str


def build(source: str, name: str, speed: str = "-O3") -> ctypes.CDLL:
    """The library of this text, loaded; the same text and speed give the same object. Its files are named after `name`.

    Raises NoCompiler where kernels cannot be built, and InternalError for a text that is not C++."""
    compiler, openmp = ready()
    flags = (*FLAGS, speed)
    key = key_of(source, flags, compiler, openmp)
    if key not in _loaded:
        stem = f"{re.sub(r'[^A-Za-z0-9_]', '_', name)[:80]}-{key[:16]}"
        # Two threads may both come here: they load one file, and setdefault keeps one object.
        _loaded.setdefault(key, _load(source, stem, key, compiler, flags, openmp))
    return _loaded[key]


def ready() -> tuple[Compiler, Path]:
    """The compiler, and the OpenMP runtime. Raises NoCompiler where one is missing."""
    if sys.platform != "linux" or not os.path.exists("/proc/self/maps"):
        raise NoCompiler(f"C++ kernels are built on Linux only so far, with /proc at hand; this is {platform.system()}")
    return find_compiler(os.environ.get("CXX", ""), os.environ.get("PATH", os.defpath)), find_openmp()


def key_of(source: str, flags: Sequence[str], compiler: Compiler, openmp: Path) -> str:
    """SHA-256 of all that a library is made from."""
    file = openmp.stat()
    version = sys.modules[__name__.partition(".")[0]].__version__
    parts = [source, flags, compiler.command, compiler.version, cpu(), version, str(openmp), file.st_size, file.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- the machine -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def find_compiler(cxx: str, path: str) -> Compiler:
    """The compiler that CXX names, which may have arguments, or else the first of the usual ones on the path."""
    words = cxx.split() or [next((c for c in ("g++", "c++", "clang++") if shutil.which(c, path=path)), "g++")]
    program = shutil.which(words[0], path=path)
    if program is None:
        raise NoCompiler(f"no C++ compiler found{f' (CXX is {cxx})' if cxx else ''}: {INSTALL}")
    command = (os.path.abspath(program), *words[1:])
    file = os.stat(program)
    said = kept("compiler", (command, os.path.realpath(program), file.st_size, file.st_mtime_ns), lambda: _version(command))
    return Compiler(command, f"{os.path.realpath(program)}: {said}")


def _version(command: Sequence[str]) -> str:
    """What a compiler says of its version."""
    code, said = _run([*command, "--version"], Path("/"))
    if code:
        raise NoCompiler(f"{command[0]} --version fails ({_first(said)}): {INSTALL}")
    return said


@cache
def find_openmp() -> Path:
    """The file of the OpenMP runtime that torch calls. A second one in the process would have threads of its own, and may abort or hang."""
    import torch

    # Symbols are looked for as the loader does for torch: in what all libraries share, then in its own.
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with suppress(AttributeError, OSError):
            address = ctypes.cast(ctypes.CDLL(library).omp_get_max_threads, ctypes.c_void_p).value or 0
            for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                extent, *_, file = line.split(maxsplit=5)
                low, high = (int(end, 16) for end in extent.split("-"))
                if low <= address < high:
                    return Path(file)
    raise NoCompiler("this torch was built without OpenMP, whose threads C++ kernels share")


@cache
def cpu() -> list[str]:
    """The first processor's model and features."""
    found = [platform.machine()]
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                break
            if line.partition(":")[0].strip() in IDENTITY:
                found.append(" ".join(line.split()))
    return found


# --- compiling -------------------------------------------------------------------------------------------------------


def _load(source: str, stem: str, key: str, compiler: Compiler, flags: Sequence[str], openmp: Path) -> ctypes.CDLL:
    """From the cache folder; else built, and from a private folder where it cannot be kept."""
    folder = cache_folder()
    kept = folder / f"{stem}.so"
    with suppress(OSError):
        if is_ours(folder) and is_ours(kept) and _is_intact(kept, key):
            return ctypes.CDLL(str(kept))
    try:
        private = Path(tempfile.mkdtemp(prefix="updsl-"))
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        library = _compiled(source, stem, compiler, flags, openmp, private)
        with suppress(OSError):
            _keep(private, stem, key, folder)
            loaded = ctypes.CDLL(str(kept))
            shutil.rmtree(private, ignore_errors=True)
            return loaded
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoCompiler(f"kernels can be neither built nor loaded here ({error}): set TMPDIR to a folder that may be written to and hold programs") from error


def _compiled(source: str, stem: str, compiler: Compiler, flags: Sequence[str], openmp: Path, folder: Path) -> Path:
    """The library, beside its text. A text at fault is kept elsewhere, to be looked at."""
    said = _compile(source, stem, compiler, flags, openmp, folder)
    if said is None:
        return folder / f"{stem}.so"
    with tempfile.TemporaryDirectory(prefix="updsl-") as other:
        fault = _compile(PROBE, "probe", compiler, flags, openmp, Path(other))
    if fault is None:
        number, refused = tempfile.mkstemp(prefix=f"updsl-{stem}-", suffix=".cpp")
        with open(number, "w", encoding="utf-8") as file:
            file.write(source)
        raise InternalError(f"{compiler.command[0]} refuses the C++ in {refused}\n" + "\n".join(said.splitlines()[:12]))
    raise NoCompiler(f"{compiler.command[0]} cannot build OpenMP code for torch's {openmp.name} ({_first(fault)}): {INSTALL}")


def _compile(source: str, stem: str, compiler: Compiler, flags: Sequence[str], openmp: Path, folder: Path) -> str | None:
    """What the compiler says if it fails. Two runs, since -fopenmp would link the compiler's own runtime: torch's is linked, and no symbol may be missing."""
    text, object_, library = (str(folder / f"{stem}{end}") for end in (".cpp", ".o", ".so"))
    Path(text).write_text(source, encoding="utf-8")
    for step in (("-fopenmp", "-c", text, "-o", object_), ("-shared", object_, str(openmp), "-Wl,--no-undefined", "-o", library)):
        code, said = _run([*compiler.command, *flags, *step], folder)
        if code:
            return said or f"exit code {code}"
    return None


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code and what was printed; temporary files go to the folder. A compiler that takes too long is ended with all that it started."""
    settings = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        with subprocess.Popen(command, env=settings, cwd=folder, start_new_session=True, **streams) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    except subprocess.TimeoutExpired as error:
        raise NoCompiler(f"{command[0]} took more than {LIMIT:g} s: {INSTALL}") from error
    except OSError as error:
        raise NoCompiler(f"{command[0]} does not run ({error}): {INSTALL}") from error
    return process.returncode, said.decode(errors="replace")


def _first(said: str) -> str:
    """The line that names the fault, or the first."""
    lines = said.splitlines() or [""]
    return next((line for line in lines if "error:" in line or "undefined" in line), lines[0]).strip()


# --- keeping ---------------------------------------------------------------------------------------------------------


def _seal(library: bytes, key: str) -> bytes:
    return hashlib.sha256(key.encode() + library).digest()


def _is_intact(file: Path, key: str) -> bool:
    """Whether it is the library of this key, whole."""
    data = file.read_bytes()
    return data[-32:] == _seal(data[:-32], key)


def _keep(private: Path, stem: str, key: str, folder: Path) -> None:
    """The text and the library, sealed, into the cache folder, each whole or not at all. Raises OSError where that cannot be done."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(folder):
        raise PermissionError(f"others may write to {folder}")
    library = (private / f"{stem}.so").read_bytes()
    for end, data in ((".cpp", (private / f"{stem}.cpp").read_bytes()), (".so", library + _seal(library, key))):
        part = folder / f".{stem}.{secrets.token_hex(8)}"
        try:
            with open(part, "xb", opener=lambda path, how: os.open(path, how, 0o644)) as file:
                file.write(data)
            os.replace(part, folder / f"{stem}{end}")
        finally:
            part.unlink(missing_ok=True)
