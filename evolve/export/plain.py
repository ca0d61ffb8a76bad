# mypy: disable-error-code="arg-type, no-any-return"
"""What stands for inserted blocks in exported source: its text is copied, so it is written as anybody would write it.

Sums take the type of what was there, so that islands of another precision stay what they were.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """`x + layers(x)`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y.to(x.dtype)


class Beside(nn.Module):
    """`layer(x) + branch(x)`."""

    def __init__(self, layer: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        y: Tensor = self.branch(x)
        return out + y.to(out.dtype)


class Beside1d(nn.Module):
    """`layer(x) + branch(x)` for (N, C, L); the branch is pooled to the layer's size, then normed."""

    def __init__(self, layer: nn.Module, branch: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.branch = branch
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        y: Tensor = self.branch(x)
        if y.shape[2:] != out.shape[2:]:
            y = F.adaptive_avg_pool1d(y, out.shape[2:])
        y = self.norm(y)
        return out + y.to(out.dtype)


class Beside2d(nn.Module):
    """`layer(x) + branch(x)` for (N, C, H, W); the branch is pooled to the layer's size, then normed."""

    def __init__(self, layer: nn.Module, branch: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.branch = branch
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        y: Tensor = self.branch(x)
        if y.shape[2:] != out.shape[2:]:
            y = F.adaptive_avg_pool2d(y, out.shape[2:])
        y = self.norm(y)
        return out + y.to(out.dtype)


class Beside3d(nn.Module):
    """`layer(x) + branch(x)` for (N, C, D, H, W); the branch is pooled to the layer's size, then normed."""

    def __init__(self, layer: nn.Module, branch: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.branch = branch
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        y: Tensor = self.branch(x)
        if y.shape[2:] != out.shape[2:]:
            y = F.adaptive_avg_pool3d(y, out.shape[2:])
        y = self.norm(y)
        return out + y.to(out.dtype)


class Gate(nn.Module):
    """`gate * x`, a learned scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * x


class Blend(nn.Module):
    """From one layer to another by a learned gate: `old(x) + gate * (new(x) - old(x))`."""

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old = old
        self.new = new
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.old(x)
        step = self.gate * (self.new(x) - out)
        return out + step.to(out.dtype)


class TokenAttention(nn.Module):
    """`x + gate * attention(norm(x))` over the tokens of (N, ..., L, D)."""

    def __init__(
        self,
        heads: int,
        norm: nn.Module,
        queries: nn.Module,
        keys: nn.Module,
        values: nn.Module,
        project: nn.Module,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = norm
        self.queries = queries
        self.keys = keys
        self.values = values
        self.project = project
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x)
        q = self.queries(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        k = self.keys(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        v = self.values(tokens).unflatten(-1, [self.heads, -1]).transpose(-3, -2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y = self.gate * self.project(attended.transpose(-3, -2).flatten(-2))
        return x + y.to(x.dtype)


class ImageAttention(nn.Module):
    """`x + gate * attention(norm(x))` over the positions of (N, C, ...)."""

    def __init__(
        self, heads: int, norm: nn.Module, queries: nn.Module, keys: nn.Module, values: nn.Module, project: nn.Module
    ) -> None:
        super().__init__()
        self.heads = heads
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
        attended = F.scaled_dot_product_attention(q, k, v)
        y = self.project(attended.transpose(-3, -2).flatten(-2))
        y = self.gate * y.transpose(1, 2).reshape(x.shape)
        return x + y.to(x.dtype)


class SqueezeExcite(nn.Module):
    """`x + gate * x * sigmoid(excite(silu(squeeze(mean of x))))` for the channels of (N, C, ...)."""

    def __init__(self, squeeze: nn.Module, excite: nn.Module) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.excite = excite
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.excite(F.silu(self.squeeze(x.flatten(2).mean(-1)))))
        y = self.gate * x * weight.reshape(list(weight.shape) + [1] * (x.dim() - 2))
        return x + y.to(x.dtype)
