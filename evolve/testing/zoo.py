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
    "volume": Subject(_volume, lambda: torch.randn(4, 2, 4, 10, 10)),
}
