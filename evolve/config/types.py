"""Type annotations in plain words, and values checked against them."""

from __future__ import annotations

import json
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

_SCALARS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
_LISTS = (list, Sequence, Iterable, Collection, set, frozenset)
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns an annotation as a reader of YAML would say it: "number > 1", "zero | identity", "list of text"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0], [*metadata, *args[1:]])
    if origin in (Union, types.UnionType):
        return _joined([type_words(arg, metadata if arg is not type(None) else ()) for arg in args])
    if origin is Literal:
        return " | ".join(map(_literal, args))
    if origin in _LISTS or annotation in _LISTS or (origin or annotation) is tuple:
        inner = [type_words(arg) for arg in args if arg is not Ellipsis and not isinstance(arg, TypeVar)]
        of = " and ".join(dict.fromkeys(inner))
        return f"list of {_plural(of)}" if of else "list"
    if (origin or annotation) in (dict, Mapping):
        return f"mapping of {_plural(type_words(args[0]))} to {_plural(type_words(args[1]))}" if args else "mapping"
    adjectives = [part.func.__name__ for part in metadata if isinstance(part, AfterValidator)]  # "odd"
    words = " ".join([*adjectives, _SCALARS.get(annotation, getattr(annotation, "__name__", str(annotation)))])
    parts = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    bounds = [f"{sign} {getattr(part, key)}" for part in parts for key, sign in _BOUNDS.items() if hasattr(part, key)]
    return ", ".join([" ".join([words, *bounds[:1]]), *bounds[1:]])


def value_fault(annotation: Any, value: Any) -> str | None:
    """Returns what is wrong with a value for a parameter annotated so; None where nothing is, or it cannot be said.

    Only annotations that a YAML file can satisfy are checked: numbers, text, true and false, null, lists, mappings.
    """
    plain = _plain(annotation)
    if plain is None:
        return None
    try:
        _adapter(plain).validate_json(json.dumps(value))
    except ValidationError:
        return f"expected {type_words(plain)}, found {found(value)}."
    except TypeError:  # a value of Python's that JSON has no form for: the function decides
        return None
    return None


def found(value: Any) -> str:
    """Returns a value with its kind, for messages: "the text '3'"."""
    kinds = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    if value is None:
        return "nothing (null)"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"the {kinds.get(type(value), type(value).__name__)} {text[:60]}"


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True))


def _plain(annotation: Any) -> Any:
    """The annotation, where YAML can write every value of it; None where it cannot."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS or origin is Literal or annotation in (list, tuple, dict):
        return annotation
    if origin is Annotated:
        return _plain(args[0])
    parts = [arg if arg is Ellipsis else _plain(arg) for arg in args if not (_is_tensor(arg) and float in args)]
    if not parts or None in parts:
        return None
    makers: dict[Any, Any] = {Union: Union, types.UnionType: Union, tuple: tuple, dict: dict, Mapping: dict}
    maker = makers.get(origin) or (list if origin in _LISTS else None)
    return None if maker is None else maker[tuple(parts)]


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "__module__", "") == "torch" and getattr(annotation, "__name__", "") == "Tensor"


def _joined(words: Sequence[str]) -> str:
    """Alternatives, with null last."""
    return " | ".join([*(word for word in words if word != "null"), *(["null"] if "null" in words else [])])


def _literal(value: object) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if not isinstance(value, str) else value  # type: ignore[call-overload]


def _plural(words: str) -> str:
    for singular in ("whole number", "number"):
        if words.startswith(singular):
            return words.replace(singular, singular + "s", 1)
    return words
