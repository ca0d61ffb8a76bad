"""Text as bytes: files of one's own, or the sources of Python's standard library."""

from __future__ import annotations

import logging
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evolve.data.sources import Data, datasets
from evolve.data.windows import WindowBatches
from evolve.errors import DataError

logger = logging.getLogger(__name__)

BYTES = 256  # values of a byte, which are the tokens
# What lies among the standard library's sources and is no part of it, or tests it.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@datasets.register("text")
def text(
    path: str,
    batch_size: int = 64,
    seed: int = 0,
    glob: str = "**/*.txt",
    context: int = 256,
    stride: int | None = None,
    val_fraction: float = 0.1,
    samples: int | None = None,
    val_samples: int | None = None,
) -> Data:
    """Cuts the bytes of a file, or of a folder's files, into windows to predict the next byte in.

    A batch is `{"input_ids": (N, context), "labels": (N, context)}`, int64 from 0 to 255. The labels are the inputs one
    byte on: a model that shifts its labels itself, as causal models of Hugging Face do, is to be given `input_ids` for
    both. A file is memory-mapped; the files of a folder are read into memory, sorted by path, one after the other.

    Args:
        path: The file or folder.
        batch_size: Windows in a batch.
        seed: Seed of the order.
        glob: Which files of a folder to read; hidden ones are passed over.
        context: Bytes that a model sees.
        stride: Bytes from one training window to the next; None for `context`, so that each byte is predicted once.
        val_fraction: Share of the bytes that is held out: those at the end.
        samples: Most training windows, spread evenly over the text; None for all.
        val_samples: Most windows held out.

    Raises:
        DataError: If there is no such file, or too little text in it.
    """
    stored = _read(Path(path), glob)
    return _windows(stored, batch_size, seed, context, stride, val_fraction, samples, val_samples)


@datasets.register("stdlib_source")
def stdlib_source(
    batch_size: int = 64,
    seed: int = 0,
    context: int = 256,
    stride: int | None = None,
    val_fraction: float = 0.1,
    samples: int | None = None,
    val_samples: int | None = None,
    max_bytes: int | None = None,
) -> Data:
    """Cuts the sources of Python's standard library, as installed, into windows to predict the next byte in.

    These are some ten million bytes of code that every machine has; they differ from one version of Python to the
    next. Tests and installed packages are left out. Batches are those of `text`.

    Args:
        batch_size: Windows in a batch.
        seed: Seed of the order.
        context: Bytes that a model sees.
        stride: Bytes from one training window to the next; None for `context`.
        val_fraction: Share of the bytes that is held out: those at the end.
        samples: Most training windows, spread evenly over the text; None for all.
        val_samples: Most windows held out.
        max_bytes: Bytes to read, single modules first and then packages, by name; None for all.

    Raises:
        DataError: If this Python came without sources, or too few bytes are left.
    """
    if max_bytes is not None and max_bytes < 1:
        raise DataError(f"max_bytes must be at least 1, not {max_bytes}.")
    root = sysconfig.get_paths()["stdlib"]
    stored = _joined(_sources(root), max_bytes)
    if not len(stored):
        raise DataError(f"There are no Python sources in '{root}'. Give text of your own: data.name: text.")
    return _windows(stored, batch_size, seed, context, stride, val_fraction, samples, val_samples)


def _read(path: Path, glob: str) -> Tensor:
    if path.is_file():
        if not path.stat().st_size:
            raise DataError(f"The file '{path.absolute()}' is empty.")
        # Copy on write: a tensor has to be writable, and the file stays as it is.
        return torch.from_numpy(np.memmap(path, np.uint8, mode="c"))
    if not path.is_dir():
        raise DataError(f"There is no file or folder '{path.absolute()}'. Set path to a text file or a folder of them.")
    files = [
        file
        for file in sorted(path.glob(glob))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    stored = _joined(files, None)
    if not len(stored):
        raise DataError(f"No file in '{path.absolute()}' matches '{glob}', or all are empty. Set glob.")
    logger.info("Read %d files with %d bytes from %s.", len(files), len(stored), path)
    return stored


def _sources(root: str) -> Iterator[Path]:
    """Yields the Python files below a folder, sorted."""
    for place, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _LEFT_OUT and not name.startswith("."))
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))


def _joined(files: Iterable[Path], most: int | None) -> Tensor:
    """Returns the bytes of files, one after the other, up to so many of them."""
    parts = bytearray()
    for file in files:
        try:
            parts += file.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read '{file}': {error}") from error
        if most is not None and len(parts) >= most:
            del parts[most:]
            break
    return torch.frombuffer(parts, dtype=torch.uint8) if parts else torch.empty(0, dtype=torch.uint8)


def _windows(
    stored: Tensor,
    batch_size: int,
    seed: int,
    context: int,
    stride: int | None,
    val_fraction: float,
    samples: int | None,
    val_samples: int | None,
) -> Data:
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}.")
    cut = round(len(stored) * (1 - val_fraction))
    train, val = stored[:cut], stored[cut:]
    stride = context if stride is None else stride
    return Data(
        WindowBatches(train, context, batch_size, stride=stride, samples=samples, shuffle=True, seed=seed),
        WindowBatches(val, context, batch_size, stride=context, samples=val_samples, shuffle=False, seed=seed),
        input_shape=(context,),
        num_outputs=BYTES,
        vocabulary=BYTES,
    )
