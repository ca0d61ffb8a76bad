"""Makes a batch of a list of samples, as torch does, with advice where that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from evolve.data.trees import Batch
from evolve.errors import DataError

Collate: TypeAlias = Callable[[list[Any]], Any]
"""Takes a list of samples, gives a batch."""


def collate(samples: list[Any]) -> Any:
    """Puts samples together as torch's DataLoader does; samples that are tuples give a tuple.

    Raises:
        DataError: If they have different shapes, or are of a kind that torch does not put together.
    """
    try:
        return as_tuple(default_collate(samples))
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"Samples cannot be collated into a batch: {_differences(samples) or error} Pad or crop them in the data "
            "set, or pass a collate_fn that does."
        ) from error


def as_tuple(batch: Any) -> Batch:
    """Returns `(inputs, targets)` for the list that torch's collation makes of samples that are tuples."""
    return tuple(batch) if isinstance(batch, list) else batch


def prepared(batch: Batch, prepare: Callable[[Tensor], Tensor]) -> Batch:
    """Prepares the inputs of a batch `(inputs, ...)` where they are one tensor."""
    if type(batch) in (tuple, list) and batch and isinstance(batch[0], Tensor):
        return type(batch)([prepare(batch[0]), *batch[1:]])
    return batch


def _differences(samples: Sequence[Any]) -> str:
    """Says which shapes samples have where they differ."""
    rows = [sample if isinstance(sample, list | tuple) else [sample] for sample in samples]
    for position, what in enumerate(("inputs", "targets")):
        parts = [row[position] for row in rows if len(row) > position]
        shapes = list(dict.fromkeys(tuple(part.shape) for part in parts if isinstance(part, Tensor | np.ndarray)))
        if len(shapes) > 1:
            return f"their {what} have different shapes, such as {shapes[0]} and {shapes[1]}."
    return ""


def as_lists(samples: list[Any]) -> tuple[list[Any], ...]:
    """Puts samples that are tuples together as lists, `(images, targets)`: for samples of different shapes."""
    return tuple(map(list, zip(*samples, strict=True)))
