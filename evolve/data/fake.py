"""A synthetic data set that can be learned, for tests and for trying out a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evolve.data.augment import CropFlip
from evolve.data.batches import TensorBatches
from evolve.data.sources import Data, datasets
from evolve.errors import DataError


@datasets.register("fake")
def fake(
    batch_size: int = 64,
    augment: bool = False,
    seed: int = 0,
    samples: int = 512,
    shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    noise: float = 1.0,
) -> Data:
    """Makes samples that are a pattern of their class plus noise; a quarter as many again are held out.

    Args:
        batch_size: Samples in a batch.
        augment: Whether to crop and mirror training images at random (three-dimensional shapes only).
        seed: Seed of patterns, noise, order and augmentation.
        samples: Training samples.
        shape: Shape of one sample.
        num_classes: Classes, which take turns.
        noise: Standard deviation of the noise; the pattern's is 1.

    Raises:
        DataError: If there are fewer samples than classes, or `augment` is set for samples that are not images.
    """
    if not 0 < num_classes <= samples:
        raise DataError(f"Data set 'fake' needs at least one sample for each class: samples={samples}, {num_classes=}.")
    if augment and len(shape) != 3:
        raise DataError(f"augment crops images of shape (channels, height, width), not {tuple(shape)}. Switch it off.")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, *shape, generator=generator)

    def make(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % num_classes
        return patterns[labels] + noise * torch.randn(count, *shape, generator=generator), labels

    inputs, targets = make(samples)
    val_inputs, val_targets = make(max(num_classes, samples // 4))
    return Data(
        TensorBatches(inputs, targets, batch_size, shuffle=True, seed=seed, augment=CropFlip() if augment else None),
        TensorBatches(val_inputs, val_targets, batch_size, shuffle=False, seed=seed),
        num_classes=num_classes,
        input_shape=tuple(shape),
    )
