"""What can be said of a rule without running it."""

from __future__ import annotations

from typing import Any

from updsl.front.units import Units, units_of


def units(rule: Any) -> Units:
    """The units [g]^a·[w]^b of what a rule gives, of its parameters, literals, inputs and states, and what follows for the scale of gradients.

    rule: a rule, or the name of one of the library, or a path. Printed, the result is a line a unit; `.carriers` are the literals and parameters that have one,
    `.conflicts` warnings where units contradict one another, `.equivariant` whether rule(k·g) = k^`.degree`·rule(g) is proved for every k > 0.
    Raises UpdslError where the text is wrong, or can be used for no tensor.
    """
    from updsl.runtime.rule import load

    rule = rule if hasattr(rule, "module") else load(rule)
    return units_of(rule.module, rule.params)
