"""What hangs on a tensor beside its values: hooks, attributes of a user, its class, whether it has gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Tables of hooks; None until the first hook is registered.
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class TensorAttributes:
    """The attributes of a parameter or buffer as they were when it was made.

    Args:
        tensor: The tensor; it stays the object it is.
    """

    __slots__ = ("_attributes", "_class", "_grad_dtype", "_hooks", "_leaf", "_requires_grad", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._class = tensor, type(tensor)
        self._requires_grad, self._leaf = tensor.requires_grad, tensor.is_leaf
        own = vars(tensor)
        self._attributes = dict(own) if own else None
        hooks = [getattr(tensor, name) for name in _HOOKS]
        self._hooks = [(table, dict(table) if table else None) for table in hooks]
        self._grad_dtype: torch.dtype | None = getattr(tensor, "grad_dtype", None)

    def restore(self) -> None:
        """Puts them back."""
        tensor, own = self._tensor, vars(self._tensor)
        if type(tensor) is not self._class:
            tensor.__class__ = self._class
        if own or self._attributes:
            own.clear()
            own.update(self._attributes or {})
        for name, (table, content) in zip(_HOOKS, self._hooks, strict=True):
            if table is not None and table != (content or {}):
                table.clear()
                table.update(content or {})
            live = getattr(tensor, name)
            if live is not table:
                if live is not None:  # autograd may go on with the table that it was given
                    live.clear()
                setattr(tensor, name, table)
        if self._leaf and not tensor.is_leaf:  # a buffer that a forward wrote to with gradients on
            tensor.detach_()
        if tensor.requires_grad != self._requires_grad:
            tensor.requires_grad_(self._requires_grad)
        if getattr(tensor, "grad_dtype", None) != self._grad_dtype:
            _set_grad_dtype(tensor, self._grad_dtype)


def _set_grad_dtype(tensor: Any, dtype: torch.dtype | None) -> None:
    tensor.grad_dtype = dtype
