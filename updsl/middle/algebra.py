"""Real algebra by SymPy, the guest: in a process of its own, with a limit of memory, that is killed and replaced when a question takes too long.

Questions are expressions made of nodes, as nested lists:
["number", "9/10"] · ["symbol", "x", sign] (sign: "positive", "nonnegative", "real") · ["add", …] · ["mul", …] · ["power", base, "1/2"].
No text is ever parsed as algebra, and nothing is simplified by search: `factor_terms`, `cancel` and `together` are tried, in this order.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypeAlias

Node: TypeAlias = list[Any]

MEMORY = 2 * 2**30
"""Bytes of address space that the process may have."""
PATIENCE = 4.0
"""Seconds for a question; the first has as many again for the start."""


class Algebra:
    """Answers questions about expressions; None where there is no answer in time. The process starts with the first question."""

    def __init__(self, patience: float = PATIENCE):
        self.patience = patience
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def is_zero(self, e: Node) -> bool:
        """Whether e is 0 wherever it is a number; "no" may only mean that it is not seen."""
        return self.ask("zero", e) is True

    def is_nonnegative(self, e: Node) -> bool:
        """Whether e is at least 0 wherever it is a number; as above."""
        return self.ask("nonnegative", e) is True

    def ask(self, question: str, e: Node) -> bool | None:
        started = self.process is None
        process = self.started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([question, e]).encode() + b"\n")
            process.stdin.flush()
            line = self.line(process, self.patience * (2 if started else 1))
        except OSError:
            line = b""
        if not line:
            self.close()
            return None
        return json.loads(line)

    def line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Its answer, or nothing where it takes longer or has ended. An answer is one short line, written at once."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else b""

    def started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(
                [sys.executable, "-m", "updsl.middle.algebra"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
        return self.process

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


# --- in the process --------------------------------------------------------------------------------------------------


def to_sympy(e: Node) -> Any:
    """The expression that a node means."""
    import sympy

    match e:
        case ["number", str(text)]:
            value = Fraction(text)
            return sympy.Rational(value.numerator, value.denominator)
        case ["symbol", str(name), str(sign)]:
            return sympy.Symbol(name, **({"real": True} if sign == "real" else {sign: True}))
        case ["add", *args]:
            return sympy.Add(*map(to_sympy, args))
        case ["mul", *args]:
            return sympy.Mul(*map(to_sympy, args))
        case ["power", base, str(text)]:
            return sympy.Pow(to_sympy(base), to_sympy(["number", text]))
    raise ValueError(f"not a node: {e!r}")


def forms(e: Any) -> Iterator[Any]:
    """The expression, and what the short list of rewrites makes of it."""
    import sympy

    yield e
    yield sympy.factor_terms(e)
    yield sympy.cancel(e)
    yield sympy.cancel(sympy.together(e))


def answer(question: str, e: Any) -> bool:
    if question == "zero":
        return any(f.is_zero for f in forms(e))
    return any(f.is_nonnegative for f in forms(e))


def serve() -> None:
    """Answers each line of the input by a line, until it ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        question, e = json.loads(line)
        try:
            found = answer(question, to_sympy(e))
        except (MemoryError, RecursionError, ArithmeticError, ValueError, TypeError, NotImplementedError):
            found = None  # what SymPy raises where it gives up: not proved
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
