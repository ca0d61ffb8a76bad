"""A user's own images: one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evolve.data.augment import CropFlip, Normalise
from evolve.data.batches import Batches, TensorBatches
from evolve.data.loaders import LoaderBatches
from evolve.data.pictures import IMG_EXTENSIONS, check_scale, counts, held_out_folder, images_in, open_rgb
from evolve.data.sources import Data, datasets, stratified_split
from evolve.errors import DataError


@datasets.register("image_folder")
def image_folder(
    root: str,
    batch_size: int = 64,
    augment: bool = False,
    seed: int = 0,
    image_size: int | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    memory_limit_mb: int = 1024,
    workers: int = 0,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Data:
    """Loads RGB images from `root/train/<class>/` and `root/val/<class>/` (or `test`), or from `root/<class>/`.

    Gray images of 16 bits or floats are scaled to 8 bits, transparency is ignored, hidden files are skipped.
    Images that fit in memory are decoded once; others are read as they are needed.

    Args:
        root: The folder.
        batch_size: Samples in a batch.
        augment: Whether to crop training images at random (padded by an eighth) and mirror them.
        seed: Seed of order and augmentation.
        image_size: Height and width to resize to; None keeps the images' own size, which must be one for all.
        val_fraction: Share of every class that is held out, where there is no folder of held-out images.
        split_seed: Seed of that split.
        memory_limit_mb: Memory that decoded images may take.
        workers: Processes that read images which do not fit.
        mean: Mean of each channel; ImageNet's by default.
        std: Standard deviation of each channel; ImageNet's by default.

    Raises:
        DataError: If folders, classes or images are missing, unreadable or of different sizes.
    """
    check_scale(image_size, mean, std)
    classes, train, val = _find_images(Path(root), val_fraction, split_seed)
    width, height = (image_size, image_size) if image_size else open_rgb(train.files[0]).size
    train.size = val.size = (width, height)
    train.resize = val.resize = image_size is not None
    in_memory = (len(train) + len(val)) * 3 * width * height <= memory_limit_mb * 2**20
    normalise = Normalise(mean, std)

    def batches(images: _Images, shuffle: bool, crop: CropFlip | None) -> Batches:
        if in_memory:
            pixels = torch.stack([images.pixels(i) for i in range(len(images))])
            return TensorBatches(
                pixels, images.labels, batch_size, shuffle=shuffle, seed=seed, augment=crop, normalise=normalise
            )
        return LoaderBatches(
            images, batch_size, shuffle=shuffle, seed=seed, workers=workers, augment=crop, normalise=normalise
        )

    crop = CropFlip(padding=max(1, min(width, height) // 8)) if augment else None
    return Data(batches(train, True, crop), batches(val, False, None), len(classes), (3, height, width))


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels; a sample is (uint8 pixels, label)."""

    def __init__(self, files: list[str], labels: Tensor) -> None:
        self.files = files
        self.labels = labels
        self.size = (0, 0)
        self.resize = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels(index), self.labels[index]

    def subset(self, indices: Tensor) -> _Images:
        return _Images([self.files[i] for i in indices.tolist()], self.labels[indices])

    def pixels(self, index: int) -> Tensor:
        """Returns one image as (3, H, W) bytes."""
        image = open_rgb(self.files[index])
        if image.size != self.size:
            if not self.resize:
                raise DataError(
                    f"The image '{self.files[index]}' is {image.width}x{image.height} and the first one "
                    f"{self.size[0]}x{self.size[1]}. Set image_size to resize them all."
                )
            image = image.resize(self.size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _find_images(root: Path, val_fraction: float, split_seed: int) -> tuple[list[str], _Images, _Images]:
    if not root.is_dir():
        raise DataError(f"There is no folder '{root.absolute()}'. Set root to a folder with one folder for each class.")
    if not (root / "train").is_dir():
        classes, images = _list_images(root)
        train, val = stratified_split(images.labels, val_fraction, split_seed)
        return classes, images.subset(train), images.subset(val)
    held = held_out_folder(root)
    classes, train_images = _list_images(root / "train")
    val_classes, val_images = _list_images(held)
    if classes != val_classes:
        odd = ", ".join(
            f"{name} (in {'train' if name in classes else held.name})" for name in sorted({*classes} ^ {*val_classes})
        )
        raise DataError(f"'{root.absolute()}': train and {held.name} must hold the same classes; only one has {odd}.")
    return classes, train_images, val_images


def _list_images(folder: Path) -> tuple[list[str], _Images]:
    """Returns the classes of a folder, sorted by name, and their images; hidden files and folders are passed over."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and counts(entry.name))
    if not classes:
        raise DataError(f"'{folder.absolute()}' does not hold one folder of images for each class: it has no folders.")
    found = {name: list(images_in(folder / name)) for name in classes}
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(
            f"'{folder.absolute()}' holds folders without an image: {', '.join(empty)}. Each folder is a class: fill "
            f"or remove them. Images end in {', '.join(IMG_EXTENSIONS)}."
        )
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return classes, _Images([file for files in found.values() for file in files], torch.tensor(labels))
