"""A counterexample as Python that runs wherever updsl is installed: the rule on the stream, and the law as a rule of its own, which gives 1 where it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from updsl.front import syntax
from updsl.front.claim import RESULT, Claim
from updsl.front.claims import inputs_of
from updsl.front.contents import nodes
from updsl.front.module import Module
from updsl.front.unit import Constant
from updsl.laws.replay import to_array
from updsl.laws.trial import Breach, Setting, Took

RUN = '''
def run(stream):
    """What the rule gives at each step, and the weights before it."""
    w, state, found = {weights}, rule.init(shapes, seed={seed}), []
    for g, given in zip(stream, inputs):
        out, state, new, _ = rule.{update}(g, state, params=w, lr={lr}, **given)
        found.append((out, w))
        w = new or w
    return found
'''


def snippet(module: Module, claim: Claim, setting: Setting, breach: Breach, steps: list[Took]) -> str:
    """A text whose last statement fails, where the law does."""
    inexact = setting.dtype != "float64"
    law = law_text(module, claim, setting)
    others = [f"other{k}" for k in range(1, claim.streams + 1)]
    lines = [
        f"# {' '.join(claim.law.span.text.split())}",
        "from math import inf, nan",
        "",
        "import numpy as np",
        *(["import torch"] if inexact else []),
        "import updsl",
        "",
        *_rule(module, setting),
        f"law = updsl.parse({'rule.text + ' if not module.unit.used else ''}{_quoted(law)}, name={_law_name(claim)!r})",
        f"shapes = {{{', '.join(f'{t.name!r}: np.zeros({t.shape})' for t in setting.tensors)}}}",
        f"inputs = {_list([_inputs(module, given, setting) for given in setting.inputs or ({},) * len(setting.steps)])}",
        f"g = {_list([_arrays(g, setting) for g in setting.steps])}",
    ]
    lines += [f"g{k} = {_list([_arrays(took.streams[k], setting) for took in steps])}  # {claim_stream(claim, k)}" for k in range(1, claim.streams + 1)]
    update = "update" if inexact else "interpret.update"
    lines += [RUN.format(weights=_arrays(setting.weights, setting), seed=setting.seed, update=update, lr=setting.lr)]
    matrices = "".join(f", {q}={{{', '.join(f'{n!r}: {_numbers(x)}' for n, x in by.items())}}}" for q, by in setting.matrices.items())
    given = "".join(f", {name}=r{k}[0]" for k, name in enumerate(["out", *others]))
    lines += [
        f"state, runs = law.init(shapes), zip(g, inputs, run(g){''.join(f', run(g{k})' for k in range(1, claim.streams + 1))})",
        f"for step, (x, given{''.join(f', r{k}' for k in range(claim.streams + 1))}) in enumerate(runs, 1):",
        f'    print(f"step {{step}}: g = {{x}}, rule(g) = {{r0[0]}}{"".join(f", rule({s}) = {{r{k}[0]}}" for k, s in enumerate(_escaped(claim), 1))}")',
        f"    holds, state, _, _ = law.interpret.update(x, state, params=r0[1], lr={setting.lr}, **given{given}{matrices})",
        f"# there the law compares {' and '.join(map(repr, breach.sides))}",
        f'assert all(x.all() for x in holds.values()), "`{claim.law.name}` does not hold at step {breach.step}"',
    ]
    return "\n".join(lines) + "\n"


def _escaped(claim: Claim) -> list[str]:
    return [claim_stream(claim, k).replace("{", "{{").replace("}", "}}").replace('"', "'") for k in range(1, claim.streams + 1)]


def claim_stream(claim: Claim, k: int) -> str:
    """The text of the k-th other stream."""
    return " ".join(claim.given[k - 1].span.text.split())


def law_text(module: Module, claim: Claim, setting: Setting) -> str:
    """The law as a rule that gives 1 where it holds, else 0, and has what the rule gives as inputs."""
    values = {**setting.parameters, **setting.numbers}
    declared = [f"{i.name}{_kind(i)}" for i in inputs_of(module)]
    declared += ["out", *(f"other{k}" for k in range(1, claim.streams + 1)), *(f"{q} as matrix" for q in setting.matrices)]
    said = _text(claim.text)
    holds = f"({said})" if claim.premise is None else f"not ({_text(claim.premise)}) or ({said})"
    parameters = ", ".join(f"{n} = {_written(v)}" for n, v in values.items())
    return f"\n\nrule {_law_name(claim)}({parameters}):\n    input {', '.join(declared)}\n    return if {holds} then 1 else 0\n"


def _law_name(claim: Claim) -> str:
    return f"law_{claim.law.name}"


def _kind(item: syntax.InputItem) -> str:
    if item.scope is not None:
        return f" per {item.scope.span.text}"
    return "" if item.kind == "stream" else f" as {item.kind}"


def _text(e: syntax.Expr) -> str:
    """The source of a premise or claim, with names for what the rule gives."""
    text, start = e.span.text, e.span.start
    found = [n for n in nodes(e) if isinstance(n, syntax.Name) and (n.id == "out" or n.id.startswith(RESULT))]
    for n in sorted(found, key=lambda n: -n.span.start):
        name = "out" if n.id == "out" else f"other{n.id.rpartition(' ')[2]}"
        text = text[: n.span.start - start] + name + text[n.span.end - start :]
    return " ".join(text.split())


def _written(v: Constant) -> str:
    """A value as a rule's text writes it."""
    return f'"{v}"' if isinstance(v, str) else str(v).lower() if isinstance(v, bool) else repr(_plain(v))


def _rule(module: Module, setting: Setting) -> Iterator[str]:
    """The rule, by its name in the library, by its file where that uses others, or by its text."""
    unit = module.unit
    values = "".join(f", {n}={_plain(v)!r}" for n, v in setting.parameters.items() if v != module.parameters[n].default)
    library = unit.library(module.name)
    if library is not None and library.main is not None and library.source.text == unit.source.text and module.name == library.main.name:
        yield f"rule = updsl.load({module.name!r}{values})"
    elif unit.used:
        yield f"rule = updsl.load({unit.source.name!r}{values})"
    else:
        yield f"rule = updsl.parse({_quoted(unit.source.text)}, name={module.name!r}{values})"


def _plain(v: Constant) -> Constant:
    """A whole number without its point."""
    return int(v) if isinstance(v, float) and not isinstance(v, bool) and v == int(max(-1e15, min(v, 1e15))) else v


def _quoted(text: str) -> str:
    body = text.replace("\\", "\\\\").replace("'''", "\\'\\'\\'")
    return f"'''{body}'''"


def _list(parts: list[str]) -> str:
    return "[" + ", ".join(parts) + "]" if len(parts) < 2 else "[\n    " + ",\n    ".join(parts) + ",\n]"


def _arrays(xs: Mapping[str, Any], setting: Setting) -> str:
    make = "np.array({})" if setting.dtype == "float64" else f"torch.tensor({{}}, dtype=torch.{setting.dtype})"
    return "{" + ", ".join(f"{n!r}: {make.format(_entries(x))}" for n, x in xs.items()) + "}"


def _entries(x: Any) -> str:
    """Numbers in brackets; an array without any is told apart from one of another shape where it is made."""
    a = to_array(x)
    return repr([float(v) for v in a.ravel()]) + f".reshape({a.shape})" if not a.size else repr(a.astype(float).tolist())


def _numbers(x: Any) -> str:
    return f"np.array({_entries(x)})"


def _inputs(module: Module, given: Mapping[str, Mapping], setting: Setting) -> str:
    """One step's, by name, each in the form in which it is handed over."""
    found = []
    for name, cells in given.items():
        kind = module.inputs[name]
        if kind == "all":
            found.append(f"{name!r}: {float(to_array(cells['']))!r}")
        elif kind == "group":
            found.append(f"{name!r}: [{float(to_array(cells[0]))!r}]")
        elif kind == "tensor":
            found.append(f"{name!r}: { ({n: float(to_array(x)) for n, x in cells.items()})!r}")
        else:
            found.append(f"{name!r}: {_arrays(cells, setting)}")
    return "{" + ", ".join(found) + "}"
