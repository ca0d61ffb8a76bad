"""Keeps records that are damaged from building what no memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from evolve.errors import EvolveError


class OversizedError(EvolveError):
    """What was to be built is larger than it may be."""


class BoundedBuild(TorchDispatchMode):
    """A context in which operations may make so many elements of tensors in all; asked before memory is taken.

    Each operation is tried on meta tensors first. One whose result depends on values (`nonzero`) cannot be tried and is
    let through: it makes no more than it is given.

    Args:
        elements: How many.

    Raises:
        OversizedError: From within, where one more operation would pass the bound.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bound = self._left = elements

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Tries an operation, then carries it out."""
        kwargs = kwargs or {}
        self._left -= _elements(func, args, kwargs)
        if self._left < 0:
            raise OversizedError(
                f"it builds tensors of more than {self._bound:,} elements, far more than the models before and after "
                "it hold: its plan is damaged."
            )
        return func(*args, **kwargs)


def _elements(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many elements an operation makes; views and what works in place make none, but for `resize_`."""
    schema = func._schema
    if func.is_view or (schema.is_mutable and func.overloadpacket is not torch.ops.aten.resize_):
        return 0
    where = {"device": torch.device("meta")} if any(argument.name == "device" for argument in schema.arguments) else {}
    try:
        made = func(*tree_map(_as_meta, args), **{**tree_map(_as_meta, dict(kwargs)), **where})
    except (RuntimeError, NotImplementedError, TypeError):
        return 0
    return sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))


def _as_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
