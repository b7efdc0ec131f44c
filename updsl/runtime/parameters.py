"""Values of a rule's parameters: given at load, set later, or by a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.front.module import Module, Parameter, check_bounds
from updsl.front.statics import constant
from updsl.front.unit import Constant

WEIGHT_DECAY = "append `→ weight_decay(0.01)`"


def settled(module: Module, given: Mapping[str, Any]) -> dict[str, Constant]:
    """The value of every parameter: as given, else its default, which may use the parameters before it.

    Raises UpdslError on a name that is no parameter, a value of the wrong type or out of bounds, and a parameter without either.
    """
    for name in given:
        parameter_of(module, name)
    values: dict[str, Constant] = {}
    for syntax, parameter in zip(module.rule.parameters, module.parameters.values(), strict=True):
        if parameter.name in given:
            values[parameter.name] = checked(parameter, given[parameter.name])
        elif syntax.default is None:
            raise UpdslError(Diagnostic("missing-parameter", f"`{module.name}` needs a value for `{parameter.name}`", help=f"pass `{parameter.name}=…`"))
        else:
            values[parameter.name] = constant(syntax.default, values)
            check_bounds(parameter, values[parameter.name])
    return values


def parameter_of(module: Module, name: str) -> Parameter:
    """The rule's parameter of this name. Raises UpdslError, with the nearest name, if there is none."""
    if name in module.parameters:
        return module.parameters[name]
    help_ = WEIGHT_DECAY if name == "weight_decay" else did_you_mean(name, module.parameters)
    if help_ is None:
        help_ = f"its parameters are {listed(module.parameters)}" if module.parameters else "it has no parameters"
    raise UpdslError(Diagnostic("unknown-parameter", f"`{module.name}` has no parameter `{name}`", help=help_))


def listed(names: Iterable[str]) -> str:
    """The names as messages show them."""
    return ", ".join(f"`{n}`" for n in names)


def checked(parameter: Parameter, value: Any) -> Constant:
    """The value as the parameter's own type: a boolean, a text, or a float within the bounds (a 0-d array or tensor counts as its number)."""
    match parameter.default:
        case None if isinstance(value, (bool, str)):
            return value
        case bool():
            if not isinstance(value, bool) and str(getattr(value, "dtype", "")) not in ("bool", "torch.bool"):
                raise _wrong(parameter, value, "true or false", "pass `True` or `False`")
            return bool(value)
        case str():
            if not isinstance(value, str):
                raise _wrong(parameter, value, "a text", f'pass a text, such as `"{parameter.default}"`')
            return value
    number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if isinstance(number, (bool, str)) or not isinstance(number, Real) or math.isnan(number):
        raise _wrong(parameter, value, "a number", "pass a float")
    check_bounds(parameter, float(number))
    return float(number)


def set_later(module: Module, constants: Iterable[str], given: Mapping[str, Any], where: str = "later") -> dict[str, Constant]:
    """The values given for parameters after the rule is compiled. Raises UpdslError as `settled` does, and on a parameter that is constant."""
    fixed = frozenset(constants)
    values = {}
    for name, value in given.items():
        parameter = parameter_of(module, name)
        if name in fixed:
            raise UpdslError(
                Diagnostic(
                    "constant-parameter",
                    f"`{name}` is a constant of `{module.name}`, fixed when the rule is compiled: it cannot be set {where}",
                    help=f"pass it when the rule is loaded: `updsl.load(…, {name}={value!r})`",
                )
            )
        values[name] = checked(parameter, value)
    return values


def _wrong(parameter: Parameter, value: Any, want: str, help_: str) -> UpdslError:
    return UpdslError(Diagnostic("parameter-type", f"`{parameter.name}` takes {want}, not {type(value).__name__} {value!r}"[:200], help=help_))
