"""The bundled data set: small handwritten digits, for examples and tests without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from evolve.data.augment import CropFlip, Normalise
from evolve.data.batches import TensorBatches
from evolve.data.sources import Data, datasets, stratified_split


@datasets.register("digits")
def digits(
    batch_size: int = 64,
    augment: bool = False,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    split_seed: int = 0,
) -> Data:
    """Loads 1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998, CC BY 4.0; see DIGITS.md).

    Args:
        batch_size: Samples in a batch.
        augment: Whether to shift training images by up to one pixel; digits are never mirrored.
        seed: Seed of order and augmentation.
        val_fraction: Share of every class that is held out, for decisions.
        test_fraction: Share of every class that is kept from all decisions.
        split_seed: Seed of the split, apart from `seed`, so that runs with different seeds stay comparable.
    """
    stored = load_file(Path(__file__).with_name("digits.safetensors"))
    images = (stored["images"].float() * (255 / 16)).to(torch.uint8).unsqueeze(1)
    labels = stored["labels"].long()
    rest, test = torch.arange(len(labels)), None
    if test_fraction:
        rest, test = stratified_split(labels, test_fraction, split_seed)
    train, val = (rest[part] for part in stratified_split(labels[rest], val_fraction / (1 - test_fraction), split_seed))
    normalise = Normalise([0.305], [0.376])
    crop = CropFlip(padding=1, flip=False) if augment else None

    def held_out(part: Tensor) -> TensorBatches:
        return TensorBatches(images[part], labels[part], batch_size, shuffle=False, seed=seed, normalise=normalise)

    return Data(
        TensorBatches(
            images[train], labels[train], batch_size, shuffle=True, seed=seed, augment=crop, normalise=normalise
        ),
        held_out(val),
        test=None if test is None else held_out(test),
        num_classes=10,
        input_shape=(1, 8, 8),
    )
