"""Checks the options of things found by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from evolve.config import Named, OptionFaults, explain
from evolve.errors import UnknownNameError


@dataclass(frozen=True)
class Watched:
    """A metric that a schedule or policy looks at.

    Attributes:
        option: The option that names it.
        metric: Its key in the metrics of an epoch.
        mode: Which way is taken for better: "min" or "max"; None where it does not matter.
    """

    option: str
    metric: str
    mode: Literal["min", "max"] | None = None


class _Finder(Protocol):
    def get(self, name: str) -> Any: ...


def check_options(config: Named, registry: _Finder) -> None:
    """Checks a section's name and options against the registry.

    Raises:
        OptionFaults: With every fault, and where in the section it lies.
    """
    try:
        cls = registry.get(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    try:
        cls.Options.read(config.options)
    except ValidationError as error:
        faults = explain(error, cls.Options, config.options)
        raise OptionFaults([(("options", *path), message) for path, message in faults]) from error
