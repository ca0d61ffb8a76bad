"""Shortcuts that operators insert beside a site, and what all inserted modules share.

Shapes are settled when a block is built. At run time a block compares shapes and, where nothing fits, adds nothing:
there is no `try` in a forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class Says(nn.Module):
    """A module that can say once that it adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.said = False

    def say_once(self, x: Tensor, out: Tensor) -> None:
        if not self.said and not torch.compiler.is_compiling():
            self.said = True
            logger.warning(
                "The shortcut %s adds nothing to an output of shape %s: the input of shape %s cannot be matched to it.",
                type(self).__name__,
                tuple(out.shape),
                tuple(x.shape),
            )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, ...), each position for itself: no position sees another one's values."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`, (N, C, ...)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


# Spatial axes along which a block sees earlier positions only, each with how far its output is moved to later ones.
Past = Sequence[tuple[int, int]]


def shifted(y: Tensor, sizes: Sequence[int], past: Past) -> Tensor:
    """Brings (N, C, ...) to other sizes along the axes of a `past`: moved as it says, cut or filled with zeros."""
    pads = [0, 0] * (y.dim() - 2)
    for axis, shift in past:
        pads[2 * axis : 2 * axis + 2] = [sizes[axis] - y.shape[2 + axis] - shift, shift]  # reversed below
    return F.pad(y, pads[::-1]) if any(pads) else y


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Applies a norm; BatchNorm with a single value per channel, where batch statistics say nothing, by the running."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training and x.numel() == x.shape[1]:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return norm(x)  # type: ignore[no-any-return]


class GatedIdentity(Says):
    """`out + gate * x`, a scalar gate starting at zero (ReZero, Bachlechner et al. 2020).

    Args:
        gate: Value of the gate at birth.
    """

    def __init__(self, gate: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Adds the gated `x`, any shape, to `out` of the same shape."""
        if x.shape != out.shape:
            self.say_once(x, out)
            return out
        return out + (self.gate * x).to(out.dtype)


class ConvProjection(Says):
    """`out + BatchNorm(Conv 1x1(x))`, the projection shortcut of ResNet (He et al. 2015), gamma 0 at birth.

    Args:
        dims: Spatial dimensions, 1 to 3.
        in_channels: Channels of `x`, (N, C, ...).
        out_channels: Channels of `out`.
        stride: Per spatial axis.
        past: See `Past`; the norm is ChannelNorm then.
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, stride: tuple[int, ...], past: Past = ()
    ) -> None:
        super().__init__()
        self.past = tuple((axis, shift) for axis, shift in past)
        self.conv = CONV[dims](in_channels, out_channels, kernel_size=1, stride=stride)  # type: ignore[arg-type]
        self.norm = ChannelNorm(out_channels) if past else NORM[dims](out_channels)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Adds the projected `x`; spatial sizes that differ are met by adaptive average pooling."""
        dims = self.conv.weight.dim()
        fits = x.dim() == out.dim() == dims and x.shape[0] == out.shape[0]
        if not fits or (x.shape[1], out.shape[1]) != (self.conv.in_channels, self.conv.out_channels):
            self.say_once(x, out)
            return out
        y = shifted(self.conv(x), out.shape[2:], self.past)
        if y.shape[2:] != out.shape[2:]:
            y = POOL[dims - 2](y, list(out.shape[2:]))
        return out + normalised(y, self.norm).to(out.dtype)


class LinearProjection(Says):
    """`out + Linear(x)` over the last axis, weights and bias zero at birth.

    Args:
        in_features: Last axis of `x`, (N, F) or (N, ..., D).
        out_features: Last axis of `out`.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Adds the projected `x`; all axes but the last must agree."""
        fits = x.dim() == out.dim() and x.shape[:-1] == out.shape[:-1]
        if not fits or (x.shape[-1], out.shape[-1]) != (self.linear.in_features, self.linear.out_features):
            self.say_once(x, out)
            return out
        projected: Tensor = self.linear(x)
        return out + projected.to(out.dtype)


def like_site(block: nn.Module, layers: list[nn.Module], model: nn.Module, dtype: str | None = None) -> nn.Module:
    """Brings a block to the device, dtype and memory format of the site's tensors, or of the model's without any.

    Args:
        block: The block.
        layers: The site's layers.
        model: The model.
        dtype: Name of the type that flows at the site, such as "bfloat16", where it is another one.
    """
    floats = floats_near(layers, model)
    if not floats:
        return block
    block = block.to(device=floats[0].device, dtype=getattr(torch, dtype) if dtype else floats[0].dtype)
    # A 1x1 kernel counts as both formats: only a kernel that tells them apart is asked.
    kernels = [tensor for tensor in floats if tensor.dim() == 4 and not tensor.is_contiguous()]
    if kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels):
        block = block.to(memory_format=torch.channels_last)
    return block


def floats_near(layers: Iterable[nn.Module], model: nn.Module) -> list[Tensor]:
    """Returns the floating-point tensors of a site's layers; those of the model where these have none."""
    return _floats(layers) or _floats(model.modules())


def _floats(layers: Iterable[nn.Module]) -> list[Tensor]:
    tensors = [t for layer in layers for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))]
    return [tensor for tensor in tensors if tensor.is_floating_point()]
