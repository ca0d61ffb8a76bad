"""Accepts data in the forms that people have it in."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from evolve.data.batches import Batches, TensorBatches
from evolve.data.loaders import IterableBatches, LoaderBatches
from evolve.errors import DataError

BatchSource: TypeAlias = Batches | Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]
"""Everything that `as_batches` takes."""


def as_batches(data: BatchSource, batch_size: int = 64, *, shuffle: bool, seed: int = 0) -> Batches:
    """Returns `data` as `Batches`.

    Args:
        data: `Batches` or a DataLoader (both keep their own batch size and order), a map-style data set, or a pair of
            tensors `(inputs, targets)`.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of the order.

    Raises:
        DataError: If `data` is none of these, or is empty.
    """
    if isinstance(data, Batches):
        return data
    if isinstance(data, DataLoader):
        return IterableBatches(data)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorBatches(data[0], data[1], batch_size, shuffle=shuffle, seed=seed)
    map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if map_style and not isinstance(data, Tensor | str | bytes | dict | tuple | IterableDataset):
        return LoaderBatches(data, batch_size, shuffle=shuffle, seed=seed)
    raise DataError(f"Cannot make batches of a {type(data).__name__}. {_advice(data)}")


def _advice(data: object) -> str:
    if isinstance(data, IterableDataset):
        return "Wrap the IterableDataset in a DataLoader and give it a __len__."
    if isinstance(data, Tensor):
        return "Give a pair of tensors (inputs, targets)."
    if isinstance(data, tuple):
        return "A pair must hold two tensors (inputs, targets); torch.from_numpy makes tensors of NumPy arrays."
    return "Give a pair of tensors (inputs, targets), a map-style Dataset, a DataLoader or Batches."
