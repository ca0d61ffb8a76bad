"""Small models, each with one trait that has broken somebody's mutation before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Subject:
    """A model to try operators on.

    Attributes:
        build: Makes the model; the same weights for the same torch seed.
        inputs: Makes the arguments of a forward pass, a batch of 4.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def _image() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def _tokens() -> Tensor:
    return torch.arange(24).reshape(4, 6) % 11


class Chain(nn.Module):
    """A plain CNN: features and a classifier, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Adds two paths, one of them strided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Token embedding tied to the output layer, attention, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) to (N, L, 11)."""
        return self.head(self.block(self.embed(tokens)))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Takes keyword arguments, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """(N, 4) and (N, 3) to a dict of (N, 6)."""
        return {"sum": self.left(a) + self.right(b), "left": torch.tanh(self.left(a))}


class ControlFlow(nn.Module):
    """A branch that depends on the data, a layer called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6) to (N, 3)."""
        x = F.relu(self.shared(x))
        if x.sum() >= 0:
            x = self.shared(x)
        return self.out(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A site that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, 4) to (N, 2)."""
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


class Normalised(nn.Module):
    """A first layer without weights, GroupNorm, grouped convolution, 1d; no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Hardtanh()
        self.features = nn.Sequential(
            nn.Conv1d(4, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv1d(8, 8, 2, 2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, L) to (N, 3)."""
        return self.head(self.features(self.scale(x)).mean(-1))  # type: ignore[no-any-return]


class IteratesChildren(nn.Module):
    """Chains its own children: what is registered among them would run as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) to (N, 7)."""
        for child in self.children():
            x = child(x)
        return x


class Concatenated(nn.Module):
    """Joins paths by concatenation, as in DenseNet, and splits one in unequal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(13)
        self.mix = nn.Conv2d(13, 9, 1)
        self.narrow, self.wide = nn.Linear(3, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        y = torch.cat([self.left(x), x, self.right(x)], dim=1)
        y = self.mix(F.relu(self.norm(y))).mean((2, 3))
        few, many = torch.split(y, [3, 6], dim=1)
        return self.narrow(few) + self.wide(many)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """A gate from one half of a layer's units, as in GLU; two heads that return a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 6) to (N, 2) and (N, 3)."""
        gate, value = self.up(x).chunk(2, dim=-1)
        x = x + self.down(F.silu(gate) * value)
        return self.one(x), self.two(x)


class Depthwise(nn.Module):
    """Inverted residual blocks with squeeze-excite, as in MobileNetV3, and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.expand, self.norm1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        x = self.stem(x)
        y = F.hardswish(self.norm1(self.expand(x)))
        y = F.relu6(self.norm2(self.depthwise(y)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y)
        return self.head(F.relu(self.grouped(x)).amax((2, 3)))  # type: ignore[no-any-return]


class GroupedQueries(nn.Module):
    """A decoder block as in Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups, self.width = 4, 2, 4
        self.embed = nn.Embedding(11, 16)
        self.norm1, self.norm2, self.norm3 = nn.RMSNorm(16), nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o = nn.Linear(16, 16, bias=False)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) to (N, L, 11)."""
        x = self.embed(tokens)
        n, length = tokens.shape
        y = self.norm1(x)
        q = self._rotated(self.q(y).view(n, length, self.heads, self.width).transpose(1, 2))
        k = self._rotated(self.k(y).view(n, length, self.groups, self.width).transpose(1, 2))
        v = self.v(y).view(n, length, self.groups, self.width).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, length, -1))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm3(x))  # type: ignore[no-any-return]

    def _rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] / 10 ** torch.arange(
            x.shape[-1] // 2, device=x.device
        )
        one, two = x.chunk(2, dim=-1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def _frozen() -> nn.Module:
    model = Chain()
    model.features.requires_grad_(False)
    return model


def _volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 3, stride=(1, 2, 2)), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(128, 3))


ZOO: dict[str, Subject] = {
    "chain": Subject(Chain, _image),
    "residual": Subject(Residual, _image),
    "transformer": Subject(Transformer, _tokens),
    "two_inputs": Subject(TwoInputs, lambda: {"a": torch.randn(4, 4), "b": torch.randn(4, 3)}),
    "control_flow": Subject(ControlFlow, lambda: torch.randn(4, 6)),
    "recurrent": Subject(Recurrent, lambda: torch.randn(4, 5, 4)),
    "normalised": Subject(Normalised, lambda: torch.randn(4, 4, 9)),
    "iterates_children": Subject(IteratesChildren, lambda: torch.randn(4, 5)),
    "frozen": Subject(_frozen, _image),
    "concatenated": Subject(Concatenated, _image),
    "gated": Subject(Gated, lambda: torch.randn(4, 6)),
    "depthwise": Subject(Depthwise, _image),
    "grouped_queries": Subject(GroupedQueries, _tokens),
    "volume": Subject(_volume, lambda: torch.randn(4, 2, 4, 10, 10)),
}
