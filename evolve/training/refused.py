"""Which option of something made by name is refused: found by making it, before a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evolve.config import KeyPath
from evolve.errors import EvolveError


def refused_options(
    make: Callable[[Mapping[str, Any]], object], options: Mapping[str, Any]
) -> list[tuple[KeyPath, str]]:
    """Makes something with options, and says which option is at fault where that fails.

    An option is at fault if it works without; where no single one is, all of them together are.

    Args:
        make: Makes it, and tries it out; whatever it raises is a refusal.
        options: Keyword arguments.

    Returns:
        The option and the reason, where there is a fault; the path is empty where no single option is at fault.
    """
    reason = _refusal(make, options)
    if reason is None:
        return []
    for key in options:
        if _refusal(make, {name: value for name, value in options.items() if name != key}) is None:
            return [((key,), f"'{key}' is refused: {reason}")]
    return [((), f"are refused: {reason}")]


def _refusal(make: Callable[[Mapping[str, Any]], object], options: Mapping[str, Any]) -> str | None:
    try:
        make(options)
    except EvolveError as error:
        return str(error)
    except Exception as error:  # a class of torch's or of the user's may raise anything
        return f"{str(error).rstrip('.') or type(error).__name__}."
    return None
