"""Batches are trees: tensors in tuples, lists, mappings and dataclasses, nested in any way.

Every tensor of a batch has one row for each sample, unless a task says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evolve.errors import DataError

Batch: TypeAlias = Any
"""A tensor, or a tuple, list, mapping or dataclass of batches; `(inputs, targets)` is the most usual one."""


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Returns a tree of the same kind with each tensor changed; all else stays as it is.

    Args:
        tree: Tensors in tuples, named tuples, lists, mappings (a `ModelOutput` or `BatchEncoding` is one) and
            dataclasses.
        change: What becomes of a tensor.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        return dataclasses.replace(tree, **{name: map_tensors(getattr(tree, name), change) for name in names})
    if isinstance(tree, Mapping):
        changed = {key: map_tensors(value, change) for key, value in tree.items()}
        return changed if type(tree) is dict else type(tree)(changed)  # type: ignore[call-arg]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(item, change) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(item, change) for item in tree)
    return tree


def tensors_of(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a tree, each with how it is reached, such as "[0]['input_ids']"."""
    if isinstance(tree, Tensor):
        yield "", tree
        return
    inside: list[tuple[str, Any]] = []
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        inside = [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    elif isinstance(tree, Mapping):
        inside = [(f"[{key!r}]", value) for key, value in tree.items()]
    elif isinstance(tree, tuple | list):
        inside = [(f"[{index}]", value) for index, value in enumerate(tree)]
    for key, value in inside:
        for rest, tensor in tensors_of(value):
            yield key + rest, tensor


def count_samples(tree: Any) -> int:
    """Returns how many rows the tensors of a batch have.

    Raises:
        DataError: If it holds no tensor with rows, or tensors with different numbers of them.
    """
    sizes = {name: len(tensor) for name, tensor in tensors_of(tree) if tensor.dim()}
    if not sizes:
        raise DataError(
            f"A batch has to hold a tensor with one row for each sample; this {type(tree).__name__} has none."
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"batch{name} has {size}" for name, size in list(sizes.items())[:4])
        raise DataError(f"The tensors of a batch need one row for each sample, and have different numbers: {found}.")
    return next(iter(sizes.values()))


def join(batches: Sequence[Any]) -> Any:
    """Returns one batch of the samples of several: tensors are concatenated, and what is no tensor is the first's.

    Raises:
        DataError: If their tensors have different shapes.
    """
    if len(batches) == 1:
        return batches[0]
    rows = [[tensor for _, tensor in tensors_of(batch)] for batch in batches]
    columns = iter(list(zip(*rows, strict=True)))

    def concatenated(first: Tensor) -> Tensor:
        parts = next(columns)
        if not first.dim():
            return first
        try:
            return torch.cat(parts)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts[:4])
            raise DataError(
                f"Batches with tensors of different shapes ({shapes}) cannot be joined: pad them."
            ) from error

    return map_tensors(batches[0], concatenated)
