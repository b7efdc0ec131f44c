"""One launch of a stage, in Triton: reductions are completed, and everything of coarser scope is computed.

Either one program runs for each tensor; its numbers are scalars (t is the tensor's row of the table). Or one program does all; what is of tensors is computed
for many of them at once (t is a block of rows). Values that later statements of the same program read stay in variables, except where that is not possible:
these go through memory, with a barrier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from updsl.back.kernel_text import DEPTH, indented
from updsl.back.triton_cells import Cells
from updsl.back.triton_expression import TYPES, Expressions, converted, fresh_names
from updsl.back.triton_launch import JointLeaving, Leaving, Segment
from updsl.back.triton_over import Over
from updsl.core.ir import Expr, Reduce, Ref, is_shared
from updsl.core.plan import Joint, Local
from updsl.core.scope import GROUP, TENSOR, Scope
from updsl.core.straight import Root

if TYPE_CHECKING:
    from updsl.back.triton_source import OfKind, Writer


class Staging:
    """Writes the kernel of one launch. known: values in variables. dirty: values that are in memory since the last barrier."""

    def __init__(self, writer: Writer, segment: Segment, name: str):
        self.writer, self.segment, self.name = writer, segment, name
        self.arguments: tuple[str, ...] = ()
        self.reset()

    def reset(self) -> None:
        """At the beginning of a function."""
        self.names = fresh_names()
        self.known: dict[tuple[str, str], str] = {}
        self.dirty: set[tuple[str, str]] = set()
        self.conflict = False
        self.done: set[str] = set()

    # --- functions ---------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        levels = sorted({k.level_of[n] for k in self.writer.of_kind for n in k.level_of if n in self.completed(k)})
        self.arguments = (*self.writer.tables, *(x for level in levels for x in (f"K{level}", f"P{level}")))
        given = ", ".join(self.arguments)
        if self.segment.over == "one":
            yield "@triton.jit"
            yield f"def {self.name}({given}):"
            yield from self.body([line for phase in self.segment.phases for line in self.phase(phase)])
            return
        kinds = [k for k in self.writer.of_kind if any(self.is_of(phase, k) for phase in self.segment.phases)]
        for k in kinds:
            self.reset()
            yield "@triton.jit"
            yield f"def {self.name}_{k.n}(i, {given}):"
            body = [f"t = T{k.n} + i * {k.size}"]
            made = [line for phase in self.segment.phases for line in self.of_tensor(phase, k)]
            if any("group + " in line for line in made):
                body.append(f"group = G + tl.load(t + {k.at(('size', 'group'), 'i64', 'group')}) * G_SIZE")
            yield from self.body([*body, *made])
        yield "@triton.jit"
        yield f"def {self.name}({given}):"
        yield f"{DEPTH}i = tl.program_id(0)"
        for n, k in enumerate(self.writer.of_kind):
            count = self.writer.model_at(("tensors", k.n), "i64", f"tensors{k.n}")
            if k in kinds:
                yield f"{DEPTH}if (i >= 0) & (i < tl.load(M + {count})):"
                yield f"{DEPTH * 2}{self.name}_{k.n}(i, {given})"
            if n + 1 < len(self.writer.of_kind):
                yield f"{DEPTH}i -= tl.load(M + {count}).to(tl.int32)"
        yield ""
        yield ""

    @staticmethod
    def body(lines: Sequence[str]) -> Iterator[str]:
        yield from indented(lines or ["pass"])
        yield ""
        yield ""

    @staticmethod
    def is_of(phase: object, k: OfKind) -> bool:
        return isinstance(phase, (Local, Leaving)) and phase.owner == k.kind.owner

    def completed(self, k: OfKind) -> set[str]:
        """The reductions over entries that this launch completes."""
        found: set[str] = set()
        for phase in self.segment.phases:
            match phase:
                case Local(bindings=bindings) if self.is_of(phase, k):
                    found |= {b.name for b in bindings}
                case Joint(bindings=bindings):
                    found |= {name for name, _ in bindings}
        return found

    # --- references --------------------------------------------------------------------------------------------------

    def expression(self, k: OfKind | None, group: str = "group") -> Expressions:
        dtypes = {name: d for kind in ([k] if k else self.writer.of_kind) for (what, name), d in kind.kind.dtypes.items() if what == "state"}
        return Expressions(lambda r: self.refer(r, k, group), dtypes, "tl.float64")

    def refer(self, r: Ref, k: OfKind | None, group: str = "group") -> str:
        """A value: a variable, or from memory at the tensor t (of the row, column or block j)."""
        key = ("" if is_shared(r.type) or k is None else k.n, r.name)
        if r.kind == "value" and key in self.known:
            return self.known[key]
        if r.kind == "value" and key in self.dirty:
            self.conflict = True
        if is_shared(r.type) or r.type.scope == TENSOR or k is None:
            return self.writer.loaded(r, k, group)
        match r.kind:
            case "value":
                text = f"tl.load({k.array_of(r.name, r.type.scope)} + j, ok, other=0)"
            case "state":
                place, type_ = k.at(("state", r.name), "void*", f"s_{r.name}"), TYPES[k.kind.dtype_of(r)]
                text = f"tl.load(array(t + {place}, {type_}, False) + j, ok, other=0).to(tl.float64)"
            case _:
                text = f"tl.load(array(t + {k.at(('input', r.name), 'const double*', f'i_{r.name}')}, tl.float64, False) + j, ok, other=0)"
        return f"({text} != 0)" if r.type.boolean else text

    def fenced(self, lines: Iterator[str]) -> Iterator[str]:
        """After a barrier, if they read what was written since the last."""
        self.conflict = False
        made = list(lines)
        if self.conflict:
            self.dirty.clear()
            yield "tl.debug_barrier()"
        yield from made

    # --- phases of one program for each tensor -----------------------------------------------------------------------

    def of_tensor(self, phase: object, k: OfKind) -> Iterator[str]:
        match phase:
            case Local(bindings=bindings) if self.is_of(phase, k):
                yield from Cells(self, k).local(bindings)
            case Leaving(roots=roots) if self.is_of(phase, k):
                yield from self.fenced(self.leaving(roots, k, "True"))
                yield from Cells(self, k).leaving([r for r in roots if self.is_cell(r)])

    @staticmethod
    def is_cell(r: Root) -> bool:
        return r.type is not None and TENSOR < r.type.scope

    def number(self, name: str, e: Expr, k: OfKind, inside: str = "True") -> Iterator[str]:
        """A value of scope tensor, in a variable, and in memory if someone reads it there."""
        text = self.expression(k).outer(e)
        yield from self.kept(name, text, k, inside, e.type.boolean)

    def kept(self, name: str, text: str, k: OfKind, inside: str, boolean: bool) -> Iterator[str]:
        variable = self.names.fresh(name)
        yield f"{variable} = truth({text})" if boolean else f"{variable} = {text}"
        self.known[k.n, name] = variable
        if self.writer.is_stored((k.n, name)):
            yield f"put(t + {k.at(('value', name), 'double', f'v_{name}')}, {variable}, {inside})"
            self.dirty.add((k.n, name))

    def leaving(self, roots: Sequence[Root], k: OfKind, inside: str) -> Iterator[str]:
        """States and watches of scope tensor."""
        express, stores = self.expression(k), []
        for r in roots:
            if self.is_cell(r):
                continue
            x = self.names.fresh(f"new_{r.name}")
            yield f"{x} = {express.as_real(r.expr, True)}"
            dtype = self.watch_type if r.role == "watch" else TYPES[k.kind.dtypes["state", r.name]]
            what, wish = (("watch", r.name), f"w_{r.name}") if r.role == "watch" else (("new", r.name), f"n_{r.name}")
            stores.append(f"tl.store(array(t + {k.at(what, 'void*', wish)}, {dtype}, False), {converted(x, dtype)}, {inside})")
        yield from stores

    @property
    def watch_type(self) -> str:
        return "tl.float64" if any(k.double for k in self.writer.of_kind) else "tl.float32"

    # --- phases of one program ---------------------------------------------------------------------------------------

    def phase(self, phase: object) -> Iterator[str]:
        match phase:
            case Local() | Leaving():
                for k in self.writer.of_kind:
                    if self.is_of(phase, k):
                        yield from self.for_tensors(phase, k)
            case Joint(bindings):
                yield from self.joint(bindings)
            case JointLeaving(scope, classes, roots):
                lines = self.joint_leaving(scope, roots)
                yield from self.fenced(self.for_groups(classes, lines) if scope == GROUP else lines)

    def for_tensors(self, phase: Local | Leaving, k: OfKind) -> Iterator[str]:
        """Numbers of many tensors at once."""

        def lines() -> Iterator[str]:
            if isinstance(phase, Local):
                for b in phase.bindings:
                    yield from self.number(b.name, b.expr, k, "ok")
            else:
                yield from self.leaving(phase.roots, k, "ok")

        before = dict(self.known)
        made = list(self.fenced(lines()))
        fence = [made.pop(0)] if made[:1] == ["tl.debug_barrier()"] else []
        self.known = before
        over = Over(self, k)
        yield from [*fence, *over.tensors(made)]

    def for_groups(self, classes: Collection[int], lines: Iterator[str]) -> Iterator[str]:
        """For each group that has tensors of these classes."""
        made = list(lines)
        yield f"for k in range(0, tl.load(M + {self.writer.model_at(('size', 'groups'), 'i64', 'groups')})):"
        yield f"{DEPTH}group = G + k * G_SIZE"
        yield f"{DEPTH}if {self.writer.present(classes, 'group')}:"
        yield from indented(made, 2)

    def joint(self, bindings: Sequence[tuple[str, Mapping[int, Expr]]]) -> Iterator[str]:
        """Values of the model, and those of groups: runs of these that have tensors of the same classes in one loop."""
        left = list(bindings)
        while left:
            classes, scope = left[0][1].keys(), next(iter(left[0][1].values())).type.scope
            run: list[tuple[str, Mapping[int, Expr]]] = []
            while left and next(iter(left[0][1].values())).type.scope == scope and (scope != GROUP or left[0][1].keys() == classes):
                run.append(left.pop(0))
            before = dict(self.known)
            lines = (line for name, exprs in run for line in self.value(name, exprs, scope))
            yield from self.fenced(self.for_groups(classes, lines) if scope == GROUP else lines)
            if scope == GROUP:
                self.known = before

    def value(self, name: str, exprs: Mapping[int, Expr], scope: Scope) -> Iterator[str]:
        e = next(iter(exprs.values()))
        variable = self.names.fresh(name)
        if isinstance(e, Reduce):
            yield from self.reduced(name, exprs, variable)
        else:
            text = self.expression(None).outer(e)
            yield f"{variable} = truth({text})" if e.type.boolean else f"{variable} = {text}"
        self.known["", name] = variable
        if self.writer.is_stored(("", name)):
            yield f"put({self.writer.shared_at(scope, ('value', name), 'double', f'v_{name}')}, {variable}, True)"
            self.dirty.add(("", name))

    def reduced(self, name: str, exprs: Mapping[int, Expr], variable: str) -> Iterator[str]:
        """A reduction over the cells of all tensors, or of those of the group k."""
        e = next(iter(exprs.values()))
        assert isinstance(e, Reduce)
        double = any(k.double for k in self.writer.of_kind)
        over = Over(self, None)
        over.start(e, double)
        yield from over.started()
        for k in self.writer.of_kind:
            mine = exprs.get(k.kind.owner)
            if isinstance(mine, Reduce) and not all(is_shared(a.type) for a in mine.args):
                yield from Over(self, k, over).given(name, mine)
        if all(is_shared(a.type) for a in e.args):
            yield from over.groups(e, exprs)
        yield from over.ended(e, variable)

    def joint_leaving(self, scope: Scope, roots: Sequence[Root]) -> Iterator[str]:
        express, stores = self.expression(None), []
        for r in roots:
            x = self.names.fresh(f"new_{r.name}")
            yield f"{x} = {express.as_real(r.expr, True)}"
            dtype = self.watch_type if r.role == "watch" else TYPES[self.writer.dtype_of(r.name)]
            what, wish = (("watch", r.name), f"w_{r.name}") if r.role == "watch" else (("new", r.name), f"n_{r.name}")
            place = self.writer.shared_at(scope, what, "void*", wish)
            stores.append(f"tl.store(array({place}, {dtype}, False), {converted(x, dtype)}, tl.load({place}) != 0)")
        yield from stores
