"""Made-up pictures of rectangles and discs to find: for detection and for segmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evolve.data.batches import TensorBatches
from evolve.data.collate import as_lists
from evolve.data.loaders import LoaderBatches
from evolve.data.sources import Data, datasets
from evolve.errors import DataError

_NOISE = 0.1  # standard deviation on top of colors between 0 and 1


@datasets.register("fake_detection")
def fake_detection(
    batch_size: int = 8,
    seed: int = 0,
    samples: int = 64,
    image_size: int = 64,
    num_classes: int = 3,
    max_objects: int = 3,
) -> Data:
    """Makes RGB images of noise with rectangles in the color of their class; a quarter as many again are held out.

    A batch is `(images, targets)` as torchvision's detectors take it: a list of (3, H, W) images between 0 and 1 and a
    list of dicts with "boxes" (K, 4) as x1, y1, x2, y2 and "labels" (K,). Label 0 is the background, which no box has.

    Args:
        batch_size: Images in a batch.
        seed: Seed of pictures and order.
        samples: Training images.
        image_size: Height and width.
        num_classes: Kinds of rectangles, so that `Data.num_classes` is one more.
        max_objects: Most rectangles of an image; each has one at least. Later ones may cover earlier ones.

    Raises:
        DataError: If a number is too small.
    """
    _check(1, samples=samples, num_classes=num_classes, max_objects=max_objects)
    _check(16, image_size=image_size)
    generator = torch.Generator().manual_seed(seed)
    colors = _colors(num_classes, generator)

    def make(count: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        return [_with_rectangles(colors, image_size, max_objects, generator) for _ in range(count)]

    train, val = make(samples), make(max(1, samples // 4))
    # A list of samples is a map-style data set, which torch's Dataset class does not say.
    options: dict[str, Any] = {"seed": seed, "collate_fn": as_lists}
    return Data(
        LoaderBatches(train, batch_size, shuffle=True, **options),  # type: ignore[arg-type]
        LoaderBatches(val, batch_size, shuffle=False, **options),  # type: ignore[arg-type]
        num_classes=num_classes + 1,
        input_shape=(3, image_size, image_size),
        class_names=("background", *(f"rectangle {number}" for number in range(1, num_classes + 1))),
    )


@datasets.register("fake_segmentation")
def fake_segmentation(
    batch_size: int = 8,
    seed: int = 0,
    samples: int = 64,
    image_size: int = 32,
    num_classes: int = 4,
    ignore_index: int = 255,
) -> Data:
    """Makes RGB images of a rectangle or disc on a background; a quarter as many again are held out.

    A batch is `(images, masks)`: (N, 3, H, W) floats and (N, H, W) class numbers. Class 0 is the background; pixels
    within one of a shape's edge are to be ignored, as in PASCAL VOC.

    Args:
        batch_size: Images in a batch.
        seed: Seed of pictures and order.
        samples: Training images.
        image_size: Height and width.
        num_classes: Classes with the background; even ones are discs, odd ones rectangles.
        ignore_index: What the mask holds where the answer does not count.

    Raises:
        DataError: If a number is too small, or `ignore_index` is a class.
    """
    _check(1, samples=samples)
    _check(2, num_classes=num_classes)
    _check(16, image_size=image_size)
    if 0 <= ignore_index < num_classes:
        raise DataError(f"ignore_index {ignore_index} is one of the {num_classes} classes. Set it to 255 or below 0.")
    generator = torch.Generator().manual_seed(seed)
    colors = _colors(num_classes, generator)

    def make(count: int) -> tuple[Tensor, Tensor]:
        made = [
            _with_shape(colors, 1 + i % (num_classes - 1), image_size, ignore_index, generator) for i in range(count)
        ]
        images, masks = zip(*made, strict=True)
        return torch.stack(images), torch.stack(masks)

    train, val = make(samples), make(max(num_classes, samples // 4))
    return Data(
        TensorBatches(*train, batch_size, shuffle=True, seed=seed),
        TensorBatches(*val, batch_size, shuffle=False, seed=seed),
        num_classes=num_classes,
        input_shape=(3, image_size, image_size),
        class_names=("background", *(f"{'disc' if c % 2 == 0 else 'rectangle'} {c}" for c in range(1, num_classes))),
    )


def _with_rectangles(
    colors: Tensor, size: int, most: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    count = _draw(1, most + 1, generator)
    labels = torch.randint(len(colors), (count,), generator=generator)
    boxes = [_box(size, generator) for _ in range(count)]
    image = torch.zeros(3, size, size)
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        image[:, top:bottom, left:right] = colors[label][:, None, None]
    image = (image + _NOISE * torch.randn(3, size, size, generator=generator)).clamp(0, 1)
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": labels + 1}


def _with_shape(
    colors: Tensor, label: int, size: int, ignore_index: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = _box(size, generator)
    rows, columns = torch.arange(size)[:, None] + 0.5, torch.arange(size)[None, :] + 0.5
    if label % 2:
        # How far a pixel lies inside the rectangle; below 0 outside of it.
        inside = torch.minimum(torch.minimum(columns - left, right - columns), torch.minimum(rows - top, bottom - rows))
    else:
        radius = min(right - left, bottom - top) / 2
        inside = radius - ((rows - (top + bottom) / 2) ** 2 + (columns - (left + right) / 2) ** 2).sqrt()
    mask = torch.where(inside > 0, label, 0).masked_fill(inside.abs() < 1, ignore_index)
    image = colors[torch.where(inside > 0, label, 0)].permute(2, 0, 1)
    return image + _NOISE * torch.randn(3, size, size, generator=generator), mask


def _box(size: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a box from a quarter to a half of the picture wide and high."""
    width, height = (_draw(size // 4, size // 2 + 1, generator) for _ in range(2))
    left, top = _draw(0, size - width + 1, generator), _draw(0, size - height + 1, generator)
    return left, top, left + width, top + height


def _colors(count: int, generator: torch.Generator) -> Tensor:
    """Returns (count, 3) colors that lie well apart: hues around the circle, from a hue that is drawn."""
    hues = (torch.rand(1, generator=generator) + torch.arange(count) / count)[:, None]
    return 0.5 + 0.5 * torch.cos(2 * torch.pi * (hues + torch.tensor([0, 1 / 3, 2 / 3])))


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _check(least: int, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < least:
            raise DataError(f"Too few for made-up pictures: {name} is {value} and has to be at least {least}.")
