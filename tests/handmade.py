"""Programs made by hand: short builders of expressions, and a rule that is stepped over tensors."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np

from updsl.back.interpret import Interpreter
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.core.ir import Apply, Binding, Const, Every, Input, Program, Reduce, Ref, Type, Watch, joined, on_grid
from updsl.core.ops import OPS
from updsl.core.scope import ALL, COLUMN, ELEMENT, GROUP, ROW, TENSOR, block

GRID = Type(ELEMENT, "rows", "cols")
SAMPLES = Type(ELEMENT, "rows", "cols", samples=True)
SHAPES = {"m": (5, 3), "v": (4,), "s": (), "k": (2, 3, 2)}
LOCAL = [ROW, COLUMN, block(1), block(2), block(4), block(100), TENSOR]
"""The scopes within a tensor."""
NAN, INF = math.nan, math.inf


def kind(scope, **more):
    return on_grid(scope, "rows", "cols", **more)


def builtin(name, type_=GRID):
    return Ref(name, "builtin", type_)


def value(name, type_):
    return Ref(name, "value", type_)


def old(name, type_):
    return Ref(name, "state", type_)


def given(name, type_):
    return Ref(name, "input", type_)


def expr(x):
    return Const(x) if isinstance(x, (bool, int, float)) else x


def apply(op, *args, static=(), type_=None):
    args = tuple(map(expr, args))
    return Apply(op, args, type_ or replace(joined(*(a.type for a in args)), boolean=OPS[op].boolean), static)


def reduce(op, *args, to, static=()):
    args = tuple(map(expr, args))
    whole = joined(*(a.type for a in args))
    return Reduce(op, args, to, on_grid(to, whole.rows, whole.cols, samples=whole.samples, boolean=OPS[op].boolean), static)


def spread(x, type_=GRID):
    return apply("spread", x, type_=type_)


G, W, LR = builtin("g"), builtin("w"), builtin("lr", Type(GROUP))
RUN, T = builtin("t", Type(ALL)), builtin("t", Type(TENSOR))


def mask(scope, k, percent=False, of=G):
    return Apply("largest", (of, expr(k)), Type(of.type.scope, of.type.rows, of.type.cols, of.type.samples, boolean=True), (scope, percent))


def every(count, start, body, *yields, name="every"):
    return Every(name, count, start, tuple(Binding(*s) if isinstance(s, tuple) else s for s in body), tuple(yields))


def program(body=(), out=G, states=(), commits=(), weight=None, returns=True, watches=(), inputs=()):
    """body: pairs (name, expression), or blocks."""
    statements = tuple(Binding(*s) if isinstance(s, tuple) else s for s in body)
    return Program("p", tuple(inputs), tuple(states), statements, tuple(commits), expr(out), weight, returns, tuple(Watch(*w) for w in watches))


class Rule:
    """Programs over tensors, stepped with a state that is carried along."""

    def __init__(self, *programs, shapes, class_of=None, groups=None, params=None, lr=None, seed=0):
        self.class_of = class_of or dict.fromkeys(shapes, 0)
        self.interpreter = Interpreter(programs, self.class_of, [Tensor(n, s) for n, s in shapes.items()])
        self.groups = groups or dict.fromkeys(shapes, 0)
        self.params, self.lr, self.seed, self.state = params or {g: {} for g in self.groups.values()}, lr or {}, seed, RuleState()

    def step(self, g, w=None, batch=None, **inputs):
        g = {n: np.asarray(x) for n, x in g.items()}
        frame = Frame(g, w or {n: np.zeros_like(x, float) for n, x in g.items()}, self.groups, self.lr, self.params, inputs, batch, self.seed)
        before = copy.deepcopy((self.state, frame))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = self.interpreter.step(self.state, frame)
            again = self.interpreter.step(self.state, frame)
        same((self.state, frame), before)
        same(result, again)
        self.state = result.state
        return result


def same(a, b):
    """Equal, arrays by their entries."""
    if hasattr(a, "__dict__"):
        same(vars(a), vars(b))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        np.testing.assert_array_equal(a, b)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def view(x):
    """The matrix view of a tensor."""
    return x.reshape(*Tensor("", x.shape).grid)


def cells(x, scope):
    """The entries of each cell of a matrix, by the definition of the scopes."""
    flat = list(x.ravel())
    match scope.name:
        case "element":
            return [[v] for v in flat]
        case "row":
            return [[x[i, j] for j in range(x.shape[1])] for i in range(x.shape[0])]
        case "column":
            return [[x[i, j] for i in range(x.shape[0])] for j in range(x.shape[1])]
        case "block":
            return [flat[i : i + scope.size] for i in range(0, len(flat), scope.size)]
        case _:
            return [flat]


S = given("samples", SAMPLES)
SAMPLE_INPUT = Input("samples", "samples", SAMPLES)
