"""Random well-typed expressions, as text. Every value stays in a range where two runs that round differently agree to many digits, and no comparison, rounding
or sign is taken of what is 0 by construction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from updsl.core.scope import ALL, COLUMN, ELEMENT, GROUP, ROW, TENSOR, Scope, block

SCOPES = (ELEMENT, ROW, COLUMN, block(3), block(4), TENSOR, GROUP, ALL)
DEPTH = 2
T = TypeVar("T")

# Of one value; {c} and {d} are literals.
UNARY = (
    "(-{x})", "abs({x} - {c})", "(0.5*sign({x} - {c}) + 0.5*{x})", "sqrt({c} + abs({x}))", "exp(-abs({x}))", "log(1 + {x}^2)", "tanh({x})", "sigmoid({x})",
    "sin({x})", "cos({x} + {c})", "(floor(3*{x} + {c}) / 5)", "(round(10*{x} + {c}) / 10 + {d}*{x})", "clamp({x}, -{c}, {d})",
    "clamp({x}, hi = {c}, lo = -{d})",
    "min({x}, {c})", "max({x}, -{c}, -{d}*{x})", "mod({x}, {c})", "(1 + {x}^2)^-{c}", "({x} / (0.3 + abs({x})))", "2^(-abs({x}))", "({x} / inf + {c}*{x})",
    "({x} * pi / 4)", "(-{x}^2 / (1 + {x}^2))", "atan2({x}, {c})", "({x} + 1e-1)", "(0.4 + abs({x}))^0.5^{c}",
)  # fmt: skip
# Of a value x that gives the scope and a y that is not finer.
BINARY = (
    "({x} + {y})", "({c}*{x} - {d}*{y})", "tanh({x}*{y})", "({x} / ({c} + abs({y})))", "min({x}, {y})", "max({x}, {y}, {c})", "atan2({x}, 0.3 + abs({y}))",
    "mod({x}, 0.7 + abs({y}))", "({x}^2 / (1 + {y}^2 + {x}^2))", "clamp({x}, -abs({y}) - {c}, abs({y}) + {d})", "(0.5 + abs({x}))^tanh({y})",
    "sigmoid({x} - {y})",
)  # fmt: skip
# Of the cells of x, to the scope in force; {q} is a fraction of scope all.
REDUCTIONS = (
    "mean({x})", "sum({x}) / (1 + norm({x}))", "norm({x})", "norm({x}, 1)", "norm({x}, p = 3)", "norm({x}, inf)", "rms({x})", "var({x})", "std({x})",
    "min({x})", "max({x})",
    "absmax({x})", "median({x})", "quantile({x}, {q})", "quantile({x}, q = sigmoid({y}))", "dot({x}, {z}) / (1 + norm({x}*{z}))",
    "cosine({x}, {z} + {c})", "count({b}) / count({x} > -inf)",
)  # fmt: skip
INSTANCES = (
    "ema({c})",
    "EMA",
    "ema(debias = {flag}, beta = {c})",
    "prev",
    "momentum(0.5)",
    "nesterov(0.5)",
    "adam(0.5, 0.8, 0.1)",
    "adam(eps = {c})",
)
WINDOWS = (
    "quantile({h}, {q})",
    "mean({h})",
    "max(tanh({h}))",
    "std({h} + {c})",
    "median({h})",
    "norm({h}, 1)",
    "cosine({h}, abs({h}))",
    "count({h} > {c})",
    "sum({h} / 2)",
    "absmax({h})",
)


@dataclass
class Fn:
    """A function of the text: how it is called, and whether its body reduces to the scope in force."""

    name: str
    extra: tuple[str, ...]
    reduces: bool
    about: bool = False


@dataclass
class Writer:
    """Makes choices, and writes expressions.

    choices: bytes, which decide everything; where they end, the first of what there is is taken.
    names: the numbers in reach, with their scopes; conditions likewise. default: the scope that a reduction without a nearer `per`
    takes. clock: the scope of `t`, None if it is not known.
    least: the coarsest scope that a state may have. pure: no instances and no windows here. draws: whether a random draw may stand here.
    without: what holds such a word is not picked.
    """

    choices: Iterator[int]
    flags: Sequence[str] = ("true", "false")
    names: list[tuple[str, Scope]] = field(default_factory=list)
    conditions: list[tuple[str, Scope]] = field(default_factory=list)
    fns: list[Fn] = field(default_factory=list)
    default: Scope = TENSOR
    clock: Scope | None = ALL
    least: Scope = ALL
    pure: bool = False
    draws: bool = True
    without: re.Pattern[str] | None = None

    # --- choices ---

    def number(self, least: int, most: int) -> int:
        code = next(self.choices, 0)
        if most - least > 255:
            code = 256 * code + next(self.choices, 0)
        return least + code % (most - least + 1)

    def pick(self, options: Sequence[T]) -> T:
        options = [x for x in options if self.allows(x)]
        return options[self.number(0, len(options) - 1)]

    def allows(self, x: object) -> bool:
        """Whether x, a text, a statement or a scope, has none of the words that are to be left out."""
        return self.without is None or not self.without.search(getattr(x, "__name__", str(x)))

    def chance(self, one_in: int) -> bool:
        return self.number(1, one_in) == one_in

    def literal(self) -> str:
        """Between 0.1 and 1, with an odd last digit, so that sums of literals and values of a grid do not meet."""
        n = self.number(50, 495)
        return f"{(2 * n + 1) / 10:g}%" if n % 5 == 0 else f"{(2 * n + 1) / 1000:g}"

    @contextmanager
    def within(self, **changed: Any) -> Iterator[None]:
        """With these attributes for a while."""
        before = {name: getattr(self, name) for name in changed}
        self.__dict__.update(changed)
        yield
        self.__dict__.update(before)

    def scopes(self, bound: Scope, least: Scope = ALL) -> list[Scope]:
        return [s for s in SCOPES if least <= s <= bound]

    # --- values ---

    def value(self, bound: Scope = ELEMENT, depth: int = DEPTH) -> str:
        """A value that is not finer than `bound`."""
        return self.exact(self.pick(self.scopes(bound)), depth)

    def exact(self, scope: Scope, depth: int = DEPTH) -> str:
        """A value of exactly this scope."""
        if depth <= 0:
            return self.leaf(scope)
        match self.number(0, 12):
            case 0 | 1 | 2:
                return self.leaf(scope)
            case 3 | 4:
                return self.fill(self.pick(UNARY), x=self.exact(scope, depth - 1))
            case 5 | 6:
                return self.fill(self.pick(BINARY), x=self.exact(scope, depth - 1), y=self.value(scope, depth - 1))
            case 7:
                with self.within(pure=True):
                    return f"(if {self.condition(scope, depth - 1)} then {self.exact(scope, depth - 1)} else {self.exact(scope, depth - 1)})"
            case 8:
                return self.static_choice(scope, depth - 1)
            case 9:
                return self.instance(scope, depth - 1)
            case 10:
                return self.window(scope, depth - 1)
            case 11:
                return self.call(scope, depth - 1)
            case _:
                return self.reduction(scope, depth - 1) if scope < ELEMENT else self.leaf(scope)

    def fill(self, form: str, **parts: str) -> str:
        literals = {"c": self.literal(), "d": self.literal(), "q": self.pick(("10%", "0.3", "50%", "0.77", "1")), "flag": self.pick(self.flags)}
        return form.format(**literals | parts)

    def leaf(self, scope: Scope) -> str:
        known = [n for n, s in self.names if s == scope]
        match scope.name:
            case "element":
                known += ["g", "w", "g", *([self.random_entry()] if self.draws and self.chance(6) else [])]
            case "tensor":
                known += [
                    "(rows / numel)",
                    "(cols / numel)",
                    "(numel / 50)",
                    "(ndim / 3)",
                    "((if ndim > 0 then dim(0) / dim(-1) else 1)*rows / numel)",
                    '((if name ~ "a|o+n.{0,3}v$" then 0.3 else 0.8)*cols / numel)',
                ]
            case "group":
                known += ["(5*lr)"]
            case "all":
                known += [self.literal(), "(tensors / 7)", "pi"]
        known += ["(t / 9)"] if scope == self.clock else []
        if self.draws and scope in (TENSOR, ALL) and self.chance(8):
            return self.fill(self.pick(("gaussian({c}, each = {s})", "uniform(-{c}, {d}, each = {s})")), s=str(scope))
        return self.reduction(scope, 0) if scope < ELEMENT and (not known or self.chance(2)) else self.pick(known)

    def random_entry(self) -> str:
        return self.fill(self.pick(("gaussian({c})", "uniform(-{c}, {d})", "({c}*bernoulli({d}))")))

    def reduction(self, scope: Scope, depth: int, boolean: bool = False) -> str:
        """A reduction of something finer to this scope: bare where that is the default."""
        bare = scope == self.default and self.chance(2)
        of = ELEMENT if depth <= 0 or self.chance(2) else self.pick([s for s in SCOPES if scope < s])
        form = "any({b})" if boolean else self.pick(REDUCTIONS)
        with self.within(default=scope):
            parts = {"x": self.exact(of, depth) if depth > 0 else self.pick(("g", "g", "w"))}
            if "{z}" in form:
                parts["z"] = self.value(of, 0) if depth > 0 else "w"
            if "{y}" in form:
                parts["y"] = self.value(scope, 0) if depth > 0 else self.literal()
            if "{b}" in form:
                parts["b"] = f"{parts['x']} > {self.literal()}"
            text = self.fill(form, **parts)
        return f"({text})" if bare else f"({text} per {scope})"

    def static_choice(self, scope: Scope, depth: int) -> str:
        """Of a value of several tensors, one that is the same for all of them."""
        of_tensor = ("rows > cols", "ndim < 2", "not numel >= 12", "(if ndim > 0 then dim(0) else 1) == 3 or ndim == 4", 'name ~ "bias"', 'name == "b.weight"')
        conditions = (*self.flags, f"not {self.pick(self.flags)} or false", *(of_tensor if TENSOR <= scope else ()))
        with self.within(pure=True):
            return f"(if {self.pick(conditions)} then {self.exact(scope, depth)} else {self.exact(scope, depth)})"

    def instance(self, scope: Scope, depth: int) -> str:
        """A number smoothed by a rule with state of its own; under a `per` that reaches in, where something takes it."""
        if self.pure or not self.least <= scope:
            return self.leaf(scope)
        rule = self.fill(self.pick(INSTANCES))
        if scope < ELEMENT and self.chance(3):
            with self.within(default=scope):
                return f"(({self.pick(('rms(g)', 'mean(g)', 'absmax(w)', 'norm(g)'))} → {rule}) per {scope})"
        return f"({self.exact(scope, depth)} → {rule})"

    def window(self, scope: Scope, depth: int) -> str:
        if self.pure or not self.least <= scope or not self.allows("history"):
            return self.leaf(scope)
        with self.within(pure=True):
            h = f"({self.exact(scope, depth)} → history({self.pick((1, 2, 3, 4))}))"
        form = self.pick(WINDOWS)
        return self.fill(form if form.count("{h}") == 1 else "std({h})", h=h)

    def call(self, scope: Scope, depth: int) -> str:
        """A function of the text: one that reduces needs a finer argument, and gives the finer scope."""
        usable = [f for f in self.fns if not f.reduces or self.default < scope]
        if not usable:
            return self.fill(self.pick(UNARY), x=self.exact(scope, depth))
        fn = self.pick(usable)
        return self.apply(fn, self.exact(scope, depth), scope)

    def apply(self, fn: Fn, x: str, scope: Scope) -> str:
        match fn.extra:
            case ():
                return f"{fn.name}({x})"
            case ("k",) if self.chance(3):
                return f"{fn.name}({x})"
            case (name,):
                return f"{fn.name}({x}, {self.pick(('', name + ' = '))}{self.literal() if name == 'k' else self.value(scope, 0)})"
        raise AssertionError(fn)

    # --- conditions ---

    def condition(self, bound: Scope = ELEMENT, depth: int = DEPTH) -> str:
        """A condition that is not finer than `bound`, in brackets where it needs them."""
        return self.exact_condition(self.pick(self.scopes(bound)), depth)

    def exact_condition(self, scope: Scope, depth: int = DEPTH) -> str:
        x, c = self.exact(scope, max(depth - 1, 0)), self.literal()
        known = [n for n, s in self.conditions if s == scope]
        match self.number(0, 9):
            case 0 | 1:
                return f"{x} {self.pick(('>', '<', '≥', '≤', '≠'))} {c}"
            case 2:
                return f"-{c} < {x} ≤ {self.literal()}"
            case 3 if depth > 0:
                return f"({self.exact_condition(scope, depth - 1)} and {self.condition(scope, depth - 1)})"
            case 4 if depth > 0:
                return f"({self.exact_condition(scope, depth - 1)} or not {x} > {c})"
            case 5:
                return f"(isfinite({x}) and {x} < {c})"
            case 6 if scope == ELEMENT and self.allows("largest"):
                over = self.pick([s for s in SCOPES if s < ELEMENT])
                return f"(largest(g + {c}*{x}, {self.pick(('2', '40%', '0.5', '1', '100%', 'max(2, t)' if self.clock == ALL else '3'))}) per {over})"
            case 7 if scope < ELEMENT:
                return self.reduction(scope, 0, boolean=True)
            case 8 if known:
                return self.pick(known)
            case 9 if self.draws and scope == ELEMENT:
                return self.fill("bernoulli({c})")
        return f"{x} - {c} > 0"
