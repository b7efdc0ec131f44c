"""How a rule's state lies in an optimizer's: torch.optim casts, drops or loses what lies elsewhere.

The state of a tensor, row or entry lies with its parameter, under `updsl.<name>`; that of a group, or of the whole model, with the first parameter of it that
had a gradient. A window's count is `updsl.<name>:count`; `updsl.(t)` counts the tensor's steps and `updsl.(run)` those of the run; `updsl.(rule)` is the hash
of the rule's text. Tensors and integers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from updsl.core.frame import Key, RuleState
from updsl.core.scope import Scope

COUNT, STEPS, RUN, RULE = ":count", "(t)", "(run)", "(rule)"


class Mirror:
    """Names of entries, and which parameter holds what belongs to a group or to the model. prefix: "updsl.", for a second rule "updsl2." … rule: the hash of
    the rule's text."""

    def __init__(self, prefix: str, rule: int):
        self.prefix, self.rule = prefix, rule
        self._holder: dict[tuple[str, Key], str] = {}

    def entries(self, state: RuleState, present: Iterable[str], group_of: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """tensor name → entries, of the tensors that are present, and of those in group_of that hold what belongs to a group or to the model."""
        present = list(present)
        found: dict[str, dict[str, Any]] = {name: {self.prefix + RULE: self.rule, self.prefix + STEPS: state.t.get(name, 0)} for name in present}
        for name, cells in state.values.items():
            for key, x in cells.items():
                holder = self._held_by(name, key, present, group_of)
                if holder in group_of and not is_of_tensor(key):
                    found.setdefault(holder, {})
                if holder not in found:
                    continue
                if isinstance(x, tuple):
                    found[holder][self.prefix + name], found[holder][self.prefix + name + COUNT] = x
                else:
                    found[holder][self.prefix + name] = x
        holder = self._held_by(RUN, "", present, group_of)
        if holder in group_of:
            found.setdefault(holder, {})[self.prefix + RUN] = state.run
        return found

    def _held_by(self, name: str, key: Key, present: list[str], group_of: Mapping[str, int]) -> str | None:
        if is_of_tensor(key):
            return key
        held = self._holder.get((name, key))
        if held is None:
            held = next((n for n in present if key == "" or group_of[n] == key), None)
            if held is not None:
                self._holder[name, key] = held
        return held

    def succeed(self, keys: Mapping[Key, Key]) -> None:
        """Where tensors and groups have other keys now, and what is held by those that have none is to be held by others."""
        held = ((name, keys.get(key), keys.get(holder)) for (name, key), holder in self._holder.items())
        self._holder = {(name, key): str(holder) for name, key, holder in held if key is not None and holder is not None}

    def state(self, entries: Mapping[str, Mapping[str, Any]], scopes: Mapping[str, Scope], group_of: Mapping[str, int]) -> RuleState | None:
        """The state that entries hold, None if they hold none; before the first step, what lies there only holds places. scopes: of the rule's states;
        entries of others are left alone."""
        steps: dict[str, int] = {}
        found, anything = RuleState(t=steps), False
        for tensor, own in entries.items():
            mine = {key.removeprefix(self.prefix): x for key, x in own.items() if isinstance(key, str) and key.startswith(self.prefix)}
            for name, x in mine.items():
                anything = True
                if name == STEPS:
                    steps[tensor] = int(x)
                elif name == RUN:
                    found.run = int(x)
                    self._holder[RUN, ""] = tensor
                elif name in scopes:
                    key = self._key(name, tensor, scopes[name], group_of)
                    found.values.setdefault(name, {})[key] = (x, mine[name + COUNT]) if name + COUNT in mine else x
        if not found.run and steps and not any(steps.values()):
            return RuleState()
        return found if anything else None

    def _key(self, name: str, tensor: str, scope: Scope, group_of: Mapping[str, int]) -> Key:
        if "T" in scope.indices:
            return tensor
        key: Key = group_of[tensor] if "G" in scope.indices else ""
        self._holder[name, key] = tensor
        return key

    def rule_of(self, entries: Iterable[Mapping[str, Any]]) -> int:
        """The hash of the text whose state the entries hold: another than this rule's if there is one."""
        found = (int(own[self.prefix + RULE]) for own in entries if isinstance(own, Mapping) and self.prefix + RULE in own)
        return next((rule for rule in found if rule != self.rule), self.rule)

    def is_own(self, key: Any) -> bool:
        """Whether an optimizer's state entry is this rule's."""
        return isinstance(key, str) and key.startswith(self.prefix)


def is_of_tensor(key: Key) -> TypeGuard[str]:
    """Whether a key is the name of a tensor, and none of a group or of the model."""
    return isinstance(key, str) and key != ""
