"""Values that a record can hold: what is the same once it has been written as JSON and read again."""

from __future__ import annotations

import math
from typing import Any

_DEEPEST = 50  # lists in lists


def json_value(value: Any, place: str) -> Any:
    """Returns a value as it will be when it has been written as JSON and read again.

    Args:
        value: Dictionaries with names, lists, tuples, strings, finite numbers, None.
        place: What to call it in the error.

    Raises:
        ValueError: If something in it is no such thing; names its place.
    """
    return _json_value(value, place, 0)


def _json_value(value: Any, place: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{place} is a string with a lone surrogate, {ascii(value)[:60]}.")
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {float(value)}, which JSON has no word for.")
        return float(value)
    if depth > _DEEPEST:
        raise ValueError(f"{place[:60]}... is more than {_DEEPEST} lists or dictionaries deep, or holds itself.")
    if isinstance(value, (list, tuple)):
        return [_json_value(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(  # noqa: TRY004 - as for all else that JSON does not know
                    f"{place} has the key {ascii(key)[:60]}; JSON knows strings alone."
                )
        return {
            _json_value(key, f"a key of {place}", depth): _json_value(item, f"{place}['{key}']", depth + 1)
            for key, item in value.items()
        }
    kind = type(value)
    raise ValueError(f"{place} is a {kind.__module__}.{kind.__qualname__}; JSON knows numbers, strings, lists, dicts.")
