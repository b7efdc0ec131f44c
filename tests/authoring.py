"""Random rule files, as text: statements, rules and functions around the expressions of writing.py.

Nothing in a file is dead: every local, state, parameter, function and rule of it is in what it gives, with a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from writing import Writer

from updsl.core.scope import ALL, ELEMENT, GROUP, TENSOR, Scope

LETTERS = ("x", "y", "u", "γ", "m̂", "κ", "h1_", "ϵ", "Ω")


@dataclass
class Author:
    """Writes the statements of one rule. lines: so far. taken: how many names the file has. feed: what the result must hold. inputs: name → kind or scope."""

    pen: Writer
    numbers: list[int]
    lines: list[str] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    helpers: list[tuple[str, Scope]] = field(default_factory=list)
    feed: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        self.numbers[0] += 1
        return f"{self.pen.pick(LETTERS)}{self.numbers[0]}{self.pen.pick(('', '', chr(39)))}"

    def write(self, line: str, indent: int = 1) -> None:
        self.lines.append("    " * indent + line)

    def keep(self, name: str, scope: Scope, condition: bool = False) -> None:
        """The name is in reach from here on, and in the result."""
        (self.pen.conditions if condition else self.pen.names).append((name, scope))
        self.feed.append(f"0.7*{name}" if condition else f"tanh({name})")

    def scope(self, least: Scope = ALL) -> Scope:
        return self.pen.pick(self.pen.scopes(ELEMENT, least))

    # --- statements, each of which keeps what it names ---

    def local(self) -> None:
        scope, name = self.scope(), self.fresh()
        self.write(f"{name} = {self.pen.exact(scope)}")
        self.keep(name, scope)

    def condition(self) -> None:
        scope, name = self.scope(), self.fresh()
        self.write(f"{name} = {self.pen.exact_condition(scope)}")
        self.keep(name, scope, condition=True)

    def let(self) -> None:
        """A `let` that a loop, a block every few steps, or a choice moves."""
        scope, name, inner, pen = self.scope(), self.fresh(), self.fresh(), self.pen
        self.write(f"let {name} = {pen.exact(scope)}")
        match pen.pick(("repeat", "every", "both", "plain")):
            case "repeat":
                self.write(f"repeat {pen.pick(('2', 'n', '1'))} times:")
                self.write(f"{inner} = {pen.fill('{c}*tanh({x})', x=name)}", 2)
                self.write(f"{name} ← {name} - 0.3*{inner}", 2)
            case "every":
                self.write(f"every {pen.pick(('2', '3 from 2', 'n + 1'))}:")
                self.write(f"{name} ← 0.5*{name} + {pen.exact(scope, 1)}", 2)
            case "both":
                self.write("repeat 2 times:")
                self.write(f"every {pen.pick(('2', '2 from 1'))}:", 2)
                self.write(f"{inner} = {pen.exact(scope, 1)}", 3)
                self.write(f"{name} ← {name} + tanh({inner})", 3)
            case _:
                self.write(f"{name} ← if {pen.condition(scope, 1)} then {name} else {pen.exact(scope, 0)}")
        self.keep(name, scope)

    def state(self) -> None:
        """A state, and how it goes on: always, every few steps, in rounds, and from where it starts anew."""
        pen, name, old = self.pen, self.fresh(), self.fresh()
        scope = self.scope(pen.least)
        self.write(self.declared(name, scope))
        self.write(f"{old} = {name}")
        update = f"{name} ← {pen.fill('{c}*{x}', x=name)} + {pen.fill('{c}', x='')}*tanh({pen.exact(scope)})"
        match pen.pick(("plain", "plain", "every", "nested", "repeat")):
            case "plain":
                self.write(update)
            case "every":
                self.write(f"every {pen.pick(('2', '3 from 1', '2 from 2'))}:")
                self.write(update, 2)
            case "nested":
                self.write(f"every {pen.pick(('1', '2 from 1'))}:")
                self.write("every 2:" if pen.chance(2) else "repeat 2 times:", 2)
                self.write(update, 3)
            case "repeat":
                self.write("repeat 2 times:")
                self.write(update, 2)
        if pen.chance(4):
            self.write(f"{name} ← 0.9*{name} + 0.1*{pen.exact(scope, 0)}")
        match pen.pick(("no", "no", "every", "when")):
            case "every":
                self.write(f"every {pen.pick(('2', '3'))}:")
                self.write(f"reset {name}", 2)
            case "when":
                self.write(f"reset {name} when {pen.condition(scope, 1)}")
        self.keep(name, scope)
        self.feed.append(f"sin({old})")

    def declared(self, name: str, scope: Scope) -> str:
        """A declaration whose init is not finer than the state will be."""
        starts = ["0", "0.5", "0.3%", *(n for n, s in self.pen.names if s == ALL and n in self.parameters)]
        if scope == ELEMENT:
            starts += ["0.1*w", "(rms(w) per row)", "rows / numel"]
        elif TENSOR <= scope:
            starts += [f"(norm(w) / 5 per {scope})", "(absmax(w) per tensor)", "cols / numel"]
        if self.pen.chance(3):
            return f"state {name} = {self.pen.pick(starts)} per {scope}" + self.pen.pick((" as float16", "", " as float32", " as bfloat16", " as float64"))
        return f"state {name} = {self.pen.pick(starts)}" + self.pen.pick(("", "", " as bfloat16", " as float16"))

    parameters: tuple[str, ...] = ("a", "q")

    def two_states(self) -> None:
        if self.pen.least > TENSOR:
            return self.local()
        one, other = self.fresh(), self.fresh()
        self.write(f"state {one} = 0, {other} = {self.pen.literal()}")
        self.write(f"{one} ← 0.5*{one} + {self.pen.exact(ELEMENT, 1)}")
        self.write(f"{other} ← 0.7*{other} + 0.2*tanh({self.pen.exact(TENSOR, 1)})")
        if self.pen.chance(2):
            self.write(f"reset {one}, {other} when {self.pen.condition(TENSOR, 0)}")
        self.keep(one, ELEMENT)
        self.keep(other, TENSOR)
        return None

    def watch(self) -> None:
        scope = self.pen.pick((TENSOR, GROUP, ALL))
        self.write(f"watch seen{self.numbers[0]} = {self.pen.exact(scope, 1)}")
        self.numbers[0] += 1

    def windows(self) -> None:
        scope, name = self.scope(self.pen.least), self.fresh()
        self.write(f"{name} = {self.pen.window(scope, 1)}")
        self.keep(name, scope)

    def instance(self) -> None:
        scope, name = self.scope(self.pen.least), self.fresh()
        self.write(f"{name} = {self.pen.instance(scope, 1)}")
        self.keep(name, scope)

    def drawn(self) -> None:
        """Random matrices, and numbers."""
        name, form = self.fresh(), self.pen.pick(("gaussian({c}, 3, 2)", "uniform(-{c}, {d}, 2, n + 1)", "(bernoulli({d}, 2, 4) + {c})"))
        matrix = self.fresh()
        self.write(f"{matrix} = {self.pen.fill(form)}")
        self.write(f"{name} = {self.pen.pick((f'trace({matrix} @ {matrix}.T)', f'(norm({matrix}) per tensor)', f'(mean(max({matrix}) per row) per tensor)'))}")
        self.feed.append(f"tanh({name})")
        self.pen.names.append((name, TENSOR))
        if self.pen.chance(2):
            wide, low = self.fresh(), self.fresh()
            self.write(f"{wide} = {self.pen.fill('gaussian({c}, 2, rows) / 3')}")
            self.write(f"{low} = {wide}.T @ ({wide} @ g)")
            self.keep(low, ELEMENT)

    def matrices(self) -> None:
        """Values on grids of their own, brought back to the gradient's."""
        name, matrix, reduced = self.fresh(), self.fresh(), self.fresh()
        forms = (
            ("{m} = g @ g.T / (1 + norm(g)^2 per tensor)", "{n} = matrix_power({m} + 0.5*eye({m}), {a}) @ g",
            "{r} = diag({m}) + trace({m}) + (max({m}) per row) + rows({m}) / 9"),
            ("{m} = (g.T @ g) / (1 + (norm(g) per tensor)^2)", "{n} = solve({m} + eye({m}), g.T).T", "{r} = (mean({m}) per column) + cols({m}) / 9"),
            ("{m} = left_basis(g, 2)", "{n} = {m} @ ({m}.T @ g → norm per column)", "{r} = (mean({m}.T @ g) per column) + rows({m}) / 9"),
            ("{m} = right_basis(g, k = n)", "{n} = (g @ {m}) @ {m}.T", "{r} = (max(g @ {m}) per row)"),
            ("{m} = {x}", "{n} = polar({m} + g)", "{r} = (dot({m}, polar(g.T).T) per row)"),
            ("{m} = g @ g.T + (0.5 + norm(g)^2 per tensor)*eye(g @ g.T)", "{n} = orthonormal({m}) @ g", "{r} = diag({m}) / (1 + trace({m}))"),
            ("{m} = if rows ≥ cols then g else g.T", "{n} = if rows ≥ cols then orthonormal({m}) else orthonormal({m}).T",
            "{r} = (norm({m} @ {m}.T) per tensor)"),
        )  # fmt: skip
        for line in self.pen.pick(forms):
            self.write(line.format(n=name, m=matrix, r=reduced, x=self.pen.exact(ELEMENT, 1), a=self.pen.pick(("-0.5", "-1", "1/2", "0.25"))))
        self.keep(name, ELEMENT)
        self.feed.append(f"tanh({reduced})")

    def kept_basis(self) -> None:
        name, low = self.fresh(), self.fresh()
        self.write(f"state {name} = 0")
        self.write(f"every {self.pen.pick(('2 from 1', '3 from 1', 'n + 1 from 1'))}:")
        self.write(f"{name} ← left_basis({self.pen.pick(('g', '(g + 0.1*w)'))}, 2)", 2)
        self.write(f"{low} = {name} @ ({name}.T @ {self.pen.pick(('g', '(g → ema(0.5))'))})")
        self.keep(low, ELEMENT)

    def orthogonalized(self) -> None:
        name, matrix = self.fresh(), self.fresh()
        self.write(f"let {name} = g / (1 + norm(g)) per tensor")
        self.write(f"repeat {self.pen.pick(('2', 'n'))} times:")
        self.write(f"{matrix} = {name} @ {name}.T", 2)
        self.write(f"{name} ← 1.5*{name} - 0.5*{matrix} @ {name}", 2)
        self.keep(name, ELEMENT)

    def applied(self) -> None:
        """A rule of the file, in an expression."""
        if self.helpers:
            name = self.fresh()
            self.write(f"{name} = {self.pen.exact(ELEMENT, 1)} → {self.stage_of(*self.pen.pick(self.helpers))}")
            self.keep(name, ELEMENT)

    def samples(self) -> None:
        name, clipped = self.fresh(), self.fresh()
        over = self.scope_text()
        forms = (
            "{c} = samples → clip norm > a{per}\n{n} = sample_mean({c})", "{c} = tanh(samples*{x})\n{n} = sample_sum({c}) / batch",
            "{c} = samples / (0.3 + norm(samples){in_per})\n{n} = sample_mean({c} + 0.1*{x})",
            "{c} = if (rms(samples){in_per}) > {l} then samples else 0.3*samples\n{n} = sample_sum({c}) / (1 + batch)",
            "{c} = samples → clip z > 1.3\n{n} = sample_mean({c} @ g.T) @ g / (1 + norm(g)^2)",
        )  # fmt: skip
        text = self.pen.pick(forms).format(c=clipped, n=name, x=self.pen.exact(ELEMENT, 1), l=self.pen.literal(), per=over, in_per=over)
        for line in text.split("\n"):
            self.write(line)
        self.keep(name, ELEMENT)

    def scope_text(self) -> str:
        """` per S`, or nothing."""
        return "" if self.pen.chance(3) else f" per {self.pen.pick([s for s in self.pen.scopes(ELEMENT) if s != ELEMENT])}"

    # --- pipelines ---

    def stage_of(self, name: str, default: Scope) -> str:
        """A rule of the file as a stage, under the `per` that its body is written for."""
        q = self.pen.pick(("", "(q = 0.3)", "(0.75)", "(51%)", f"({self.pen.value(TENSOR, 0)})", "(q = 1 / (1 + t))"))
        return f"({name}{q} per {default})" if default != self.pen.default else f"{name}{q}"

    def stage(self) -> str:
        pen = self.pen
        with pen.within(names=[*pen.names, ("it", ELEMENT)]):
            match pen.number(0, 13):
                case 0 | 1:
                    return self.clip()
                case 2:
                    return pen.pick(("norm", "rms", "absmax", "standardize")) + self.scope_text()
                case 3:
                    return pen.fill("{c}*it + {x}", x=pen.exact(ELEMENT, 1))
                case 4:
                    return f"if {pen.exact_condition(ELEMENT, 1)} then it else 0.3*it"
                case 5:
                    return pen.fill(pen.pick(INSTANCES_OF_ENTRIES))
                case 6:
                    return f"repeat {pen.pick(('2', 'n'))} times ({self.short()})"
                case 7:
                    condition = pen.pick(("rows > cols", *pen.flags, "ndim < 2", 'name ~ "^[ab]"'))
                    return f"(if {condition} then {self.short()} else ({self.short()}))"
                case 8:
                    return f"0.5*it + 0.5*({pen.pick(('prev', 'ema', 'norm per column', 'rms', 'momentum(0.3)'))})"
                case 9:
                    return pen.pick(
                        ("orthogonalize(2)", "polar(it + 0.3*g)", "sinkgd(2)", "centralize", "tanh", "it / (0.3 + rms)", "mean(it → history(2))", "it*sigmoid")
                    )
                case 10:
                    return f"(it / (0.3 + {pen.pick(('norm', 'rms(it)', 'absmax', 'std(it)'))}){self.scope_text()})"
                case _ if self.helpers:
                    return f"it + 0.3*(it → {self.stage_of(*pen.pick(self.helpers))})"
        return pen.fill("{c}*it + {d}*tanh(it)")

    def short(self) -> str:
        return self.pen.pick(
            (
                "rms per row → rms per column",
                "clip norm > 0.8 per row → 0.9*it + 0.1*tanh(g) → ema(0.5)",
                "0.9*it + 0.1*tanh(it)",
                "prev",
                "norm",
                "clip z > 1.4",
                "ema(0.5) per row → it + 0.1*g".replace(" per row", ""),
            )
        )

    def clip(self) -> str:
        """A clip of whole cells, of entries, about a centre; with bounds that are numbers, kept averages, and quantiles."""
        pen, sign = self.pen, self.pen.pick((">", "≥", "<", "≤"))
        about = [f for f in pen.fns if f.about]
        scope = pen.pick([s for s in pen.scopes(ELEMENT, pen.least) if s != ELEMENT])
        match pen.number(0, 7):
            case 0:
                return f"clip abs {sign} {pen.literal()}"
            case 1:
                return f"clip z {sign} 1.{pen.pick((3, 7))}{self.scope_text()}"
            case 2 if about:
                fn = pen.pick(about)
                return f"clip {fn.name}{pen.pick(('', '(it)', '(k = 0.7)'))} > 1.21{self.scope_text()}"
            case 3:
                return f"clip norm > 1.05*(norm(it) → ema(0.9)) per {scope}"
            case 4 if pen.allows("quantile"):
                return f"clip rms > quantile(norm(it) → history(3), 60%) per {scope}"
            case 5:
                with pen.within(default=scope):
                    return f"clip norm(it, 1) + {pen.literal()} {sign} {pen.value(scope, 1)} per {scope}"
            case 6:
                return f"clip norm(p = 1) {sign} 2*{pen.literal()}{self.scope_text()}"
        return f"clip norm {sign} {pen.literal()}{self.scope_text()}"

    def pipeline(self, stages: int) -> str:
        first = self.pen.pick(("g", "it", "0.7*g + 0.3*{x}", "")).format(x=self.pen.exact(ELEMENT, 1))
        return " → ".join([*([first] if first else []), *(self.stage() for _ in range(stages)), "it + feed"])

    def feeding(self) -> None:
        self.write(f"feed = 0.01*({' + '.join(self.feed)})")


INSTANCES_OF_ENTRIES = (
    "ema(0.5)",
    "EMA(debias = {flag})",
    "momentum({c})",
    "nesterov(0.5)",
    "prev",
    "adam(eps = 0.1)",
    "adam(0.5, 0.8, 0.1)",
    "rmsprop",
    "cautious(sign(g))",
)
STATEMENTS: tuple[Callable[[Author], None], ...] = (
    Author.local, Author.local, Author.condition, Author.let, Author.state, Author.state, Author.two_states, Author.watch, Author.windows,
    Author.instance, Author.drawn,
    Author.matrices, Author.matrices, Author.kept_basis, Author.orthogonalized, Author.applied,
)  # fmt: skip
