"""What modules keep beside modules and tensors: caches, memories and counters in containers and objects of their own.

A forward may write to any of them. What it leaves there in a recorded run would be tensors without values.
"""

from __future__ import annotations

import functools
import gc
import logging
import types
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_DEPTH = 3  # containers in containers in a container
_MOST = 10_000  # containers of one model: what has more is a data set, not a part of a model

# Has nothing inside that a forward could exchange.
SIMPLE = {int, float, bool, complex, str, bytes, tuple, type(None), torch.dtype, torch.device, torch.Size}
_CLOSED = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, functools.partial)


class Kept:
    """The contents of containers, of plain objects and of generators, as they were when it was made.

    Args:
        roots: Attributes of modules.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        for root in roots:
            self._remember(root, _DEPTH)

    def _remember(self, value: Any, depth: int) -> None:
        if type(value) is tuple:
            for item in value:
                self._remember(item, depth)
        if type(value) in SIMPLE or id(value) in self._contents or not depth or len(self._contents) > _MOST:
            return
        if isinstance(value, torch.Generator):
            self._contents[id(value)] = value, None
            self._generators.append((value, value.get_state()))
            return
        container = _container(value)
        if container is None:
            return
        copy = _items(container)
        self._contents[id(value)] = container, copy
        for item in list(copy.values() if isinstance(copy, dict) else copy)[:_MOST]:
            self._remember(item, depth - 1)

    def restore(self) -> None:
        """Puts everything back; containers and objects stay the ones they are."""
        for container, copy in self._contents.values():
            if copy is not None and not _alike(_items(container), copy):
                container.clear()
                if isinstance(container, dict):
                    for key, value in copy.items():  # the `update` of a Counter adds
                        container[key] = value
                elif isinstance(container, set):
                    container.update(copy)
                else:
                    container.extend(copy)
        for generator, state in self._generators:
            generator.set_state(state)


def _container(value: Any) -> Any:
    """Returns what holds the items of a container, or of an object of a class that is nothing else that we know of."""
    if isinstance(value, (dict, list, set, deque)):
        return value
    table = None if isinstance(value, _CLOSED) else getattr(value, "__dict__", None)
    return table if type(table) is dict else None


def _items(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _alike(items: Any, others: Any) -> bool:
    if isinstance(items, dict):
        return list(items) == list(others) and _alike(items.values(), others.values())
    return [*map(id, items)] == [*map(id, others)]


def empty_caches(fakes: Iterable[weakref.ref[Tensor]]) -> None:
    """Empties the caches of functions (`functools.lru_cache`) that hold tensors of a recorded run.

    Args:
        fakes: The tensors of the run, which is over.
    """
    left = _alive(fakes)
    if not left:
        return
    gc.collect()  # what is only held in a circle
    left = _alive(left)
    ids = {id(ref()) for ref in left}
    if not ids:
        return
    for cached in [thing for thing in gc.get_objects() if type(thing) is functools._lru_cache_wrapper]:
        if _reaches(cached, ids, 3):
            logger.debug("The cache of %s held tensors of a recorded run.", cached)
            cached.cache_clear()
    if _alive(left):
        logger.warning(
            "The forward keeps tensors of a run that computed nothing, somewhere outside the model: what reads them "
            "there will fail. Keep such state in attributes of a module."
        )


def _alive(fakes: Iterable[weakref.ref[Tensor]]) -> list[weakref.ref[Tensor]]:
    return [ref for ref in fakes if ref() is not None]


def _reaches(thing: Any, ids: set[int], depth: int) -> bool:
    """Whether an object refers to one of others, over a few steps."""
    for other in gc.get_referents(thing):
        if id(other) in ids:
            return True
        if depth and not isinstance(other, _CLOSED) and _reaches(other, ids, depth - 1):
            return True
    return False
