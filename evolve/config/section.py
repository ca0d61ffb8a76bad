"""Base classes of the sections of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evolve.config.faults import KeyPath
from evolve.errors import did_you_mean


class Section(BaseModel):
    """A frozen, strict part of a configuration: unknown keys, "3" for 3 and true for 1 are faults.

    `validate` reads YAML as pydantic reads JSON, so fields may also be tuples, paths and enums. In Python those take
    their own types only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")


class Named(Section):
    """Something found by name: `{name: X, options: {...}}`, or just `X` where it needs no options.

    Attributes:
        name: A registered name or, where the section allows it, an import path.
        options: Keyword arguments.
    """

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def signature_faults(
    function: Callable[..., Any], options: Mapping[str, Any], skip: Container[str] = ()
) -> list[tuple[KeyPath, str]]:
    """Holds options against a signature; values are not looked at.

    Args:
        function: What is to be called with the options.
        options: Keyword arguments.
        skip: Parameters that evolve gives itself.

    Returns:
        For each fault the option and what is wrong with it.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function without a signature, written in C
        return []
    by_name = {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = [name for name in by_name if name not in skip]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    faults: list[tuple[KeyPath, str]] = []
    for key in options:
        if key in skip:
            faults.append(((key,), f"'{key}' is given by evolve itself; leave it out."))
        elif key not in known and not anything:
            allowed = f"Known: {', '.join(known)}." if known else "There are none."
            faults.append(((key,), f"unknown option '{key}'.{did_you_mean(key, known)} {allowed}"))
    for p in by_name.values():
        if p.default is p.empty and p.name not in options and p.name not in skip:
            faults.append(((), f"the option '{p.name}' is missing."))
    return faults
