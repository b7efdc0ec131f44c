"""Plan → readable torch source: a function for each piece, one statement a line.

The text is made from a closed set of templates and from identifiers of torch_names; of the rule's text nothing but comments (printable, on one line)
reaches it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from updsl.back import torch_reduce as reduce
from updsl.back.torch_expression import Expressions
from updsl.back.torch_names import Names, to_identifier
from updsl.back.torch_plan import BY_ORDER, Join, Piece, Plan
from updsl.back.torch_writer import ATOM, DTYPES, Arg, Code, Known, literal
from updsl.core.diagnostic import printable
from updsl.core.ir import GRID, Apply, Binding, Program, Reduce, State, is_shared
from updsl.core.ops import OPS
from updsl.core.scope import ELEMENT
from updsl.core.source import NOWHERE, Span
from updsl.core.straight import Root

COMMENT = 90
HEADER = '''"""{title}

Values of tensors of one shape are stacked: (tensor, [sample,] [time,] row, column), with size 1 where they are constant.
`real` is the dtype of arithmetic on tensors; numbers such as lr and parameters are float64 tensors without dimensions.
"""

import math

import torch

from updsl.back import torch_matrix as matrix
from updsl.back import torch_order as order
from updsl.back import torch_random as random
from updsl.back import torch_reduce as reduce
from updsl.back import torch_runtime as runtime
'''


@dataclass(frozen=True)
class Function:
    """A generated function: its name in the file, whether it is of a class of tensors (or of a group or the model), what it is given, and what it gives,
    by (role, name)."""

    name: str
    local: bool
    text: str
    args: tuple[Arg, ...]
    gives: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Generated:
    """The source of a step: a function for each piece of its plan, in order (None for a join), and likewise of the plan of first values."""

    text: str
    functions: tuple[Function | None, ...]
    first: tuple[Function | None, ...]


def generate(main: Plan, first: Plan, title: str) -> Generated:
    """The source of all pieces of a step, and of the first values of its states."""
    names = Names()
    firsts = _functions(first, "first ", names)
    functions = _functions(main, "", names)
    texts = [f.text for f in (*firsts, *functions) if f is not None]
    return Generated("\n\n".join([HEADER.format(title=title), *texts]), functions, firsts)


def _functions(plan: Plan, what: str, names: Names) -> tuple[Function | None, ...]:
    known: dict[tuple[int | None, str], Known] = {}
    functions: list[Function | None] = []
    for step in plan.steps:
        if isinstance(step, Join):
            kind = "host" if step.name in plan.hosts else "tensor"
            known[None, step.name] = Known(kind, is_shared(step.expr.type) and not step.expr.type.samples)
            functions.append(None)
            continue
        program = plan.programs[step.classes[0]]
        if isinstance(step.owner, int):
            part = f"class {step.owner} phase {step.level}" if len(plan.programs) > 1 else f"phase {step.level}"
        else:
            part = step.owner.name
        functions.append(_function(names.fresh(f"{program.name} {what}{part}"), step, program, known))
    return tuple(functions)


def _comment(span: Span) -> str:
    """The place's text, on one line."""
    if span is NOWHERE:
        return ""
    text = printable(" ".join(span.text.split()))
    return text if len(text) <= COMMENT else text[: COMMENT - 1] + "…"


def _function(name: str, piece: Piece, program: Program, known: dict[tuple[int | None, str], Known]) -> Function:
    """The function of a piece; what later pieces must know about its values goes into `known`."""
    local = isinstance(piece.owner, int)
    owner = piece.owner if isinstance(piece.owner, int) else None
    writer = Expressions(local, program, _View(known, owner))
    for b in piece.bindings:
        bind(writer, b)
    gives: list[tuple[str, str]] = []
    results: list[str] = []

    def give(role: str, label: str, text: str) -> None:
        gives.append((role, label))
        results.append(text)

    for label, e in piece.parts:
        assert isinstance(e, Reduce | Apply)
        give("part", label, part(writer, e, label))
    for root in piece.roots:
        for role, text in root_texts(writer, root, program):
            give(role, root.name, text)
    for label in piece.carried:
        c = writer.tensor(writer.bound[label])
        known[owner, label] = Known(c.kind, c.flat)
        give("value", label, writer.named(c, label).text)
        if c.count:
            give("value count", label, c.count)
    where = f"class {piece.owner}, phase {piece.level}" if local else f"once for {'each group' if piece.owner.name == 'group' else 'all'}"  # type: ignore[union-attr]
    return Function(name, local, _text(writer, name, f"{where} of {to_identifier(program.name)}", results), tuple(writer.args), tuple(gives))


class _View(Mapping[str, Known]):
    """What a class knows about values of earlier pieces: its own, and shared ones. A shared value is a tensor value unless known as host."""

    def __init__(self, known: Mapping[tuple[int | None, str], Known], owner: int | None):
        self.known, self.owner = known, owner

    def __getitem__(self, name: str) -> Known:
        return self.known.get((self.owner, name)) or self.known[None, name]

    def __iter__(self):
        return iter(name for _, name in self.known)

    def __len__(self) -> int:
        return len(self.known)


def bind(writer: Expressions, b: Binding) -> None:
    """The statement of a binding; another name or a literal needs none."""
    writer.subject = b.name
    c = writer.render(b.expr)
    if c.kind == "literal" or c.text.isidentifier():
        writer.bound[b.name] = c
        return
    count = c.count
    if count and not count.isidentifier():
        count = writer.line(f"{b.name} count", count)
    name = writer.line(b.name, c.text, _comment(b.span))
    if c.type.scope == ELEMENT:
        writer.full.add(name)
    writer.bound[b.name] = replace(c, text=name, rank=ATOM, depth=0, count=count)


def part(writer: Expressions, e: Reduce | Apply, label: str) -> str:
    """What a piece contributes to a joint step: its cells where their order counts, else sums and extremes of them. Numbers are a piece of their own."""
    writer.subject = label
    xs, _, have, _ = writer.operands(e, numbers=False)
    if not writer.local:
        shape = "(1, -1, 1, 1)" if have.samples else "(1, 1, 1)"
        xs = [replace(x, text=f"{x.bracketed}.reshape{shape}", rank=ATOM) for x in xs]
    if not isinstance(e, Reduce):
        return writer.named(xs[0]).text
    if e.op in BY_ORDER:
        return writer.line(f"{label} cells", writer.call("runtime.cells", xs[0].text, str(have.samples)))
    dims = "dims=(-4, -2, -1)" if have.samples else "dims=(-3, -2, -1)"
    power = f"p={literal(e.static[0]).text}" if e.static else ""
    function = f"reduce.{reduce.PARTS[e.op].__name__}"
    return writer.line(f"{label} parts", writer.call(function, *(x.text for x in xs), dims, power), OPS[e.op].doc)


def root_texts(writer: Expressions, root: Root, program: Program) -> list[tuple[str, str]]:
    """(role, expression) of what leaves the step: in its shape and dtype."""
    writer.subject = root.name
    c = writer.render(root.expr)
    match root.role:
        case "state":
            assert root.type is not None
            state = next(s for s in program.states if s.name == root.name)
            return state_texts(writer, c, state)
        case "watch":
            return [("watch", writer.named(writer.numeric(writer.tensor(c))).text)]
        case "weight":
            new = writer.line("new weight", writer.call("runtime.rounded", writer.cast(writer.spread(c, GRID)).text, writer.arg("weight_dtype")))
            if program.returns:
                return [("weight", new)]
            w = writer.stream("w", "", "w")
            out = writer.line("out", f"({w} - {new}.to({writer.real})).to({writer.arg('given')})", "w before − w after")
            return [("weight", new), ("out", out)]
        case _:
            c = writer.numeric(writer.spread(c, GRID))
            return [("out", writer.line("out", writer.call("runtime.rounded", c.text, writer.arg("given"))))]


def state_texts(writer: Expressions, c: Code, state: State) -> list[tuple[str, str]]:
    """A state's new value in its dtype; of a window the slots and the counts."""
    c = writer.spread(c, state.type)
    if not state.type.boolean:
        c = writer.cast(writer.tensor(c, "tensor" if c.kind == "literal" else "host"))
        if state.dtype is not None:
            c = replace(c, text=writer.call("runtime.rounded", c.text, DTYPES[state.dtype]), rank=ATOM)
    texts = [("state", writer.named(c, f"new {state.name}").text)]
    return [*texts, ("state count", c.count)] if state.type.window else texts


def _text(writer: Expressions, name: str, doc: str, results: list[str]) -> str:
    """def, head, statements, return; names of full-size values are dropped after their last use."""
    body = [*writer.head, *writer.lines]
    result = f"return ({', '.join(results)}{',' if len(results) == 1 else ''})"
    given = ", ".join(writer.args.values())
    drops = _with_drops(body, result, writer.full)
    return "\n".join([f"def {name}({given}):", f'    """{doc}"""', *(f"    {line}" for line in drops), f"    {result}"]) + "\n"


def _with_drops(body: list[str], result: str, full: set[str]) -> list[str]:
    """The statements, with `del` after the last use of every name of a full-size value that is not returned."""
    words = [set(re.findall(r"[A-Za-z_]\w*", line.split("  # ")[0])) for line in body]
    assigned = full - set(re.findall(r"[A-Za-z_]\w*", result))
    lines = []
    for i, line in enumerate(body):
        lines.append(line)
        last = sorted(n for n in words[i] & assigned if not any(n in later for later in words[i + 1 :]))
        if last and i + 1 < len(body):
            lines.append(f"del {', '.join(last)}")
    return lines
