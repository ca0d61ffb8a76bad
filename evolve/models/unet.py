"""A small U-Net for segmentation, after Ronneberger et al. 2015."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.errors import EvolveError
from evolve.models.lookup import models


def _double_conv(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


@models.register("unet")
class UNet(nn.Module):
    """Halves the image `depth` times and comes back, with a shortcut at each size.

    Padded convolutions keep sizes, and what comes up is resized to the shortcut, so images of any size from 2**depth on
    will do.

    Args:
        in_channels: Channels of the images.
        classes: Outputs of each pixel.
        width: Channels at full size; they double where the image is halved.
        depth: How often it is halved.

    Raises:
        EvolveError: If the depth is less than 1.
    """

    def __init__(self, in_channels: int = 3, classes: int = 2, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        if depth < 1:
            raise EvolveError(f"A U-Net halves its images at least once, so depth must be 1 or more, not {depth}.")
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double_conv(before, after) for before, after in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = _double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList(_double_conv(deeper + here, here) for here, deeper in reversed(list(pairwise(widths))))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores of each pixel: (N, in_channels, H, W) to (N, classes, H, W)."""
        shortcuts: list[Tensor] = []
        x = images
        for block in self.down:
            x = block(x)
            shortcuts.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for block in self.up:
            shortcut = shortcuts.pop()
            x = block(torch.cat([shortcut, F.interpolate(x, size=shortcut.shape[-2:])], dim=1))
        scores: Tensor = self.head(x)
        return scores
