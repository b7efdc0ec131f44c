"""Values of the interpreter: one float64 (or boolean) array for the cells of a scope.

An array of a type has the axes ([samples,] cells): two axes of cells for element (the grid), one for row, column and block, none for coarser scopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import TypeAlias

import numpy as np

from updsl.core.ir import Dim, Type, on_grid
from updsl.core.scope import ELEMENT, Scope

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Window:
    """The last values of a stream. slots: (n, …cells), newest last; count: for each cell, how many of the last slots are filled."""

    slots: Array
    count: Array


Value: TypeAlias = Array | Window


@dataclass(frozen=True)
class Sizes:
    """What the dimensions of types are where an expression is evaluated: those with a name, and the number of samples."""

    named: Mapping[str, int]
    samples: int

    def of(self, dim: Dim | None) -> int:
        return dim if isinstance(dim, int) else self.named[str(dim)]

    def cells(self, type_: Type) -> tuple[int, ...]:
        match type_.scope.name:
            case "element":
                return self.of(type_.rows), self.of(type_.cols)
            case "row":
                return (self.of(type_.rows),)
            case "column":
                return (self.of(type_.cols),)
            case "block":
                return (-(-self.of(type_.rows) * self.of(type_.cols) // type_.scope.size),)
            case _:
                return ()

    def shape(self, type_: Type) -> tuple[int, ...]:
        return ((self.samples,) if type_.samples else ()) + self.cells(type_)


def typed(x: object, type_: Type) -> Array:
    """x as booleans, or as numbers (true is 1)."""
    return np.asarray(x, bool if type_.boolean else np.float64)


def spread(x: Array, have: Type, want: Type, sizes: Sizes) -> Array:
    """x as a value of `want`, whose scope refines that of `have`: each cell of `have` gives its value to the cells of `want` in it. An axis of
    time may lead."""
    shape = sizes.shape(want)
    if have.scope == want.scope and have.samples == want.samples and x.shape == shape:
        return x
    rank = len(shape) - want.samples
    lead = x.shape[: x.ndim - len(sizes.cells(have))]
    match have.scope.name, want.scope.name:
        case "row", "element":
            x = x[..., :, None]
        case "column", "element":
            x = x[..., None, :]
        case "block", "element":
            rows, cols = sizes.cells(want)
            x = np.repeat(x, have.scope.size, axis=-1)[..., : rows * cols].reshape(*lead, rows, cols)
        case _ if have.scope != want.scope:
            x = x.reshape(lead + (1,) * rank)
    if want.samples and not have.samples:
        x = np.expand_dims(x, -rank - 1)
    time = x.shape[: x.ndim - rank - want.samples]
    return np.broadcast_to(x, time + shape)


def spread_window(x: Window, have: Type, want: Type, sizes: Sizes) -> Window:
    """As `spread`; the counts have no axis of samples."""
    count = spread(x.count, replace(have, samples=False), replace(want, samples=False), sizes)
    return Window(spread(x.slots, have, want, sizes), count)


def one_for_each(scope: Scope, of: Type) -> Type:
    """The type of one number for each cell of `scope` on the grid of `of`."""
    return on_grid(scope, of.rows, of.cols, samples=of.samples)


def as_matrix(type_: Type) -> Type:
    """The grid of a value; a number's is 1 × 1."""
    return replace(type_, scope=ELEMENT, rows=type_.rows or 1, cols=type_.cols or 1)


def members(have: Type, scope: Scope, sizes: Sizes) -> list[Array]:
    """Which cells of `have`, counted in row-major order, lie in each cell of `scope`: index arrays (cells, members), in the order of the cells."""
    index = np.arange(prod(sizes.cells(have))).reshape(sizes.cells(have))
    match scope.name:
        case "row":
            return [index]
        case "column":
            return [index.T]
        case "block":
            whole = index.size // scope.size * scope.size
            parts = [index.ravel()[:whole].reshape(-1, scope.size), index.ravel()[whole:].reshape(1, -1)]
            return [part for part in parts if part.size]
        case _:
            return [index.reshape(1, -1)]


# --- windows ---------------------------------------------------------------------------------------------------------


def newest(slots: Array, n: int) -> Array:
    """The last n of the slots, with zeros before the oldest if there are fewer."""
    missing = np.zeros((max(n - len(slots), 0), *slots.shape[1:]), slots.dtype)
    return np.concatenate([missing, slots[max(len(slots) - n, 0) :]])


def empty(type_: Type, sizes: Sizes) -> Window:
    shape = sizes.shape(type_)
    return Window(np.zeros((type_.window, *shape)), np.zeros(sizes.cells(type_), int))


def always(x: Array, n: int, cells: tuple[int, ...]) -> Window:
    """x at each of n times."""
    return Window(np.broadcast_to(x, (n, *x.shape)), np.full(cells, n))


def push(window: Window, x: Array) -> Window:
    """`x` as the newest value; the oldest is dropped when all slots are filled."""
    return Window(np.concatenate([window.slots[1:], x[None]]), np.minimum(window.count + 1, len(window.slots)))


def choose(c: Array, x: Window, y: Window, n: int) -> Window:
    """The window x where c holds, else y."""
    return Window(np.where(c, newest(x.slots, n), newest(y.slots, n)), np.where(c, x.count, y.count))


def filled(operands: Sequence[Value], n: int) -> Array:
    """How many of the last n slots all windows among the operands hold, for each cell."""
    return np.minimum(reduce(np.minimum, (x.count for x in operands if isinstance(x, Window))), n)


def over_time(f: Callable[..., Array], operands: Sequence[Value], n: int) -> Window:
    """f of the operands at each time that all windows hold, aligned at their newest value; what is no window is the same at all times."""
    return Window(f(*(newest(x.slots, n) if isinstance(x, Window) else x for x in operands)), filled(operands, n))


def reduce_time(f: Callable[..., Array], operands: Sequence[Value], n: int) -> Array:
    """f over the filled slots of each cell of the operands that are windows; of those that are not, f gets the cell's number."""
    count, lead = filled(operands, n), next(x.slots.shape[1:] for x in operands if isinstance(x, Window))
    count = np.broadcast_to(count, lead)
    result = np.zeros(lead)
    for k in np.unique(count):
        here = count == k
        result[here] = f(*(newest(x.slots, n)[n - k :, here].T if isinstance(x, Window) else x[here] for x in operands))
    return result
