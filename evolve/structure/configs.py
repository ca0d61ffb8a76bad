"""Integers in the config objects that modules hold (`self.config.hidden_size`).

A config may be shared by many modules, and by models that are not to change. It is never written to: whoever changes an
integer in it puts a changed copy in its place, in every module of the model that holds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

_DEPTH = 2  # configs in configs, such as those of the parts of a multi-modal model

# Called with a config, module, dotted name of a field below it, position in the field, and the integer that is there.
Change = Callable[[Any, str, str, int | None, int], int]


def fields_of(config: Any) -> dict[str, Any]:
    """Returns the fields of a config by name, as it keeps them."""
    return config if isinstance(config, dict) else vars(config)


def config_at(module: nn.Module, path: str) -> Any:
    """Returns the config that a module holds under a dotted name."""
    found: Any = module
    for name in path.split("."):
        found = fields_of(found)[name]
    return found


def config_integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yields the integers above 1 in a module's configs: dotted name, position in a list or tuple, value."""
    for name, value in configs_in(vars(module)):
        yield from _integers(name, value, _DEPTH)


def _integers(path: str, config: Any, depth: int) -> Iterator[tuple[str, int | None, int]]:
    for name, value in fields_of(config).items():
        if isinstance(name, str) and "." not in name:
            yield from ((f"{path}.{name}", position, item) for position, item in _items(value))
    for name, value in configs_in(fields_of(config)) if depth > 1 else ():
        yield from _integers(f"{path}.{name}", value, depth - 1)


def rewrite_configs(model: nn.Module, change: Change) -> None:
    """Gives modules copies of their configs with other integers; one that has none stays the object it is.

    Args:
        model: Its modules' attributes are exchanged.
        change: Gives the new integer. It is asked once for each integer of a config, by the first name that it has.
    """

    def renew(config: Any, module: str, path: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in fields_of(config).items():
            items = list(_items(value)) if isinstance(name, str) and "." not in name else []
            new = [change(config, module, f"{path}.{name}", position, item) for position, item in items]
            if all(one is other for one, (_, other) in zip(new, items, strict=True)):
                continue
            if isinstance(value, int):
                fields[name] = new[0]
            else:
                exchanged = dict(zip((position for position, _ in items), new, strict=True))
                fields[name] = type(value)(exchanged.get(at, item) for at, item in enumerate(value))
        return fields

    _renew_configs(model, renew)


def exchange_fields(model: nn.Module, change: Callable[[Any], Mapping[str, Any]]) -> None:
    """Gives modules copies of their configs with other fields; one that has none stays the object it is.

    Args:
        model: Its modules' attributes are exchanged.
        change: Gives new fields of a config by name. It is asked once for each config.
    """
    _renew_configs(model, lambda config, module, path: dict(change(config)))


def _renew_configs(model: nn.Module, renew: Callable[[Any, str, str], dict[str, Any]]) -> None:
    known: dict[int, tuple[Any, Any]] = {}

    def renewed(config: Any, module: str, path: str, depth: int) -> Any:
        if id(config) in known:
            return known[id(config)][1]
        known[id(config)] = config, config  # a config may hold itself
        fields = renew(config, module, path)
        for name, value in configs_in(fields_of(config)) if depth > 1 else ():
            inner = renewed(value, module, f"{path}.{name}", depth - 1)
            if inner is not value:
                fields[name] = inner
        result = config
        if fields:
            result = copy.copy(config)
            fields_of(result).update(fields)
        known[id(config)] = config, result
        return result

    for name, module in model.named_modules():
        for attribute, value in configs_in(vars(module)):
            vars(module)[attribute] = renewed(value, name, attribute, _DEPTH)


def configs_in(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the fields that hold a config: a dictionary, or an object that is nothing else that we know of."""
    found = []
    for name, value in fields.items():
        if not isinstance(name, str) or name[:1] == "_" or "." in name:
            continue
        if type(value) is dict or (
            hasattr(value, "__dict__")
            and not isinstance(value, nn.Module | Tensor | ModuleType)
            and not callable(value)
        ):
            found.append((name, value))
    return found


def _items(value: Any) -> Iterator[tuple[int | None, int]]:
    for position, item in enumerate(value) if type(value) in (list, tuple) else [(None, value)]:
        if isinstance(item, int) and not isinstance(item, bool) and item > 1:
            yield position, item
