"""A user's own images with a mask of class numbers for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evolve.data.augment import Normalise
from evolve.data.batches import Batches, TensorBatches
from evolve.data.loaders import LoaderBatches
from evolve.data.pictures import check_scale, held_out_folder, images_in, open_rgb
from evolve.data.sources import Data, datasets, random_split
from evolve.errors import DataError

_BYTES_A_PIXEL = 3 + 8  # of an image, and of a mask of int64
_GRAY = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")  # modes whose values are class numbers


@datasets.register("segmentation_folder")
def segmentation_folder(
    root: str,
    batch_size: int = 8,
    seed: int = 0,
    workers: int = 0,
    num_classes: int | None = None,
    ignore_index: int = 255,
    image_size: int | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    memory_limit_mb: int = 1024,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Data:
    """Loads RGB images and their masks from `root/images/` and `root/masks/`, matched by name without ending.

    With folders `root/train/` and `root/val/` (or `test`) that hold these two, the second is held out. A mask is a gray
    or palette image, such as PASCAL VOC's PNGs, whose values are class numbers. A batch is `(images, masks)`:
    (N, 3, H, W) floats and (N, H, W) int64.

    Args:
        root: The folder.
        batch_size: Images in a batch.
        seed: Seed of the order.
        workers: Processes that read images which do not fit in memory.
        num_classes: Classes with the background; None for one more than the highest class number in any mask.
        ignore_index: The value of pixels that do not count.
        image_size: Height and width to resize to (masks to the nearest pixel); None keeps the images' own size, which
            must be one for all.
        val_fraction: Share of the images that is held out, where there is no folder of them.
        split_seed: Seed of that split.
        memory_limit_mb: Memory that decoded images and masks may take.
        mean: Mean of each channel; ImageNet's by default.
        std: Standard deviation of each channel; ImageNet's by default.

    Raises:
        DataError: If folders, images or masks are missing, unreadable, of different sizes, or hold other values.
    """
    check_scale(image_size, mean, std)
    if num_classes is not None and num_classes < 2:
        raise DataError(f"num_classes counts the background too and must be at least 2, not {num_classes}.")
    train_files, val_files = _find(Path(root), val_fraction, split_seed)
    width, height = (image_size, image_size) if image_size else open_rgb(train_files[0][0]).size
    shared = (width, height), image_size is not None, ignore_index
    if num_classes is None:
        masks = (_Pairs(train_files + val_files, *shared, None).mask(i) for i in range(len(train_files + val_files)))
        num_classes = 1 + max(int(torch.where(mask == ignore_index, 0, mask).max()) for mask in masks)
    if 0 <= ignore_index < num_classes:
        raise DataError(f"ignore_index {ignore_index} is one of the {num_classes} classes. Set another one.")
    train, val = (_Pairs(files, *shared, num_classes) for files in (train_files, val_files))
    in_memory = (len(train) + len(val)) * _BYTES_A_PIXEL * width * height <= memory_limit_mb * 2**20
    normalise = Normalise(mean, std)

    def batches(pairs: _Pairs, shuffle: bool) -> Batches:
        if not in_memory:
            return LoaderBatches(pairs, batch_size, shuffle=shuffle, seed=seed, workers=workers, normalise=normalise)
        images, masks = zip(*(pairs[i] for i in range(len(pairs))), strict=True)
        stored = torch.stack(images), torch.stack(masks)
        return TensorBatches(*stored, batch_size, shuffle=shuffle, seed=seed, normalise=normalise)

    return Data(batches(train, True), batches(val, False), num_classes, (3, height, width))


@dataclass
class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Files of images and masks; a sample is (uint8 pixels, int64 mask)."""

    files: list[tuple[str, str]]
    size: tuple[int, int]  # width and height
    resize: bool
    ignore_index: int
    num_classes: int | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._sized(open_rgb(self.files[index][0]), self.files[index][0], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels, self.mask(index)

    def mask(self, index: int) -> Tensor:
        """Returns one mask as (H, W) class numbers."""
        file = self.files[index][1]
        image = self._sized(_open_mask(file), file, Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.array(image).astype(np.int64))
        counted = mask[mask != self.ignore_index]
        if self.num_classes is not None and counted.numel() and int(counted.max()) >= self.num_classes:
            raise DataError(
                f"The mask '{file}' holds {int(counted.max())}, and {self.num_classes} classes are 0 to "
                f"{self.num_classes - 1} (ignored: {self.ignore_index}). Set num_classes or ignore_index."
            )
        return mask

    def _sized(self, image: Image.Image, file: str, how: Image.Resampling) -> Image.Image:
        if image.size == self.size:
            return image
        if not self.resize:
            raise DataError(
                f"'{file}' is {image.width}x{image.height} and the first image {self.size[0]}x{self.size[1]}. "
                "Set image_size to resize them all."
            )
        return image.resize(self.size, how)


def _open_mask(file: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            opened.load()
            mask: Image.Image = opened.copy()
    except Exception as error:  # the decoders of Pillow raise errors of many kinds on a damaged file
        raise DataError(f"Cannot read the mask '{file}': {error}. Repair or remove it.") from error
    if mask.mode not in _GRAY:
        raise DataError(
            f"The mask '{file}' is of mode {mask.mode}: its values are colors, not class numbers. Save it as a gray or "
            "palette PNG with one class number for each pixel."
        )
    return mask


def _find(root: Path, val_fraction: float, split_seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    if (root / "train").is_dir():
        return _pairs(root / "train"), _pairs(held_out_folder(root))
    files = _pairs(root)
    train, val = random_split(len(files), val_fraction, split_seed)
    return [files[i] for i in train.tolist()], [files[i] for i in val.tolist()]


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """Returns the files of images and masks that go together, sorted by name."""
    found = []
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise DataError(
                f"There is no folder '{(folder / part).absolute()}': images lie in images/, masks in masks/."
            )
        files = list(images_in(folder / part))
        by_stem = {str(Path(file).relative_to(folder / part).with_suffix("")): file for file in files}
        if len(by_stem) < len(files):
            raise DataError(f"'{(folder / part).absolute()}' holds two files that differ in their ending alone.")
        found.append(by_stem)
    images, masks = found
    if odd := sorted({*images} ^ {*masks}):
        lacking = "mask" if odd[0] in images else "image"
        raise DataError(f"'{folder.absolute()}': '{odd[0]}' has no {lacking} ({len(odd)} such). Add or remove it.")
    if not images:
        raise DataError(f"'{(folder / 'images').absolute()}' holds no image.")
    return [(images[stem], masks[stem]) for stem in images]
