"""Models of images, signals and volumes: convolutions and what goes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


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


class LayerNormed(nn.Module):
    """A block as in ConvNeXt: depthwise convolution, channels moved to the end, LayerNorm, a scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.mix = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.5))
        self.act, self.head = nn.GELU(), nn.Linear(6, 5)
        self.register_buffer("shift", torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        x = self.stem(x)
        y = self.norm(self.mix(x).permute(0, 2, 3, 1)) + self.shift
        y = self.down(self.act(self.up(y))) * self.scale
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.flatten(2).mean(-1))  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """A small U-Net of signals: strided down, transposed up, joined with what was before; PReLU per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv1d(2, 4, 3, padding=1)
        self.down = nn.Sequential(nn.Conv1d(4, 8, 2, stride=2), nn.InstanceNorm1d(8, affine=True), nn.PReLU(8))
        self.up = nn.ConvTranspose1d(8, 6, 2, stride=2)
        self.grouped = nn.ConvTranspose1d(6, 4, 3, padding=1, groups=2)
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, L) to (N, 2, L), for even L."""
        x = self.before(x)
        y = F.relu(self.up(self.down(x)))
        return self.out(torch.cat([x, self.grouped(y)], dim=1))  # type: ignore[no-any-return]


class Parametrised(nn.Module):
    """Weights that are computed from others: weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.mid = nn.Conv2d(6, 8, 1)
        self.hidden = nn.Linear(8, 6)
        self.head = parametrizations.spectral_norm(nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        x = F.relu(self.mid(F.relu(self.conv(x)))).mean((2, 3))
        return self.head(torch.tanh(self.hidden(x)))  # type: ignore[no-any-return]


class Basic(nn.Module):
    """A block as in ResNet: the sum goes through a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6, H, W) to the same."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y += x
        return F.relu(y)


def staged() -> nn.Sequential:
    """A ResNet of one stage whose blocks stand among other layers: (N, 3, 8, 8) to (N, 5)."""
    stem, head = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU()], [nn.Flatten(), nn.Linear(54, 5)]
    return nn.Sequential(*stem, Basic(), Basic(), *head)
