# mypy: disable-error-code="arg-type, no-any-return"
"""What stands in exported source for blocks in causal models, and around layers that are more than called.

As in `plain.py`, the text is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Around(nn.Module):
    """Stands around a layer and answers for it where something of the layer is read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("_modules", {})
        if name in parts or name in self.__dict__.get("_parameters", {}) or "layer" not in parts:
            return super().__getattr__(name)
        return getattr(parts["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        return self.after(x, self.layer(*args, **kwargs))

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        """What becomes of the layer's output."""
        return out


class AroundThen(Around):
    """`block(layer(x, ...))`."""

    def __init__(self, layer: nn.Module, block: nn.Module) -> None:
        super().__init__(layer)
        self.block = block

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        return self.block(out)


class AroundBlend(Around):
    """From one layer to another by a learned gate: `layer(x, ...) + gate * (new(x) - layer(x, ...))`."""

    def __init__(self, layer: nn.Module, new: nn.Module) -> None:
        super().__init__(layer)
        self.new = new
        self.gate = nn.Parameter(torch.zeros(()))

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        step = self.gate * (self.new(x) - out)
        return out + step.to(out.dtype)


class AroundBeside(Around):
    """`layer(x, ...) + norm(branch(x))`, the branch brought to the layer's size.

    `past` names spatial axes along which no position may see a later one, each with how far the branch is moved.
    """

    def __init__(
        self,
        layer: nn.Module,
        branch: nn.Module,
        norm: nn.Module | None = None,
        past: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(layer)
        self.branch = branch
        self.norm = nn.Identity() if norm is None else norm
        self.past = past

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        y = self.branch(x)
        pads = [0, 0] * max(y.dim() - 2, 0)
        for axis, shift in self.past:
            first = 2 * (y.dim() - 3 - axis)  # F.pad takes the last axis first
            pads[first : first + 2] = [shift, out.shape[2 + axis] - y.shape[2 + axis] - shift]
        y = F.pad(y, pads) if any(pads) else y
        if y.shape != out.shape:
            pooled = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
            y = pooled[y.dim()](y, list(out.shape[2:]))
        return out + self.norm(y).to(out.dtype)


class BesidePast(nn.Module):
    """`layer(x) + norm(branch(x))` where no position may see a later one, the branch brought to the layer's size.

    `past` names spatial axes, each with how far the branch is moved to later positions.
    """

    def __init__(
        self, layer: nn.Module, branch: nn.Module, past: list[tuple[int, int]], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.branch = branch
        self.norm = nn.Identity() if norm is None else norm
        self.past = past

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        y: Tensor = self.branch(x)
        pads = [0] * (2 * (y.dim() - 2))
        for axis, shift in self.past:
            first = 2 * (y.dim() - 3 - axis)  # F.pad takes the last axis first
            pads[first] = shift
            pads[first + 1] = out.shape[2 + axis] - y.shape[2 + axis] - shift
        y = F.pad(y, pads)
        if y.shape[2:] != out.shape[2:]:
            if y.dim() == 3:
                y = F.adaptive_avg_pool1d(y, out.shape[2:])
            elif y.dim() == 4:
                y = F.adaptive_avg_pool2d(y, out.shape[2:])
            else:
                y = F.adaptive_avg_pool3d(y, out.shape[2:])
        y = self.norm(y)
        return out + y.to(out.dtype)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, ...), each position for itself."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class PastAttention(nn.Module):
    """`x + gate * attention(norm(x))` over (N, C, ...), a position seeing none later along the spatial axes `past`."""

    def __init__(
        self,
        heads: int,
        norm: nn.Module,
        queries: nn.Module,
        keys: nn.Module,
        values: nn.Module,
        project: nn.Module,
        past: list[int],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.past = past
        self.norm = norm
        self.queries = queries
        self.keys = keys
        self.values = values
        self.project = project
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q = self.queries(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        k = self.keys(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        v = self.values(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        attended = F.scaled_dot_product_attention(q, k, v, self.allowed(x))
        y = self.project(attended.transpose(-3, -2).flatten(-2))
        y = self.gate * y.transpose(1, 2).reshape(x.shape)
        return x + y.to(x.dtype)

    def allowed(self, x: Tensor) -> Tensor:
        """Which position may attend to which."""
        positions = torch.ones(x.shape[2:], dtype=torch.long, device=x.device)
        count = positions.numel()
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device)
        for axis in self.past:
            at = positions.cumsum(axis).flatten()
            mask = mask & (at[:, None] >= at)
        return mask


class PastSqueezeExcite(nn.Module):
    """`x + gate * x * sigmoid(excite(silu(squeeze(mean of x))))`, the mean over earlier positions along `past`."""

    def __init__(self, squeeze: nn.Module, excite: nn.Module, past: list[int]) -> None:
        super().__init__()
        self.past = past
        self.squeeze = squeeze
        self.excite = excite
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mean = x
        for axis in range(2, x.dim()):
            if axis - 2 not in self.past:
                mean = mean.mean(axis, keepdim=True)
        for axis in self.past:
            counts = torch.arange(1, x.shape[2 + axis] + 1, device=x.device, dtype=x.dtype)
            mean = mean.cumsum(2 + axis) / counts.view([-1] + [1] * (x.dim() - 3 - axis))
        weight = torch.sigmoid(self.excite(F.silu(self.squeeze(mean.movedim(1, -1))))).movedim(-1, 1)
        y = self.gate * x * weight
        return x + y.to(x.dtype)


class Passed(nn.Module):
    """Returns its first argument, whatever else it is called with."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x
