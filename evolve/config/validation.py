"""Raw values in, a section out, or all faults at once in plain words."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evolve.config.faults import ConfigError, Fault, KeyPath, OptionFaults, Place
from evolve.config.loader import Places, parse_yaml
from evolve.errors import did_you_mean

S = TypeVar("S", bound=BaseModel)

COMMAND_LINE = "command line"


def validate(cls: type[S], raw: dict[str, Any], places: Places, file: str | Path, earlier: Sequence[Fault] = ()) -> S:
    """Returns the section that the raw values describe.

    Args:
        cls: The section's class.
        raw: Values as `load_yaml` read them.
        places: Where they were written.
        file: What to call the file.
        earlier: Faults found before; reported with those found now.

    Raises:
        ConfigError: With all faults.
    """
    faults = list(earlier)
    if not raw and faults:
        raise ConfigError(faults)
    try:
        section = cls.model_validate(raw)
    except ValidationError as error:
        known_paths = {fault.path for fault in faults}
        for path, message in explain(error, cls, raw):
            if path not in known_paths:
                faults.append(Fault(path, _place(path, places, str(file)), message))
        raise ConfigError(faults) from None
    if faults:
        raise ConfigError(faults)
    return section


def apply_overrides(
    raw: dict[str, Any], places: Places, overrides: Sequence[str]
) -> tuple[dict[str, Any], Places, list[Fault]]:
    """Returns values, places and faults with settings such as "training.epochs=3" put over the file's.

    Numbers in a path stand for positions in a list; values are read as YAML.
    """
    result, places, faults = _copy(raw), dict(places), []
    for override in overrides:
        path_text, equals, value_text = override.partition("=")
        path: KeyPath = tuple(int(p) if p.isdigit() else p for p in path_text.strip().split("."))
        if not equals or "" in path:
            faults.append(Fault((), Place(COMMAND_LINE), f"'{override}' is no setting; write key.sub=value."))
            continue
        parsed, _, more = parse_yaml(f"value: {value_text}", COMMAND_LINE)
        faults += [Fault(path, Place(COMMAND_LINE), fault.message) for fault in more]
        problem = None if more else _put(result, path, parsed.get("value"))
        if problem:
            faults.append(Fault(path, Place(COMMAND_LINE), problem))
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
            if not last and isinstance(raw.get(key), str):
                raw[key] = {"name": raw[key]}  # the short form of {name: X}
            if not last and raw.get(key) is None:
                raw[key] = {}
        else:
            return f"'{path[position - 1]}' is {raw!r:.40}, which has no '{key}'."
        if last:
            raw[key] = value
        else:
            raw = raw[key]
    return None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


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
        return f"unknown key.{did_you_mean(str(path[-1]), known)} Known here: {', '.join(known)}."
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
    return f"has to be {wanted}; found {_value(found)}.{_hint(kind, found, context)}"


def _hint(kind: str, found: Any, context: dict[str, Any]) -> str:
    if kind == "literal_error" and isinstance(found, str):
        return did_you_mean(
            found, [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        )
    if isinstance(found, str) and kind in ("int_type", "float_type", "bool_type"):
        return " Leave out the quotes." if found.replace(".", "").isdigit() or found in ("true", "false") else ""
    return ""


def _value(found: Any) -> str:
    kinds = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    if found is None:
        return "nothing (null)"
    text = str(found).lower() if isinstance(found, bool) else repr(found)
    return f"the {kinds.get(type(found), type(found).__name__)} {text[:60]}"


def _owner(cls: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The section class that a path leads to."""
    current: Any = cls
    for part in path:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current is not None else None
        current = _section_in(field.annotation) if field else None
    found: type[BaseModel] | None = current
    return found


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, types.UnionType, Annotated):
        return next((s for a in get_args(annotation) if (s := _section_in(a))), None)
    return None


def _place(path: KeyPath, places: Places, file: str) -> Place:
    """The line of the value, or of the nearest that encloses it."""
    for end in range(len(path), 0, -1):
        if path[:end] in places:
            return places[path[:end]]
    return Place(file, 1)
