"""What expressions mean at one step of a rule, in NumPy float64, plainly: at a tensor, at a group, or for the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from updsl.back.values import (
    Array,
    Sizes,
    Value,
    Window,
    always,
    as_matrix,
    choose,
    empty,
    members,
    one_for_each,
    over_time,
    push,
    reduce_time,
    spread,
    spread_window,
    typed,
)
from updsl.core import numeric, rng
from updsl.core.diagnostic import InternalError
from updsl.core.frame import Frame, Key, RuleState, Tensor
from updsl.core.ir import Apply, Const, Expr, Program, Reduce, Ref, Type, is_shared, joined
from updsl.core.ops import OPS, Op
from updsl.core.scope import ELEMENT, Scope


@dataclass(frozen=True)
class Place:
    """Where an expression is evaluated: at a tensor, at a group (tensor is None), or for the whole model (group is None too). `classes`: the tensor
    classes whose tensors the text is evaluated for."""

    classes: tuple[int, ...]
    tensor: str | None = None
    group: int | None = None

    @property
    def name(self) -> str:
        """Of the tensor."""
        assert self.tensor is not None
        return self.tensor

    def key(self, scope: Scope) -> Key:
        """Of the value of this scope that is seen from here."""
        if "T" in scope.indices:
            return self.name
        if "G" in scope.indices:
            assert self.group is not None
            return self.group
        return ""


class Moment:
    """One step of the run: its inputs, the states before it, and the values known so far, by name and cell. `programs`: of the classes of which a tensor
    takes part."""

    def __init__(self, programs: Mapping[int, Program], class_of: Mapping[str, int], tensors: Mapping[str, Tensor], state: RuleState, frame: Frame):
        self.programs, self.class_of, self.tensors, self.frame = programs, class_of, tensors, frame
        self.run = state.run + 1
        self.t = dict(state.t) | {name: state.t.get(name, 0) + 1 for name in frame.g}
        self.sizes = {name: self.sizes_of(name) for name in frame.g}
        self.before: dict[str, dict[Key, Value]] = {}
        self.values: dict[str, dict[Key, Value]] = {}

    def sizes_of(self, name: str) -> Sizes:
        named = dict(zip(("rows", "cols"), self.tensors[name].grid, strict=True))
        for i in self.programs[self.class_of[name]].inputs:
            if i.kind == "matrix" and name in self.frame.inputs.get(i.name, {}):
                named[f"{i.name}.rows"], named[f"{i.name}.cols"] = Tensor(name, np.shape(self.frame.inputs[i.name][name])).grid
        return Sizes(named, self.frame.batch or 0)

    def sizes_at(self, at: Place) -> Sizes:
        return Sizes({}, self.frame.batch or 0) if at.tensor is None else self.sizes[at.tensor]

    def places(self, classes: tuple[int, ...], scope: Scope) -> list[Place]:
        """Where a value of this scope is evaluated, of the tensors of these classes that take part; in the order of the parameters."""
        names = [name for name in self.frame.g if self.class_of[name] in classes]
        if "T" in scope.indices:
            return [Place(classes, name, self.frame.group_of[name]) for name in names]
        if "G" in scope.indices:
            return [Place(classes, group=group) for group in dict.fromkeys(self.frame.group_of[name] for name in names)]
        return [Place(classes)]

    def on_grid(self, x: object, type_: Type, at: Place) -> Array:
        """An array from outside as a value."""
        return typed(x, type_).reshape(self.sizes_at(at).shape(type_))

    def window_on_grid(self, pair: tuple[object, object], type_: Type, at: Place) -> Window:
        slots, count = pair
        sizes = self.sizes_at(at)
        return Window(typed(slots, type_).reshape(type_.window, *sizes.shape(type_)), np.asarray(count, int).reshape(sizes.cells(type_)))

    def off_grid(self, x: Array, type_: Type, at: Place) -> Array:
        """A value as an array of its own, in the parameter's shape if its grid is the parameter's."""
        if type_.scope == ELEMENT and (type_.rows, type_.cols) == ("rows", "cols"):
            x = x.reshape(x.shape[:-2] + self.tensors[at.name].shape)
        return np.array(x)

    # --- expressions -------------------------------------------------------------------------------------------------

    def evaluated(self, e: Expr, type_: Type, at: Place) -> Value:
        """The value of e, spread to `type_`."""
        x, sizes = self.evaluate(e, at), self.sizes_at(at)
        if isinstance(x, Window):
            wide = spread_window(x, e.type, type_, sizes)
            return Window(typed(wide.slots, type_), wide.count)
        return typed(spread(x, e.type, type_, sizes), type_)

    def array(self, e: Expr, type_: Type, at: Place) -> Array:
        """The value of e, which is no window, spread to `type_`."""
        x = self.evaluated(e, type_, at)
        assert isinstance(x, np.ndarray)
        return x

    def window(self, e: Expr, type_: Type, at: Place) -> Window:
        x = self.evaluated(e, type_, at)
        assert isinstance(x, Window)
        return x

    def evaluate(self, e: Expr, at: Place) -> Value:
        """The value of e, of its own type."""
        match e:
            case Const(value):
                return typed(value, e.type)
            case Ref():
                return self.read(e, at)
            case Reduce():
                return typed(self.reduce(e, at), e.type)
            case Apply():
                x = self.apply(OPS[e.op], e, at)
                if isinstance(x, Window):
                    return x
                x, shape = typed(x, e.type), self.sizes_at(at).shape(e.type)
                return x if x.shape == shape else np.broadcast_to(x, shape)

    def read(self, e: Ref, at: Place) -> Value:
        key = at.key(e.type.scope)
        match e.kind:
            case "value":
                return self.values[e.name][key]
            case "state":
                return self.before[e.name][key]
            case "param":
                return typed(of_group(self.frame.params, at)[e.name], e.type)
            case "input":
                return self.on_grid(self.frame.inputs[e.name][key], e.type, at)
            case "builtin":
                return self.on_grid(self.builtin(e, at), e.type, at)

    def builtin(self, e: Ref, at: Place) -> object:
        match e.name:
            case "g":
                return self.frame.g[at.name]
            case "w":
                return self.frame.w[at.name]
            case "lr":
                return of_group(self.frame.lr, at)
            case "t":
                return self.t[at.name] if "T" in e.type.scope.indices else self.run
            case "batch":
                return self.frame.batch
            case "rows" | "cols" as dim:
                return self.sizes[at.name].of(dim)
            case "numel":
                return self.tensors[at.name].numel
            case "ndim":
                return len(self.tensors[at.name].shape)
            case name if name.startswith("dim("):
                return self.tensors[at.name].shape[int(name[4:-1])]
            case name:
                raise InternalError(f"a program reads `{name}`, which is not built in")

    def apply(self, op: Op, e: Apply, at: Place) -> Value:
        match op.kind:
            case "elementwise":
                return self.elementwise(op, e, at)
            case "samples":
                return meaning(op)(self.array(e.args[0], replace(e.args[0].type, boolean=False), at))
            case "selection":
                return self.select_largest(e, at)
            case "matrix":
                return self.matrix(op, e, at)
            case "random":
                return self.draw(op, e, at)
            case _:
                return self.core(e, at)

    def core(self, e: Apply, at: Place) -> Value:
        match e.op, e.args:
            case "spread", (x,):
                return self.evaluated(x, e.type, at)
            case "store", (x,):
                value = self.evaluated(x, e.type, at)
                return value if isinstance(value, Window) else numeric.rounded(value, e.static[0])
            case "total" | "pooled" | "gathered", (*_, x):  # of one rank, which has everything
                return self.evaluated(x, e.type, at)
            case "push", (window, x):
                return push(self.window(window, e.type, at), self.array(x, replace(e.type, window=0), at))
            case "empty", ():
                return empty(e.type, self.sizes_at(at))
            case _:
                raise InternalError(f"the op `{e.op}` has no meaning")

    def elementwise(self, op: Op, e: Apply, at: Place) -> Value:
        operands = []
        for i, a in enumerate(e.args):
            boolean = op.conditions or (op.name == "select" and (i == 0 or e.type.boolean))
            operands.append(self.evaluated(a, e.type if e.type.boolean == boolean else replace(e.type, boolean=boolean), at))
        match operands:
            case [c, Window() as x, Window() as y] if op.name == "select" and not isinstance(c, Window):
                return choose(c, x, y, e.type.window)
            case _ if e.type.window:
                return over_time(meaning(op), operands, e.type.window)
            case _:
                return meaning(op)(*operands)

    def matrix(self, op: Op, e: Apply, at: Place) -> Array:
        """A function of the grids of the operands, of each sample on its own. A value per row is, transposed, the same numbers per column."""
        if op.name == "transpose" and e.type.scope != ELEMENT:
            return self.array(e.args[0], e.args[0].type, at)
        static = dict(zip(op.static, e.static, strict=True))
        wanted = [replace(a.type, boolean=False) if name in op.numbers else as_matrix(a.type) for name, a in zip(op.args, e.args, strict=True)]
        if not e.type.samples:
            return meaning(op)(*(self.array(a, want, at) for a, want in zip(e.args, wanted, strict=True)), **static)
        stacks = [self.array(a, replace(want, samples=True), at) for a, want in zip(e.args, wanted, strict=True)]
        found = [meaning(op)(*(x[i] for x in stacks), **static) for i in range(self.frame.batch or 0)]
        return np.array(found, np.float64).reshape(self.sizes_at(at).shape(e.type))

    def draw(self, op: Op, e: Apply, at: Place) -> Array:
        """From the words of each cell, which are the same for all samples."""
        sizes = self.sizes_at(at)
        words = rng.words(self.frame.seed, self.run, at.key(e.type.scope), e.static[0], np.arange(prod(sizes.cells(e.type))))
        operands = (self.array(a, replace(e.type, boolean=False), at) for a in e.args)
        return meaning(op)(words, *(x.reshape(*x.shape[: e.type.samples], len(words)) for x in operands)).reshape(sizes.shape(e.type))

    # --- reductions and `largest`: over the cells of the operands that lie in each cell of a coarser scope --------------

    def reduce(self, e: Reduce, at: Place) -> Array:
        if compared(e).window:
            return self.reduce_window(e, at)
        if is_shared(e.type):
            return self.reduce_all(dict.fromkeys(at.classes, e), at)
        sizes = self.sizes_at(at)
        found = by_cell(e, self.operands(e, at), members(compared(e), e.scope, sizes))
        return np.concatenate(found, axis=-1).reshape(sizes.shape(e.type))

    def reduce_all(self, exprs: Mapping[int, Reduce], at: Place) -> Array:
        """A reduction to a group or to all; each class has its own expression of the operands."""
        e, operands = any_of(exprs), self.gather(exprs, at)
        (found,) = by_cell(e, operands, [np.arange(operands[0].shape[-1])[None]])
        return found[..., 0]

    def reduce_window(self, e: Reduce, at: Place) -> Array:
        """A reduction over the filled slots of each cell."""
        op, whole = OPS[e.op], compared(e)
        now = replace(whole, window=0)
        operands: list[Value] = []
        for name, a in zip(op.args, e.args, strict=True):
            if a.type.window:
                operands.append(self.window(a, whole, at))
            elif name in op.numbers:
                operands.append(self.array(a, now, at))
            else:
                operands.append(always(self.array(a, now, at), whole.window, self.sizes_at(at).cells(now)))
        return reduce_time(lambda *x: meaning(op)(*x, **static_of(e)), operands, whole.window)

    def select_largest(self, e: Apply, at: Place) -> Array:
        """`largest` in each row, column, block or tensor."""
        sizes, have = self.sizes_at(at), compared(e)
        operands, parts = self.operands(e, at), members(have, e.static[0], sizes)
        mask = np.zeros(operands[0].shape, bool)
        for part, found in zip(parts, by_cell(e, operands, parts), strict=True):
            mask[..., part] = found
        return spread(mask.reshape(sizes.shape(have)), have, e.type, sizes)

    def largest_of_all(self, exprs: Mapping[int, Apply], at: Place) -> dict[Key, Value]:
        """`largest` among the cells of all tensors of a group or of the model: the mask of each. Ties go to the lower index, then to the earlier tensor."""
        operands, places = self.gather(exprs, at), self.contributors(exprs, at)
        each = [(p, self.own(exprs, p), prod(self.sizes_at(p).cells(compared(self.own(exprs, p))))) for p in places]
        order = np.argsort(np.concatenate([np.arange(n) for _, _, n in each]), kind="stable")
        mask = np.zeros(operands[0].shape, bool)
        (mask[..., order[None]],) = by_cell(any_of(exprs), operands, [order[None]])
        masks, start = {}, 0
        for p, e, n in each:
            here, have, sizes = mask[..., start : start + n], compared(e), self.sizes_at(p)
            masks[p.key(e.type.scope)] = spread(here.reshape(sizes.shape(have)), have, e.type, sizes)
            start += n
        return masks

    def operand(self, e: Reduce | Apply, i: int, at: Place) -> Array:
        """The cells of the i-th operand in row-major order, on the last axis; of one that is a number for each cell of the result, those numbers."""
        want = one_for_each(into(e), compared(e)) if OPS[e.op].args[i] in OPS[e.op].numbers else compared(e)
        x = self.array(e.args[i], want, at)
        return x.reshape(*x.shape[: want.samples], prod(x.shape[want.samples :]))

    def operands(self, e: Reduce | Apply, at: Place) -> list[Array]:
        return [self.operand(e, i, at) for i in range(len(e.args))]

    def gather(self, exprs: Mapping[int, Reduce | Apply], at: Place) -> list[Array]:
        """The operands at all contributors, one after the other."""
        op, places = OPS[any_of(exprs).op], self.contributors(exprs, at)
        return [
            self.operand(any_of(exprs), i, at) if name in op.numbers else np.concatenate([self.operand(self.own(exprs, p), i, p) for p in places], axis=-1)
            for i, name in enumerate(op.args)
        ]

    def contributors(self, exprs: Mapping[int, Reduce | Apply], at: Place) -> list[Place]:
        """The tensors, or the groups, whose cells a group or the model is made of."""
        return [p for p in self.places(at.classes, compared(any_of(exprs)).scope) if at.group is None or p.group == at.group]

    def own(self, exprs: Mapping[int, Reduce | Apply], at: Place) -> Reduce | Apply:
        """The expression of the class of the place; all classes have the same where it is no tensor."""
        return any_of(exprs) if at.tensor is None else exprs[self.class_of[at.tensor]]


def meaning(op: Op) -> Callable[..., Any]:
    assert op.reference is not None
    return op.reference


def any_of(exprs: Mapping[int, Reduce | Apply]) -> Reduce | Apply:
    return next(iter(exprs.values()))


def of_group(numbers: Mapping, at: Place):
    """What is given for the place's group; for any group where all have the same."""
    return numbers[at.group] if at.group in numbers else next(iter(numbers.values()))


def into(e: Reduce | Apply) -> Scope:
    """The scope in whose cells a reduction or `largest` runs over its operands."""
    return e.scope if isinstance(e, Reduce) else e.static[0]


def compared(e: Reduce | Apply) -> Type:
    """The type of the cells that a reduction or `largest` runs over."""
    op = OPS[e.op]
    return replace(joined(*(a.type for name, a in zip(op.args, e.args, strict=True) if name not in op.numbers)), samples=e.type.samples)


def static_of(e: Reduce | Apply) -> dict[str, object]:
    return {name: value for name, value in zip(OPS[e.op].static, e.static, strict=False) if name != "scope"}


def by_cell(e: Reduce | Apply, operands: Sequence[Array], parts: Sequence[Array]) -> list[Array]:
    """The op over the members of each cell; parts as `members` gives them."""
    op, found, start = OPS[e.op], [], 0
    for part in parts:
        cells = slice(start, start + len(part))
        found.append(meaning(op)(*(x[..., cells if name in op.numbers else part] for name, x in zip(op.args, operands, strict=True)), **static_of(e)))
        start = cells.stop
    return found
