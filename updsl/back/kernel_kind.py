"""Kinds of tensors: classes whose streams have the same types; the tables of a kernel, and how it walks through a tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from updsl.back.torch_names import Names
from updsl.core.ir import Program, Reduce, Ref, roots, walk
from updsl.core.plan import AFTER, HANDED, Plan, Stream
from updsl.core.scope import COLUMN, ELEMENT, ROW

Layout = Literal["flat", "rows", "blocks"]
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "bool": 1}
"""Bytes of an entry."""


@dataclass(frozen=True)
class Kind:
    """A class of tensors of the same types. dtypes: of "g", "w", and of each state and input stream by ("state", name), ("input", name)."""

    owner: int
    program: Program
    dtypes: Mapping[tuple[str, str], str]

    @property
    def real(self) -> str:
        return "double" if self.dtypes["g", ""] == "float64" else "float"

    @cached_property
    def stored_types(self) -> dict[str, str]:
        """Of each state, and of w: what an expression may round to."""
        return {name: d for (what, name), d in self.dtypes.items() if what == "state"} | {"w": self.dtypes.get(("w", ""), "")}

    def dtype_of(self, r: Ref) -> str:
        """Of a state or an input."""
        return self.dtypes[r.kind, r.name.removesuffix(AFTER)]


@dataclass
class Table:
    """A struct: field name → C++ type and what the field holds, in the order of its memory; every field has 8 bytes."""

    fields: dict[str, tuple[str, tuple[str, str]]] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    @cached_property
    def given(self) -> list[tuple[str, str, str]]:
        """(field, what, name) of the numbers that are handed over at every step; once all fields are there."""
        return [(name, what, of) for name, (_, (what, of)) in self.fields.items() if what in ("param", "builtin", "input")]

    @cached_property
    def watched(self) -> list[tuple[str, str]]:
        """(field, label) of the numbers that are shown; once all fields are there."""
        return [(name, of) for name, (_, (what, of)) in self.fields.items() if what == "watch"]

    def of(self, what: tuple[str, str], type_: str, wish: str) -> str:
        """The field that holds `what`."""
        name = self.names.of(what, wish)
        self.fields.setdefault(name, (type_, what))
        return name


def present(classes: Collection[int], kinds: Sequence[Kind]) -> tuple[str, str]:
    """What a group's table holds of these classes: whether it has tensors of one of them. "" are all that take part."""
    mine = sorted({k.owner for k in kinds} & set(classes))
    return "present", "" if len(mine) == len({k.owner for k in kinds}) else " ".join(map(str, mine))


def layout_of(plan: Plan, owner: int) -> tuple[Layout, int]:
    """How the tensors of a class are walked through: by rows, by blocks of k entries, or as one run of entries."""
    scopes = {n.scope if isinstance(n, Reduce) else n.type.scope for s in plan.sweeps_of(owner) for e in s.expressions for n in walk(e)}
    program = plan.programs[owner]
    everywhere = (n.type.scope for e in roots(program) for n in walk(e))
    sizes = {s.size for s in (*everywhere, *(s.type.scope for s in program.states)) if s.size}
    if sizes:
        return "blocks", sizes.pop()
    return ("rows" if scopes & {ROW, COLUMN} else "flat"), 0


def default_dtypes(program: Program, g: str, w: str) -> dict[tuple[str, str], str]:
    """The types of a tensor's arrays where the gradient and the weight have these."""
    real = "float32" if WIDTHS[g] == 2 else g
    states = {("state", s.name): "bool" if s.type.boolean else s.dtype or real for s in program.states}
    return (
        {("g", ""): g, ("w", ""): w}
        | states
        | {("input", i.name): "bool" if i.type.boolean else real if i.name.startswith(HANDED) else g for i in program.inputs if i.type.scope == ELEMENT}
    )


def dtype_key(s: Stream) -> tuple[str, str]:
    """Under which a kind has the type of a stream."""
    return {"g": ("g", ""), "out": ("g", ""), "w": ("w", "")}.get(s.role, (s.role, s.name))
