"""What a rule keeps between steps, as a value that is handed from step to step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from updsl.core.diagnostic import Diagnostic, UpdslError
from updsl.core.frame import Array, Key, RuleState
from updsl.runtime.bind import Layout


@dataclass(frozen=True)
class State:
    """The state of a rule between two steps, for the tensors and groups it was made for.

    values: state name → key → array, where the key is a tensor's name, a group's index, or "" for the whole model, and a window is a pair of its
    slots (newest last) and how many are filled. run: steps of the run so far. t: steps so far of each tensor that has taken part. rule: the hash of the
    rule's text.
    """

    layout: Layout
    seed: int
    kept: RuleState
    rule: int

    @property
    def values(self) -> Mapping[str, Mapping[Key, Array | tuple[Array, Array]]]:
        return self.kept.values

    @property
    def run(self) -> int:
        return self.kept.run

    @property
    def t(self) -> Mapping[str, int]:
        return self.kept.t

    def after(self, kept: RuleState) -> State:
        """The same, a step later."""
        return State(self.layout, self.seed, kept, self.rule)


def text_hash(text: str) -> int:
    """The first 60 bits of the SHA-256 of the NFKC text."""
    return int(hashlib.sha256(normalize("NFKC", text).encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)


def same_rule(name: str, mine: int, theirs: int, what: str, help_: str) -> None:
    """Raises UpdslError, naming both hashes, if a state is that of another text. Parameters may differ: they may be set at any step."""
    if mine != theirs:
        message = f"{what} is of another rule: its text has the hash {theirs:015x}, and that of `{name}` has {mine:015x}"
        raise UpdslError(Diagnostic("another-rule", message, help=help_))


def flatten(state: State) -> tuple[list[Array], tuple]:
    """The arrays, and all else, as torch's trees of tensors (vmap, grad) need them."""
    arrays: list[Array] = []
    places = []
    for name, cells in state.kept.values.items():
        for key, x in cells.items():
            parts = list(x) if isinstance(x, tuple) else [x]
            arrays.extend(parts)
            places.append((name, key, len(parts) if isinstance(x, tuple) else 0))
    names = tuple(state.kept.values)
    return arrays, (state.layout, state.seed, state.rule, state.kept.run, tuple(state.kept.t.items()), names, tuple(places))


def unflatten(arrays: Any, rest: tuple) -> State:
    """The inverse of `flatten`."""
    layout, seed, rule, run, t, names, places = rest
    values: dict[str, dict[Key, Any]] = {name: {} for name in names}
    left = iter(arrays)
    for name, key, n in places:
        values[name][key] = tuple(next(left) for _ in range(n)) if n else next(left)
    return State(layout, seed, RuleState(values, run, dict(t)), rule)


def register() -> None:
    """Tell torch that a State is a tree of tensors, once."""
    from torch.utils import _pytree as trees

    if State not in trees.SUPPORTED_NODES:
        trees.register_pytree_node(State, flatten, unflatten, serialized_type_name="updsl.State")
