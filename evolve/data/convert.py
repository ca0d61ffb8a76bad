"""Accepts data in the forms that people have it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from evolve.data.batches import Batches, TensorBatches
from evolve.data.collate import Collate
from evolve.data.loaders import IterableBatches, LoaderBatches
from evolve.data.trees import leaves_of, map_leaves
from evolve.errors import DataError

BatchSource: TypeAlias = Any
"""Everything that `as_batches` takes: `Batches`, a DataLoader, a Dataset, a pair or a mapping of tensors or arrays."""


def as_batches(
    data: BatchSource,
    batch_size: int = 64,
    *,
    shuffle: bool,
    seed: int = 0,
    collate_fn: Collate | None = None,
    workers: int = 0,
) -> Batches:
    """Returns `data` as `Batches`.

    Args:
        data: `Batches` or a DataLoader (both keep their own batch size and order); a map-style data set, whose samples
            are put together by `collate_fn`; or tensors or NumPy arrays with one row for each sample: a pair
            `(inputs, targets)`, whose parts may be trees, or a mapping, tuple or dataclass that is cut into batches
            of its kind.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of the order.
        collate_fn: Makes a batch of a list of a data set's samples; torch's way by default.
        workers: Processes that read a data set ahead; 0 reads in this one.

    Raises:
        DataError: If `data` is none of these, or is empty, or `collate_fn` or `workers` have no use for it.
    """
    data = data.tensors if isinstance(data, TensorDataset) and collate_fn is None else data
    made: Batches | None = data if isinstance(data, Batches) else None
    if isinstance(data, DataLoader):
        made = IterableBatches(data)
    elif _is_pair(data):
        made = TensorBatches(_tensors(data[0]), _tensors(data[1]), batch_size, shuffle=shuffle, seed=seed)
    elif not isinstance(data, Tensor | np.ndarray | list) and _is_stored(data):
        made = TensorBatches(_tensors(data), None, batch_size, shuffle=shuffle, seed=seed)
    if made is not None:
        _refuse_unused(data, collate_fn, workers)
        return made
    map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if map_style and not isinstance(data, Tensor | np.ndarray | str | bytes | Mapping | tuple | IterableDataset):
        return LoaderBatches(data, batch_size, shuffle=shuffle, seed=seed, workers=workers, collate_fn=collate_fn)
    raise DataError(f"Cannot make batches of a {type(data).__name__}. {_advice(data)}")


def _is_pair(data: Any) -> bool:
    """Whether it is `(inputs, targets)`; a list of two trees is a data set of two samples, of two tensors is not."""
    if type(data) not in (tuple, list) or len(data) != 2:
        return False
    if type(data) is list:
        return all(isinstance(part, Tensor | np.ndarray) for part in data)
    return all(map(_is_stored, data))


def _is_stored(tree: Any) -> bool:
    """Whether a tree holds tensors and arrays and nothing else."""
    leaves = [leaf for _, leaf in leaves_of(tree)] if not isinstance(tree, Dataset) else []
    return bool(leaves) and all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves)


def _tensors(tree: Any) -> Any:
    """Returns a tree with tensors in the place of NumPy arrays."""
    return map_leaves(tree, lambda leaf: tensor_of(leaf) if isinstance(leaf, np.ndarray) else leaf)


def tensor_of(array: np.ndarray[Any, Any], name: str = "") -> Tensor:
    """Returns an array as a tensor of the same dtype, without a copy where its memory can be shared.

    Args:
        array: The array.
        name: What it is called, for the message.

    Raises:
        DataError: If it holds text, objects or other things that are no numbers.
    """
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16:
        what = f" '{name}'" if name else ""
        raise DataError(
            f"The array{what} of dtype {array.dtype} holds no numbers that a tensor can hold. Turn text into class "
            "numbers or tokens, and objects into one array of numbers."
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable and not _backward(native) else native.copy())


def _backward(array: np.ndarray[Any, Any]) -> bool:
    """Whether an axis is read backwards, which a tensor cannot do."""
    return any(stride < 0 for stride in array.strides)


def _refuse_unused(data: Any, collate_fn: Collate | None, workers: int) -> None:
    given = "collate_fn" if collate_fn is not None else f"workers={workers}" if workers else ""
    if given:
        own = "is not read sample by sample"
        if isinstance(data, DataLoader):
            own = "has its own num_workers and collate_fn: set them there"
        raise DataError(f"{given} has no use here: this {type(data).__name__} {own}.")


def _advice(data: object) -> str:
    if isinstance(data, IterableDataset):
        return "Wrap the IterableDataset in a DataLoader and give it a __len__."
    if isinstance(data, Tensor | np.ndarray):
        return "Give a pair (inputs, targets)."
    if isinstance(data, tuple | Mapping):
        return "It must hold tensors or NumPy arrays with one row for each sample, such as (inputs, targets)."
    return (
        "Give a pair of tensors (inputs, targets) or of arrays, a mapping of them, a map-style Dataset, a DataLoader "
        "or Batches."
    )
