"""Everything an optimizer holds, remembered, and put back bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from evolve.structure.isolation import copied
from evolve.surgery.optimizer.layers import Optimizers, as_optimizers, groups_of, reachable


class OptimizerState:
    """Groups, state and attributes of optimizers and of those inside them; containers and tensors keep their identity.

    The values of the parameters are not part of it.

    Args:
        optimizer: One optimizer or several.
        device: Where to keep the copies; None for where the tensors are.
    """

    def __init__(self, optimizer: Optimizers, device: torch.device | None = None) -> None:
        optimizers = as_optimizers(optimizer)
        parameters = {id(p) for group in groups_of(optimizers) for p in group["params"]}
        things = {id(thing): thing for one in optimizers for thing in reachable(one)}.values()
        self._containers = [(thing, _items(thing)) for thing in things if isinstance(thing, (dict, list, set, deque))]
        self._tensors = [
            (tensor, tensor.data, copied(tensor, device))
            for thing in things
            if isinstance(thing, Tensor) and id(thing) not in parameters
            for tensor in _plain(thing)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back. May be called once or more often."""
        for container, items in self._containers:
            if _same(container, items):
                continue
            container.clear()
            if isinstance(container, (dict, set)):
                container.update(items)
            else:
                container.extend(items)
        for tensor, data, values in self._tensors:
            if tensor.layout != torch.strided:  # a sparse one has no memory that another could stand for
                tensor.copy_(values)
                continue
            data.copy_(values)
            if tensor.shape != data.shape or tensor.data_ptr() != data.data_ptr():
                tensor.data = data


def _plain(tensor: Tensor) -> Iterable[Tensor]:
    """Returns the tensors that one consists of: of a quantised one its codes and scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain(getattr(tensor, name))]


def _items(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _same(container: Any, items: Any) -> bool:
    """Whether a container still holds the same objects, in the same order."""
    if len(container) != len(items):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), items.items(), strict=True)
        return all(k is k2 and v is v2 for (k, v), (k2, v2) in pairs)
    return all(one is other for one, other in zip(container, items, strict=True))
