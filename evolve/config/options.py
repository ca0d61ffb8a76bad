"""Typed options of things found by name."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from evolve.config import Named, OptionFaults, explain
from evolve.errors import UnknownNameError


class TypedOptions(BaseModel):
    """Base of typed options; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Finder(Protocol):
    def get(self, name: str) -> Any: ...


def check_options(config: Named, registry: _Finder) -> None:
    """Holds a section's name and options against the registry.

    Raises:
        OptionFaults: With every fault, and where in the section it lies.
    """
    try:
        cls = registry.get(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    try:
        cls.Options(**config.options)
    except ValidationError as error:
        faults = explain(error, cls.Options, config.options)
        raise OptionFaults([(("options", *path), message) for path, message in faults]) from error
