"""Image files as people have them: found in folders, opened as 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evolve.errors import DataError

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_LEFT_BY_TOOLS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN"}
_VAL_NAMES = ("val", "valid", "validation", "test")


def open_rgb(file: str) -> Image.Image:
    """Returns an image as 8-bit RGB.

    Raises:
        DataError: If the file is damaged, or its values are of a kind that cannot be scaled.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            if opened.mode.startswith(("I", "F")):
                image = Image.fromarray(_as_bytes(np.asarray(opened), file))
            else:  # a palette with transparent colors goes through RGBA; transparency itself is ignored
                image = opened.convert("RGBA") if opened.mode == "P" else opened
            rgb: Image.Image = image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # the decoders of Pillow raise errors of many kinds on a damaged file
        raise DataError(f"Cannot read the image '{file}': {error}. Repair or remove it.") from error
    return rgb


def _as_bytes(values: np.ndarray[Any, Any], file: str) -> np.ndarray[Any, Any]:
    """Scales gray values of more than 8 bits to bytes, which Pillow would clip.

    Whole numbers are 16 bits; floats go from 0 to 1, or to 255 where they are larger than 1.
    """
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if whole else 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= top:
        allowed = "0 to 65535" if whole else "0 to 1, or 0 to 255"
        raise DataError(f"The image '{file}' holds values from {low:g} to {high:g}, not {allowed}. Rescale it.")
    scaled: np.ndarray[Any, Any] = np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    return scaled


def check_scale(image_size: int | None, mean: Sequence[float], std: Sequence[float]) -> None:
    """Rejects an image size, means and deviations that no RGB image can be brought to.

    Raises:
        DataError: With what was found.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1, not {image_size}.")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise DataError(f"mean and std need three numbers each, std greater than 0; found {mean=} and {std=}.")


def held_out_folder(root: Path) -> Path:
    """Returns the folder of held-out images that stands beside `root/train`.

    Raises:
        DataError: If there is none.
    """
    held = next((root / name for name in _VAL_NAMES if (root / name).is_dir()), None)
    if held is None:
        raise DataError(
            f"'{root.absolute()}' has a folder 'train' but no folder of held-out images. "
            f"Add one of: {', '.join(_VAL_NAMES)}."
        )
    return held


def images_in(folder: Path) -> Iterator[str]:
    """Yields the images of a folder and those inside it, sorted; links are followed, each folder once."""
    seen: set[str] = set()
    for place, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inner[:] = sorted(name for name in inner if counts(name)) if real not in seen else []
        if real not in seen:
            yield from (os.path.join(place, name) for name in sorted(files) if counts(name) and is_image(name))
        seen.add(real)


def counts(name: str) -> bool:
    """False for what tools leave behind in folders: `.ipynb_checkpoints`, `._cat.jpg`, `__MACOSX`."""
    return not name.startswith(".") and name not in _LEFT_BY_TOOLS


def is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)
