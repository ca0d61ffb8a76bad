"""What tensors hold, remembered, so that it can be put back bit for bit.

A mutation leaves most tensors alone, and those that it resizes get other memory. So values are copied on the first
write where PyTorch can do that: `remembered` takes next to no time, and no memory for what nobody writes to.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Returns the values of a tensor in memory of their own, in the same layout; None for the device it is on."""
    values = tensor.detach()
    return values.clone() if device in (None, tensor.device) else values.to(device)


def remembered(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Returns the values of a tensor as `copied` does, but on the CPU shares their memory until somebody writes to it.

    Whoever may have written to the tensor (in place, through `data`, a view, NumPy or a raw pointer) has made PyTorch
    copy it before. Call `settle` when the copy is no longer needed.
    """
    if device is None and _can_share(tensor):
        try:
            return torch._lazy_clone(tensor.detach())
        except RuntimeError:  # memory that is not PyTorch's own, such as NumPy's, or shared between processes
            pass
    return copied(tensor, device)


def put_back(tensor: Tensor, values: Tensor) -> Tensor:
    """Gives a tensor the values that were copied; returns the tensor."""
    if _can_share(tensor) and values.device == tensor.device and one_memory(tensor, values):
        return tensor  # nobody has written to it
    return tensor.copy_(values)


def settle(tensors: Iterable[Tensor]) -> None:
    """Ends the sharing of memory with copies that are gone, without which PyTorch fails to enlarge it in place."""
    for tensor in tensors:
        if _can_share(tensor):
            tensor.data_ptr()


def one_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors begin at the same place in memory. To ask for their `data_ptr` would count as writing."""
    address = torch._C._data_address  # type: ignore[attr-defined]
    return bool(address(tensor) == address(other))


def _can_share(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.device.type == "cpu" and tensor.layout == torch.strided
