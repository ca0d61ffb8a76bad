"""Whole `evolution` sections by one word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evolve.errors import did_you_mean

# `auto`: one look when the loss has a slope that says something and growing still pays, and one more for a second
# growth. Those before are for runs with more steps than their data need, and for models whose growth costs no seconds:
# there what a model learns before it grows is no gain, and the sooner it grows the better it ends. Copies of blocks
# where a model has blocks that are alike, else wider layers.
_LOOKS = [0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.01, 0.02, 0.04, 0.09, 0.16]
_PRESETS: dict[str, dict[str, Any]] = {
    "auto": {
        "schedule": {"name": "at", "options": {"progress": _LOOKS}},
        "policy": {"name": "forecast"},
        "operators": [
            {"name": "stack", "options": {"init": "copy"}},
            {"name": "widen", "sites": ["*"], "options": {"factor": 1.5, "init": "zero_out"}},
        ],
        "attempts": 1,
    }
}


def with_preset(value: Any) -> Any:
    """Returns a section with its preset written out; what stands beside the preset's name takes the place of its own.

    Args:
        value: The section: a preset's name, or a mapping that may have a key `preset`.

    Raises:
        ValueError: If there is no such preset.
    """
    beside = {"preset": value} if isinstance(value, str) else value
    if not isinstance(beside, Mapping) or "preset" not in beside:
        return value
    name, rest = beside["preset"], {key: part for key, part in beside.items() if key != "preset"}
    if not isinstance(name, str) or name not in _PRESETS:
        raise ValueError(
            f"unknown preset {name!r}.{did_you_mean(str(name), list(_PRESETS))} Known: {', '.join(_PRESETS)}."
        )
    return {**_PRESETS[name], **{key: _named(_PRESETS[name].get(key), part) for key, part in rest.items()}}


def _named(own: Any, part: Any) -> Any:
    """Returns a part of a section; one that says no name, such as options alone, is of what the preset names."""
    return {**own, **part} if isinstance(own, Mapping) and isinstance(part, Mapping) and "name" not in part else part
