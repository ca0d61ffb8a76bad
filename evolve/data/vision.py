"""The classic data sets that torchvision downloads, kept in memory as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evolve.data.augment import CropFlip, Normalise
from evolve.data.batches import TensorBatches
from evolve.data.sources import Data, datasets
from evolve.errors import DataError


@dataclass(frozen=True)
class _Facts:
    """What differs between the data sets; means and deviations are those of the training images."""

    name: str  # the class in torchvision.datasets
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: CropFlip


def _register(name: str, facts: _Facts) -> Callable[..., Data]:
    def source(
        batch_size: int = 64, augment: bool = False, seed: int = 0, root: str = "data", download: bool = True
    ) -> Data:
        return _load(facts, batch_size, augment, seed, Path(root), download)

    source.__name__ = source.__qualname__ = name
    source.__doc__ = f"""Loads {facts.name}; the test images are the held-out part.

    Args:
        batch_size: Samples in a batch.
        augment: Whether to crop (and, where it makes sense, mirror) training images at random.
        seed: Seed of order and augmentation.
        root: Folder that holds the files, or gets them.
        download: Whether to fetch missing files.

    Raises:
        DataError: If the files are missing and cannot be fetched.
    """
    return datasets.register(name)(source)


def _load(facts: _Facts, batch_size: int, augment: bool, seed: int, root: Path, download: bool) -> Data:
    images, labels = _read(facts, root, train=True, download=download)
    val_images, val_labels = _read(facts, root, train=False, download=download)
    normalise = Normalise(facts.mean, facts.std)
    return Data(
        TensorBatches(
            images,
            labels,
            batch_size,
            shuffle=True,
            seed=seed,
            augment=facts.augment if augment else None,
            normalise=normalise,
        ),
        TensorBatches(val_images, val_labels, batch_size, shuffle=False, seed=seed, normalise=normalise),
        num_classes=facts.classes,
        input_shape=tuple(images.shape[1:]),
    )


def _read(facts: _Facts, root: Path, *, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Returns (N, C, H, W) bytes and labels."""
    import torchvision  # type: ignore[import-untyped]

    kind: Any = getattr(torchvision.datasets, facts.name)
    try:
        stored = kind(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:  # torchvision's "not found or corrupted", and every network failure
        address = getattr(kind, "url", None) or " or ".join(kind.mirrors)
        advice = (
            f"It is fetched from {address}. Check the network, or put the files there and set download: false"
            if download
            else "Set download: true, or point root at the folder that holds the files"
        )
        raise DataError(
            f"Cannot load {facts.name} from '{root.absolute()}': {_cause(error)}. {advice}. "
            "The data set 'digits' needs no download."
        ) from error
    images = torch.as_tensor(stored.data)
    images = images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images.unsqueeze(1)
    return images, torch.as_tensor(stored.targets)


def _cause(error: Exception) -> str:
    """Returns the error in one line, without a full stop."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"


_PLAIN_CROP = CropFlip(padding=2, flip=False)
cifar10 = _register("cifar10", _Facts("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), CropFlip()))
cifar100 = _register(
    "cifar100", _Facts("CIFAR100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), CropFlip())
)
mnist = _register("mnist", _Facts("MNIST", 10, (0.1307,), (0.3081,), _PLAIN_CROP))
fashion_mnist = _register("fashion_mnist", _Facts("FashionMNIST", 10, (0.2860,), (0.3530,), CropFlip(padding=2)))
