"""Data sets of Hugging Face's `datasets`, saved on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from evolve.data.collate import Collate
from evolve.data.extras import needed
from evolve.data.loaders import LoaderBatches
from evolve.data.sources import Data, datasets, random_split, stratified_split
from evolve.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

_VAL_SPLITS = ("validation", "val", "valid", "test")
_LABELS = ("labels", "label")  # columns of class numbers, where no target is named


@datasets.register("huggingface")
def huggingface(
    path: str,
    batch_size: int = 64,
    seed: int = 0,
    workers: int = 0,
    collate_fn: Collate | None = None,
    columns: list[str] | None = None,
    inputs: str | None = None,
    targets: str | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Data:
    """Loads a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; nothing is downloaded.

    A batch is a dict of the columns as tensors, such as `{"input_ids", "attention_mask", "labels"}`; with `inputs` and
    `targets`, it is `(inputs, targets)`. Rows are read from disk as they are needed. Sequences of different lengths
    need a `collate_fn` that pads them, which takes a list of rows.

    Args:
        path: The folder.
        batch_size: Rows in a batch.
        seed: Seed of the order.
        workers: Processes that read ahead.
        collate_fn: Makes a batch of a list of rows; torch's way by default.
        columns: The columns of a batch; None for all that hold numbers, lists of numbers or images.
        inputs: The column of inputs, for batches `(inputs, targets)`.
        targets: Their column of targets.
        train_split: The split to train on, where there are several.
        val_split: The split that is held out; None for "validation", "val", "valid" or "test", whichever comes first.
        val_fraction: Share that is held out where there is one split alone, of every class where these are known.
        split_seed: Seed of that split.

    Raises:
        DataError: If `datasets` is not installed, or folder, split or column is missing.
    """
    if (inputs is None) != (targets is None) or (inputs is not None and columns is not None):
        raise DataError("Name inputs and targets for batches (inputs, targets), or columns for batches that are dicts.")
    library = needed("datasets", "datasets", "huggingface", "huggingface")
    found = _loaded(library, Path(path))
    wanted = columns if inputs is None or targets is None else [inputs, targets]
    parts = [found]
    if isinstance(found, dict):
        parts = [found[name] for name in _splits(found, train_split, val_split)]
    rows = [_Rows(part, _columns(library, part, wanted), pair=inputs is not None) for part in parts]
    train: Dataset[Any] = rows[0]
    val: Dataset[Any] = rows[-1]
    if len(rows) == 1:
        if rows[0].targets is None:
            chosen = random_split(len(rows[0]), val_fraction, split_seed)
        else:
            chosen = stratified_split(torch.as_tensor(rows[0].targets), val_fraction, split_seed)
        train, val = (Subset(rows[0], indices.tolist()) for indices in chosen)
    names = _class_names(library, rows[0])
    options: dict[str, Any] = {"seed": seed, "workers": workers, "collate_fn": collate_fn}
    return Data(
        LoaderBatches(train, batch_size, shuffle=True, **options),
        LoaderBatches(val, batch_size, shuffle=False, **options),
        num_classes=len(names) or None,
        input_shape=_shape(rows[0][0]),
        class_names=names,
    )


class _Rows(Dataset[Any]):
    """Rows of a data set as dicts or pairs of tensors."""

    def __init__(self, stored: Any, columns: list[str], pair: bool) -> None:
        self.stored = stored.with_format("torch", columns=columns)
        self.columns = columns
        self.pair = pair

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Any:
        return self._sample(self.stored[index])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self._sample(row) for row in self.stored.__getitems__(indices)]

    @property
    def label(self) -> str | None:
        """The column that holds class numbers, if there is one."""
        candidates = self.columns[1:] if self.pair else [name for name in _LABELS if name in self.columns]
        return candidates[0] if candidates else None

    @property
    def targets(self) -> np.ndarray[Any, Any] | None:
        """The class number of each row, or None."""
        if self.label is None or not str(getattr(self.stored.features[self.label], "dtype", "")).startswith("int"):
            return None
        return np.asarray(self.stored.with_format("numpy", columns=[self.label])[self.label])

    def _sample(self, row: dict[str, Any]) -> Any:
        return (row[self.columns[0]], row[self.columns[1]]) if self.pair else row


def _loaded(library: Any, path: Path) -> Any:
    if not path.is_dir():
        raise DataError(f"There is no folder '{path.absolute()}'. Write one with Dataset.save_to_disk.")
    try:
        return library.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:  # a folder of another kind, or a damaged one
        raise DataError(f"Cannot load '{path.absolute()}': {error} Write it with Dataset.save_to_disk.") from error


def _splits(found: dict[str, Any], train: str, val: str | None) -> tuple[str, str]:
    """Returns the names of the splits to train on and to hold out."""
    if val is None:
        val = next((name for name in _VAL_SPLITS if name in found and name != train), None)
        if val is None:
            raise DataError(f"No split is held out; there are: {', '.join(found)}. Set val_split.")
    for name in (train, val):
        if name not in found:
            known = ", ".join(found)
            raise DataError(f"There is no split '{name}'.{did_you_mean(name, list(found))} There are: {known}.")
    return train, val


def _columns(library: Any, stored: Any, wanted: list[str] | None) -> list[str]:
    known = stored.column_names
    if wanted is not None:
        for name in wanted:
            if name not in known:
                there = ", ".join(known)
                raise DataError(f"There is no column '{name}'.{did_you_mean(name, known)} There are: {there}.")
        return wanted
    able = [name for name in known if _holds_numbers(library, stored.features[name])]
    if left_out := [name for name in known if name not in able]:
        logger.info("Columns that hold no numbers are left out of the batches: %s.", ", ".join(left_out))
    if not able:
        raise DataError(f"No column holds numbers: {', '.join(known)}. Tokenise the text before you save the data set.")
    return able


def _holds_numbers(library: Any, feature: Any) -> bool:
    if isinstance(feature, library.Image | library.ClassLabel):
        return True
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _holds_numbers(library, inner)
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))


def _class_names(library: Any, rows: _Rows) -> tuple[str, ...]:
    feature = rows.stored.features[rows.label] if rows.label is not None else None
    return tuple(feature.names) if isinstance(feature, library.ClassLabel) else ()


def _shape(sample: Any) -> tuple[int, ...] | None:
    first = sample[0] if isinstance(sample, tuple) else sample.get("input_ids")
    return tuple(first.shape) if isinstance(first, Tensor) else None
