"""What hangs on a tensor beside its values: hooks, attributes of a user, its class, whether it has gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Tables of hooks; None until the first hook is registered.
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_HAS_GRAD_DTYPE = hasattr(Tensor, "grad_dtype")


class TensorAttributes:
    """The attributes of a parameter or buffer as they were when it was made.

    Args:
        tensor: The tensor; it stays the object it is.
    """

    __slots__ = ("_attributes", "_hooks", "_plain", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        own = vars(tensor)
        self._tensor = tensor
        self._plain = _plain(tensor)
        self._attributes = dict(own) if own else None
        tables = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
        self._hooks = [(table, dict(table or ())) for table in tables] if any(tables) else None

    def restore(self) -> None:
        """Puts them back."""
        tensor, own = self._tensor, vars(self._tensor)
        if own or self._attributes:
            own.clear()
            own.update(self._attributes or {})
        if self._hooks or tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
            self._restore_hooks()
        if _plain(tensor) != self._plain:
            self._restore_plain()

    def _restore_hooks(self) -> None:
        for name, (table, content) in zip(_HOOKS, self._hooks or [(None, {})] * len(_HOOKS), strict=True):
            live = getattr(self._tensor, name)
            if live is not table:
                if live is not None:  # autograd may go on with the table that it was given
                    live.clear()
                setattr(self._tensor, name, table)
            if table is not None and table != content:
                table.clear()
                table.update(content)

    def _restore_plain(self) -> None:
        tensor: Any = self._tensor
        cls, requires_grad, leaf, grad_dtype = self._plain
        if type(tensor) is not cls:
            tensor.__class__ = cls
        if leaf and not tensor.is_leaf:  # a buffer that a forward wrote to with gradients on
            tensor.detach_()
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if _HAS_GRAD_DTYPE and leaf and tensor.grad_dtype != grad_dtype:
            tensor.grad_dtype = grad_dtype


def _plain(tensor: Tensor) -> tuple[type, bool, bool, torch.dtype | None]:
    leaf = tensor.is_leaf
    dtype = tensor.grad_dtype if _HAS_GRAD_DTYPE and leaf else None  # others have none
    return type(tensor), tensor.requires_grad, leaf, dtype
