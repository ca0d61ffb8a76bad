"""Typed options of things found by name, and their faults in plain words."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from evolve.config import Named, OptionFaults
from evolve.errors import UnknownNameError, did_you_mean


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
        faults = [(("options", *path), message) for path, message in option_faults(error, cls.Options)]
        raise OptionFaults(faults) from error


def option_faults(error: ValidationError, options: type[BaseModel]) -> list[tuple[tuple[str | int, ...], str]]:
    """Returns where each fault lies and what it is, with what is allowed."""
    known = list(options.model_fields)
    faults: list[tuple[tuple[str | int, ...], str]] = []
    for fault in error.errors():
        path = fault["loc"]
        if fault["type"] == "extra_forbidden":
            allowed = f"Its options: {', '.join(known)}." if known else "It has no options."
            message = f"unknown option '{path[-1]}'.{did_you_mean(str(path[-1]), known)} {allowed}"
        elif fault["type"] == "value_error":
            message = str(fault["ctx"]["error"]) + "."
        else:
            message = f"{fault['msg']}; found {fault['input']!r}."
        faults.append((path, message))
    return faults
