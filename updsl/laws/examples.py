"""Worked examples: run in the interpreter, compared with what the text says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from updsl.back.interpret import Interpreter
from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.core.frame import Frame, RuleState, Tensor
from updsl.front import syntax
from updsl.front.elaborate import elaborate
from updsl.front.module import Module, check_setting
from updsl.front.statics import constant, number
from updsl.front.unit import Constant

RTOL = 1e-6
"""Of the largest entry: an example is written with as many digits as its author cares for, and shown to be right to these."""
NAME = "weight"


def example_mistakes(module: Module, example: syntax.Example) -> Iterator[Diagnostic]:
    """What is wrong with an example: names, shapes, or that the rule gives something else."""
    try:
        found, expected = run(module, example)
    except UpdslError as e:
        yield from e.diagnostics
        return
    for step, (have, want) in enumerate(zip(found, expected, strict=True), 1):
        if have.shape != want.shape or not is_close(have, want):
            which = f"step {step} of this example" if len(expected) > 1 else "this example"
            yield Diagnostic(
                "example-fails",
                f"{which} says {_text(want)}, and the rule gives {_text(have)}",
                example.expected[step - 1].span,
                help=f"write `{_text(have).replace('nan', 'inf - inf')}`, or mend the rule",
            )
            return


def run(module: Module, example: syntax.Example) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the rule gives at each step (the weight after it, for a rule that writes w), and what the example says. w starts at 0, lr is 1.

    Raises UpdslError on unknown names, shapes that differ, or a rule that cannot be run on the example's shape.
    """
    parameters, inputs = _settings(module, example)
    given = [_array(a, parameters) for a in example.given]
    expected = [_array(a, parameters) for a in example.expected]
    _check_shapes(module, example, given, expected, inputs)
    tensor = Tensor(NAME, given[0].shape)
    elaborated = elaborate(module, [tensor], parameters)
    interpreter = Interpreter(elaborated.programs, elaborated.class_of, [tensor])
    state, w, found = RuleState(), np.zeros(given[0].shape), []
    numbers = {n: float(v) for n, v in parameters.items() if not isinstance(v, str)}
    for step, g in enumerate(given):
        handed = {name: {_key(module.inputs[name]): values[step]} for name, values in inputs.items()}
        batch = next((len(values[step]) for name, values in inputs.items() if module.inputs[name] == "samples"), None)
        result = interpreter.step(state, Frame({NAME: g}, {NAME: w}, {NAME: 0}, {0: 1.0}, {0: numbers}, handed, batch))
        state = result.state
        w = w if result.weights is None else np.asarray(result.weights[NAME])
        found.append(w if module.writes_weights else np.broadcast_to(result.out[NAME], g.shape))
    return found, expected


def _settings(module: Module, example: syntax.Example) -> tuple[dict[str, Constant], dict[str, list[np.ndarray]]]:
    """The example's parameters (the others at their defaults) and inputs, step by step."""
    parameters: dict[str, Constant] = {n: p.default for n, p in module.parameters.items() if p.default is not None}
    inputs: dict[str, list[np.ndarray]] = {}
    for s in example.settings:
        if s.name in module.inputs:
            inputs[s.name] = [_array(a, parameters) for a in s.steps]
        elif s.name in module.parameters:
            if len(s.steps) != 1 or isinstance(s.steps[0], syntax.Array):
                raise UpdslError(Diagnostic("example-shape", f"the parameter `{s.name}` has one value", s.span, help=f"write `{s.name} = 0.9`"))
            parameters[s.name] = constant(s.steps[0], parameters)
            check_setting(module.parameters[s.name], parameters[s.name], s.span, f"example({s.name} = …): …")
        else:
            known = [*module.parameters, *module.inputs]
            help_ = did_you_mean(s.name, known) or f"it has {', '.join(f'`{n}`' for n in known) or 'none'}"
            raise UpdslError(Diagnostic("unknown-parameter", f"`{module.name}` has no parameter or input `{s.name}`", s.span, help=help_))
    for kind, names in (("parameter", module.parameters), ("input", module.inputs)):
        missing = next((n for n in names if n not in parameters and n not in inputs), None)
        if missing:
            raise UpdslError(
                Diagnostic(
                    "missing-argument", f"this example gives no value to the {kind} `{missing}`", example.span, help=f"write `example({missing} = …): …`"
                )
            )
    return parameters, inputs


def _check_shapes(module: Module, example: syntax.Example, given: list[np.ndarray], expected: list[np.ndarray], inputs: Mapping[str, list[Any]]) -> None:
    if len(given) != len(expected):
        raise UpdslError(
            Diagnostic(
                "example-shape",
                f"{len(given)} gradients are given, and {len(expected)} results",
                example.span,
                help="write one result for each gradient, separated by `;`",
            )
        )
    for a, node in zip((*given, *expected), (*example.given, *example.expected), strict=True):
        if a.shape != given[0].shape:
            raise UpdslError(
                Diagnostic(
                    "example-shape", f"this has the shape {a.shape}, and the first gradient {given[0].shape}", node.span, help="give every step the same shape"
                )
            )
    for s in example.settings:
        if s.name in inputs and len(inputs[s.name]) != len(given):
            raise UpdslError(
                Diagnostic(
                    "example-shape",
                    f"the input `{s.name}` has {len(inputs[s.name])} values for {len(given)} steps",
                    s.span,
                    help="write one value for each step, separated by `;`",
                )
            )


def _array(node: syntax.Array | syntax.Expr, known: Mapping[str, Constant]) -> np.ndarray:
    """The array that an example writes down."""

    def values(n: syntax.Array | syntax.Expr) -> Any:
        return [values(i) for i in n.items] if isinstance(n, syntax.Array) else float(number(n, known))

    try:
        return np.asarray(values(node), np.float64)
    except ValueError:
        raise UpdslError(
            Diagnostic("example-shape", "the rows of this array have different lengths", node.span, help="write every row with the same number of entries")
        ) from None


def _key(kind: str) -> str | int:
    """The key of the example's one tensor, for an input of this kind."""
    return "" if kind == "all" else 0 if kind == "group" else NAME


def is_close(have: np.ndarray, want: np.ndarray) -> bool:
    """Whether an example is right."""
    scale = np.max(np.abs(want[np.isfinite(want)]), initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool(np.all((have == want) | (np.isnan(have) & np.isnan(want)) | (np.abs(have - want) <= RTOL * scale)))


def _text(a: np.ndarray) -> str:
    """The array as an example writes it."""
    if a.ndim == 0:
        return f"{float(a):.10g}"
    return "[" + ", ".join(_text(x) for x in a) + "]"
