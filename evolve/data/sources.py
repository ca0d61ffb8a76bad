"""Data sets by name: the registry, and how a configuration becomes a `Data`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evolve.config import signature_faults, signature_of
from evolve.data.batches import Batches, TensorBatches
from evolve.data.convert import as_batches
from evolve.errors import DataError, EvolveError
from evolve.plugins import import_callable, is_import_path
from evolve.registry import Registry


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        train: What is trained on.
        val: What is held out.
        num_classes: How many classes there are, or None where targets are not class numbers.
        input_shape: Shape of one input, without the batch.
    """

    train: Batches
    val: Batches
    num_classes: int | None
    input_shape: tuple[int, ...]


datasets: Registry[Callable[..., Data]] = Registry("data set", "evolve.data")


def no_augmentation(name: str) -> str:
    """Returns what to say where a data set that cannot be augmented is to be."""
    able = [known for known in datasets if takes(datasets.get(known), "augment")]
    return (
        f"the data set '{name}' has no augmentation. Those that have: {', '.join(able)}; a function of your own has it "
        "if it takes a parameter 'augment'."
    )


def takes(source: Callable[..., Any], parameter: str) -> bool:
    """Returns whether a function that loads data has a parameter of this name, or takes any."""
    known = signature_of(source) or {}
    return parameter in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def find_data(name: str, trusted: bool = True) -> Callable[..., Any]:
    """Returns the function that loads the data set called `name`: a registry name, or an import path to your own.

    Args:
        name: The name.
        trusted: Whether it comes from the user; an import path that does not is refused.

    Raises:
        UnknownNameError: If the name is unknown, or its module cannot be imported.
    """
    if is_import_path(name) and name not in datasets:
        return import_callable(name, datasets.kind, trusted)
    return datasets.get(name)


def build_data(
    name: str, *, batch_size: int = 64, augment: bool = False, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Data:
    """Loads the data set called `name`.

    A function of your own returns a `Data` or `(train, val)`, each anything that `as_batches` takes. It is given
    `batch_size`, `augment` and `seed` where it has parameters of these names, and the options.

    Raises:
        UnknownNameError: If the name is unknown.
        DataError: If the options do not fit, or the data is missing or malformed.
    """
    source = find_data(name)
    common = {"batch_size": batch_size, "augment": augment, "seed": seed}
    arguments = {**{key: value for key, value in common.items() if takes(source, key)}, **(options or {})}
    if augment and not takes(source, "augment"):
        raise DataError(no_augmentation(name))
    if faults := signature_faults(source, arguments):
        raise DataError(f"Data set '{name}': {' '.join(message for _, message in faults)}")
    try:
        made = source(**arguments)
    except EvolveError:
        raise
    except Exception as error:  # a source, the user's own too, may raise anything
        raise DataError(
            f"Data set '{name}' cannot be loaded with {arguments}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(made, Data):
        return made
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"Data set '{name}' returned a {type(made).__name__}. Return a Data, or a pair (train, val).")
    train = as_batches(made[0], batch_size, shuffle=True, seed=seed)
    val = as_batches(made[1], batch_size, shuffle=False, seed=seed)
    return Data(train, val, _count_classes(train), tuple(train.example(1).shape[1:]))


def stratified_split(targets: Tensor, val_fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns sorted indices of a training and a validation part that hold the same share of every class.

    Raises:
        DataError: If the fraction is not between 0 and 1, or leaves a part empty.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}.")
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in torch.unique(targets):
        members = (targets == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held.append(shuffled[: round(len(members) * val_fraction)])
    val = torch.cat(held).sort().values
    mask = torch.ones(len(targets), dtype=torch.bool)
    mask[val] = False
    train = mask.nonzero().flatten()
    if not len(train) or not len(val):
        raise DataError(f"val_fraction {val_fraction} leaves {len(train)} samples to train on and {len(val)} held out.")
    return train, val


def _count_classes(batches: Batches) -> int | None:
    """Classes of in-memory integer targets; other data would have to be read through to tell."""
    if isinstance(batches, TensorBatches) and batches.targets.dtype == torch.long and batches.targets.ndim == 1:
        return int(batches.targets.max()) + 1
    return None
