"""What may change in a run that goes on, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evolve.config import KeyPath, parse_yaml
from evolve.config.faults import key_text

# Why a setting, with all below it, may not change; None where it may. The longest path that fits counts, and what none
# fits may change too.
_OPTIONS_MAY = "remembers what it did so far; its options may change."
_RULES: dict[KeyPath, str | None] = {
    ("model",): "The weights and the mutations are of that model.",
    ("model", "weights"): None,  # to begin with; the saved ones take their place
    ("data",): "The run stands in the middle of those batches.",
    ("data", "workers"): None,
    **{("data", "options", key): None for key in ("root", "path", "download", "memory_limit_mb")},  # it may have moved
    ("task",): "What was measured so far would not compare with what comes.",
    ("optimizer",): "Its state was saved, learning rates and all, and would take the place of this.",
    ("lr_schedule",): "Only its length changes, with the budget.",
    ("training", "loss"): "What was measured so far would not compare with what comes.",
    ("training", "monitor"): "The best epoch so far was chosen by it.",
    ("training", "seed"): "The order of the data comes of it.",
    ("training", "accumulate"): "Steps and epochs were counted by it.",
    ("training", "keep_best"): "The best weights of the epochs so far were kept, or were not.",
    ("training", "ema"): "The average so far was taken with it.",
    ("evolution", "schedule"): f"The schedule {_OPTIONS_MAY}",
    ("evolution", "schedule", "options"): None,
    ("evolution", "policy"): f"The policy {_OPTIONS_MAY}",
    ("evolution", "policy", "options"): None,
}


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was.

    Attributes:
        path: Its key.
        before: What it was.
        after: What it is.
    """

    path: KeyPath
    before: Any
    after: Any

    @property
    def fault(self) -> str | None:
        """Why it may not change in a run that goes on; None where it may."""
        rules = (_RULES.get(self.path[:end]) for end in range(len(self.path), 0, -1) if self.path[:end] in _RULES)
        why = next(rules, None)
        return why and (
            f"cannot change in a run that goes on: it was {_short(self.before)}, here it is {_short(self.after)}. "
            f"{why} Leave it as it was, or begin a run of its own (output.dir=...)."
        )

    def __str__(self) -> str:
        return f"{key_text(self.path)}: {_short(self.before)} → {_short(self.after)}"


def changes(before: str, after: str) -> list[Change]:
    """Returns the settings that differ between two resolved configurations, as YAML texts.

    A key that the first lacks was not known to the evolve that wrote it and is passed over; not so among options.
    """
    old, new = (parse_yaml(text, "config.yaml")[0] for text in (before, after))
    return [Change(*found) for found in _differences((), old, new)]


def _differences(path: KeyPath, old: Any, new: Any) -> Iterator[tuple[KeyPath, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            if key in old or "options" in path:
                yield from _differences((*path, key), old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"] if not value.get("options") else {value["name"]: value["options"]}
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r:.60}" if isinstance(value, str | list | dict) else f"{value:,}"
