"""One registry class for everything that is found by name, and the base of its typed options.

Built-in items register themselves where they are defined; other packages join through entry points
(group `evolve.operators`, `evolve.policies`, ...), which are looked at only when a name is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from numbers import Integral, Real
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from evolve.errors import DuplicateNameError, EvolveError, UnknownNameError, described, did_you_mean

T = TypeVar("T")


class Registered:
    """Base of classes that know the name they are registered under.

    Attributes:
        name: Set by `Registry.register`.
    """

    name: ClassVar[str]


class TypedOptions(BaseModel):
    """Base of the typed options of registered classes.

    Unknown names, "3" for 3, true for 1, and NaN or infinity are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Self:
        """Returns options as a YAML file, a record or a caller gives them: a list may stand for a tuple.

        Raises:
            ValidationError: If a name is unknown or a value is not allowed.
        """
        try:
            text = json.dumps(dict(options), default=_plain_number)
        except (TypeError, ValueError):  # a value that JSON has no form for: the strict check in Python decides
            return cls(**options)
        return cls.model_validate_json(text)


def _plain_number(value: object) -> int | float:
    """Returns the Python number for one of NumPy's."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"A {type(value).__name__} has no form in JSON.")


class Registry(Generic[T]):
    """Names mapped to items of one kind; duplicates are refused.

    Args:
        kind: What an item is called in messages, for example "operator".
        group: The entry point group in which other packages offer items.
        base: The class that all items inherit from; None where they need not be classes.
    """

    def __init__(self, kind: str, group: str, base: type[object] | None = None) -> None:
        self.kind = kind
        self.group = group
        self.base = base
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its subject under `name`.

        Raises:
            DuplicateNameError: If another item already has the name.
        """

        def add(item: T) -> T:
            known = self._items.get(name)
            if known is not None and not _same_definition(known, item):
                raise DuplicateNameError(
                    f"Cannot register {self.kind} '{name}': the name already belongs to {known!r}. Choose another one."
                )
            if isinstance(item, type) and issubclass(item, Registered):
                item.name = name
            self._items[name] = item
            return item

        return add

    def unregister(self, name: str) -> None:
        """Removes an item, for tests and notebooks that define a plugin again."""
        self._items.pop(name, None)

    def get(self, name: str) -> T:
        """Returns the item called `name`.

        Raises:
            UnknownNameError: If no built-in item, plugin or entry point has the name.
        """
        if name not in self._items:
            for point in entry_points(group=self.group):
                if point.name == name:
                    item = self.load(point)
                    if self._items.get(name) is not item:
                        self.register(name)(item)
        if name not in self._items:
            known = self.names()
            raise UnknownNameError(
                f"Unknown {self.kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}."
            )
        return self._items[name]

    def load(self, point: EntryPoint) -> T:
        """Returns what an entry point of another package stands for.

        Raises:
            EvolveError: If it cannot be imported, or is of another kind.
        """
        try:
            item: T = point.load()
        except Exception as error:  # the package may raise anything when it is imported
            raise EvolveError(
                f"The {self.kind} '{point.name}' of an installed package cannot be loaded from {point.value}: "
                f"{described(error).rstrip('.')}. Mend that package, or uninstall it."
            ) from error
        known = self._items.get(point.name)
        if known is not None and _same_definition(known, item):  # its module has registered it, such as a function
            return known
        if self.base is not None and not (isinstance(item, type) and issubclass(item, self.base)):
            raise EvolveError(
                f"The {self.kind} '{point.name}' of an installed package is no {self.kind}: {point.value} is no class "
                f"that inherits from {self.base.__name__}, and is not registered under the name '{point.name}'."
            )
        return item

    def names(self) -> list[str]:
        """Returns every known name, sorted."""
        return sorted({*self._items, *(point.name for point in entry_points(group=self.group))})

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _same_definition(one: object, other: object) -> bool:
    """True for one source definition that was imported or run again (a reloaded module, a notebook cell)."""

    def where(item: object) -> tuple[object, object]:
        return getattr(item, "__module__", None), getattr(item, "__qualname__", None)

    return one is other or (where(one) == where(other) and where(one)[1] is not None)
