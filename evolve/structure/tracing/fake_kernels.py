"""What the most frequent operations give, worked out here.

A fake tensor finds out what an operation gives by running a Python decomposition of it for every new shape. For a
handful of operations on contiguous tensors the answer is a line of arithmetic, and recording a convolutional network
takes half the time. Anything out of the ordinary returns None and goes the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

Make = Callable[[Sequence[int]], Tensor]


class Shortcuts:
    """Knows what frequent operations give.

    Args:
        fake: What fake tensors are made in.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        self._fake = fake
        self._nothing: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def take(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns what `func` gives for a fake first argument, or None where only running it tells.

        Parameters and buffers need not be fake: only their sizes are looked at.
        """
        if func is _aten.empty.memory_format:
            return self._empty(*args, **kwargs)
        rule = self._batch_norm if func is _aten.native_batch_norm.default else _RULES.get(func)
        if rule is None or kwargs:
            return None
        like = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        if not isinstance(like, FakeTensor) or not like.is_contiguous():
            return None
        return rule(lambda shape: self._made(shape, like.dtype, like.fake_device), *args)

    def _batch_norm(
        self, make: Make, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if weight is not None and weight.dtype != x.dtype:
            return None
        if training:
            return make(x.shape), make((x.shape[1],)), make((x.shape[1],))
        nothing = self._without_elements(x.dtype, x.device)
        return make(x.shape), nothing, nothing

    def _empty(self, size: Sequence[int], **how: Any) -> Tensor | None:
        """What every BatchNorm makes for other kernels to keep something in; a user's `torch.empty` says more."""
        if list(size) != [0] or how.keys() != {"dtype", "layout", "device"} or how["layout"] != torch.strided:
            return None
        return self._without_elements(how["dtype"], how["device"])

    def _without_elements(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One tensor for every BatchNorm: a forward does not see it unless it calls that kernel by its name."""
        key = dtype, device
        if key not in self._nothing:
            self._nothing[key] = self._made((0,), dtype, device)
        return self._nothing[key]

    def _made(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        with no_dispatch():
            return FakeTensor(self._fake, torch.empty(shape, dtype=dtype, device="meta"), device)


def _relu(make: Make, x: Tensor) -> Tensor:
    return make(x.shape)


def _in_place(make: Make, x: Tensor, *rest: Any) -> Tensor:
    return x


def _add(make: Make, x: Tensor, other: Any) -> Tensor | None:
    alike = isinstance(other, FakeTensor) and other.shape == x.shape and other.dtype == x.dtype
    return make(x.shape) if alike and other.is_contiguous() else None


def _cat(make: Make, tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    rest = first.shape[:dim], first.shape[dim + 1 :]
    for tensor in tensors:
        alike = tensor.dtype == first.dtype and (tensor.shape[:dim], tensor.shape[dim + 1 :]) == rest
        if dim < 0 or not alike or not tensor.is_contiguous():
            return None
    return make([*rest[0], sum(tensor.shape[dim] for tensor in tensors), *rest[1]])


def _convolution(
    make: Make,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    fits = x.dim() == weight.dim() and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if transposed or not fits or not weight.is_contiguous() or (bias is not None and bias.shape[0] != weight.shape[0]):
        return None
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    spatial = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes]
    return make([x.shape[0], weight.shape[0], *spatial]) if min(spatial) > 0 else None


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., Any]] = {
    _aten.relu.default: _relu,
    _aten.relu_.default: _in_place,
    _aten.add.Tensor: _add,
    _aten.add_.Tensor: _in_place,
    _aten.cat.default: _cat,
    _aten.convolution.default: _convolution,
}
