"""Random rule files, as text: functions, rules that others apply, and the rule that the file stands for."""

from __future__ import annotations

import re
from collections.abc import Callable

from authoring import STATEMENTS, Author
from writing import Fn, Writer

from updsl.core.scope import ALL, COLUMN, ELEMENT, GROUP, ROW, TENSOR, Scope, block

EVERYWHERE = "median|quantile|largest|history|windows|drawn|matrices|basis|orthogonalize|polar|samples|matrix"
BEYOND = {"cpp": EVERYWHERE, "triton": f"{EVERYWHERE}|atan2"}
"""Words of what the kernels of a backend do not cover."""
TOGETHER = (r"block", r"\brow\b|column|sinkgd|centralize|block\(4\)", r"\brow\b|column|sinkgd|centralize|block\(3\)")
"""Words that are to be left out further, one of these: kernels have rows and columns, or blocks of one size."""
PIECES = {"→": ("->", "|>"), "←": ("<-",), "≤": ("<=",), "≥": (">=",), "≠": ("!=",), "*": ("·", "×"), " - ": (" − ",)}


def written_fn(pen: Writer, number: int) -> tuple[Fn, str]:
    """A function, and its text."""
    name = f"f{number}{pen.pick(('', chr(39)))}"
    form, extra, reduces, about = pen.pick(
        (
            ("({a}, k = {c}) = tanh(k*{a})", ("k",), False, False),
            ("({a}, y) = {a} / (0.3 + abs(y)) - {c}*y", ("y",), False, False),
            ("({a}, k = 1) about k*median({a}) = abs({a} - k*median({a})) / (0.2 + std({a}))", ("k",), True, True),
            ("({a}) = {a} / (0.3 + rms({a}))", (), True, False),
            ("({a}, k = {c}, l = 2*k) = clamp({a} - mean({a}), -l, l)", ("k",), True, False),
            ("({a}) about mean({a}) = abs({a} - mean({a})) / (0.3 + norm({a}))", (), True, True),
        )
    )
    argument = pen.pick(("x", "v"))
    return Fn(name, extra, reduces, about and extra == ("k",)), f"fn {name}" + pen.fill(form, a=argument)


def helper(pen: Writer, numbers: list[int], others: list[tuple[str, Scope]], least: Scope, clock: Scope | None) -> tuple[str, Scope, list[str], dict[str, str]]:
    """A rule that others apply: its name, the scope that its body is written for, its text, and its inputs."""
    default = pen.pick((TENSOR, TENSOR, ROW, COLUMN, block(3), GROUP, ALL))
    numbers[0] += 1
    name = f"Help{numbers[0]}{pen.pick(('', chr(39)))}"
    with pen.within(names=[], conditions=[], default=default, least=least, clock=clock, flags=("true", "false")):
        author = Author(pen, numbers, helpers=others)
        author.parameters = ()
        head = f"rule {name}(q = {pen.literal()}, n = {pen.pick((1, 2))}):"
        if pen.chance(5):
            author.write("input h")
            author.inputs["h"] = "stream"
            author.keep("h", ELEMENT)
        if pen.chance(4):
            author.write(f"every {pen.pick(('2', '3'))}:")
            author.write("reset", 2)
        elif pen.chance(4):
            skip(author)
        author.feed.append("tanh(q*(mean(g) + t) + n)")
        pen.pick([s for s in STATEMENTS if s not in (Author.drawn, Author.matrices, Author.kept_basis, Author.orthogonalized)])(author)
        author.feeding()
        ending = author.pipeline(pen.number(0, 1)) if pen.chance(2) else "0.7*g + feed"
        author.write(f"return {ending}")
    return name, default, [head, *author.lines], author.inputs


def skip(author: Author) -> None:
    """`skip`; from here on `t` and states are not coarser than its condition."""
    pen = author.pen
    scope = pen.pick((TENSOR, GROUP, ALL))
    condition = pen.pick((f"{pen.pick(('rms', 'absmax', 'norm'))}(g) > {pen.pick(('1.1', '2.31'))} per {scope}", "t == 2", "t == 3"))
    author.write(f"skip when {condition}")
    if condition.endswith(str(scope)):
        pen.least, pen.clock = pen.least | scope, None if pen.clock is None else pen.clock | scope


SAMPLE_INPUTS = ("input samples", "input samples as samples")
FURTHER = {
    "h": ("stream", "h", ELEMENT), "loss": ("all", "loss per all", ALL), "size": ("tensor", "size per tensor", TENSOR), "ra": ("row",
    "ra per row", ROW), "co": ("column", "co per column", COLUMN),
    "bl": ("block(3)", "bl per block(3)", block(3)), "gr": ("group", "gr per group", GROUP),
}  # fmt: skip


def further_inputs(author: Author) -> None:
    """Further streams, and what is made of matrices and samples."""
    pen = author.pen
    chosen = [name for name in FURTHER if pen.chance(6) and pen.allows(FURTHER[name][1])]
    lines = [FURTHER[name][1] for name in chosen]
    for name in chosen:
        author.inputs[name] = FURTHER[name][0]
        author.keep(name, FURTHER[name][2])
    if pen.chance(6) and pen.allows("matrix"):
        lines.append("P as matrix")
        author.inputs["P"] = "matrix"
    if pen.chance(4) and pen.allows("samples"):
        lines.append(pen.pick(("samples", "samples as samples")))
        author.inputs["samples"] = "samples"
    if lines:
        author.write(f"input {', '.join(lines)}")


def main(pen: Writer, numbers: list[int], helpers: list[tuple[str, Scope]], mode: str, before: list[str]) -> Author:
    """The rule that the file stands for. before: the rules before it."""
    author = Author(pen, numbers, helpers=helpers)
    if pen.chance(4):
        author.write('"""A random rule."""')
    further_inputs(author)
    if mode == "skip":
        skip(author)
    if "P" in author.inputs:
        author.write("Pu = P.T @ (P @ g) / 4")
        author.keep("Pu", ELEMENT)
    if "samples" in author.inputs:
        author.samples()
    for _ in range(pen.number(1, 4)):
        pen.pick(STATEMENTS)(author)
    for fn in pen.fns:
        if not any(fn.name in line for line in (*author.lines, *before)):
            author.write(f"use_{fn.name} = {pen.apply(fn, pen.exact(ELEMENT, 1), ELEMENT)}")
            author.feed.append(f"tanh(use_{fn.name})")
    for i, (name, default) in enumerate(helpers):
        if not any(name in line for line in author.lines):
            author.write(f"by{i} = g → {author.stage_of(name, default)}")
            author.feed.append(f"tanh(by{i})")
    author.feed.append('tanh(a - b + n) + (if debug then 0.3 else 0.7) + (if mode == "fast" then t else lr)')
    author.feeding()
    ENDINGS[pen.pick(tuple(ENDINGS))](author)
    return author


def returned(author: Author) -> None:
    author.write(f"return {author.pipeline(author.pen.number(1, 3))}")


def written(author: Author) -> None:
    """New weights: once, again every few steps, with an `out` of its own or without."""
    pen = author.pen
    author.write(f"u = {author.pipeline(pen.number(0, 2))}")
    author.write(f"w ← w - lr*(u + {pen.literal()}*w)")
    if pen.chance(3):
        author.write("every 2:")
        author.write("w ← 0.9*w", 2)
    if pen.chance(3):
        author.write("return u + 0.1*w")


def last_stage(author: Author) -> None:
    author.write(f"return {author.pipeline(author.pen.number(0, 1))} → Step(0.3)")


def routed(author: Author) -> None:
    """`match`: arms that give pipelines, or blocks with names and states of their own."""
    pen, writes = author.pen, author.pen.chance(3)
    conditions = ("ndim < 2", 'name ~ "weight$"', "rows > cols and numel > 3", 'name == "c.bias"', "debug", 'name ~ "^(a|k)\\."', "n > 1 and cols == 5")
    author.write("match:")
    arms = [f"{pen.pick(conditions)}:" for _ in range(pen.number(1, 2))] + ["else:"]
    for arm in arms:
        with pen.within(names=list(pen.names), conditions=list(pen.conditions)):
            if writes:
                author.write(arm, 2)
                author.write(f"w ← w - lr*({author.pipeline(1)})", 3)
            elif pen.chance(2):
                author.write(f"{arm} {author.pipeline(1)}", 2)
            else:
                author.write(arm, 2)
                block_of_arm(author)


def block_of_arm(author: Author) -> None:
    pen, scope, kept = author.pen, author.scope(), author.pen.pick([s for s in (TENSOR, GROUP, ALL) if author.pen.least <= s])
    name, state = author.fresh(), author.fresh()
    author.write(f"{name} = {pen.exact(scope, 1)}", 3)
    author.write(f"state {state} = 0.1", 3)
    author.write(f"{state} ← 0.5*{state} + tanh({pen.exact(kept, 1)})", 3)
    pen.names += [(name, scope), (state, kept)]
    author.write(f"return {author.pipeline(1)} → it + 0.01*(tanh({name}) + {state})", 3)


ENDINGS: dict[str, Callable[[Author], None]] = {"returned": returned, "again": returned, "written": written, "last stage": last_stage, "routed": routed}
STEP = "rule Step(q = 0.1):\n    w ← w - lr*(g + q*w)\n"


def written_file(pen: Writer, grouped: bool = False, kernels: str = "") -> tuple[str, dict[str, str]]:
    """The file, and the inputs of its main rule. grouped: groups may have their own values of the parameters, whose scope is the group's then.
    kernels: of what the kernels of this backend cover, "cpp" or "triton"."""
    numbers, inputs = [0], {}
    if kernels:
        pen.draws, pen.without = False, re.compile("|".join((BEYOND[kernels], pen.pick(TOGETHER))))
    mode = pen.pick(("", "", "skip"))
    fns = [written_fn(pen, i) for i in range(pen.number(0, 2))]
    pen.fns = [fn for fn, _ in fns]
    declarations = [text for _, text in fns]
    helpers: list[tuple[str, Scope]] = []
    for _ in range(pen.number(0, 2)):
        name, default, lines, more = helper(pen, numbers, list(helpers), TENSOR if mode == "skip" else ALL, None if mode == "skip" else ALL)
        helpers.append((name, default))
        declarations.append("\n".join(lines))
        inputs |= more
    pen.names = [] if grouped else [("a", ALL), ("b", ALL)]
    pen.flags = ("debug", "true", "false", 'mode == "fast"')
    author = main(pen, numbers, helpers, mode, declarations[len(fns) :])
    inputs |= author.inputs
    constants = f'n = {pen.pick((1, 2, 3))}, debug = {pen.pick(("true", "false"))}, mode = "{pen.pick(("fast", "slow"))}"'
    parameters = f"a = {pen.literal()}, b = {pen.pick(('0.3', '2*a', '40% in [0, 1]'))}, {constants}"
    author.lines.insert(0, f"rule main({parameters}):")
    if any("→ Step(0.3)" in line for line in author.lines):
        declarations.append(STEP)
    text = "\n\n".join([*declarations, "\n".join(author.lines)]) + "\n"
    return spelled(pen, text), inputs


def spelled(pen: Writer, text: str) -> str:
    """The same text in other spellings of its symbols."""
    for sign, others in PIECES.items():
        if pen.chance(3):
            text = text.replace(sign, pen.pick(others))
    return text
