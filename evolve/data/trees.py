"""Batches are trees: tensors in tuples, lists, mappings and dataclasses, nested in any way.

Every tensor of a batch has one row for each sample, unless a task says otherwise. Where samples differ in shape, as
in detection, a batch is ragged: `([image, image, ...], [target, target, ...])`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evolve.errors import DataError

Batch: TypeAlias = Any
"""A tensor, or a tuple, list, mapping or dataclass of batches; `(inputs, targets)` is the most usual one."""


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a tree of the same kind with each leaf changed: all that is no tuple, list, mapping or dataclass.

    Args:
        tree: Values in tuples, named tuples, lists, mappings (a `ModelOutput` or `BatchEncoding` is one) and
            dataclasses.
        change: What becomes of a leaf.
    """
    if isinstance(tree, Tensor):  # by far the most usual, so it comes first
        return change(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        return dataclasses.replace(tree, **{name: map_leaves(getattr(tree, name), change) for name in names})
    if isinstance(tree, Mapping):
        changed = {key: map_leaves(value, change) for key, value in tree.items()}
        return changed if type(tree) is dict else type(tree)(changed)  # type: ignore[call-arg]
    if isinstance(tree, tuple | list):
        return _like(tree, (map_leaves(item, change) for item in tree))
    return change(tree)


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Returns a tree of the same kind with each tensor changed; all else stays as it is. See `map_leaves`."""
    if isinstance(tree, Tensor):
        return change(tree)
    if type(tree) is tuple:  # the most usual batch takes the short way: each step maps one
        return tuple([map_tensors(item, change) for item in tree])
    return map_leaves(tree, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def _like(tree: Any, items: Iterable[Any]) -> Any:
    """Returns a tuple, named tuple or list of other items."""
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a tree, each with how it is reached, such as "[0]['input_ids']"."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        inside = [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree) if field.init]
    elif isinstance(tree, Mapping):
        inside = [(f"[{key!r}]", value) for key, value in tree.items()]
    elif isinstance(tree, tuple | list):
        inside = [(f"[{index}]", value) for index, value in enumerate(tree)]
    else:
        yield "", tree
        return
    for key, value in inside:
        for rest, leaf in leaves_of(value):
            yield key + rest, leaf


def tensors_of(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a tree, each with how it is reached, such as "[0]['input_ids']"."""
    return ((name, leaf) for name, leaf in leaves_of(tree) if isinstance(leaf, Tensor))


def is_ragged(tree: Any) -> bool:
    """Whether a batch lists its samples one by one, as detection does: `(images, targets)`, both lists of equal length.

    That is so where each part is a list or tuple with an entry for each sample, and the last part holds mappings or
    the tensors have different numbers of rows. A batch whose tensors all have one row for each sample is not ragged.
    """
    if not isinstance(tree, tuple | list) or not tree or not all(isinstance(part, tuple | list) for part in tree):
        return False
    if len({len(part) for part in tree}) != 1 or not tree[0]:
        return False
    if len(tree) > 1 and all(isinstance(item, Mapping) for item in tree[-1]):
        return True
    return len({len(tensor) for _, tensor in tensors_of(tree) if tensor.dim()}) > 1


def count_samples(tree: Any) -> int:
    """Returns how many samples a batch holds: the rows of its tensors, or the entries of its lists if it is ragged.

    Raises:
        DataError: If it holds no tensor with rows, or tensors with different numbers of them.
    """
    if is_ragged(tree):
        return len(tree[0])
    sizes = {name: len(tensor) for name, tensor in tensors_of(tree) if tensor.dim()}
    if not sizes:
        raise DataError(
            f"A batch has to hold a tensor with one row for each sample; this {type(tree).__name__} has none."
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"batch{name} has {size}" for name, size in list(sizes.items())[:4])
        raise DataError(f"The tensors of a batch need one row for each sample, and have different numbers: {found}.")
    return next(iter(sizes.values()))


def take(tree: Any, n: int) -> Any:
    """Returns the first `n` samples of a batch, or all if it has fewer; what is no tensor stays."""
    return rows(tree, 0, n)


def rows(tree: Any, first: int, end: int) -> Any:
    """Returns the samples of a batch from `first` up to `end`; what is no tensor stays."""
    if is_ragged(tree):
        return _like(tree, (part[first:end] for part in tree))
    return map_tensors(tree, lambda tensor: tensor[first:end] if tensor.dim() else tensor)


def join(batches: Sequence[Any]) -> Any:
    """Returns one batch of the samples of several.

    Tensors are concatenated, lists too where the batches are ragged, and what is no tensor is the first's.

    Raises:
        DataError: If the batches are of different forms, or their tensors have different shapes.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if all(map(is_ragged, batches)):
        columns = zip(*batches, strict=True)
        return _like(first, ([item for part in column for item in part] for column in columns))
    rows = [dict(tensors_of(batch)) for batch in batches]
    for row in rows:
        if list(row) != list(rows[0]):
            odd = ", ".join(f"batch{name}" for name in sorted({*row} ^ {*rows[0]}))
            raise DataError(f"Batches of different forms cannot be joined: only one of them has {odd}.")
    tensors = iter([_concatenate(name, [row[name] for row in rows]) for name in rows[0]])
    return map_tensors(first, lambda _: next(tensors))


def _concatenate(name: str, parts: Sequence[Tensor]) -> Tensor:
    if not parts[0].dim():
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(dict.fromkeys(str(tuple(part.shape)) for part in parts))
        raise DataError(f"The batches have different shapes (batch{name}: {shapes}) and cannot be joined: pad them.")
    return torch.cat(tuple(parts))
