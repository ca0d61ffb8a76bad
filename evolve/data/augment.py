"""What happens to a whole batch of images between storage and model: augmentation and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from evolve.data.order import mix

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""Takes a batch and a random generator, gives a batch of the same shape."""


@dataclass(frozen=True)
class CropFlip:
    """The standard augmentation of small images: pad with zeros, crop at random, mirror every other image.

    Args:
        padding: Zeros added on each side before the crop.
        flip: Whether to mirror images left to right with probability one half (not for digits or letters).
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the augmented (N, C, H, W) batch; what is drawn depends on the generator and N only."""
        count, channels, height, width = images.shape
        pad = self.padding
        down, right = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(images.device)
        mirror = torch.rand(count, generator=generator).to(images.device) < (0.5 if self.flip else 0.0)
        # Crop and mirror are one gather: row and column of each output pixel in its padded image.
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirror[:, None], width - 1 - columns, columns) + right[:, None]
        rows = torch.arange(height, device=images.device) + down[:, None]
        source = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
        source = source.view(count, 1, -1).expand(count, channels, -1)
        return F.pad(images, (pad, pad, pad, pad)).flatten(2).gather(2, source).view_as(images)


class Normalise:
    """Turns uint8 images into floats with about zero mean and unit variance.

    Args:
        mean: Mean of each channel, where 1.0 is the value 255.
        std: Standard deviation of each channel, on the same scale.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        deviations = torch.tensor(std, dtype=torch.float64)
        # (x / 255 - mean) / std, as one multiplication and one addition.
        self._scale = (1 / (255 * deviations)).float().view(-1, 1, 1)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / deviations).float().view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the normalised batch as float32."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return images.float().mul_(self._scale).add_(self._shift)


@dataclass(frozen=True)
class Prepare:
    """Augments (in training) and normalises a batch, as a function of (seed, epoch, batch) and nothing else.

    Args:
        seed: Seed of the augmentation.
        augment: The augmentation, or None.
        normalise: What makes floats of stored values, or None to scale uint8 to 0..1 and leave the rest alone.
    """

    seed: int
    augment: Augment | None = None
    normalise: Callable[[Tensor], Tensor] | None = None

    def __call__(self, inputs: Tensor, epoch: int, batch: int) -> Tensor:
        """Returns the inputs of one training batch."""
        if self.augment is not None:
            inputs = self.augment(inputs, torch.Generator().manual_seed(mix(self.seed, epoch, batch)))
        return self.plain(inputs)

    def plain(self, inputs: Tensor) -> Tensor:
        """Returns inputs as the model sees them, without augmentation."""
        if self.normalise is not None:
            return self.normalise(inputs)
        return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs
