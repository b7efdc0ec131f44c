"""An expression as LaTeX.

A reduction carries the scope that a `per` gives it as an index, and none where it has its rule's own; so do the rules and functions that are applied.
x → f(a) is f(x; a); longer pipelines keep their arrows, in which · stands for what flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from updsl.core.ops import OPS, REDUCTIONS
from updsl.front import syntax
from updsl.front.contents import nodes
from updsl.front.letters import number, quoted, symbol, symbols, word
from updsl.front.sites import Sites
from updsl.front.text import number_text
from updsl.front.unit import BUILTIN_NAMES, FUNCTIONS, Unit

LOOSE, OR, AND, NOT, COMPARE, SUM, PRODUCT, TALL, POWER, ATOM = range(10)
"""How tightly a formula holds together; TALL are fractions, which need brackets only under an exponent."""
RELATIONS = {"<": "<", "<=": r"\leq", ">": ">", ">=": r"\geq", "==": "=", "!=": r"\neq", "~": r"\sim"}
COMMANDS = frozenset("exp log tanh sin cos".split())
DRAWS = {"gaussian": (r"\mathcal{N}", ("std",)), "uniform": (r"\mathcal{U}", ("lo", "hi")), "bernoulli": (r"\mathrm{Bernoulli}", ("p",))}
"""Each draw's letter, and its arguments before those of its grid."""
SCOPED = REDUCTIONS | {"largest"}
FLOW = r"\cdot"


@dataclass(frozen=True)
class Formula:
    """Writes the expressions of one declaration. names: the LaTeX of its names. flow: what flows now. scope: the index of what has no nearer `per`.
    whole: a bare `norm` is here the rule. dots: products are dotted, since matrices are multiplied too."""

    sites: Sites
    names: Mapping[str, str]
    flow: str = "g"
    scope: str = ""
    whole: bool = True
    dots: bool = False

    def __call__(self, e: syntax.Expr, within: int = LOOSE, **changes) -> str:
        """The expression, in brackets if it is looser than what is around it."""
        own, text = (replace(self, **changes) if changes else self).bare(e)
        return text if own >= within else brackets(text)

    def part(self, e: syntax.Expr, within: int = LOOSE) -> str:
        """An operand or argument."""
        return self(e, within, whole=False)

    def bare(self, e: syntax.Expr) -> tuple[int, str]:
        match e:
            case syntax.Number(value=value, percent=percent):
                text = number(number_text(value, percent))
                return (SUM if value < 0 else TALL if " " in text else ATOM), text
            case syntax.Boolean(value=value):
                return ATOM, word(str(value).lower())
            case syntax.Text(value=value):
                return ATOM, quoted(value)
            case syntax.Name() | syntax.Call() if self.sites.applies_rule(e, self.whole):
                return ATOM, self.applied(e, self.flow)
            case syntax.Name(id=name):
                return self.name(name)
            case syntax.Call(callee="history"):
                return ATOM, self.applied(e, self.flow)
            case syntax.Call():
                return self.call(e)
            case syntax.Unary(op="-", operand=operand):
                return SUM, f"-{self.part(operand, PRODUCT)}"
            case syntax.Unary(operand=operand):
                return NOT, rf"\neg {self.part(operand, SUM)}"
            case syntax.Binary():
                return self.binary(e)
            case syntax.Compare(first=first, rest=rest):
                return COMPARE, " ".join([self.part(first, SUM), *(f"{RELATIONS[op]} {self.part(x, SUM)}" for op, x in rest)])
            case syntax.Transpose(operand=operand):
                return POWER, rf"{self.part(operand, ATOM)}^{{\top}}"
            case syntax.If():
                return LOOSE, self.cases(e)
            case syntax.Per(body=body, scope=scope):
                return replace(self, scope=self.scope_name(scope)).bare(body)
            case syntax.Pipe(stages=stages):
                return self.pipe(stages)
            case syntax.Clip() | syntax.Repeat():
                return self.apply(e, self.flow)

    def scope_name(self, scope: syntax.ScopeName) -> str:
        size = "" if scope.size is None else f"({self.part(scope.size)})"
        return word(scope.name) + size

    def name(self, name: str) -> tuple[int, str]:
        if name == "it":
            return ATOM, self.flow
        return (ATOM, self.names[name]) if name in self.names else self.function(name, [self.flow], {})

    def arguments(self, arguments: Iterable[syntax.Argument]) -> tuple[list[str], dict[str, str]]:
        arguments = tuple(arguments)
        return [self.part(a.value) for a in arguments if a.name is None], {a.name: self.part(a.value) for a in arguments if a.name is not None}

    # --- functions ---

    def call(self, e: syntax.Call) -> tuple[int, str]:
        if e.callee in DRAWS:
            return ATOM, self.draw(e)
        given, named = self.arguments(e.arguments)
        if e.callee in ("solve", "matrix_power") and len(e.arguments) == 2:
            return self.inverse_or_power(e)
        over_time = any(isinstance(n, syntax.Call) and n.callee == "history" for n in nodes(e.arguments))
        here = replace(self, scope="") if over_time else self
        if not given and "x" not in named:
            given = [self.flow]
        return here.function(e.callee, [*([named.pop("x")] if "x" in named else []), *given], named)

    def inverse_or_power(self, e: syntax.Call) -> tuple[int, str]:
        names = OPS[e.callee].args
        given = dict(zip(names, (a.value for a in e.arguments if a.name is None), strict=False)) | {a.name: a.value for a in e.arguments if a.name}
        first, second = (given[n] for n in names)
        if e.callee == "solve":
            return PRODUCT, rf"{self.part(first, ATOM)}^{{-1}}\,{self.part(second, TALL)}"
        return POWER, f"{self.part(first, ATOM)}^{{{self.exponent(second)}}}"

    def function(self, name: str, given: list[str], named: dict[str, str]) -> tuple[int, str]:
        """A function of arguments that are LaTeX already."""
        x = given[0] if given else ""
        every = [*given, *named.values()]
        match name:
            case "abs":
                return ATOM, rf"\left|{x}\right|"
            case "sqrt":
                return ATOM, rf"\sqrt{{{x}}}"
            case "floor":
                return ATOM, rf"\left\lfloor {x} \right\rfloor"
            case "norm" | "absmax":
                power = r"\infty" if name == "absmax" else every[1] if len(every) > 1 else ""
                return ATOM, rf"\left\Vert {x} \right\Vert" + index(power, self.scope)
            case "dot":
                return ATOM, rf"\left\langle {', '.join(every)} \right\rangle" + index(self.scope)
            case "min" | "max":
                return ATOM, rf"\{name}" + index(self.scope if len(every) == 1 else "") + brackets(", ".join(every))
            case "clamp":
                return ATOM, r"\min" + brackets(rf"\max{brackets(f'{x}, {every[1]}')}, {every[2]}")
            case "mod":
                return ATOM, brackets(rf"{x} \ \mathrm{{mod}}\  {every[1]}")
            case "eye":
                return ATOM, "I"
            case "trace":
                return ATOM, rf"\mathrm{{tr}}{brackets(x)}"
            case "sample_mean" | "sample_sum":
                return ATOM, word(name.removeprefix("sample_")) + r"_{\mathrm{samples}}" + brackets(x)
            case _ if name in COMMANDS:
                return ATOM, rf"\{name}{brackets(x)}"
        scope = self.scope if name in SCOPED or name not in FUNCTIONS else ""
        return ATOM, word(name) + index(scope) + brackets(", ".join(every))

    def draw(self, e: syntax.Call) -> str:
        """A random draw by its distribution; its grid or scope as an index."""
        letter, takes = DRAWS[e.callee]
        given = dict(zip((*takes, "n", "m"), (a.value for a in e.arguments if a.name is None), strict=False)) | {a.name: a.value for a in e.arguments if a.name}
        each = given.pop("each", None)
        grid = r" \times ".join(self.part(x, PRODUCT) for n, x in given.items() if n not in takes) if each is None else word(getattr(each, "id", ""))
        inner = ", ".join(self.part(given[n]) for n in takes if n in given)
        if e.callee == "gaussian" and (std := given.get("std")) is not None:
            inner = "0, " + (inner if inner in ("0", "1") else f"{self.part(std, ATOM)}^{{2}}")
        return letter + index(grid) + brackets(inner)

    # --- operators ---

    def binary(self, e: syntax.Binary) -> tuple[int, str]:
        match e.op:
            case "or":
                return OR, rf"{self.part(e.left, OR)} \text{{ or }} {self.part(e.right, AND)}"
            case "and":
                return AND, rf"{self.part(e.left, AND)} \text{{ and }} {self.part(e.right, NOT)}"
            case "+":
                return SUM, f"{self.part(e.left, SUM)} + {self.part(e.right, PRODUCT)}"
            case "-":
                return SUM, f"{self.part(e.left, SUM)} - {self.part(e.right, PRODUCT)}"
            case "^":
                return POWER, f"{self.part(e.left, ATOM)}^{{{self.exponent(e.right)}}}"
            case "@":
                return PRODUCT, rf"{self.part(e.left, PRODUCT)}\,{self.part(e.right, TALL)}"
            case _:
                above, below = factors(e)
                if not below:
                    text = self.product(above)
                    return (SUM if text.startswith("-") else PRODUCT), text
                tight = len(above) == 1, len(below) == 1
                top, bottom = (self.part(f[0]) if alone else self.product(f) for f, alone in zip((above, below), tight, strict=True))
                return TALL, rf"\frac{{{top}}}{{{bottom}}}"

    def exponent(self, e: syntax.Expr) -> str:
        """A fraction stays on its line."""
        match e:
            case syntax.Binary(op="/", left=left, right=right):
                return f"{self.part(left, SUM)}/{self.part(right, POWER)}"
            case _:
                return self.part(e)

    def product(self, operands: list[syntax.Expr]) -> str:
        first, *others = operands
        text = last = self.part(first, SUM if isinstance(first, syntax.Unary) else PRODUCT)
        for e in others:
            factor = self.part(e, TALL)
            dotted = self.dots or factor[0].isdigit() or factor.startswith(r"\mathrm") or last.startswith(r"\mathrm")
            text, last = rf"{text} \cdot {factor}" if dotted else rf"{text}\,{factor}", factor
        return text

    def cases(self, e: syntax.If) -> str:
        rows: list[tuple[str, syntax.Expr | None]] = []
        last: syntax.Expr = e
        while isinstance(last, syntax.If):
            rows.append((self(last.then), last.condition))
            last = last.otherwise
        return self.choice([*rows, (self(last), None)])

    def choice(self, rows: Sequence[tuple[str, syntax.Expr | None]]) -> str:
        """The value whose condition is the first to hold; None holds always."""
        conditions = [r"\text{otherwise}" if c is None else rf"\text{{if }} {self.part(c)}" for _, c in rows]
        return r"\begin{cases} " + r" \\ ".join(f"{text} & {c}" for (text, _), c in zip(rows, conditions, strict=True)) + r" \end{cases}"

    # --- stages ---

    def is_map(self, e: syntax.Expr) -> bool:
        """Whether the expression is a stage that takes what flows without naming it."""
        match e:
            case syntax.Per(body=body):
                return self.is_map(body)
            case syntax.Clip() | syntax.Repeat() | syntax.Call(callee="history"):
                return True
            case _:
                return self.sites.applies_rule(e, True)

    def pipe(self, stages: tuple[syntax.Expr, ...]) -> tuple[int, str]:
        here = replace(self, whole=True)
        first, *rest = stages
        implied = self.is_map(first)
        head = self.flow if implied else here(first, SUM)
        rest = list(stages) if implied else rest
        simple = implied or isinstance(first, syntax.Name)
        if len(rest) == 1 and (simple or self.is_map(rest[0])):
            return here.apply(rest[0], head, simple)
        return LOOSE, r" \to ".join([head, *map(here.as_map, rest)])

    def apply(self, stage: syntax.Expr, head: str, simple: bool = True) -> tuple[int, str]:
        """A stage of `head`. simple: `head` may stand in the stage's own formula more than once."""
        match stage:
            case syntax.Per(body=body, scope=scope):
                return replace(self, scope=self.scope_name(scope)).apply(body, head, simple)
            case syntax.Clip() if simple:
                return replace(self, flow=head).clip(stage)
            case syntax.Clip() | syntax.Repeat():
                return ATOM, self.as_map(stage) + brackets(head)
            case syntax.Name() | syntax.Call() if self.is_map(stage):
                return ATOM, self.applied(stage, head)
            case _:
                return replace(self, flow=head).bare(stage)

    def as_map(self, stage: syntax.Expr) -> str:
        """A stage between arrows."""
        match stage:
            case syntax.Per(body=body, scope=scope):
                return replace(self, scope=self.scope_name(scope)).as_map(body)
            case syntax.Clip(measure=measure, op=op, bound=bound):
                relation = r"\leq" if op.startswith(">") else r"\geq"
                here = replace(self, flow=FLOW)
                return rf"\mathrm{{clip}}_{{{here.part(measure, SUM)} {relation} {here.part(bound, SUM)}}}"
            case syntax.Repeat(count=count, body=body):
                stages = body.stages if isinstance(body, syntax.Pipe) else (body,)
                inner = r" \to ".join(replace(self, whole=True).as_map(s) for s in stages)
                return f"{brackets(inner)}^{{{self.part(count)}}}"
            case syntax.Name() | syntax.Call() if self.is_map(stage):
                return self.applied(stage, None)
            case _:
                return self(stage, SUM, flow=FLOW)

    def applied(self, e: syntax.Name | syntax.Call, head: str | None) -> str:
        """A rule, of `head` if there is one."""
        name = e.id if isinstance(e, syntax.Name) else e.callee
        given, named = ([], {}) if isinstance(e, syntax.Name) else self.arguments(e.arguments)
        inner = r",\ ".join([*given, *(f"{symbol(n)} = {x}" for n, x in named.items())])
        text = word(name) + index("" if name == "history" else self.scope)
        if head is None:
            return text + (brackets(inner) if inner else "")
        return text + brackets(rf"{head};\ {inner}" if inner else head)

    def clip(self, e: syntax.Clip) -> tuple[int, str]:
        measure, bound = self.part(e.measure), self.part(e.bound)
        factor = rf"\{'min' if e.op.startswith('>') else 'max'}\left(1, \frac{{{bound}}}{{{measure}}}\right)"
        centre = self.centre(e.measure)
        if centre is None:
            return PRODUCT, rf"{self.flow}\,{factor}"
        return SUM, rf"{centre} + {brackets(f'{self.flow} - {centre}')}\,{factor}"

    def centre(self, measure: syntax.Expr) -> str | None:
        """What the measure is about, of what flows."""
        match measure:
            case syntax.Name(id=name):
                given, named = [], {}
            case syntax.Call(callee=name, arguments=arguments):
                given, named = self.arguments(arguments)
            case _:
                return None
        known = name in self.sites.locals or name in self.sites.parameters or name in FUNCTIONS
        found = None if known else self.sites.unit.find_fn(name)
        if found is None or found[0].about is None:
            return None
        fn, home = found
        others = dict(zip([p.name for p in fn.parameters][1:], given[1:], strict=False)) | named
        there = Formula(Sites(fn, home), {**others, fn.parameters[0].name: self.flow}, self.flow, self.scope, whole=False)
        return there(found[0].about, PRODUCT)


def formula_of(declaration: syntax.Rule | syntax.Fn, unit: Unit) -> Formula:
    """The writer of a declaration's own expressions."""
    sites = Sites(declaration, unit)
    names = symbols(sorted({*sites.locals, *sites.parameters, *BUILTIN_NAMES} - {"it"}))
    return Formula(sites, names, dots=any(isinstance(n, syntax.Binary) and n.op == "@" for n in nodes(declaration.body)))


def factors(e: syntax.Expr) -> tuple[list[syntax.Expr], list[syntax.Expr]]:
    """a / b * c / d as what stands above and below one line: no product goes into a line that was there before it."""
    match e:
        case syntax.Binary(op="*", left=left, right=right):
            above, below = factors(left)
            return ([left] if below else above) + [right], []
        case syntax.Binary(op="/", left=left, right=right):
            above, below = factors(left)
            return above, [*below, right]
        case _:
            return [e], []


def brackets(text: str) -> str:
    """Brackets as high as what is in them."""
    return rf"\left({text}\right)" if r"\frac" in text or r"\begin" in text else f"({text})"


def index(*parts: str) -> str:
    below = r",\,".join(filter(None, parts))
    return f"_{{{below}}}" if below else ""
