"""Data sets by name, and batches that a run can resume in the middle of."""

from __future__ import annotations

from evolve.data import (  # noqa: F401 - they register their data sets
    digits,
    fake,
    fake_pictures,
    fake_trees,
    folder,
    huggingface,
    numpy_files,
    segmentation,
    tabular,
    text,
    vision,
)
from evolve.data.augment import CropFlip, Normalise
from evolve.data.batches import Batches, OrderedBatches, TensorBatches
from evolve.data.collate import as_lists
from evolve.data.convert import BatchSource, as_batches
from evolve.data.loaders import IterableBatches, LoaderBatches
from evolve.data.order import Sampler
from evolve.data.sources import Data, build_data, datasets, find_collate, find_data, no_augmentation, takes
from evolve.data.trees import Batch, count_samples, join, map_tensors, take, tensors_of

__all__ = [
    "Batch",
    "BatchSource",
    "Batches",
    "CropFlip",
    "Data",
    "IterableBatches",
    "LoaderBatches",
    "Normalise",
    "OrderedBatches",
    "Sampler",
    "TensorBatches",
    "as_batches",
    "as_lists",
    "build_data",
    "count_samples",
    "datasets",
    "find_collate",
    "find_data",
    "join",
    "map_tensors",
    "no_augmentation",
    "take",
    "takes",
    "tensors_of",
]
