"""Columns of a table as numbers: standardised where they are numbers, codes where they are categories."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolve.errors import DataError

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Features:
    """The inputs of a table.

    Attributes:
        numbers: Standardised numbers, of shape (N, columns).
        number_names: Their names.
        categories: Codes of shape (N, columns): 0 for what is missing or was not in the training part, else from 1.
        category_names: Their names.
        values: What the codes from 1 on stand for, for each column of categories.
    """

    numbers: Tensor
    number_names: tuple[str, ...]
    categories: Tensor
    category_names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each column of categories has, with the 0."""
        return tuple(len(values) + 1 for values in self.values)

    def one_hot(self) -> tuple[Tensor, tuple[str, ...]]:
        """Returns one tensor (N, features), categories as 0s and a 1 (all 0 where unknown), and the features' names."""
        parts, names = [self.numbers], list(self.number_names)
        for column, (name, values) in enumerate(zip(self.category_names, self.values, strict=True)):
            codes = torch.arange(1, len(values) + 1)
            parts.append((self.categories[:, column, None] == codes).float())
            names += [f"{name}={value}" for value in values]
        return torch.cat(parts, 1), tuple(names)


def read_features(
    pa: Any, table: Any, train: Rows, categorical: Sequence[str], *, indicators: bool, max_categories: int
) -> Features:
    """Turns the columns of a table into numbers, by what the training part tells of them.

    Args:
        pa: The module pyarrow.
        table: The columns that are inputs.
        train: Which rows are trained on; means, deviations and categories are theirs.
        categorical: Columns to take for categories though they hold numbers.
        indicators: Whether a column of numbers that lacks some in the training part gets another that says where.
        max_categories: Categories of a column that are kept: the most frequent.

    Raises:
        DataError: If a column is of a kind that has no numbers, or holds infinity.
    """
    numbers: list[Floats] = []
    number_names: list[str] = []
    codes: list[Codes] = []
    values: dict[str, tuple[str, ...]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in categorical or is_text(pa, column.type):
            code, values[name] = _codes(pa, name, column, train, max_categories)
            codes.append(code)
            continue
        found = as_floats(pa, name, column)
        missing = np.isnan(found)
        numbers.append(_standardised(name, found, missing, train))
        number_names.append(name)
        if indicators and missing[train].any():
            numbers.append(missing.astype(np.float64))
            number_names.append(f"{name} missing")
    rows = len(train)
    return Features(
        torch.from_numpy(np.stack(numbers, 1) if numbers else np.empty((rows, 0))).float(),
        tuple(number_names),
        torch.from_numpy(np.stack(codes, 1) if codes else np.empty((rows, 0), np.int64)),
        tuple(values),
        tuple(values.values()),
    )


def is_text(pa: Any, kind: Any) -> bool:
    """Whether a column of this type holds categories by itself."""
    kinds = pa.types
    return any(is_kind(kind) for is_kind in (kinds.is_string, kinds.is_large_string, kinds.is_dictionary))


def as_floats(pa: Any, name: str, column: Any) -> Floats:
    """Returns numbers, truth values, dates and times as floats, NaN where one is missing.

    Raises:
        DataError: If the column holds something else, or infinity.
    """
    kinds, kind = pa.types, column.type
    numeric = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null)
    if kinds.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not any(is_kind(kind) for is_kind in numeric):
        raise DataError(f"The column '{name}' of type {kind} holds no numbers and no categories. Leave it out: drop.")
    if kinds.is_boolean(kind):
        column = column.cast(pa.int8())
    floats: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    if np.isinf(floats).any():
        raise DataError(f"The column '{name}' holds infinity in row {int(np.isinf(floats).argmax())}. Mend or drop it.")
    return floats


def _standardised(name: str, found: Floats, missing: Rows, train: Rows) -> Floats:
    """Brings a column to mean 0 and deviation 1 over the training part; what is missing becomes the mean."""
    known = found[train & ~missing]
    if not len(known) or known.min() == known.max():
        logger.info("The column '%s' is constant in the training part: it tells a model nothing.", name)
        mean, deviation = (known[0] if len(known) else 0.0), 1.0
    else:
        mean, deviation = known.mean(), known.std()
        whole = bool((known == np.round(known)).all())
        if whole and len(np.unique(known)) == len(known) > 2 and (np.abs(np.diff(known)) == 1).all():
            logger.info("The column '%s' counts the rows: it looks like an identifier. Leave it out: drop.", name)
    standardised: Floats = np.where(missing, 0.0, (found - mean) / deviation)
    return standardised


def _codes(pa: Any, name: str, column: Any, train: Rows, most: int) -> tuple[Codes, tuple[str, ...]]:
    """Returns codes from 1 for the categories of the training part, 0 for others, and what they stand for."""
    encoded = column.cast(pa.string()).dictionary_encode()
    found = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    words = [str(word) for word in encoded.dictionary.to_pylist()]
    counts = np.bincount(found[train & (found >= 0)], minlength=len(words))
    known = sorted((word for word, count in zip(words, counts, strict=True) if count), key=str)
    if len(known) == int(train.sum()) > 2:
        logger.info("Each row has a '%s' of its own: it looks like an identifier. Leave it out: drop.", name)
    if len(known) == 1:
        logger.info("The column '%s' is constant in the training part: it tells a model nothing.", name)
    if len(known) > most:
        logger.info("Of the %d categories of '%s' the %d most frequent are kept.", len(known), name, most)
        often = dict(zip(words, counts.tolist(), strict=True))
        known = sorted(sorted(known, key=lambda word: -often[word])[:most])
    numbers = {word: number for number, word in enumerate(known, 1)}
    table = np.array([*(numbers.get(word, 0) for word in words), 0], np.int64)  # the last is for -1, what is missing
    return table[found], tuple(known)
