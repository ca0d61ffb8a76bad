"""Base classes of the sections of a configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from evolve.config.faults import KeyPath
from evolve.config.types import value_fault
from evolve.errors import did_you_mean


class Section(BaseModel):
    """A frozen, strict part of a configuration: unknown keys, "3" for 3, true for 1, NaN and infinity are faults.

    `validate` reads YAML as pydantic reads JSON, so fields may also be tuples, paths and enums. In Python those take
    their own types only.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


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


def is_trusted(info: ValidationInfo) -> bool:
    """Whether a section that is being checked comes from the user, not out of a run folder, which may be anybody's."""
    return info.context is None or bool(info.context["trusted"])


def signature_faults(
    function: Callable[..., Any], options: Mapping[str, Any], skip: Container[str] = (), *, finite: bool = False
) -> list[tuple[KeyPath, str]]:
    """Checks options against a signature, and values against annotations that a YAML file can satisfy.

    Args:
        function: What is to be called with the options.
        options: Keyword arguments.
        skip: Parameters that evolve gives itself.
        finite: Whether NaN and infinity are faults.

    Returns:
        For each fault the option and what is wrong with it.
    """
    parameters = signature_of(function)
    if parameters is None:
        return []
    by_name = {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = [name for name in by_name if name not in skip]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    faults: list[tuple[KeyPath, str]] = []
    for key in options:
        if key in skip:
            faults.append(((key,), f"'{key}' is set by evolve; leave it out."))
        elif key not in known and not anything:
            allowed = f"Known: {', '.join(known)}." if known else "There are none."
            faults.append(((key,), f"unknown option '{key}'.{did_you_mean(key, known)} {allowed}"))
        elif key in known and not _is_default(options[key], by_name[key].default):
            fault = value_fault(by_name[key].annotation, options[key])
            faults += [((key,), f"'{key}': {fault}")] if fault else []
        if finite and not _is_finite(options[key]):
            faults.append(((key,), f"'{key}' has to be finite; found {options[key]!r:.60}."))
    for p in by_name.values():
        if p.default is p.empty and p.name not in options and p.name not in skip:
            faults.append(((), f"the option '{p.name}' is missing."))
    return faults


def signature_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Returns the parameters of a function or class, annotations resolved where that is possible.

    None for a function without a signature, written in C.
    """
    try:
        return inspect.signature(function, eval_str=True).parameters
    except (NameError, AttributeError, SyntaxError, TypeError):  # annotations that name what is imported for types only
        return inspect.signature(function).parameters
    except ValueError:
        return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_default(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)
