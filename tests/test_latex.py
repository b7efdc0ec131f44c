"""Rules as LaTeX: every rule of the library, each formula read by another program, and texts that try to be commands."""

import re
from collections.abc import Iterator

import pytest
from matplotlib.mathtext import MathTextParser

from updsl import cli, pipeline
from updsl.front.files import library, load_module
from updsl.front.latex import formulas, to_latex
from updsl.front.letters import symbol, symbols, word

RULES = sorted(library().rules)
INNERMOST = re.compile(r"\\begin\{cases\}((?:(?!\\begin\{cases\}).)*?)\\end\{cases\}")
READER = MathTextParser("path")
READ: set[str] = set()


def pieces(line: str) -> Iterator[str]:
    """A line whose cases are each an x, and the values and conditions of those cases: what a reader without environments can read."""
    while found := INNERMOST.search(line):
        for row in found[1].split(r"\\"):
            yield from row.split("&")
        line = f"{line[: found.start()]}x{line[found.end() :]}"
    yield line


def is_read(line: str) -> bool:
    for piece in (p.strip() for p in pieces(line)):
        if piece not in READ:
            READER.parse(f"${piece}$")
            READ.add(piece)
    return True


def is_balanced(text: str) -> bool:
    """Whether braces, environments and growing brackets close in the order in which they open."""
    opened: list[str] = []
    for token in re.findall(r"\\begin\{\w+\}|\\end\{\w+\}|\\left(?![a-z])|\\right(?![a-z])|\\.|[{}]", text):
        match token[:6], token:
            case _, "{" | r"\left":
                opened.append(token)
            case r"\begin", _:
                opened.append(token[6:])
            case _, "}" | r"\right":
                if not opened or opened.pop() != {"}": "{", r"\right": r"\left"}[token]:
                    return False
            case r"\end{c" | r"\end{a", _:
                if not opened or opened.pop() != token[4:]:
                    return False
    return not opened


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_well_formed(name):
    module = load_module(name)
    assert is_balanced(to_latex(module))
    assert all(is_read(line) for lines in formulas(module) for _, line in lines)


def test_imbalance_and_nonsense_are_seen():
    assert not is_balanced(r"\frac{a}{b")
    assert not is_balanced(r"\left(a")
    assert not is_balanced(r"\begin{cases} a \end{aligned}")
    with pytest.raises(ValueError, match="Unknown symbol"):
        is_read(r"\nonsense{a}")


def latex(text: str) -> list[str]:
    """The lines of a text's main rule, without the first."""
    return [line for _, line in formulas(pipeline.from_text(text))[0][1:]]


def value(expression: str) -> str:
    """What a rule that returns the expression returns."""
    (line,) = latex(f"rule r(c = 1, k = 2) = {expression}\n")
    assert is_read(line)
    return line.removeprefix(r"\mathbf{return}\ ")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("g / norm(g) per column", r"\frac{g}{\left\Vert g \right\Vert_{\mathrm{column}}}"),
        ("norm per column → ema", r"g \to \mathrm{norm}_{\mathrm{column}} \to \mathrm{ema}"),
        ("norm per column", r"\mathrm{norm}_{\mathrm{column}}(g)"),
        ("norm(g, 1)*g", r"\left\Vert g \right\Vert_{1}\,g"),
        ("clip norm > c per all", r"g\,\min\left(1, \frac{c}{\left\Vert g \right\Vert_{\mathrm{all}}}\right)"),
        ("clip norm < c", r"g\,\max\left(1, \frac{c}{\left\Vert g \right\Vert}\right)"),
        ("clip z > c", r"\mathrm{mean}(g) + (g - \mathrm{mean}(g))\,\min\left(1, \frac{c}{\mathrm{z}(g)}\right)"),
        ("2*g → clip abs > c → ema(0.9)", r"2\,g \to \mathrm{clip}_{\left|\cdot\right| \leq c} \to \mathrm{ema}(0.9)"),
        ("g → ema(beta = 0.98, debias = false)", r"\mathrm{ema}(g;\ \beta = 0.98,\ \mathrm{debias} = \mathrm{false})"),
        ("repeat k times (rms per row → rms per column)", r"(\mathrm{rms}_{\mathrm{row}} \to \mathrm{rms}_{\mathrm{column}})^{k}(g)"),
        ("quantile(norm(g) → history(9), 10%) * g per all",
         r"\mathrm{quantile}(\mathrm{history}(\left\Vert g \right\Vert_{\mathrm{all}};\ 9), 10\%) \cdot g"),
        ("g / c / k", r"\frac{g}{c\,k}"),
        ("g / c * k", r"\frac{g}{c}\,k"),
        ("g / (c * k)", r"\frac{g}{c\,k}"),
        ("c * (g / k)", r"c\,\frac{g}{k}"),
        ("(g / c)^2", r"\left(\frac{g}{c}\right)^{2}"),
        ("g^(1/2)", r"g^{1/2}"),
        ("(-g)^2 - (c - k)", r"(-g)^{2} - (c - k)"),
        ("g * -c", r"g\,(-c)"),
        ("2*g*3", r"2\,g \cdot 3"),
        ("g * 1e-8", r"g \cdot 10^{-8}"),
        ("g * 2.5e20", r"g \cdot 2.5 \cdot 10^{20}"),
        ("sign(g) * sqrt(absmax(g))", r"\mathrm{sign}(g) \cdot \sqrt{\left\Vert g \right\Vert_{\infty}}"),
        ("g @ g.T @ g", r"g\,g^{\top}\,g"),
        ("c * (g @ g.T @ g)", r"c \cdot (g\,g^{\top}\,g)"),
        ("matrix_power(g @ g.T, -1/4) @ g", r"(g\,g^{\top})^{-1/4}\,g"),
        ("g + gaussian(c)", r"g + \mathcal{N}(0, c^{2})"),
        ("g * uniform(0, 1, each = all)", r"g\,\mathcal{U}_{\mathrm{all}}(0, 1)"),
        ("if g > c then c else if not g < -c then g else -c",
         r"\begin{cases} c & \text{if } g > c \\ g & \text{if } \neg (g < -c) \\ -c & \text{otherwise} \end{cases}"),
        ("g * (if t > 1 then 1 else 2)", r"g\,\left(\begin{cases} 1 & \text{if } t > 1 \\ 2 & \text{otherwise} \end{cases}\right)"),
        ("g * max(rms(g) per block(64), k)", r"g\,\max(\mathrm{rms}_{\mathrm{block}(64)}(g), k)"),
    ],
)  # fmt: skip
def test_expressions(expression, expected):
    assert value(expression) == expected


def test_statements():
    text = """
rule r(n = 3, beta1 = 0.9):
    input loss per all, P as matrix
    state m̂ = 0 per row as float32, k = 0
    reset k when mod(t, n) == 0
    skip when not isfinite(loss)
    let x = g
    repeat n times:
        x ← x / 2
    every n from 1:
        k ← k + 1
    watch z = loss
    match:
        name ~ "lm_head": x
        else:
            y = 2*x
            return y
"""
    assert latex(text) == [
        r"\mathbf{input}\ \mathrm{loss}\ \mathbf{per}\ \mathrm{all},\ P\ \mathbf{as}\ \mathrm{matrix}",
        r"\mathbf{state}\ \hat{m} = 0\ \mathbf{per}\ \mathrm{row}\ \mathbf{as}\ \mathrm{float32},\ k = 0",
        r"\mathbf{reset}\ k\ \mathbf{when}\ (t \ \mathrm{mod}\  n) = 0",
        r"\mathbf{skip}\ \mathbf{when}\ \neg \mathrm{isfinite}(\mathrm{loss})",
        r"x \leftarrow g",
        r"\mathbf{repeat}\ n\ \mathbf{times}",
        r"x \leftarrow \frac{x}{2}",
        r"\mathbf{every}\ n\ \mathbf{steps}\ \mathbf{from}\ 1",
        r"k \leftarrow k + 1",
        r"\mathbf{if}\ \mathrm{name} \sim \text{“}\mathrm{lm\_head}\text{”}",
        r"\mathbf{return}\ x",
        r"\mathbf{else}",
        r"y = 2\,x",
        r"\mathbf{return}\ y",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("g", "g"), ("m̂", r"\hat{m}"), ("ŵ", r"\hat{w}"), ("μ̄", r"\bar{\mu}"), ("β1", r"\beta_{1}"), ("beta1", r"\beta_{1}"), ("eps", r"\epsilon"),
        ("γ", r"\gamma"), ("Π", r"\Pi"), ("Α", r"\mathrm{A}"), ("n'", "n'"), ("μ''", r"\mu''"), ("z_max", r"z_{\mathrm{max}}"),
        ("ρ_inf", r"\rho_{\mathrm{inf}}"), ("beta2_decay", r"\beta_{2,\mathrm{decay}}"), ("max_norm", r"\mathrm{max\_norm}"), ("b0", "b_{0}"),
        ("task1", r"\mathrm{task}_{1}"), ("_", r"\mathrm{\_}"), ("_x", r"\mathrm{\_x}"), ("lr", r"\eta"), ("input_", r"\mathrm{input\_}"),
        ("schlüssel", r"\mathrm{schlüssel}"), ("шаг", r"\mathrm{шаг}"),
    ],
)  # fmt: skip
def test_names(name, expected):
    assert symbol(name) == expected
    assert is_balanced(expected)


def test_names_that_would_look_alike_are_told_apart():
    assert symbols(["ε", "eps", "g"]) == {"ε": r"\epsilon", "eps": r"\mathrm{eps}", "g": "g"}
    assert symbols(["beta1", "beta_1"]) == {"beta1": r"\mathrm{beta1}", "beta_1": r"\mathrm{beta\_1}"}


@pytest.mark.parametrize("text", [r"\\input{/etc/passwd}", "$x$", "}{", "a_b^c~d%e#f&g", "\\\\end{aligned}", "“”`'", "```", "<script>"])
def test_no_text_is_obeyed(text):
    shown = to_latex(pipeline.from_text(f'rule r:\n    match:\n        name == "{text}": g\n        else: 0*g\n'))
    assert is_balanced(shown)
    assert not re.search(r"\\input|\\write|\\def|(?<!\\)\$|`", shown)
    assert shown.count(r"\end{aligned}") == 1
    commands = set(re.findall(r"\\[a-z]+", word(text)))
    assert commands <= {r"\mathrm", r"\text", r"\backslash", r"\wedge", r"\sim"}
    assert is_balanced(word(text))


@pytest.mark.parametrize("text", ["g" + "^2" * 190, "-" * 190 + "g", "g" + " or g" * 190, "abs(" * 60 + "g" + ")" * 60, "g" + " / g" * 190])
def test_depth_is_no_trouble(text):
    assert is_balanced(to_latex(pipeline.from_text(f"rule r = {text}\n")))


@pytest.mark.parametrize("body", ["m ← g\n    return m", "return clamp(g)", "return solve(g)", "return frob(g)", "return dim() * g", "return g → emma"])
def test_a_rule_that_does_not_check_is_reported(capsys, tmp_path, body):
    file = tmp_path / "r.upd"
    file.write_text(f"rule r:\n    {body}\n", encoding="utf-8")
    assert cli.run(["show", str(file), "--latex"]) == cli.FOUND
    assert capsys.readouterr().err.startswith("error[")


def test_the_command_prints_it(capsys):
    assert cli.run(["show", "adam", "--latex"]) == 0
    assert capsys.readouterr().out == to_latex(load_module("adam")) + "\n"
    assert cli.run(["show", "adam", "--latex", "--after", "text"]) == cli.USAGE
