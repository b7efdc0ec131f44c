"""Expression → one line of torch code, with what must be known about its value to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from updsl.back.torch_plan import BY_ORDER
from updsl.back.torch_writer import ATOM, DTYPES, RANKS, UNARY, Arg, Code, Kind, Writer, literal
from updsl.core.diagnostic import InternalError
from updsl.core.ir import NUMBER, Apply, Const, Expr, Reduce, Ref, Type, is_shared, joined
from updsl.core.ops import OPS, Op
from updsl.core.scope import COLUMN, ELEMENT, ROW, Scope

DEEPEST = 5
"""Nesting of an inlined expression; what is deeper gets a line of its own."""
LONGEST = 110


def dims_within(scope: Scope, of: Type) -> str:
    """The dimensions of a value of type `of` that a reduction to `scope` runs over."""
    return {ROW: "(-1,)", COLUMN: "(-2,)"}.get(scope, "(-2, -1)")


class Expressions(Writer):
    """A writer of expressions: each method gives the code of one form of them, after lines for what it needs beforehand."""

    # --- expressions -------------------------------------------------------------------------------------------------

    def render(self, e: Expr) -> Code:
        match e:
            case Const(value):
                return literal(value)
            case Ref():
                c = self.read(e)
            case Reduce():
                c = self.reduction(e)
            case Apply():
                c = self.apply(OPS[e.op], e)
        return self.named(c) if c.depth > DEEPEST or len(c.text) > LONGEST else c

    def apply(self, op: Op, e: Apply) -> Code:
        match op.kind:
            case "elementwise":
                return self.elementwise(op, e)
            case "samples":
                return self.over_samples(e)
            case "selection":
                return self.selection(e)
            case "matrix":
                return self.matrix(op, e)
            case "random":
                return self.draw(e)
            case _:
                return self.core(e)

    # --- references --------------------------------------------------------------------------------------------------

    def read(self, e: Ref) -> Code:
        match e.kind:
            case "value":
                return self.read_value(e)
            case "state":
                return self.read_state(e)
            case "param":
                return Code(self.arg("param", e.name), e.type, "host", flat=True)
            case "input":
                return self.read_input(e)
            case "builtin":
                return self.read_builtin(e)

    def read_value(self, e: Ref) -> Code:
        if e.name in self.bound:
            return self.bound[e.name]
        known = self.known[e.name]
        count = self.arg("value count", e.name, e.type, wish=f"{e.name} count") if e.type.window else ""
        return Code(self.arg("value", e.name, e.type, wish=e.name), e.type, known.kind, flat=known.flat, count=count)

    def read_state(self, e: Ref) -> Code:
        state = next(s for s in self.program.states if s.name == e.name)
        fresh = Arg("state", e.name, state.type) not in self.args
        text = self.arg("state", e.name, state.type, wish=f"{e.name} before")
        count = self.arg("state count", e.name, state.type, wish=f"{e.name} count before") if state.type.window else ""
        if fresh and state.dtype is not None and not state.type.boolean:
            self.head.append(f"{text} = {text}.to({self.real})")
        return Code(text, state.type, "tensor", flat=self.is_flat(state.type), count=count)

    def is_flat(self, t: Type) -> bool:
        """Whether a value of this type, given from outside, has no dimensions."""
        return is_shared(t) and not t.samples and not t.window

    def read_input(self, e: Ref) -> Code:
        given = next(i for i in self.program.inputs if i.name == e.name)
        if given.kind == "per":
            return Code(self.arg("input", e.name, given.type), e.type, "tensor", flat=self.is_flat(e.type))
        text = self.arg(given.kind, e.name, wish=e.name) if e.type.boolean else self.stream(given.kind, e.name, e.name)
        return Code(text, e.type, "tensor")

    def read_builtin(self, e: Ref) -> Code:
        match e.name:
            case "g" | "w":
                return Code(self.stream(e.name, "", e.name), e.type, "tensor")
            case "lr" | "batch":
                return Code(self.arg(e.name), e.type, "host", flat=True)
            case "t":
                whole = is_shared(e.type)
                text = self.arg("run", wish="t") if whole else self.arg("t")
                self.counts.add(text)
                return Code(text, e.type, "host", flat=whole)
            case name:
                return Code(self.arg("attribute", name, wish=f"{name} as number"), e.type, "host")

    # --- elementwise -------------------------------------------------------------------------------------------------

    def elementwise(self, op: Op, e: Apply) -> Code:
        codes = [self.render(a) for a in e.args]
        if all(c.kind == "literal" for c in codes):
            with np.errstate(all="ignore"):
                value = op.reference(*(np.bool_(c.value) if op.conditions else np.float64(c.value) for c in codes))  # type: ignore[misc]
            return literal(bool(value) if e.type.boolean else float(value))
        if op.name == "select" and codes[0].kind == "literal":
            return self.spread(codes[1] if codes[0].value else codes[2], e.type)
        if op.name in ("and", "or") and "literal" in (codes[0].kind, codes[1].kind):
            fixed, other = codes if codes[0].kind == "literal" else codes[::-1]
            return self.spread(other, e.type) if bool(fixed.value) == (op.name == "and") else literal(fixed.value)
        kept = [i for i in range(len(codes)) if op.conditions or (op.name == "select" and (i == 0 or e.type.boolean))]
        codes = [self.aligned(c if i in kept else self.numeric(c), e.type) for i, c in enumerate(codes)]
        kind: Kind = "tensor" if any(c.kind == "tensor" for c in codes) else "host"
        if kind == "tensor":
            codes = self.promoted(codes, kept)
        count = self.count_of(op, codes, e.type) if e.type.window else ""
        if count:
            codes = [self.newest(c, e.type.window) for c in codes]
        text, rank = self.templated(op, codes, kind)
        whole = joined(*(c.type for c in codes if c.kind != "literal"))
        here = replace(e.type, scope=whole.scope, samples=whole.samples)
        c = Code(text, here, kind, all(c.flat for c in codes), rank, 1 + max(c.depth for c in codes), count)
        return c if whole.scope == e.type.scope and whole.samples == e.type.samples else self.spread(c, e.type)

    def promoted(self, codes: Sequence[Code], kept: Sequence[int]) -> list[Code]:
        """Host operands cast to the compute dtype where torch would not do so itself."""
        wide = any(c.kind == "tensor" and not c.flat and i not in kept for i, c in enumerate(codes))
        return [c if i in kept or c.kind != "host" or (c.flat and wide) else self.cast(c) for i, c in enumerate(codes)]

    def templated(self, op: Op, codes: Sequence[Code], kind: Kind) -> tuple[str, int]:
        """The op's template filled in, and how tightly it binds."""
        if op.name == "pow":
            x, y = codes
            if (y.kind == "literal" and y.value != 0) or (x.kind == "literal" and x.value != 1) or y.text in self.counts:
                return self.call("torch.pow", x.text, y.text), ATOM
        template = op.torch or f"runtime.{op.name}({', '.join(f'{{{name}}}' for name in op.args)})"
        called = template.startswith(("torch.", "runtime."))
        if op.name == "select":
            c, x, y = codes
            if x.kind == "literal" == y.kind:
                x = self.tensor(x, kind)
            codes = [c, x, y]
        elif called:
            codes = [self.tensor(c, kind) for c in codes]
        codes = [c if template.count(f"{{{name}}}") == 1 else self.named(c) for name, c in zip(op.args, codes, strict=True)]
        if called:
            return template.format(**{name: c.text for name, c in zip(op.args, codes, strict=True)}), ATOM
        if len(codes) == 1:
            return template.format(**{op.args[0]: codes[0].bracketed}), UNARY
        rank = RANKS[template.split()[1]]
        x, y = codes
        return template.format(x=x.within(rank if rank > 1 else rank + 1), y=y.within(rank + 1)), rank

    def count_of(self, op: Op, codes: Sequence[Code], t: Type) -> str:
        """How many slots of the result are filled."""
        if op.name == "select" and not codes[0].count and codes[1].count and codes[2].count:
            return self.call("torch.where", codes[0].text, codes[1].count, codes[2].count)
        return self.common_count(codes, t.window)

    def common_count(self, codes: Sequence[Code], n: int) -> str:
        counts = list(dict.fromkeys(c.count for c in codes if c.count))
        text = counts[0] if counts else ""
        for other in counts[1:]:
            text = self.call("torch.minimum", text, other)
        longer = any(c.count and c.type.window > n for c in codes)
        return f"torch.clamp({text}, max={n})" if longer else text

    def newest(self, c: Code, n: int) -> Code:
        if not c.count or c.type.window == n:
            return c
        return replace(c, text=self.call("runtime.newest", c.text, str(n), str(self.time_axis)), rank=ATOM, type=replace(c.type, window=n))

    # --- reductions, selections, samples -----------------------------------------------------------------------------

    def operands(self, e: Reduce | Apply, numbers: bool = True) -> tuple[list[Code], dict[str, Code], Type, Kind]:
        """The cells that are reduced, in one dtype; the numbers beside them, unless they are left out; the type of the cells; the kind of the result."""
        op = OPS[e.op]
        codes = {name: self.render(a) for name, a in zip(op.args, e.args, strict=True) if numbers or name not in op.numbers}
        codes = {name: c if op.conditions else self.numeric(c) for name, c in codes.items()}
        kind: Kind = "tensor" if any(c.kind == "tensor" for c in codes.values()) else "host"
        have = replace(joined(*(c.type for name, c in codes.items() if name not in op.numbers)), samples=e.type.samples)
        xs = [self.aligned(self.tensor(c, kind), have) for name, c in codes.items() if name not in op.numbers]
        if kind == "tensor":
            xs = [self.cast(x) for x in xs]
        if len(xs) == 1 and xs[0].type.samples != have.samples:
            xs = [self.spread(xs[0], have)]
        beside = {name: self.aligned(c, replace(NUMBER, samples=have.samples)) for name, c in codes.items() if name in op.numbers}
        return xs, beside, have, kind

    def reduction(self, e: Reduce) -> Code:
        xs, numbers, have, kind = self.operands(e)
        function = f"{'order' if e.op in BY_ORDER else 'reduce'}.{e.op}"
        more = [f"{name}={c.text}" for name, c in numbers.items()] + [f"p={literal(v).text}" for v in e.static]
        texts = [x.text for x in xs]
        if have.window:
            xs = [self.newest(x, have.window) for x in xs]
            count = self.common_count(xs, have.window)
            text = self.call("runtime.over_time", function, str(self.time_axis), count, *(x.text for x in xs), *more)
        elif e.scope.size:
            text = self.call("runtime.per_block", function, str(e.scope.size), *texts, *more)
        else:
            text = self.call(function, *texts, f"dims={dims_within(e.scope, have)}", *more)
        if e.op == "count" and kind == "tensor":
            text = f"{text}.to({self.real})"
        flat = not self.local and not e.type.samples
        return Code(text, replace(e.type, boolean=OPS[e.op].boolean), kind, flat=flat, depth=1 + max(x.depth for x in xs))

    def selection(self, e: Apply) -> Code:
        xs, numbers, have, _ = self.operands(e)
        scope, percent = e.static
        x, k = xs[0], numbers["k"]
        if scope.size:
            text = self.call("runtime.largest_per_block", x.text, str(scope.size), k.text, str(bool(percent)))
        else:
            text = self.call("order.largest", x.text, k.text, f"dims={dims_within(scope, have)}", f"percent={bool(percent)}")
        return self.spread(Code(text, replace(have, boolean=True), "tensor", depth=1 + x.depth), e.type)

    def over_samples(self, e: Apply) -> Code:
        x = self.numeric(self.render(e.args[0]))
        text = self.call(f"runtime.{e.op}", x.text, "1" if self.local else "0")
        return Code(text, e.type, x.kind, flat=not self.local, depth=1 + x.depth)

    # --- matrices and draws ------------------------------------------------------------------------------------------

    def matrix(self, op: Op, e: Apply) -> Code:
        codes = {name: self.numeric(self.render(a)) for name, a in zip(op.args, e.args, strict=True)}
        if op.name in ("rows", "cols"):
            grid = codes["x"].type
            size = self.size((grid.rows if op.name == "rows" else grid.cols) or 1)
            number = Code(self.call("runtime.number", size, "torch.float64", self.device), NUMBER, "host", flat=True)
            return self.spread(number, e.type)
        kind: Kind = "tensor" if any(c.kind == "tensor" for c in codes.values()) else "host"
        texts = []
        for name, c in codes.items():
            if name in op.numbers:
                texts.append(self.aligned(c, replace(NUMBER, samples=e.type.samples)).text)
                continue
            c = self.tensor(c, kind)
            c = self.cast(c) if kind == "tensor" else c
            grid = replace(c.type, scope=ELEMENT, samples=e.type.samples) if c.type.scope.size else replace(c.type, samples=e.type.samples)
            texts.append(f"{c.bracketed}.expand({self.arg('stack')}, 1, 1)" if c.flat else self.aligned(c, grid).text)
        text = self.call(f"matrix.{op.name}", *texts, *(str(int(v)) for v in e.static))
        return Code(text, e.type, kind, depth=1 + max(c.depth for c in codes.values()))

    def draw(self, e: Apply) -> Code:
        codes = [self.numeric(self.render(a)) for a in e.args]
        alone = replace(e.type, samples=False)
        local = self.local and not is_shared(alone)
        cells = f"({', '.join(self.cells(alone))})" if local else "()"
        key, step = self.arg("draw key", e.static[0], alone, wish="key"), self.arg("step words", wish="step")
        codes = [self.aligned(c, e.type) for c in codes]
        dtype = "torch.bool" if e.type.boolean else self.real
        text = self.call(f"random.{e.op}", key, step, cells, dtype, *(c.text for c in codes))
        whole = replace(e.type, samples=any(c.type.samples for c in codes))
        return self.spread(Code(text, whole, "tensor", flat=not local, depth=1 + max(c.depth for c in codes)), e.type)

    # --- what elaboration makes --------------------------------------------------------------------------------------

    def core(self, e: Apply) -> Code:
        match e.op, e.args:
            case "spread", (x,):
                return self.spread(self.render(x), e.type)
            case "store", (x,):
                return self.stored(self.spread(self.render(x), e.type), e.static[0])
            case "total" | "pooled" | "gathered", (*_, x):  # the collective was before: here all ranks have the result
                return self.spread(self.render(x), e.type)
            case "push", (window, x):
                return self.push(self.spread(self.render(window), e.type), self.render(x), e.type)
            case "empty", ():
                dtype = "torch.bool" if e.type.boolean else self.real
                count = self.call("torch.zeros", self.shape(replace(e.type, window=1 if self.local else 0)), "dtype=torch.int64", f"device={self.device}")
                return Code(self.call("torch.zeros", self.shape(e.type), f"dtype={dtype}", f"device={self.device}"), e.type, "tensor", count=count)
            case _:
                raise InternalError(f"the op `{e.op}` has no torch code")

    def stored(self, c: Code, dtype: str | None) -> Code:
        """c rounded to a state's or the weight's dtype, and used in the compute dtype from here on."""
        c = self.tensor(c)
        if c.type.boolean:
            return replace(c, kind="tensor")
        if dtype in (None, "state"):
            return self.cast(c)
        kind = self.arg("weight_dtype") if dtype == "weight" else DTYPES[str(dtype)]
        return replace(c, text=f"{self.call('runtime.rounded', c.text, kind)}.to({self.real})", rank=ATOM, kind="tensor")

    def push(self, window: Code, x: Code, t: Type) -> Code:
        x = self.cast(self.tensor(x if t.boolean else self.numeric(x), "tensor"))
        if not x.flat:
            x = self.aligned(x, replace(t, boolean=x.type.boolean))
        text = self.call("runtime.push", window.text, x.text, str(self.time_axis))
        return Code(text, t, "tensor", depth=1 + max(window.depth, x.depth), count=f"torch.clamp({window.count} + 1, max={t.window})")
