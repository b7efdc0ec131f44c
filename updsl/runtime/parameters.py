"""Values of a rule's parameters: given at load, set later, or by a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from updsl.core.diagnostic import Diagnostic, UpdslError, did_you_mean
from updsl.front.contents import nodes
from updsl.front.module import Module, Parameter, check_bounds
from updsl.front.statics import constant
from updsl.front.syntax import Compare, Name, Text
from updsl.front.unit import Constant


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
            check_choice(module, parameter, values[parameter.name])
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
    help_ = instead_of(module, name) or (f"its parameters are {listed(module.parameters)}" if module.parameters else "it has no parameters")
    raise UpdslError(Diagnostic("unknown-parameter", f"`{module.name}` has no parameter `{name}`", help=help_))


def instead_of(module: Module, name: str) -> str | None:
    """What to write in the place of a parameter that the rule does not have: the nearest one, or for weight decay, which optimizers have, its rule."""
    if name != "weight_decay":
        return did_you_mean(name, module.parameters)
    if module.writes_weights:
        return f"`{module.name}` writes w itself: in its text, give it the parameter `weight_decay`, and write `w ← w - lr*weight_decay*w`"
    return "append `→ weight_decay(0.01)`"


def listed(names: Iterable[str]) -> str:
    """The names as messages show them."""
    return ", ".join(f"`{n}`" for n in names)


def choices(module: Module, parameter: Parameter) -> list[str]:
    """The values that a text parameter may have: its default, and the texts that the rule compares it with; none if the rule does more with it."""
    uses, compared, texts = 0, 0, [parameter.default]
    for n in nodes((module.rule.parameters, module.rule.body)):
        match n:
            case Name(id=name) if name == parameter.name:
                uses += 1
            case Compare(first=first, rest=rest) if all(op in ("==", "!=") for op, _ in rest):
                sides = [first, *(e for _, e in rest)]
                others = [e for e in sides if not (isinstance(e, Name) and e.id == parameter.name)]
                if len(others) < len(sides) and all(isinstance(e, Text) for e in others):
                    compared += len(sides) - len(others)
                    texts += [e.value for e in others if isinstance(e, Text)]
    found = list(dict.fromkeys(t for t in texts if isinstance(t, str)))
    return found if uses == compared and len(found) > 1 else []


def check_choice(module: Module, parameter: Parameter, value: Constant) -> None:
    """Raises UpdslError for a text that the rule would take for its default, since it knows others only."""
    known = choices(module, parameter) if isinstance(parameter.default, str) else []
    if known and value not in known:
        help_ = did_you_mean(str(value), known) or f"choose one of {', '.join(known)}"
        message = f"`{parameter.name}` is `{value}`, which `{module.name}` does not know: it knows {listed(known)}"
        raise UpdslError(Diagnostic("parameter-out-of-bounds", message, help=help_))


def typed(name: str, value: Any, want: str, help_: str) -> UpdslError:
    """Of an argument of the wrong type."""
    return UpdslError(Diagnostic("parameter-type", f"`{name}` takes {want}, not {type(value).__name__} {value!r}"[:200], help=help_))


def rate(lr: Any) -> Any:
    """A learning rate as it is: None, a number, or a tensor or array of one number, which is not read. Raises UpdslError on anything else."""
    one = math.prod(lr.shape) == 1 and not str(lr.dtype).removeprefix("torch.").startswith(("bool", "complex")) if hasattr(lr, "shape") else False
    if not (lr is None or one or (isinstance(lr, Real) and not isinstance(lr, bool) and not math.isnan(lr))):
        raise typed("lr", lr, "a number", "pass a float, such as `lr=1e-3`, or a 0-d tensor")
    return lr


def seeded(seed: Any) -> int:
    """A seed. Raises UpdslError if it is no integer."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise typed("seed", seed, "an integer", "pass an integer, such as `seed=0`")
    return int(seed)


def checked(parameter: Parameter, value: Any) -> Constant:
    """The value as the parameter's own type: a boolean, a text, or a float within the bounds (a 0-d array or tensor counts as its number)."""
    match parameter.default:
        case None if isinstance(value, (bool, str)):
            return value
        case bool():
            if not isinstance(value, bool) and str(getattr(value, "dtype", "")) not in ("bool", "torch.bool"):
                raise typed(parameter.name, value, "true or false", "pass `True` or `False`")
            return bool(value)
        case str():
            if not isinstance(value, str):
                raise typed(parameter.name, value, "a text", f'pass a text, such as `"{parameter.default}"`')
            return value
    number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if isinstance(number, (bool, str)) or not isinstance(number, Real):
        raise typed(parameter.name, value, "a number", "pass a float")
    if math.isnan(number):
        raise UpdslError(Diagnostic("parameter-type", f"`{parameter.name}` is NaN, and takes a number", help="find out where the NaN comes from"))
    check_bounds(parameter, float(number))
    return float(number)


def is_elsewhere(value: Any) -> bool:
    """Whether a value is a 0-d tensor that the host would have to wait for."""
    device = getattr(value, "device", None)
    return getattr(value, "ndim", None) == 0 and getattr(device, "type", "cpu") != "cpu"


def set_later(module: Module, constants: Iterable[str], given: Mapping[str, Any], where: str = "later") -> dict[str, Any]:
    """The values given for parameters after the rule is compiled; of a 0-d tensor on another device a copy, which is not looked at. Raises UpdslError as
    `settled` does, and on a parameter that is constant."""
    fixed = frozenset(constants)
    values: dict[str, Any] = {}
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
        values[name] = value.detach().clone() if is_elsewhere(value) else checked(parameter, value)
    return values
