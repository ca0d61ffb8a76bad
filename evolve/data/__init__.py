"""Data sets by name, and batches that a run can resume in the middle of."""

from __future__ import annotations

from evolve.data import digits, fake, folder, vision  # noqa: F401 - they register their data sets
from evolve.data.augment import CropFlip, Normalise
from evolve.data.batches import Batches, TensorBatches
from evolve.data.convert import BatchSource, as_batches
from evolve.data.loaders import IterableBatches, LoaderBatches
from evolve.data.sources import Data, build_data, datasets, find_data, no_augmentation, takes

__all__ = [
    "BatchSource",
    "Batches",
    "CropFlip",
    "Data",
    "IterableBatches",
    "LoaderBatches",
    "Normalise",
    "TensorBatches",
    "as_batches",
    "build_data",
    "datasets",
    "find_data",
    "no_augmentation",
    "takes",
]
