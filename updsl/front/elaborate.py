"""Text to Programs: a rule elaborated once for each class of tensors.

A pass walks the text for one tensor. Passes repeat until what they find (scopes and grids of states, constant parameters, sizes of inputs) stays; then tensors
whose Programs are equal are one class.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace

from updsl.core.diagnostic import Diagnostic, InternalError, UpdslError
from updsl.core.frame import Tensor
from updsl.core.ir import GRID, Apply, Binding, Const, Every, Program, Ref, Statement, Type, walk
from updsl.core.ir import Watch as IrWatch
from updsl.core.scope import ALL, GROUP, TENSOR
from updsl.core.source import Span
from updsl.front import agreement, arms, instances, regex, syntax
from updsl.front.context import NAME_CODES, POISON, Context, Default, Env, Facts, Flag, Instance, Reduction, Value
from updsl.front.module import Module
from updsl.front.sites import sites_of
from updsl.front.unit import Constant, Unit

MAX_PASSES = 60
PROBES = ((4, 3), (3, 5), (4,), (), (2, 3, 2, 2), (2, 1, 2, 1, 2))
"""Shapes that a text is tried with when it is loaded: a mistake that shows with all of them is one of the text."""


@dataclass(frozen=True)
class Elaborated:
    """programs by class; class_of: tensor name → class; constants: parameters that are fixed when the rule is compiled; reductions: for `explain`, by class."""

    programs: tuple[Program, ...]
    class_of: Mapping[str, int]
    constants: frozenset[str]
    reductions: tuple[tuple[Reduction, ...], ...]


@dataclass(frozen=True)
class Walked:
    """What walking the text for one tensor found. program: None if there are mistakes."""

    program: Program | None
    diagnostics: tuple[Diagnostic, ...]
    predicates: frozenset[tuple[str, str]]
    populations: frozenset[str]
    counted: bool
    reductions: tuple[Reduction, ...]
    capped: bool
    """The text unfolds beyond a cap: nothing else is known of it."""
    of_shape: bool
    """Whether it is of tensors of one shape: the text asked for it."""
    warned_of_shape: bool
    """Whether the diagnostics are of tensors of one shape."""


def elaborate(
    module: Module, tensors: Sequence[Tensor], parameters: Mapping[str, Constant], overridden: frozenset[str] = frozenset(), lr: bool = True
) -> Elaborated:
    """The Programs of a rule for these tensors.

    parameters: name → value of every parameter. overridden: parameters that a group overrides; they have scope group.
    lr: whether the caller supplies a learning rate.
    Raises UpdslError with every mistake found.
    """
    constants = {n for n, p in module.parameters.items() if isinstance(p.default, (bool, str)) or isinstance(parameters[n], (bool, str))}
    counts: dict[str, int] = {"": len(tensors)}
    finer: frozenset[str] = frozenset()
    settled: list[dict[str, Program]] = []
    with deep_recursion():
        for _ in range(MAX_PASSES):
            before, known = dict(counts), set(constants)
            walked = _walk_all(module, tensors, parameters, overridden, lr, counts, constants, finer)
            counts = {"": len(tensors)}
            for t in tensors:
                for p in walked[t.name].populations - {""}:
                    counts[p] = counts.get(p, 0) + 1
            if constants == known and (counts == before or not any(w.counted for w in walked.values())):
                settled.append({name: w.program for name, w in walked.items() if w.program is not None})
                found = agreement.finer(settled[-1].values())
                if found <= finer:
                    return _classes(tensors, walked, frozenset(constants), agreement.mixed(settled))
                finer |= found
    raise InternalError(f"elaborating `{module.name}` does not settle")


def _walk_all(
    module: Module,
    tensors: Sequence[Tensor],
    parameters: Mapping[str, Constant],
    overridden: frozenset[str],
    lr: bool,
    counts: Mapping[str, int],
    constants: set[str],
    finer: frozenset[str],
) -> dict[str, Walked]:
    """Each tensor's walk; tensors for which the text's questions about shapes and names have equal answers share one."""
    done: dict[tuple[int, ...] | None, list[tuple[str, Walked]]] = {None: []}
    walked: dict[str, Walked] = {}
    for t in tensors:
        for name, earlier in (*done[None], *done.get(t.shape, ())):
            if all(_asks(p, name) == _asks(p, t.name) for p in earlier.predicates):
                walked[t.name] = earlier
                break
        else:
            walked[t.name] = made = _settle(module, t, parameters, overridden, lr, counts, constants, finer)
            done.setdefault(t.shape if made.of_shape else None, []).append((t.name, made))
    return walked


def _asks(predicate: tuple[str, str], name: str) -> bool:
    op, text = predicate
    return regex.search(text, name) if op == "~" else text == name


def _settle(
    module: Module,
    tensor: Tensor,
    parameters: Mapping[str, Constant],
    overridden: frozenset[str],
    lr: bool,
    counts: Mapping[str, int],
    constants: set[str],
    finer: frozenset[str] = frozenset(),
    checking: bool = False,
) -> Walked:
    """Walk the text for one tensor until nothing new is found."""
    facts, of_shape, warned_of_shape = Facts(constants=constants, finer=finer), False, False
    for _ in range(MAX_PASSES):
        facts.changed = False
        cx = Context(module, tensor, facts, parameters, overridden, lr, counts, checking)
        program = _walk(cx)
        of_shape, warned_of_shape = of_shape or cx.asked_shape, warned_of_shape or cx.warned_of_shape
        if cx.states != facts.known:
            facts.known, facts.changed = dict(cx.states), True
        if not facts.changed and cx.mistaken:
            facts.mistaken.update(cx.mistaken)
        elif cx.capped or not facts.changed:
            found = tuple(cx.diagnostics)
            return Walked(
                None if any(d.severity == "error" for d in found) else program,
                found,
                frozenset(cx.predicates),
                frozenset(cx.populations),
                cx.counted,
                tuple(cx.reductions),
                cx.capped,
                of_shape,
                warned_of_shape,
            )
    raise InternalError(f"the scopes of `{module.name}` do not settle")


def _walk(cx: Context) -> Program:
    """One pass: the Program of the main rule."""
    module = cx.module
    values: dict[str, Value] = {}
    for name, value in cx.parameters.items():
        if isinstance(value, bool):
            values[name] = Value(Const(value), value)
        elif isinstance(value, str):
            values[name] = Value(Const(0.0), value)
        elif name in cx.overridden:
            values[name] = Value(Ref(name, "param", Type(GROUP)), float(value), frozenset((name,)))
        else:
            values[name] = Value(Ref(name, "param", Type(ALL)), float(value), frozenset((name,)))
    g = Value(Ref("g", "builtin", GRID))
    main = Instance(module.rule, module.unit, "", values, g, sites_of(module.rule, module.unit).has_clock)
    env = Env(module.unit, sites_of(module.rule, module.unit), "", main, Default(TENSOR), Flag(), g)
    try:
        out = instances.run(cx, env, None)
        _check_out(cx, out)
    except UpdslError as e:  # a cap: nothing further can be said
        cx.diagnostics.extend(e.diagnostics)
        cx.capped = True
        out = POISON
    if cx.weight is not None and not cx.returns and not out.poisoned:
        out = Value(Apply("sub", (Ref("w", "builtin", GRID), cx.weight), GRID))
    states = tuple(replace(s, init=None) if s.type.window else s for s in cx.states.values())
    commits = tuple((name, cx.current.get(name, Ref(name, "state", s.type))) for name, s in cx.states.items())
    watches = tuple(IrWatch(label, cx.refined(f"watch {label}", e)) for label, e in cx.watches.items())
    out = cx.settle(out.expr)
    read = {n.name for e in (out, cx.weight, *(e for _, e in commits), *(w.expr for w in watches)) if e is not None for n in walk(e) if isinstance(n, Ref)}
    body = _without_idle_twins(cx.block, {f"{name}@tensor" for name in cx.twins}, read)
    return Program(module.name, tuple(cx.inputs.values()), states, body, commits, out, cx.weight, cx.returns, watches)


def _without_idle_twins(statements: Sequence[Statement], twins: Set[str], read: set[str]) -> tuple[Statement, ...]:
    """The statements without those twins that nothing reads. `read`: what is read after them; what they read is added."""
    kept: list[Statement] = []
    for s in reversed(statements):
        match s:
            case Binding(name=name, expr=e) if name not in twins or name in read:
                read.update(n.name for n in walk(e) if isinstance(n, Ref))
                kept.append(s)
            case Every(body=body, yields=yields):
                yields = tuple(y for y in yields if y.name not in twins or y.name in read)
                read.update(n.name for y in yields for e in (y.inner, y.outer) for n in walk(e) if isinstance(n, Ref))
                kept.append(replace(s, body=_without_idle_twins(body, twins, read), yields=yields))
    return tuple(reversed(kept))


def _check_out(cx: Context, out: Value) -> None:
    if out.poisoned:
        return
    if any(d.severity == "error" for d in cx.diagnostics):
        return
    span = _returned(cx.module.rule, out)
    if isinstance(out.static, str):
        cx.error("text-as-number", "a rule returns numbers, and this is a text", span, help='compare it: `if mode == "mean" then … else …`')
    elif out.type.samples:
        cx.error("samples-in-state", "what the rule returns still has one value for each sample", span, help="take `sample_mean(…)` or `sample_sum(…)`")
    elif out.type.window:
        cx.error("window-outside", "a window stands only under a reduction", span, help="reduce it over time: `mean(it → history(9))`")
    elif not (cx.agree(out.type.rows, "rows") and cx.agree(out.type.cols, "cols")):
        cx.error(
            "grid-mismatch",
            f"the rule returns a grid of {cx.grid(out.type)}, and its gradient is {cx.grid(GRID)}",
            span,
            help="return something of the gradient's own grid, such as `P @ u`",
        )


def _returned(rule: syntax.Rule, out: Value) -> Span:
    """Where a rule says what it gives."""
    body = rule.body
    if not isinstance(body, tuple):
        return body.span
    match body[-1]:
        case syntax.Return(value=value):
            return value.span
        case _:
            return out.expr.span if out.expr.span.source is rule.span.source else rule.name_span


def _classes(tensors: Sequence[Tensor], walked: Mapping[str, Walked], constants: frozenset[str], mixed: Iterable[Diagnostic]) -> Elaborated:
    """Tensors with equal Programs are one class."""
    found: list[Diagnostic] = []
    untaken: dict[Diagnostic, list[Tensor]] = {}
    classes: dict[Program, int] = {}
    reductions: list[tuple[Reduction, ...]] = []
    class_of: dict[str, int] = {}
    class_of_walk: dict[int, int] = {}  # a Program is compared with others once, and not for every tensor that shares its walk
    for t in tensors:
        w = walked[t.name]
        for d in w.diagnostics:
            if d.code == "no-arm":
                untaken.setdefault(replace(d, message=""), []).append(t)
            elif d not in found:
                found.append(d)
        if w.program is not None:
            if id(w) not in class_of_walk:
                if w.program not in classes:
                    reductions.append(w.reductions)
                class_of_walk[id(w)] = classes.setdefault(w.program, len(classes))
            class_of[t.name] = class_of_walk[id(w)]
    found += (replace(d, message=arms.not_taken(missed)) for d, missed in untaken.items())
    found.extend(mixed)
    if found:
        raise UpdslError(found)
    return Elaborated(tuple(classes), class_of, constants, tuple(reductions))


# --- checking a text before there are tensors ------------------------------------------------------------------------


def check_text(module: Module, parameters: Mapping[str, Constant], names: Sequence[str] = ("weight",)) -> tuple[list[Diagnostic], frozenset[str]]:
    """Mistakes of the text that show without a model, and its constant parameters.

    Mistakes in names are reported wherever they stand, others where every probe shape shows them."""
    constants = {n for n, p in module.parameters.items() if isinstance(parameters[n], (bool, str))}
    by_probe: list[tuple[Diagnostic, ...]] = []
    of_any_shape: dict[str, Walked] = {}
    with deep_recursion():
        for shape in PROBES:
            for name in names:
                walked = of_any_shape.get(name) or probed(module, Tensor(name, shape), parameters, constants)
                if walked.capped:
                    return list(walked.diagnostics), frozenset(constants)
                if not (walked.of_shape or walked.warned_of_shape):
                    of_any_shape[name] = walked
                by_probe.append(walked.diagnostics)
    return of_text(by_probe), frozenset(constants)


def probed(module: Module, tensor: Tensor, parameters: Mapping[str, Constant], constants: set[str]) -> Walked:
    """The walk for one tensor, once all constant parameters are known: they are added to `constants`. It wants `deep_recursion`."""
    for _ in range(MAX_PASSES):
        known = set(constants)
        walked = _settle(module, tensor, parameters, frozenset(), True, {"": 1}, constants, checking=True)
        if walked.capped or constants == known:
            return walked
    raise InternalError(f"the constants of `{module.name}` do not settle")


def fn_mistakes(unit: Unit) -> list[Diagnostic]:
    """Mistakes in names of a file's functions, whether or not anything calls them."""
    found: list[Diagnostic] = []
    for fn in unit.fns.values():
        call = syntax.Call(fn.name, tuple(syntax.Argument(None, syntax.Name("g")) for _ in fn.parameters), span=fn.name_span, callee_span=fn.name_span)
        body = call if fn.about is None else syntax.Clip(call, ">", syntax.Number(1.0), span=fn.name_span)
        module = Module(unit, syntax.Rule(fn.name, (), body, span=fn.span, name_span=fn.name_span), {}, {}, False)
        found.extend(d for d in check_text(module, {})[0] if d.code in NAME_CODES and d not in found)
    return found


def of_text(by_probe: list[tuple[Diagnostic, ...]]) -> list[Diagnostic]:
    """What every probe shows, and mistakes in names from any; one for each place. Grids that agree for square tensors alone are warned of."""
    found: dict[tuple, Diagnostic] = {}
    places = [{_place(d) for d in probe} for probe in by_probe]
    matrices = [p for shape, p in zip(PROBES, places, strict=True) if len(shape) > 1]
    for d in (d for probe in by_probe for d in probe):
        key = _place(d)
        if all(key in p for p in places) or d.code in NAME_CODES or d.severity == "warning":
            found.setdefault(key, d)
        elif d.code == "grid-mismatch" and all(key in p for p in matrices):
            found.setdefault(key, replace(d, severity="warning", notes=(*d.notes, "only a square tensor, or one of a single entry, can be used here")))
    return sorted(found.values(), key=lambda d: (d.span.source.name, d.span.start))


def _place(d: Diagnostic) -> tuple[str, str, int]:
    return d.code, d.span.source.name, d.span.start


@contextmanager
def deep_recursion():
    """Room for the deepest tree that the parser's caps allow."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
