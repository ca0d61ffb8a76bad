"""Tables: CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evolve.data.batches import TensorBatches
from evolve.data.columns import read_features
from evolve.data.extras import needed
from evolve.data.sources import Data, datasets, random_split, stratified_split
from evolve.data.target_columns import Problem, read_targets
from evolve.errors import DataError, did_you_mean


@datasets.register("csv")
def csv(
    path: str,
    target: str | list[str],
    batch_size: int = 64,
    seed: int = 0,
    val_path: str | None = None,
    delimiter: str = ",",
    problem: Problem = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    categories: Literal["one_hot", "codes"] = "one_hot",
    max_categories: int = 100,
    missing_indicators: bool = False,
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Data:
    """Loads a CSV file whose first line names the columns; types are inferred.

    What becomes of the columns is said in `tabular_data`.

    Args:
        path: The file.
        target: Name of the target column, or of several.
        batch_size: Rows in a batch.
        seed: Seed of the order.
        val_path: A file of rows that are held out; None to hold out a share of `path`.
        delimiter: What stands between two values.
        problem: What the target is; "auto" goes by its type.
        drop: Columns to leave out.
        categorical: Columns of numbers to take for categories, such as postcodes.
        categories: Whether categories become 0s and a 1, for one input tensor, or codes for embeddings.
        max_categories: Categories of a column that are kept, the most frequent; others count as unknown.
        missing_indicators: Whether columns that lack numbers get another that says where.
        val_fraction: Share that is held out, of every class where there are classes.
        split_seed: Seed of that split.

    Raises:
        DataError: If pyarrow is not installed, a file or column is missing, or the target has gaps.
    """
    pa, reader = (needed(module, "pyarrow", "tabular", "csv") for module in ("pyarrow", "pyarrow.csv"))
    if len(delimiter) != 1:
        raise DataError(f"delimiter has to be one character, not {delimiter!r}.")
    options = {
        "parse_options": reader.ParseOptions(delimiter=delimiter),
        "convert_options": reader.ConvertOptions(strings_can_be_null=True),
    }
    table, rows = _read(pa, lambda file: reader.read_csv(file, **options), path, val_path)
    how = (drop, categorical, categories, max_categories, missing_indicators, val_fraction, split_seed)
    return tabular_data(pa, table, rows, target, problem, batch_size, seed, *how)


@datasets.register("parquet")
def parquet(
    path: str,
    target: str | list[str],
    batch_size: int = 64,
    seed: int = 0,
    val_path: str | None = None,
    problem: Problem = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    categories: Literal["one_hot", "codes"] = "one_hot",
    max_categories: int = 100,
    missing_indicators: bool = False,
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Data:
    """Loads a Parquet file, or a folder of them; otherwise as `csv`, with the same options."""
    pa, reader = (needed(module, "pyarrow", "tabular", "parquet") for module in ("pyarrow", "pyarrow.parquet"))
    table, rows = _read(pa, reader.read_table, path, val_path)
    how = (drop, categorical, categories, max_categories, missing_indicators, val_fraction, split_seed)
    return tabular_data(pa, table, rows, target, problem, batch_size, seed, *how)


def tabular_data(
    pa: Any,
    table: Any,
    train_rows: int | None,
    target: str | list[str],
    problem: Problem,
    batch_size: int,
    seed: int,
    drop: Sequence[str],
    categorical: Sequence[str],
    categories: Literal["one_hot", "codes"],
    max_categories: int,
    missing_indicators: bool,
    val_fraction: float,
    split_seed: int,
) -> Data:
    """Makes a data set of a table.

    Numbers, truth values, dates and times are brought to mean 0 and deviation 1 over the training part, and what is
    missing becomes the mean. Text is a category. With `categories="one_hot"` a batch is `(inputs, targets)` with
    (N, features) floats; a category that the training part lacks, and a missing one, is all 0. With "codes" the inputs
    are `{"numbers": (N, F), "categories": (N, C)}`, and unknown or missing categories have code 0.

    Targets are class numbers (N,), numbers (N, targets), never (N,) so that a model with as many outputs fits, or 0 and
    1 for each of several labels (N, labels).

    Args:
        pa: The module pyarrow.
        table: All rows.
        train_rows: How many rows at the beginning are trained on; None to draw them.
        target: Target column or columns.
        problem: What the target is.
        batch_size: Rows in a batch.
        seed: Seed of the order.
        drop: Columns to leave out.
        categorical: Columns of numbers to take for categories.
        categories: "one_hot" or "codes".
        max_categories: Categories of a column that are kept.
        missing_indicators: Whether columns that lack numbers get another that says where.
        val_fraction: Share that is held out.
        split_seed: Seed of that split.

    Raises:
        DataError: If a column is missing, or the target has gaps.
    """
    targets = [target] if isinstance(target, str) else list(target)
    _check(table.column_names, targets, drop, categorical, max_categories)
    everything = np.ones(table.num_rows, bool)
    everything[train_rows:] = train_rows is None
    answers = read_targets(pa, table.select(targets), problem, everything)
    if train_rows is not None:
        train, val = torch.arange(train_rows), torch.arange(train_rows, table.num_rows)
    elif answers.classes:
        train, val = stratified_split(answers.values, val_fraction, split_seed)
    else:
        train, val = random_split(table.num_rows, val_fraction, split_seed)
    trained = np.zeros(table.num_rows, bool)
    trained[train.numpy()] = True
    left = [name for name in table.column_names if name not in targets and name not in drop]
    features = read_features(
        pa, table.select(left), trained, categorical, indicators=missing_indicators, max_categories=max_categories
    )
    inputs: Any = {"numbers": features.numbers, "categories": features.categories}
    names = (*features.number_names, *features.category_names)
    if categories == "one_hot":
        inputs, names = features.one_hot()

    def part(chosen: Tensor, shuffle: bool) -> TensorBatches:
        rows = {key: value[chosen] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[chosen]
        return TensorBatches(rows, answers.values[chosen], batch_size, shuffle=shuffle, seed=seed)

    return Data(
        part(train, True),
        part(val, False),
        num_classes=len(answers.classes) or None,
        input_shape=None if isinstance(inputs, dict) else (len(names),),
        num_outputs=len(answers.classes) or answers.values.shape[1],
        class_names=answers.classes or answers.labels,
        feature_names=names,
        category_sizes=features.sizes if isinstance(inputs, dict) else (),
    )


def _read(pa: Any, read: Callable[[str], Any], path: str, val_path: str | None) -> tuple[Any, int | None]:
    """Returns all rows, and how many of them are trained on where a file of held-out rows is given."""
    tables = []
    for file in [path] if val_path is None else [path, val_path]:
        if not Path(file).exists():
            raise DataError(f"There is no file '{Path(file).absolute()}'.")
        try:
            table = read(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"Cannot read the table '{file}': {error}") from error
        if not table.num_rows:
            raise DataError(f"The table '{file}' has no rows.")
        tables.append(table)
    if len(tables) == 1:
        return tables[0], None
    if odd := sorted({*tables[0].column_names} ^ {*tables[1].column_names}):
        raise DataError(f"'{path}' and '{val_path}' need the same columns; only one of them has: {', '.join(odd)}.")
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"Columns of '{path}' and '{val_path}' hold different kinds of values: {error}") from error
    return whole, tables[0].num_rows


def _check(
    known: list[str], targets: list[str], drop: Sequence[str], categorical: Sequence[str], max_categories: int
) -> None:
    for what, names in (("target", targets), ("drop", drop), ("categorical", categorical)):
        for name in names:
            if name not in known:
                there = ", ".join(known)
                raise DataError(f"{what}: there is no column '{name}'.{did_you_mean(name, known)} There are: {there}.")
    if len({*known}) < len(known):
        twice = sorted({name for name in known if known.count(name) > 1})
        raise DataError(f"Columns have the same name: {', '.join(twice)}. Rename them.")
    if not targets:
        raise DataError("target is an empty list: name one column at least.")
    if both := {*targets} & {*drop, *categorical}:
        raise DataError(f"'{min(both)}' is the target, so it is not to be in drop or categorical.")
    if not {*known} - {*targets} - {*drop}:
        raise DataError("No column is left for the inputs.")
    if max_categories < 1:
        raise DataError(f"max_categories must be at least 1, not {max_categories}.")
