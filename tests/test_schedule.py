"""One order for the Programs of several classes."""

import pytest
from handmade import LOCAL, G, apply, every, mask, reduce, value

from updsl.core.diagnostic import InternalError
from updsl.core.ir import Binding, Type
from updsl.core.schedule import Guarded, Local, Shared, merge
from updsl.core.scope import ALL, GROUP

N = value("n", Type(ALL))


def names(steps):
    """What each step is, and of which classes."""
    shown = []
    for step in steps:
        match step:
            case Local(owner, binding):
                shown.append((binding.name, owner))
            case Shared(name, bindings):
                shown.append((name, *bindings))
            case Guarded(name, blocks, body):
                shown.append((name, *blocks, names(body)))
    return shown


def body(*statements):
    return [Binding(*s) if isinstance(s, tuple) else s for s in statements]


def test_each_class_keeps_its_order_and_shared_values_are_one_step():
    n = ("n", reduce("norm", G, to=ALL))
    first = body(("a", apply("neg", G)), n, ("b", apply("mul", G, N)))
    second = body(n, ("a", apply("neg", G)), ("c", reduce("sum", G, to=GROUP)))
    assert names(merge({0: first, 1: second})) == [("a", 0), ("n", 0, 1), ("b", 0), ("a", 1), ("c", 1)]


@pytest.mark.parametrize("scope", [ALL, GROUP], ids=str)
def test_largest_over_several_tensors_is_a_joint_step(scope):
    top = ("top", mask(scope, 3))
    assert names(merge({0: body(top), 1: body(("x", apply("neg", G)), top)})) == [("x", 1), ("top", 0, 1)]


@pytest.mark.parametrize("scope", LOCAL, ids=str)
def test_largest_within_a_tensor_is_not(scope):
    assert names(merge({0: body(("top", mask(scope, 3))), 1: body(("top", mask(scope, 3)))})) == [("top", 0), ("top", 1)]


def test_blocks_of_one_place_are_merged_inside():
    n = ("n", reduce("norm", G, to=ALL))
    first, second = every(2, 2, [("a", apply("neg", G)), n]), every(2, 2, [n, ("b", apply("mul", G, N))])
    assert names(merge({0: body(first), 1: body(second)})) == [("every", 0, 1, [("a", 0), ("n", 0, 1), ("b", 1)])]


def test_bodies_that_disagree_on_an_order_are_a_mistake_of_ours():
    m, n = ("m", reduce("max", G, to=ALL)), ("n", reduce("norm", G, to=ALL))
    with pytest.raises(InternalError, match="do not agree on an order"):
        merge({0: body(m, n), 1: body(n, m)})
