"""What a rule's text says, as a digest: the same for texts that differ in names, layout, and the order of what does not depend on one another.

The text is walked as it runs, with a digest in the place of every value. States are told apart by what they start from and what they become, refined until
that settles, as states of an automaton are: two states of one digest have the same value on every step. Rules and functions that the text applies count
by what they say, those of the library too, and not by what they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from updsl.core.digest import digest
from updsl.front import syntax
from updsl.front.contents import applied, nodes
from updsl.front.elaborate import deep_recursion
from updsl.front.module import Module
from updsl.front.sites import sites_of
from updsl.front.unit import BUILTIN_NAMES, FUNCTIONS, Constant, Unit

RANDOM = frozenset(("gaussian", "uniform", "bernoulli"))
MOST_INPUTS = 4
"""Of more inputs than these, the order counts."""


def canonical_digest(module: Module, values: Mapping[str, Constant]) -> str:
    """SHA-256, in hexadecimal, of what the module's rule says with these values of its parameters. The order of parameters counts, since arguments are given by
    position too; their names, and those of inputs, do not."""
    parameters = [digest(_value(values[p.name]), p.low.hex(), p.high.hex()) for p in module.parameters.values()]
    orders = permutations(module.inputs) if len(module.inputs) <= MOST_INPUTS else [tuple(module.inputs)]
    with deep_recursion():
        return min(digest(*parameters, Walk(Meanings(order, module.inputs), module.rule, module.unit).of_body()) for order in orders)


def _value(x: Constant) -> list[str]:
    return [type(x).__name__, x] if isinstance(x, str) else ["bool", str(x)] if isinstance(x, bool) else ["number", float(x).hex()]


class Meanings:
    """Digests of the rules and functions that one rule is made of. order: of the inputs, of these kinds."""

    def __init__(self, order: Sequence[str], kinds: Mapping[str, str]):
        self.inputs = {name: digest("input", i, kinds[name]) for i, name in enumerate(order)}
        self.known: dict[int, str] = {}

    def of_rule(self, rule: syntax.Rule, unit: Unit) -> str:
        if id(rule) not in self.known:
            walk = Walk(self, rule, unit)
            self.known[id(rule)] = digest(*walk.defaults(), walk.of_body())
        return self.known[id(rule)]

    def of_fn(self, fn: syntax.Fn, unit: Unit) -> str:
        if id(fn) not in self.known:
            walk = Walk(self, fn, unit)
            self.known[id(fn)] = digest(*walk.defaults(), walk.plain((fn.about, fn.body), walk.parameters))
        return self.known[id(fn)]


class Walk:
    """One declaration, walked with digests for values."""

    def __init__(self, meanings: Meanings, declaration: syntax.Rule | syntax.Fn, unit: Unit):
        self.meanings, self.declaration, self.unit = meanings, declaration, unit
        self.sites = sites_of(declaration, unit)
        self.in_stage = {id(node): whole for node, whole in self.sites.nodes}
        self.draws = self._draws()
        self.parameters = {p.name: digest("parameter", i) for i, p in enumerate(declaration.parameters)}
        self.settled: dict[int, str] = {}
        """Of each state: what is known of it from the walk before."""
        self.starts: dict[str, str] = {}
        """Of each state, by name: what it starts from."""
        self.commits: dict[int, str] = {}
        self.watches: list[str] = []
        self.effects: list[str] = []

    def _draws(self) -> dict[int, int]:
        """The places that draw random numbers, numbered: each has numbers of its own."""
        found = applied(self.declaration, self.unit) if isinstance(self.declaration, syntax.Rule) else ()
        applying = {id(node) for node, rule, home in found if _is_random(rule, home)}
        places = [n for n, _ in self.sites.nodes if id(n) in applying or (isinstance(n, syntax.Call) and n.callee in RANDOM)]
        return {id(n): i for i, n in enumerate(places)}

    def defaults(self) -> list[str]:
        """Of each parameter."""
        known: dict[str, str] = {}
        found = []
        for p in self.declaration.parameters:
            found.append(digest(self.plain((p.default, p.low, p.high), known)))
            known[p.name] = self.parameters[p.name]
        return found

    def of_body(self) -> str:
        """Of a rule: what it gives, writes, keeps and shows."""
        body = self.declaration.body
        count = sum(isinstance(n, syntax.StateItem) for n in nodes(body))
        out, env = "", {}
        for _ in range(2 * count + 1):  # enough to tell apart what can be told apart, in this rule and in any other of as many states
            self.commits, self.watches, self.effects = {}, [], []
            env = dict(self.parameters)
            out = self.body(body, env, "")
            self.settled = self.commits
        return digest(out, env.get("w", ""), sorted(self.settled.values()), sorted(self.watches), sorted(self.effects))

    # --- statements --------------------------------------------------------------------------------------------------

    def body(self, body: syntax.Expr | tuple[syntax.Statement, ...], env: dict[str, str], where: str) -> str:
        """What a body gives; env, name → digest of its value, is as it is after it. where: the blocks around it."""
        if not isinstance(body, tuple):
            return self.expression(body, env)
        out, declared = "", {}
        for s in body:
            match s:
                case syntax.Input(items=items):
                    env.update((i.name, self.meanings.inputs[i.name]) for i in items)
                case syntax.Local(name=name, value=e) | syntax.Let(name=name, value=e):
                    env[name] = digest("value", where, self.expression(e, env))
                case syntax.State(items=items):
                    for i in items:
                        start = digest("state", *(self.plain(x, env) for x in (i.init, i.scope, i.dtype)))
                        declared[i.name], self.starts[i.name] = i, start
                        env[i.name] = digest("before", self.settled.get(id(i), start))
                case syntax.Assign(name=name, value=e):
                    env[name] = digest("assigned", where, self.starts.get(name, ""), self.expression(e, env))
                case syntax.RepeatBlock():
                    self.repeat(s, env, where)
                case syntax.Every():
                    self.every(s, env, where)
                case syntax.Reset() | syntax.Skip():
                    self.effect(s, env, where)
                case syntax.Watch(value=e):
                    self.watches.append(digest("watch", where, self.expression(e, env)))
                case syntax.Match(arms=arms):
                    out = self.match(arms, env, where)
                case syntax.Return(value=e):
                    out = self.expression(e, env)
        self.commits |= {id(i): digest(self.starts[name], env[name]) for name, i in declared.items()}
        return out

    def repeat(self, s: syntax.RepeatBlock, env: dict[str, str], where: str) -> None:
        """What one round hands to the next is told apart as states are."""
        count = self.expression(s.count, env)
        carried = {name: env.get(name, name) for name in _assigned(s.body, env)}
        known, watches = dict(carried), list(self.watches)
        inner = digest(where, "repeat", count)
        for _ in range(2 * len(carried) + 1):
            self.watches = list(watches)
            round_ = env | {name: digest("carried", x) for name, x in known.items()}
            self.body(s.body, round_, inner)
            known = {name: digest(x, round_[name]) for name, x in carried.items()}
        env.update((name, digest("repeated", inner, x)) for name, x in known.items())

    def every(self, s: syntax.Every, env: dict[str, str], where: str) -> None:
        block = digest(where, "every", self.expression(s.count, env), self.plain(s.start, env))
        inside = dict(env)
        self.body(s.body, inside, block)
        env.update({name: digest(block, inside[name], env.get(name, name)) for name in _assigned(s.body, env)})

    def effect(self, s: syntax.Reset | syntax.Skip, env: dict[str, str], where: str) -> None:
        condition = digest(type(s).__name__, where, self.plain(s.condition, env))
        if isinstance(s, syntax.Skip) or not s.names:
            self.effects.append(condition)
        names = [] if isinstance(s, syntax.Skip) else [n.id for n in s.names] or [*(n for n in self.starts if n in env), "t"]
        env.update({n: digest(condition, self.starts.get(n, ""), env.get("w", ""), env.get(n, n)) for n in names})

    def match(self, arms: tuple[syntax.Arm, ...], env: dict[str, str], where: str) -> str:
        taken = [(digest("arm", where, self.plain(arm.condition, env)), arm.body, dict(env)) for arm in arms]
        given = [(condition, self.body(body, inside, condition)) for condition, body, inside in taken]
        changed = {name for arm in arms for name in _assigned(arm.body, env)}
        env.update({name: digest("arms", *((c, inside.get(name, name)) for c, _, inside in taken)) for name in changed})
        return digest("match", *given)

    # --- expressions -------------------------------------------------------------------------------------------------

    def expression(self, e: syntax.Expr, env: Mapping[str, str]) -> str:
        match e:
            case syntax.Number(value=v, percent=percent):
                return digest("number", float(v).hex(), percent and v >= 1)  # a literal of `largest` is a share below 1, or where it is written so
            case syntax.Name(id=name) | syntax.Call(callee=name) if self.sites.applies_rule(e, self.in_stage.get(id(e), False)):
                found = self.unit.find_rule(name)
                assert found is not None
                return digest("stage", self.draws.get(id(e), ""), self.meanings.of_rule(*found), *self.arguments(e, found[0].parameters, env))
            case syntax.Name(id=name) if name in env:
                return env[name]
            case syntax.Name(id=name) | syntax.Call(callee=name) if name not in FUNCTIONS and name not in BUILTIN_NAMES and (fn := self.unit.find_fn(name)):
                return digest("call", self.meanings.of_fn(*fn), *self.arguments(e, fn[0].parameters, env))
            case syntax.Clip(measure=m, op=op, bound=b):
                return digest("clip", op[0], self.expression(m, env), self.expression(b, env))
            case _:
                return digest(self.draws.get(id(e), ""), self.plain(e, env, whole=True))

    def arguments(self, e: syntax.Expr, parameters: tuple[syntax.Parameter, ...], env: Mapping[str, str]) -> list[tuple[int, str]]:
        """By the numbers of the parameters that they are for."""
        at = {p.name: i for i, p in enumerate(parameters)}
        given = e.arguments if isinstance(e, syntax.Call) else ()
        return sorted((i if a.name is None else at.get(a.name, -1), self.expression(a.value, env)) for i, a in enumerate(given))

    def plain(self, tree: Any, env: Mapping[str, str], whole: bool = False) -> Any:
        """A part of the tree as lists of texts; expressions in it as their digests. whole: not this one itself."""
        match tree:
            case syntax.Argument(name=name, value=value):
                return [name, self.expression(value, env)]
            case syntax.ScopeName(name=name, size=size):
                return [name, "" if size is None else self.expression(size, env)]
            case syntax.Node() if whole:
                return [type(tree).__name__, *(self.plain(getattr(tree, f), env) for f in tree.__dataclass_fields__ if not f.endswith("span"))]
            case syntax.Node():
                return self.expression(tree, env)  # type: ignore[arg-type]
            case tuple():
                return [self.plain(x, env) for x in tree]
            case _:
                return tree


def _assigned(body: object, env: Mapping[str, str]) -> list[str]:
    """The names of before a block that it gives new values, `w` among them."""
    found = (n.name for n in nodes(body) if isinstance(n, syntax.Assign))
    reset = (n.id for r in nodes(body) if isinstance(r, syntax.Reset) for n in r.names)
    return list(dict.fromkeys(n for n in (*found, *reset) if n in env or n == "w"))


def _is_random(rule: syntax.Rule, unit: Unit) -> bool:
    """Whether a rule, or one that it applies, draws random numbers."""
    if any(isinstance(n, syntax.Call) and n.callee in RANDOM for n in nodes(rule.body)):
        return True
    return any(_is_random(other, home) for _, other, home in applied(rule, unit))
