"""The blocks that operators insert behind or beside a site. Each adds nothing at birth: its last layer or gate is zero.

Widths are read off the layers, so that another operator can widen or prune a block's inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.blocks.shortcuts import CONV, NORM, POOL, ChannelNorm, Past, Says, normalised, shifted


class ConvChain(Says):
    """Convolutions with norms, ReLU between them; the last norm's scale is zero at birth.

    Basic and bottleneck blocks (He et al. 2015), depthwise-separable (Howard et al. 2017) and inverted ones (Sandler et
    al. 2018) are chains of different widths, kernels and groups.

    Args:
        dims: Spatial dimensions, 1 to 3.
        widths: Channels before, between and after the convolutions.
        kernels: Size of each kernel, odd.
        depthwise: Which convolutions work on each channel for itself.
        stride: Of the first convolution with a kernel of more than one, or of the first, per spatial axis.
        batch: Whether the norms are BatchNorm; GroupNorm with one group otherwise.
        past: Axes along which kernels see earlier positions only, see `Past`; the norms are ChannelNorm then.
    """

    def __init__(
        self,
        dims: int,
        widths: list[int],
        kernels: list[int],
        depthwise: list[bool],
        stride: tuple[int, ...] = (),
        batch: bool = True,
        past: Past = (),
    ) -> None:
        super().__init__()
        self.layers = len(kernels)
        self.past = tuple((axis, shift) for axis, shift in past)
        ahead = {axis for axis, _ in self.past}
        strided = next((i for i, kernel in enumerate(kernels) if kernel > 1), 0)
        for i, kernel in enumerate(kernels):
            groups = widths[i] if depthwise[i] else 1
            step = stride if i == strided and stride else (1,) * dims
            padding = tuple(0 if axis in ahead else kernel // 2 for axis in range(dims))
            conv = CONV[dims](widths[i], widths[i + 1], kernel, step, padding, groups=groups, bias=False)  # type: ignore[arg-type]
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"norm{i + 1}", self._norm(dims, widths[i + 1], batch))
        nn.init.zeros_(self.get_submodule(f"norm{self.layers}").weight)  # type: ignore[arg-type]

    def _norm(self, dims: int, channels: int, batch: bool) -> nn.Module:
        if self.past:
            return ChannelNorm(channels)
        return NORM[dims](channels) if batch else nn.GroupNorm(1, channels)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns `x` (N, C, ...) plus its way through the chain, or `out` plus that where the chain stands beside."""
        base = x if out is None else out
        first: nn.Conv2d = self.conv1  # type: ignore[assignment]
        if x.dim() != first.weight.dim() or x.shape[1] != first.in_channels or base.dim() != x.dim():
            self.say_once(x, base)
            return base
        y = x
        for i in range(1, self.layers + 1):
            conv: nn.Conv2d = getattr(self, f"conv{i}")
            y = normalised(conv(self._with_past(y, conv)), getattr(self, f"norm{i}"))
            y = F.relu(y) if i < self.layers else y
        y = shifted(y, base.shape[2:], self.past)
        if y.shape != base.shape:
            if y.shape[:2] != base.shape[:2]:
                self.say_once(x, base)
                return base
            y = POOL[x.dim() - 2](y, list(base.shape[2:]))
        return base + y.to(base.dtype)

    def _with_past(self, y: Tensor, conv: nn.Conv2d) -> Tensor:
        """Pads before the first position what a kernel asks for, and nothing behind the last one."""
        pads = [0, 0] * (y.dim() - 2)
        for axis, _ in self.past:
            pads[2 * axis + 1] = conv.kernel_size[axis] - 1
        return F.pad(y, pads[::-1]) if any(pads) else y


class LinearBlock(Says):
    """LayerNorm, Linear, GELU, Linear over the last axis; the last Linear is zero at birth.

    Args:
        features: Last axis of `x`.
        hidden: Features between the layers.
        outputs: Last axis of what it is added to; `features` if None.
    """

    def __init__(self, features: int, hidden: int, outputs: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear1 = nn.Linear(features, hidden)
        self.linear2 = nn.Linear(hidden, outputs or features)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns `x` (..., F) plus its way through the layers, or `out` plus that where the block stands beside."""
        base = x if out is None else out
        fits = x.dim() > 0 and x.shape[:-1] == base.shape[:-1] and x.shape[-1] == self.linear1.in_features
        if not fits or base.shape[-1] != self.linear2.out_features:
            self.say_once(x, base)
            return base
        y: Tensor = self.linear2(F.gelu(self.linear1(self.norm(x))))
        return base + y.to(base.dtype)


class SelfAttention(Says):
    """`x + gate * attention(LayerNorm(x))` over tokens or the positions of an image, the gate zero at birth.

    Vaswani et al. 2017; the zero gate: Bachlechner et al. 2020.

    Args:
        features: Channels or features.
        heads: Attention heads; they have to divide `features`.
        channels_first: Whether channels are axis 1, of (N, C, ...), or the last one, of (N, ..., L, D).
        past: Axes, spatial ones or that of the tokens (0), along which a position attends to itself and earlier ones.
    """

    def __init__(self, features: int, heads: int, channels_first: bool, past: Sequence[int] = ()) -> None:
        super().__init__()
        self.heads, self.channels_first, self.past = heads, channels_first, tuple(past)
        self.norm = nn.LayerNorm(features)
        self.queries, self.values = nn.Linear(features, features), nn.Linear(features, features)
        self.keys = nn.Linear(features, features, bias=False)  # a softmax would not notice its bias
        self.project = nn.Linear(features, features)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        axis = 1 if self.channels_first else -1
        if x.dim() < 3 or x.shape[axis] != self.queries.in_features:
            self.say_once(x, x)
            return x
        tokens = x.flatten(2).transpose(1, 2) if self.channels_first else x
        normed = self.norm(tokens)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer in (self.queries, self.keys, self.values)
        )
        sizes = x.shape[2:] if self.channels_first else x.shape[-2:-1]
        ordered = bool(self.past) and len(sizes) == 1
        mask = no_later(sizes, self.past, x.device) if self.past and not ordered else None
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=ordered)
        y = self.project(attended.transpose(-3, -2).flatten(-2))
        y = y.transpose(1, 2).reshape(x.shape) if self.channels_first else y
        gated: Tensor = self.gate * y
        return x + gated.to(x.dtype)


class SqueezeExcite(Says):
    """`x + gate * x * sigmoid(MLP(mean of x))`: channels weighed by what all positions hold; the gate zero at birth.

    Hu et al. 2018; SiLU, behind which no unit is dead at birth: Tan and Le 2019. With a `past` the mean at a position
    goes over it and earlier ones.

    Args:
        channels: Channels of `x`, (N, C, ...).
        hidden: Units between the two layers.
        past: Spatial axes along which the mean goes over earlier positions only.
    """

    def __init__(self, channels: int, hidden: int, past: Sequence[int] = ()) -> None:
        super().__init__()
        self.past = tuple(past)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        if x.dim() < 3 or x.shape[1] != self.squeeze.in_features:
            self.say_once(x, x)
            return x
        mean = running_mean(x, self.past) if self.past else x.flatten(2).mean(-1)
        weight = torch.sigmoid(self.excite(F.silu(self.squeeze(mean.movedim(1, -1))))).movedim(-1, 1)
        weight = weight if self.past else weight.reshape(*weight.shape, *[1] * (x.dim() - 2))
        gated: Tensor = self.gate * x * weight
        return x + gated.to(x.dtype)


class TransformerBlock(nn.Module):
    """Self-attention behind a zero gate, then a zero MLP: a pre-norm transformer block that starts as the identity.

    Args:
        features: Features of a token.
        hidden: Units of the MLP.
        heads: Attention heads.
        past: As for `SelfAttention`.
    """

    def __init__(self, features: int, hidden: int, heads: int, past: Sequence[int] = ()) -> None:
        super().__init__()
        self.attention = SelfAttention(features, heads, channels_first=False, past=past)
        self.mlp = LinearBlock(features, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`, (N, L, D)."""
        y: Tensor = self.mlp(self.attention(x))
        return y


class Blend(nn.Module):
    """`out + gate * (new(x) - out)`: from what stands there to another layer, the gate zero at birth.

    Args:
        new: The other layer.
    """

    def __init__(self, new: nn.Module) -> None:
        super().__init__()
        self.new = new
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Returns a tensor of the shape of `out`."""
        blended: Tensor = self.gate * (self.new(x) - out)
        return out + blended.to(out.dtype)


def no_later(sizes: Sequence[int], past: Sequence[int], device: torch.device) -> Tensor:
    """Returns which position may attend to which, (positions, positions): to none later along an axis of `past`."""
    count = math.prod(sizes)
    allowed = torch.ones(count, count, dtype=torch.bool, device=device)
    for axis in past:
        shape = [size if axis == own else 1 for own, size in enumerate(sizes)]
        at = torch.arange(sizes[axis], device=device).view(shape).expand(tuple(sizes)).flatten()
        allowed = allowed & (at[:, None] >= at)
    return allowed


def running_mean(x: Tensor, past: Sequence[int]) -> Tensor:
    """Returns the mean of (N, C, ...) over all axes but `past`, where it goes over a position and those before it."""
    others = [axis for axis in range(2, x.dim()) if axis - 2 not in past]
    mean = x.mean(others, keepdim=True) if others else x
    for axis in past:
        counts = torch.arange(1, x.shape[2 + axis] + 1, device=x.device, dtype=x.dtype)
        mean = mean.cumsum(2 + axis) / counts.view(-1, *[1] * (x.dim() - 3 - axis))
    return mean


def heads_for(features: int) -> int:
    """Returns a number of heads of at least 16 features each, 8 at most."""
    return max(h for h in (1, 2, 4, 8) if features % h == 0 and (h == 1 or features // h >= 16))


def positions(shape: tuple[int, ...], channels_first: bool) -> int:
    """Returns over how many positions self-attention goes: all of (N, C, ...), or the L of (N, ..., L, D)."""
    return math.prod(shape[2:]) if channels_first else shape[-2]


def has_batch_norm(layers: Iterable[nn.Module]) -> bool:
    """Returns whether BatchNorm suits a place: unless its own layers are normalised in another way only."""
    kinds = [
        layer for layer in layers if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm))
    ]
    return not kinds or any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in kinds)


def rounded(width: float) -> int:
    """Returns a width as an integer of at least 1."""
    return max(1, math.floor(width + 0.5))
