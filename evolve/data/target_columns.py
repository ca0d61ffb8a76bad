"""Target columns of a table: class numbers, numbers to predict, or several labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from evolve.data.columns import Rows, as_floats, is_text
from evolve.errors import DataError

logger = logging.getLogger(__name__)

Problem: TypeAlias = Literal["auto", "classification", "regression", "multilabel"]

_MOST_CLASSES = 20  # different whole numbers that are taken for classes, where nothing is said


@dataclass(frozen=True)
class Targets:
    """The targets of a table.

    Attributes:
        values: Class numbers (N,), numbers (N, targets), or zeros and ones (N, labels).
        classes: Names of classes, by number; empty for other targets.
        labels: Names of labels; empty for other targets.
    """

    values: Tensor
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def read_targets(pa: Any, table: Any, problem: Problem, train: Rows) -> Targets:
    """Turns the target columns of a table into class numbers, numbers or labels.

    Args:
        pa: The module pyarrow.
        table: The target columns alone.
        problem: What they are; "auto" goes by their number and types.
        train: Which rows are trained on.

    Raises:
        DataError: If a target is missing somewhere, does not go with the problem, or a class is held out alone.
    """
    names = table.column_names
    columns = [table.column(name).combine_chunks() for name in names]
    for name, column in zip(names, columns, strict=True):
        lacking = np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
        if lacking.any():
            raise DataError(
                f"The target column '{name}' has no value in {int(lacking.sum())} of {len(lacking)} rows, the first "
                f"of them row {int(lacking.argmax())}. Leave those rows out of the file."
            )
    chosen = _problem(pa, columns) if problem == "auto" else problem
    logger.info("The target %s is taken for %s.", ", ".join(names), chosen)
    if chosen == "classification":
        return _classes(pa, names, columns, train)
    floats = np.stack([_floats(pa, name, column) for name, column in zip(names, columns, strict=True)], 1)
    if chosen == "regression":
        return Targets(torch.from_numpy(floats).float())
    if not np.isin(floats, (0, 1)).all():
        odd = int(np.argmin(np.isin(floats, (0, 1)).all(0)))
        raise DataError(f"The column '{names[odd]}' holds other values than 0 and 1, so it is no label of several.")
    return Targets(torch.from_numpy(floats).float(), labels=tuple(names))


def _problem(pa: Any, columns: list[Any]) -> Problem:
    """Tells by number and types of the target columns what they are."""
    if len(columns) > 1:
        bits = all(not is_text(pa, column.type) and set(column.unique().to_pylist()) <= {0, 1} for column in columns)
        return "multilabel" if bits else "regression"
    (column,) = columns
    if is_text(pa, column.type) or pa.types.is_boolean(column.type):
        return "classification"
    few = pa.types.is_integer(column.type) and len(column.unique()) <= _MOST_CLASSES
    return "classification" if few else "regression"


def _floats(pa: Any, name: str, column: Any) -> Any:
    if is_text(pa, column.type):
        raise DataError(f"The target column '{name}' holds text, not numbers. Set problem: classification.")
    return as_floats(pa, name, column)


def _classes(pa: Any, names: list[str], columns: list[Any], train: Rows) -> Targets:
    if len(columns) > 1:
        raise DataError(f"classification takes one target column, not {len(columns)}: {', '.join(names)}.")
    encoded = columns[0].dictionary_decode() if pa.types.is_dictionary(columns[0].type) else columns[0]
    encoded = encoded.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)  # numbers by size, words by the alphabet
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    numbers = rank[encoded.indices.to_numpy(zero_copy_only=False)]
    classes = tuple(str(values[index]) for index in order)
    if unseen := set(numbers.tolist()) - set(numbers[train].tolist()):
        raise DataError(
            f"The class '{classes[min(unseen)]}' of '{names[0]}' is in the held-out part alone, so that nothing can be "
            "learned of it. Add samples of it to the training part, or take it out."
        )
    return Targets(torch.from_numpy(numbers), classes)
