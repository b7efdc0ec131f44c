"""What a rule computes and keeps: the scope of each reduction and where it came from, state, parameters, inputs, and its Program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from updsl.core.diagnostic import printable
from updsl.core.frame import Tensor
from updsl.core.ir import Dim, State
from updsl.core.plan import Plan
from updsl.core.show import show
from updsl.core.source import Span
from updsl.core.straight import blocks_due
from updsl.front.context import Reduction
from updsl.front.elaborate import Elaborated, elaborate
from updsl.front.module import Module, Parameter
from updsl.front.units import of_programs
from updsl.middle.sweeps import to_plan
from updsl.pipeline import CPP, prepared, to_engine
from updsl.runtime.parameters import settled

TYPICAL = (Tensor("layer.weight", (6, 4)), Tensor("layer.bias", (6,)))
"""What a rule is explained for when there is no model."""
BYTES = {None: 4, "float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
STAGES = ("text", "syntax", "program")


def explain(rule: Any, params: Any = None, mesh: Any = None) -> str:
    """The explanation of a rule, or of the rule of that name or file, as text.

    params: the model, or its (name, tensor) pairs, or {name: tensor}. mesh: a DeviceMesh, a number of ranks, or a tuple of them: the collectives of a step are
    told too, of parameters as they lie (DTensors), or as FSDP2 would place them there. Raises UpdslError for a rule that cannot run so.
    """
    from updsl.runtime.bind import named
    from updsl.runtime.rule import load

    rule = rule if hasattr(rule, "module") else load(rule)
    tensors = {t.name: t for t in TYPICAL} if params is None else named(params)
    found = explanation(rule.module, [Tensor(name, tuple(x.shape)) for name, x in tensors.items()], rule.params)
    if mesh is not None or any(hasattr(x, "device_mesh") for x in tensors.values()):
        found |= sharding(rule.module, tensors, mesh, rule.params)
    return to_text(found)


def sharding(module: Module, tensors: Mapping[str, Any], mesh: Any, values: Mapping[str, Any] | None = None) -> dict:
    """What of an explanation is about several ranks."""
    from updsl.collectives import collectives, lines
    from updsl.runtime.places import lying_of

    places, ranks = lying_of(tensors, mesh)
    return {"sharding": lines(collectives(module, places, ranks, settled(module, {}) if values is None else values), ranks)}


def explanation(module: Module, tensors: Sequence[Tensor] = TYPICAL, values: Mapping[str, Any] | None = None) -> dict:
    """The explanation as plain data. values: of the parameters, else their defaults."""
    values = settled(module, {}) if values is None else values
    elaborated = _elaborated(module, tensors, values)
    name, why, plans = _kernels(elaborated)
    return {
        "name": module.name,
        "doc": module.doc.strip(),
        "writes_weights": module.writes_weights,
        "parameters": [_parameter(p, values[p.name], p.name in elaborated.constants) for p in module.parameters.values()],
        "inputs": dict(module.inputs),
        "units": list(of_programs(elaborated.programs, values).lines()),
        "backend": {"name": name, "why": why},
        "classes": [_class(elaborated, i, tensors, values) | _traffic(plans, i) for i in range(len(elaborated.programs))],
    }


def _kernels(elaborated: Elaborated) -> tuple[str, str, tuple[Plan, ...]]:
    """The backend that runs the rule on a CPU; why it is not kernels, or not they alone; and the plans of the kernels of its first step."""
    programs = {i: prepared(p) for i, p in enumerate(elaborated.programs)}
    own, due = tuple(programs.values()), blocks_due(programs, 1)
    if why := CPP.lacks(own):
        return "torch", why, ()
    if why := CPP.between(own):
        return "cpp", why, tuple(to_plan(part.programs, frozenset()) for part in CPP.to_parts(programs, due) if part.kernels)
    return "cpp", "", (to_plan(programs, due),)


def _traffic(plans: Sequence[Plan], owner: int) -> dict:
    """Of the kernels of a step in float32: passes over memory, and bytes read and written for a parameter, in all and where nothing changes."""
    if not plans:
        return {"sweeps": None, "bytes_per_parameter": None, "idle_bytes_per_parameter": None}
    moved, idle = (sum(p.bytes_of(owner, lambda _: 4, skipped) for p in plans) for skipped in (False, True))
    return {"sweeps": sum(1 for p in plans for _ in p.sweeps_of(owner)), "bytes_per_parameter": moved, "idle_bytes_per_parameter": idle}


def _elaborated(module: Module, tensors: Sequence[Tensor], values: Mapping[str, Any]) -> Elaborated:
    return elaborate(module, [t for t in tensors if t.numel], values)


def _parameter(p: Parameter, value: Any, constant: bool) -> dict:
    return {"name": p.name, "value": _plain(value), "low": _plain(p.low), "high": _plain(p.high), "constant": constant}


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _class(elaborated: Elaborated, index: int, tensors: Sequence[Tensor], values: Mapping[str, Any]) -> dict:
    program = elaborated.programs[index]
    members = [t for t in tensors if elaborated.class_of.get(t.name) == index]
    return {
        "tensors": {t.name: list(t.shape) for t in members},
        "reductions": [_reduction(r) for r in dict.fromkeys(elaborated.reductions[index])],
        "states": [_state(s) for s in program.states],
        "state_bytes_per_parameter": sum(_bytes_per_parameter(s, members) for s in program.states),
        "watches": [{"name": w.label, "scope": str(w.expr.type.scope)} for w in program.watches],
        "program": show(program, values),
    }


def _reduction(r: Reduction) -> dict:
    return {"text": r.span.text, **_place(r.span), "op": r.op, "scope": str(r.scope), "from": r.origin and {"text": r.origin.text, **_place(r.origin)}}


def _place(span: Span) -> dict:
    return {"file": span.source.name, "line": span.line, "column": span.column}


def _bytes_per_parameter(s: State, members: Sequence[Tensor]) -> float:
    """For a float32 gradient, of the class's tensors together; whole where each entry has a value, which leaves the few of coarser states."""
    if s.type.scope.name != "element":
        return 0
    entries = sum(t.numel for t in members)
    kept = sum(_size(s.type.rows, t) * _size(s.type.cols, t) for t in members)
    return BYTES[s.dtype] * max(1, s.type.window) * kept / entries


def _size(d: Dim | None, t: Tensor) -> int:
    """A size of a grid at a tensor; 0 if it is that of a matrix which is not there yet."""
    return d if isinstance(d, int) else dict(zip(("rows", "cols"), t.grid, strict=True)).get(d or "", 0)


def _state(s: State) -> dict:
    return {"name": s.name, "scope": str(s.type.scope), "rows": s.type.rows, "cols": s.type.cols, "window": s.type.window, "dtype": s.dtype}


# --- as text ---------------------------------------------------------------------------------------------------------


def to_text(e: dict) -> str:
    """An explanation for people."""
    kind = "writes the weights itself" if e["writes_weights"] else "changes the gradient in front of an optimizer"
    lines = [f"{e['name']}: {kind}", *(f"  {line}".rstrip() for line in e["doc"].split("\n") if e["doc"]), ""]
    lines += _section("parameters", [_parameter_line(p) for p in e["parameters"]])
    lines += _section("inputs", [f"{name} ({kind})" for name, kind in e["inputs"].items()])
    lines += _section("units", e["units"])
    lines += _section("backend on a CPU", [e["backend"]["name"] + (f": {e['backend']['why']}" if e["backend"]["why"] else "")])
    lines += _section("shards", e.get("sharding", ()))
    for c in e["classes"]:
        shapes = [f"{name} {'×'.join(map(str, shape)) or 'number'}" for name, shape in c["tensors"].items()]
        more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
        lines += [f"for {', '.join(shapes[:4])}{more}", ""]
        lines += _section("  reductions", [_reduction_line(r, "  ") for r in c["reductions"]])
        lines += _section(f"  state: {c['state_bytes_per_parameter']:.3g} bytes a parameter", ["  " + _state_line(s) for s in c["states"]])
        lines += _section("  watches", [f"  {w['name']}: per {w['scope']}" for w in c["watches"]])
        lines += _section("  memory", _traffic_lines(c))
        lines += _section("  program", ["  " + line for line in c["program"].rstrip().split("\n")])
    return printable_lines(lines)


def _traffic_lines(c: dict) -> list[str]:
    if c["sweeps"] is None:
        return []
    idle = f", {c['idle_bytes_per_parameter']} where nothing changes" if c["idle_bytes_per_parameter"] < c["bytes_per_parameter"] else ""
    return [f"  {c['sweeps']} sweep{'' if c['sweeps'] == 1 else 's'}, {c['bytes_per_parameter']} bytes a parameter read and written in float32{idle}"]


def printable_lines(lines: Sequence[str]) -> str:
    return "\n".join(printable(line) for line in lines).rstrip()


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines), ""] if lines else []


def _parameter_line(p: dict) -> str:
    bounds = "" if (p["low"], p["high"]) == ("-inf", "inf") else f" in [{_shown(p['low'])}, {_shown(p['high'])}]"
    return f"{p['name']} = {_shown(p['value'])}{bounds}{', constant' if p['constant'] else ''}"


def _shown(value: Any) -> str:
    """A parameter's value as a rule's text has it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return format(value, "g")
        case "inf" | "-inf":
            return value
        case _:
            return f'"{value}"'


def _reduction_line(r: dict, indent: str) -> str:
    origin = "the default"
    if r["from"]:
        other = "" if r["from"]["file"] == r["file"] else f"{r['from']['file']}:"
        origin = f"from `{r['from']['text']}` at {other}{r['from']['line']}:{r['from']['column']}"
    return f"{indent}{r['file']}:{r['line']}:{r['column']}  `{r['text']}`: {r['op']} per {r['scope']}, {origin}"


def _state_line(s: dict) -> str:
    grid = f", grid {s['rows']} × {s['cols']}" if s["scope"] == "element" and (s["rows"], s["cols"]) != ("rows", "cols") else ""
    window = f", the last {s['window']} of them" if s["window"] else ""
    return f"{s['name']}: per {s['scope']}{grid}{window}, {s['dtype'] or 'float32, or the type of a wider gradient'}"


# --- stages and generated code ---------------------------------------------------------------------------------------


def stage(module: Module, after: str, tensors: Sequence[Tensor] = TYPICAL) -> dict[str, str]:
    """What a rule is after a stage of the pipeline (one of STAGES): title → text."""
    if after == "text":
        return {module.name: module.text}
    if after == "syntax":
        return {module.name: _tree(module.unit.file)}
    values = settled(module, {})
    elaborated = _elaborated(module, tensors, values)
    names = [", ".join(t.name for t in tensors if elaborated.class_of.get(t.name) == i) for i in range(len(elaborated.programs))]
    return {f"{module.name} for {name}": show(p, values) for name, p in zip(names, elaborated.programs, strict=True)}


def written(module: Module, backend: str, tensors: Sequence[Tensor] = TYPICAL) -> dict[str, str]:
    """The code that a backend generates for the tensors: file name → text."""
    return to_engine(module, tensors, settled(module, {}), backend=backend).source


def _tree(node: object, depth: int = 0) -> str:
    """A syntax tree, a node a line."""
    indent = "  " * depth
    match node:
        case tuple():
            return "\n".join(_tree(x, depth) for x in node)
        case _ if hasattr(node, "__dataclass_fields__"):
            parts = {n: getattr(node, n) for n in node.__dataclass_fields__ if not n.endswith("span")}
            small = {n: v for n, v in parts.items() if v is None or isinstance(v, str | int | float)}
            inner = [_tree(v, depth + 1) for n, v in parts.items() if n not in small and v != ()]
            said = " ".join(f"{n}={v!r}" for n, v in small.items() if v is not None)
            return "\n".join([f"{indent}{type(node).__name__} {said}".rstrip(), *inner])
        case _:
            return f"{indent}{node!r}"
