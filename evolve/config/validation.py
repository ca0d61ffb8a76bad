"""Raw values in, a section out, or all faults at once in plain words."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evolve.config.faults import ConfigError, Fault, KeyPath, OptionFaults, Place
from evolve.config.loader import Places
from evolve.config.types import found as value_words
from evolve.errors import did_you_mean

S = TypeVar("S", bound=BaseModel)


def validate(
    cls: type[S],
    raw: dict[str, Any],
    places: Places,
    file: str | Path,
    earlier: Sequence[Fault] = (),
    *,
    trusted: bool = True,
) -> S:
    """Returns the section that the raw values describe.

    Args:
        cls: The section's class.
        raw: Values as `load_yaml` read them.
        places: Where they were written.
        file: What to call the file.
        earlier: Faults found before; reported with those found now.
        trusted: Whether import paths may be followed; `is_trusted` tells the sections.

    Raises:
        ConfigError: With all faults.
    """
    faults = list(earlier)
    if not raw and faults:
        raise ConfigError(faults)
    try:
        # Read as JSON, pydantic stays strict about "3" and true for a number, yet takes a list for a tuple and text
        # for a path or an enum, which YAML cannot write otherwise.
        section = cls.model_validate_json(json.dumps(raw), context={"trusted": trusted})
    except ValidationError as error:
        known_paths = {fault.path for fault in faults}
        for path, message in explain(error, cls, raw):
            if path not in known_paths:
                faults.append(Fault(path, _place(path, places, str(file)), message))
        raise ConfigError(faults) from None
    if faults:
        raise ConfigError(faults)
    return section


def explain(error: ValidationError, cls: type[BaseModel], raw: Any) -> list[tuple[KeyPath, str]]:
    """Returns where in the raw values each fault lies, and what is wrong there, in plain words."""
    found: list[tuple[KeyPath, str]] = []
    for detail in error.errors():
        path = _real_path(detail["loc"], raw)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, OptionFaults):
            found += [((*path, *sub), message) for sub, message in cause.faults]
        else:
            found.append((path, _words(detail, cls, path)))
    return list(dict.fromkeys(found))


def _real_path(loc: tuple[int | str, ...], raw: Any) -> KeyPath:
    """Leaves out what pydantic puts into a path to name the branch of a union."""
    path: list[int | str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(raw, dict) and (part in raw or last):
            raw = raw.get(str(part))
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _words(detail: ErrorDetails, cls: type[BaseModel], path: KeyPath) -> str:
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(owner.model_fields) if (owner := _owner(cls, path[:-1])) else []
        here = f" Known here: {', '.join(known)}." if known else ""
        return f"unknown key.{did_you_mean(str(path[-1]), known)}{here}"
    if kind == "missing":
        return "is missing."
    if kind == "value_error":
        return str(context["error"]).rstrip(".") + "."
    wanted = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "tuple_type": "a list",
        "set_type": "a list",
        "path_type": "text",
        "enum": f"one of {context.get('expected', '')}",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "literal_error": f"one of {context.get('expected', '')}",
        "greater_than": f"greater than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "too_short": f"a list of at least {context.get('min_length')}",
        "string_too_short": f"at least {context.get('min_length')} characters",
        "finite_number": "a finite number",
    }.get(kind, detail["msg"])
    return f"has to be {wanted}; found {value_words(found)}.{_hint(kind, found, context)}"


def _hint(kind: str, found: Any, context: dict[str, Any]) -> str:
    if kind in ("literal_error", "enum") and isinstance(found, str):
        return did_you_mean(
            found, [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        )
    if isinstance(found, str) and kind in ("int_type", "float_type", "bool_type"):
        return " Leave out the quotes." if found.replace(".", "").isdigit() or found in ("true", "false") else ""
    return ""


def _owner(cls: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The section class that a path leads to; keys of a mapping of sections and places in a list are passed over."""
    current: Any = cls
    for part in path:
        section = _section_in(current)
        if section and part in section.model_fields:
            current = section.model_fields[str(part)].annotation
        elif section is current:
            return None
    return _section_in(current)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (list, tuple, dict, Union, types.UnionType, Annotated):
        return next((s for a in get_args(annotation) if (s := _section_in(a))), None)
    return None


def _place(path: KeyPath, places: Places, file: str) -> Place:
    """The line of the value, or of the nearest that encloses it."""
    for end in range(len(path), 0, -1):
        if path[:end] in places:
            return places[path[:end]]
    return Place(file, 1)
