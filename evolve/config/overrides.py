"""Settings from the command line, which override those of the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from evolve.config.faults import Fault, KeyPath, Place
from evolve.config.loader import Places, parse_yaml

COMMAND_LINE = "command line"

_INDEX = re.compile("[0-9]{1,9}")
_STANDS_FOR = {"evolution": "preset"}  # what a word in the place of a section says where that is no name


def apply_overrides(
    raw: dict[str, Any], places: Places, overrides: Sequence[str]
) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Returns values, places and faults with settings such as "training.epochs=3" applied on top.

    Numbers in a path stand for positions in a list; values are read as YAML.
    """
    result, places, faults = _copy(raw), dict(places), []
    for override in overrides:
        path_text, equals, value_text = override.partition("=")
        path: KeyPath = tuple(int(p) if _INDEX.fullmatch(p) else p for p in path_text.strip().split("."))
        if not equals or "" in path:
            faults.append(
                Fault(
                    (),
                    Place(COMMAND_LINE),
                    f"'{override}' is not a setting; write key=value, such as training.epochs=3.",
                )
            )
            continue
        parsed, _, more = parse_yaml(f"value: {value_text}", COMMAND_LINE)
        faults += [Fault(path, Place(COMMAND_LINE), fault.message) for fault in more]
        problem = None if more else _put(result, path, parsed.get("value"))
        if problem:
            faults.append(Fault(path, Place(COMMAND_LINE), problem))
        places = {known: place for known, place in places.items() if known[: len(path)] != path}
        places[path] = Place(COMMAND_LINE)
    return result, places, faults


def _put(raw: Any, path: KeyPath, value: Any) -> str | None:
    """Sets the value at a path, making mappings on the way; returns what is in the way, if anything."""
    for position, key in enumerate(path):
        last = position == len(path) - 1
        if isinstance(raw, list) and isinstance(key, int):
            if key >= len(raw):
                return f"there is no entry {key}; the list has {len(raw)}."
        elif isinstance(raw, dict):
            key = str(key)
            if not last and raw.get(key) is None:
                raw[key] = {}
        else:
            return f"'{path[position - 1]}' is {raw!r:.40}, which has no '{key}'."
        if last:
            raw[key] = value
        elif isinstance(raw[key], str):
            raw[key] = raw = {_STANDS_FOR.get(str(key), "name"): raw[key]}  # the short form of {name: X}
        else:
            raw = raw[key]
    return None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
