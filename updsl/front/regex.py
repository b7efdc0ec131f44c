"""The patterns of `name ~ "…"`: matched by a set of states, so that time is (length of the text) × (length of the pattern), whatever the pattern."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

MAX_STATES = 4_000


class PatternError(Exception):
    """Why a pattern cannot be used."""


@dataclass(frozen=True, slots=True)
class One:
    """A character of a set of ranges (or outside of it)."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def takes(self, c: str) -> bool:
        return any(lo <= c <= hi for lo, hi in self.ranges) != self.negated

    def one(self) -> str:
        """A character that it takes."""
        usual = "a0_.-/ABCDEFGHIJKLMNOPQRSTUVWXYZbcdefghijklmnopqrstuvwxyz123456789"
        return next((c for c in usual if self.takes(c)), self.ranges[0][0])


@dataclass(frozen=True, slots=True)
class Edge:
    """`^` or `$`."""

    at_start: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple


@dataclass(frozen=True, slots=True)
class Choice:
    parts: tuple


@dataclass(frozen=True, slots=True)
class Many:
    """low to high times; high None is without bound."""

    part: object
    low: int
    high: int | None


DIGIT = One((("0", "9"),))
WORD = One((("a", "z"), ("A", "Z"), ("0", "9"), ("_", "_")))
SPACE = One(tuple((c, c) for c in " \t\n\r\f\v"))
ANY = One((("\n", "\n"),), negated=True)


def mistake(pattern: str) -> str | None:
    """Why the pattern cannot be used, or None."""
    try:
        _compiled(pattern)
    except PatternError as e:
        return str(e)
    return None


def search(pattern: str, text: str) -> bool:
    """Whether the pattern occurs in the text."""
    start, accept, moves, steps = _compiled(pattern)
    now: set[int] = set()
    for i in range(len(text) + 1):
        now.add(start)
        now = _reach(now, moves, i == 0, i == len(text))
        if accept in now:
            return True
        if i < len(text):
            now = {to for s in now if s in steps for one, to in (steps[s],) if one.takes(text[i])}
    return False


def example(pattern: str) -> str | None:
    """A shortest text that the pattern occurs in; None if there is none, or none of fewer than 64 characters."""
    start, accept, moves, steps = _compiled(pattern)
    waiting: list[tuple[frozenset[int], str]] = [(frozenset((start,)), "")]
    seen: set[tuple[frozenset[int], bool]] = set()
    for states, text in waiting:  # grows
        if accept in _reach(set(states), moves, not text, True):
            return text
        now = _reach(set(states), moves, not text, False)
        if (key := (frozenset(now), not text)) in seen or len(text) == 63:
            continue
        seen.add(key)
        for c in dict.fromkeys(steps[s][0].one() for s in sorted(now) if s in steps):
            waiting.append((frozenset(to for s in now if s in steps for one, to in (steps[s],) if one.takes(c)), text + c))
    return None


def _reach(states: set[int], moves: dict[int, list[tuple[Edge | None, int]]], first: bool, last: bool) -> set[int]:
    """Every state that can be come to without reading."""
    found, waiting = set(states), list(states)
    while waiting:
        for edge, to in moves.get(waiting.pop(), ()):
            if to not in found and (edge is None or (first if edge.at_start else last)):
                found.add(to)
                waiting.append(to)
    return found


@lru_cache(maxsize=256)
def _compiled(pattern: str):
    """Thompson's construction: (start, accepting state, moves without reading, steps that read)."""
    tree, at = _choice(pattern, 0, 0)
    if at < len(pattern):
        raise PatternError("a `)` has no `(`")
    moves: dict[int, list[tuple[Edge | None, int]]] = {}
    steps: dict[int, tuple[One, int]] = {}
    count = 0

    def new() -> int:
        nonlocal count
        count += 1
        if count > MAX_STATES:
            raise PatternError("it is too long once its repetitions are written out")
        return count

    def build(node: object, a: int) -> int:
        match node:
            case One():
                b = new()
                steps[a] = (node, b)
                return b
            case Edge():
                b = new()
                moves.setdefault(a, []).append((node, b))
                return b
            case Sequence(parts=parts):
                for p in parts:
                    a = build(p, fresh(a))
                return a
            case Choice(parts=parts):
                b = new()
                for p in parts:
                    moves.setdefault(build(p, fresh(a)), []).append((None, b))
                return b
            case Many(part=part, low=low, high=high):
                for _ in range(low):
                    a = build(part, fresh(a))
                b = new()
                if high is None:
                    loop = fresh(a)
                    moves.setdefault(build(part, fresh(loop)), []).append((None, loop))
                    moves.setdefault(loop, []).append((None, b))
                    return b
                for _ in range(high - low):
                    moves.setdefault(a, []).append((None, b))
                    a = build(part, fresh(a))
                moves.setdefault(a, []).append((None, b))
                return b
        raise AssertionError(node)

    def fresh(a: int) -> int:
        b = new()
        moves.setdefault(a, []).append((None, b))
        return b

    start = new()
    return start, build(tree, start), moves, steps


def _choice(p: str, at: int, depth: int) -> tuple[object, int]:
    if depth > 32:
        raise PatternError("its brackets are nested too deeply")
    branches, parts = [], []
    while at < len(p) and p[at] != ")":
        if p[at] == "|":
            branches.append(Sequence(tuple(parts)))
            parts, at = [], at + 1
            continue
        part, at = _atom(p, at, depth)
        part, at = _repetition(p, at, part)
        parts.append(part)
    branches.append(Sequence(tuple(parts)))
    return (branches[0] if len(branches) == 1 else Choice(tuple(branches))), at


def _atom(p: str, at: int, depth: int) -> tuple[object, int]:
    c = p[at]
    match c:
        case "(":
            if p.startswith("(?", at) and not p.startswith("(?:", at):
                raise PatternError("groups that look around, or carry flags or names, are not supported")
            inner, end = _choice(p, at + (3 if p.startswith("(?:", at) else 1), depth + 1)
            if end >= len(p):
                raise PatternError("a `(` has no `)`")
            return inner, end + 1
        case "[":
            return _class(p, at + 1)
        case ".":
            return ANY, at + 1
        case "^" | "$":
            return Edge(c == "^"), at + 1
        case "\\":
            return _escape(p, at + 1)
        case "*" | "+" | "?":
            raise PatternError(f"`{c}` has nothing to repeat")
        case _:
            return One(((c, c),)), at + 1


def _escape(p: str, at: int) -> tuple[One, int]:
    if at >= len(p):
        raise PatternError("it ends in `\\`")
    named = {"d": DIGIT, "w": WORD, "s": SPACE}
    if p[at].lower() in named:
        one = named[p[at].lower()]
        return One(one.ranges, negated=p[at].isupper()), at + 1
    if p[at].isdigit():
        raise PatternError("back-references are not supported")
    if p[at].isalpha():
        raise PatternError(f"`\\{p[at]}` is not supported")
    return One(((p[at], p[at]),)), at + 1


def _class(p: str, at: int) -> tuple[One, int]:
    negated = p.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    first = True
    while at < len(p) and (p[at] != "]" or first):
        first = False
        if p[at] == "\\":
            one, at = _escape(p, at + 1)
            if one.negated:
                raise PatternError("a negated class inside of a class is not supported")
            ranges.extend(one.ranges)
            continue
        low, at = p[at], at + 1
        if p.startswith("-", at) and at + 1 < len(p) and p[at + 1] != "]":
            high, at = p[at + 1], at + 2
            if high < low:
                raise PatternError(f"the range {low}-{high} is empty")
            ranges.append((low, high))
        else:
            ranges.append((low, low))
    if at >= len(p):
        raise PatternError("a `[` has no `]`")
    return One(tuple(ranges), negated), at + 1


def _repetition(p: str, at: int, part: object) -> tuple[object, int]:
    if at >= len(p) or p[at] not in "*+?{":
        return part, at
    if isinstance(part, Edge):
        raise PatternError("`^` and `$` cannot be repeated")
    if _repeats(part):
        raise PatternError("a repetition inside of a repetition is not supported")
    match p[at]:
        case "*":
            low, high, at = 0, None, at + 1
        case "+":
            low, high, at = 1, None, at + 1
        case "?":
            low, high, at = 0, 1, at + 1
        case _:
            low, high, at = _counts(p, at)
    if at < len(p) and p[at] in "*+?{":
        raise PatternError("a repetition of a repetition is not supported")
    return Many(part, low, high), at


def _counts(p: str, at: int) -> tuple[int, int | None, int]:
    end = p.find("}", at)
    inner = p[at + 1 : end] if end > 0 else ""
    low, comma, high = inner.partition(",")
    if not low.isascii() or not low.isdigit() or (high and not high.isdigit()) or len(inner) > 9:
        raise PatternError("write `{m}`, `{m,}` or `{m,n}`")
    least = int(low)
    most = least if not comma else int(high) if high else None
    if most is not None and most < least:
        raise PatternError("in `{m,n}` m is at most n")
    return least, most, end + 1


def _repeats(node: object) -> bool:
    match node:
        case Many():
            return True
        case Sequence(parts=parts) | Choice(parts=parts):
            return any(_repeats(q) for q in parts)
        case _:
            return False
