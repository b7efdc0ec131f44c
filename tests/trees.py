"""Random syntax trees, of every construct of the grammar."""

from __future__ import annotations

import inspect
from functools import partial

from hypothesis import strategies as st

from updsl.front import syntax
from updsl.front.build import INPUT_KINDS, SCOPES, TYPES
from updsl.front.lex import LARGEST, RESERVED, SMALLEST

NAMES = ("g", "it", "w", "x", "m̂", "γ", "n'", "β1", "norm", "row", "samples", "history", "each", "_x2")
OPERATORS = ("+", "-", "*", "/", "@", "^", "and", "or")
ORDER = (">", ">=", "<", "<=")

letters = st.characters(categories=("Lu", "Ll", "Lo"), max_codepoint=0x5FF).filter(lambda c: c.isascii() or "α" <= c <= "ω")
names = st.sampled_from(NAMES) | st.text(letters, min_size=1, max_size=6).filter(lambda n: n not in RESERVED)


def node(kind, *parts, **named):
    return st.builds(kind, *parts, **named)


def some(strategy, least=1, most=3):
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


def maybe(strategy):
    return st.none() | strategy


values = st.floats(0, 1e6) | st.integers(0, 100).map(float) | st.floats(SMALLEST, LARGEST) | st.just(float("inf"))
in_range = values.filter(lambda v: v in (0, float("inf")) or SMALLEST <= v <= LARGEST)
percentages = st.integers(0, 10**6).map(lambda i: syntax.Number(float(f"{i}e-5"), True))
numbers = in_range.map(syntax.Number) | percentages
texts = st.text(st.sampled_from('abc.|*+?()[]{}^$é "').filter(lambda c: c != '"'), max_size=8)
leaves = numbers | node(syntax.Boolean, st.booleans()) | node(syntax.Text, texts) | node(syntax.Name, names)


def scopes(sizes):
    return st.sampled_from([syntax.ScopeName(s) for s in SCOPES if s != "block"]) | st.builds(partial(syntax.ScopeName, "block"), sizes)


def arguments(of):
    return node(syntax.Argument, maybe(names), of)


def larger(of):
    """Expressions of which `of` are parts."""
    return st.one_of(
        node(syntax.Call, names | st.sampled_from(("core.push", "core.empty")), some(arguments(of), least=0)),
        node(syntax.Unary, st.sampled_from(("-", "not")), of),
        node(syntax.Binary, st.sampled_from(OPERATORS), of, of),
        node(syntax.Compare, of, some(st.tuples(st.sampled_from((*ORDER, "==", "!=", "~")), of))),
        node(syntax.Transpose, of),
        node(syntax.If, of, of, of),
        node(syntax.Clip, of, st.sampled_from(ORDER), of),
        node(syntax.Per, of, scopes(of)),
        node(syntax.Pipe, some(of, least=2)),
        node(syntax.Repeat, of, of),
    )


expressions = st.recursive(leaves, larger, max_leaves=12)


def statements(within):
    """Statements whose blocks are made of `within`."""
    block = some(within)
    arm = node(syntax.Arm, expressions, expressions | block)
    last = node(syntax.Arm, st.none(), expressions | block)
    return st.one_of(
        node(syntax.RepeatBlock, expressions, block),
        node(syntax.Every, expressions, maybe(expressions), block),
        st.builds(lambda arms, last: syntax.Match((*arms, *last)), some(arm), st.lists(last, max_size=1)),
    )


def input_item(name, kind, scope):
    if scope is not None:
        return syntax.InputItem(name, "per", scope)
    return syntax.InputItem(name, "samples" if name == "samples" else kind)


simple = st.one_of(
    node(syntax.Input, some(st.builds(input_item, names, st.sampled_from(("stream", *INPUT_KINDS)), maybe(scopes(numbers))))),
    node(syntax.Local, names, expressions),
    node(syntax.Let, names, expressions),
    node(syntax.State, some(st.builds(syntax.StateItem, names, expressions, maybe(scopes(expressions)), maybe(st.sampled_from(TYPES))))),
    node(syntax.Assign, names, expressions),
    st.builds(lambda names, c: syntax.Reset(names, c if names else None), some(node(syntax.Name, names), least=0), maybe(expressions)),
    node(syntax.Skip, expressions),
    node(syntax.Watch, names, expressions),
    node(syntax.Return, expressions),
)
all_statements = st.recursive(simple, lambda within: simple | statements(within), max_leaves=6)

bounds = st.one_of(st.just((None, None, None)), st.tuples(expressions, st.none(), st.none()), st.tuples(expressions, expressions, expressions))
parameters = some(st.builds(lambda name, b: syntax.Parameter(name, *b), names, bounds), least=0)
docs = maybe(st.text(st.sampled_from('ab \n"é²#→'), max_size=30).map(lambda d: inspect.cleandoc(d).strip()).filter(lambda d: '"""' not in d))
blocks = some(all_statements)


def rule(name, parameters, body, doc):
    return syntax.Rule(name, parameters, body, doc if isinstance(body, tuple) else None)


quantifiers = st.one_of(
    st.builds(lambda name, low, high: syntax.Quantifier(name, "in", low, high), names, expressions, expressions),
    st.builds(syntax.Quantifier, names.filter(lambda n: n != "g"), st.sampled_from(("orthogonal", "permutation"))),
    st.just(syntax.Quantifier("g", "any")),
)
data = st.recursive(expressions, lambda of: node(syntax.Array, some(of)), max_leaves=6)
settings = some(st.builds(syntax.Argument, names, expressions), least=0, most=2)
example_settings = some(node(syntax.ExampleSetting, names, some(data, most=2)), least=0, most=2)

declarations = st.one_of(
    node(syntax.Use, some(node(syntax.Name, names))),
    st.builds(rule, names, parameters, expressions | blocks, docs),
    node(syntax.Fn, names, parameters, expressions, maybe(expressions)),
    node(syntax.Law, names, settings, maybe(expressions), expressions, some(quantifiers, least=0, most=2)),
    node(syntax.Example, example_settings, some(data, most=2), some(data, most=2)),
)
files = node(syntax.File, some(declarations))
