"""NumPy arrays in files: one `.npz`, or a folder of `.npy` files."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from evolve.data.batches import TensorBatches
from evolve.data.convert import tensor_of
from evolve.data.sources import Data, datasets, random_split, stratified_split
from evolve.data.trees import count_samples, map_tensors
from evolve.errors import DataError, did_you_mean


@datasets.register("numpy")
def numpy_arrays(
    path: str,
    batch_size: int = 64,
    seed: int = 0,
    inputs: str | list[str] = "x",
    targets: str | None = "y",
    val_inputs: str | list[str] | None = None,
    val_targets: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Data:
    """Loads arrays with one row for each sample from a `.npz` file, or from a folder with a `.npy` file for each.

    Whole numbers become int64, uint8 inputs of one array floats between 0 and 1, and other floats float32. Pickled
    objects are refused. For `mnist.npz` as Keras has it: `inputs: x_train, targets: y_train, val_inputs: x_test,
    val_targets: y_test`.

    Args:
        path: The file or the folder.
        batch_size: Samples in a batch.
        seed: Seed of the order.
        inputs: Name of the array of inputs; several make a model's several inputs, `((a, b), targets)`.
        targets: Name of the array of targets, or None for inputs alone.
        val_inputs: Names of the inputs that are held out; None to hold out a share of `inputs`.
        val_targets: Name of their targets.
        val_fraction: Share that is held out, of every class where targets are class numbers.
        split_seed: Seed of that split.

    Raises:
        DataError: If a file or an array is missing, has no numbers, or the arrays are of different lengths.
    """
    if (val_targets is None) != (val_inputs is None or targets is None):
        raise DataError("val_inputs and val_targets go together: name both, or neither to hold out a share.")
    stored = _Stored(Path(path))
    train = stored.inputs(inputs), stored.targets(targets)
    if val_inputs is not None:
        val = stored.inputs(val_inputs), stored.targets(val_targets)
    else:
        train, val = _split(train, val_fraction, split_seed)
    classes, scores = max(_classes(part[1]) for part in (train, val)), train[1]
    columns = scores.shape[1] if scores is not None and scores.is_floating_point() and scores.ndim == 2 else None
    return Data(
        TensorBatches(*train, batch_size, shuffle=True, seed=seed),
        TensorBatches(*val, batch_size, shuffle=False, seed=seed),
        num_classes=classes or None,
        input_shape=tuple(train[0].shape[1:]) if isinstance(train[0], Tensor) else None,
        num_outputs=classes or columns,
    )


class _Stored:
    """Arrays by name, as tensors of the types that models and losses take."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise DataError(
                f"There is no file or folder '{path.absolute()}'. Set path to a .npz file or a folder of .npy."
            )
        if path.is_dir():
            self._known = sorted(file.stem for file in path.glob("*.npy"))
        else:
            with self._opened(path) as found:
                self._known = list(found)

    def inputs(self, names: str | list[str]) -> Any:
        """Returns one tensor, or a tuple of those that are listed."""
        if isinstance(names, str):
            found = self._tensor(names)
            return found if found.dtype == torch.uint8 else _numbers(found)
        if not names:
            raise DataError("A list of inputs is empty: name one array at least.")
        return tuple(_numbers(self._tensor(name)) for name in names)

    def targets(self, name: str | None) -> Tensor | None:
        """Returns class numbers or floats."""
        if name is None:
            return None
        found = self._tensor(name)
        return found.long() if found.dtype == torch.uint8 else _numbers(found)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._known:
            known = ", ".join(self._known) or "none"
            raise DataError(
                f"'{self._path}' holds no array '{name}'.{did_you_mean(name, self._known)} There are: {known}."
            )
        try:
            if self._path.is_dir():  # copy on write: what becomes of a tensor does not reach the file
                array = np.load(self._path / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            else:
                with self._opened(self._path) as stored:
                    array = stored[name]
        except (OSError, ValueError, BadZipFile) as error:
            raise DataError(f"Cannot read the array '{name}' of '{self._path}': {error}") from error
        if not array.ndim:
            raise DataError(f"The array '{name}' of '{self._path}' is a single number: it needs a row for each sample.")
        return tensor_of(array, name)

    def _opened(self, path: Path) -> Any:
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise DataError(
                f"Cannot read '{path}': {error}. It has to be a .npz file without pickled objects."
            ) from error
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise DataError(f"'{path}' holds a single array. Set path to the folder, and inputs to '{path.stem}'.")
        return found


def _numbers(tensor: Tensor) -> Tensor:
    """Brings whole numbers to int64 and all else to float32; bytes go from 0 to 1."""
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    return tensor.float() if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _split(stored: tuple[Any, Tensor | None], val_fraction: float, seed: int) -> list[Any]:
    count, targets = count_samples(stored), stored[1]
    if targets is not None and _classes(targets):
        rows = stratified_split(targets, val_fraction, seed)
    else:
        rows = random_split(count, val_fraction, seed)
    return [map_tensors(stored, itemgetter(chosen)) for chosen in rows]


def _classes(targets: Tensor | None) -> int:
    """Returns how many classes there are; 0 where targets are not one class number each."""
    if targets is None or targets.ndim != 1 or targets.is_floating_point():
        return 0
    return int(targets.max()) + 1
