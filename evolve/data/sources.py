"""Data sets by name: the registry, and how a configuration becomes a `Data`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from evolve.config import signature_faults, signature_of
from evolve.data.batches import Batches, OrderedBatches, TensorBatches
from evolve.data.collate import Collate
from evolve.data.convert import as_batches
from evolve.data.order import Sampler
from evolve.errors import DataError, EvolveError, did_you_mean
from evolve.plugins import import_callable, is_import_path
from evolve.registry import Registry


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        train: What is trained on.
        val: What is held out, for decisions.
        test: What no decision looks at; None for none.
        num_classes: How many classes there are, or None where targets are not class numbers.
        input_shape: Shape of one input, without the batch, or None where inputs are not one tensor.
        num_outputs: How many numbers a model has to return for a sample: one for each class, unless something else
            is said, or None.
        vocabulary: How many tokens there are, or None where inputs are not tokens.
        class_names: Names of the classes (or of the labels, where a sample may have several), by number.
        feature_names: Names of the inputs' columns, in order.
        category_sizes: For each column of category codes how many codes it has, as an embedding needs to know.
    """

    train: Batches
    val: Batches
    test: Batches | None = field(default=None, kw_only=True)
    num_classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    num_outputs: int | None = None
    vocabulary: int | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    category_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_outputs is None:
            object.__setattr__(self, "num_outputs", self.num_classes)


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


def find_collate(name: str, trusted: bool = True) -> Collate:
    """Returns the function that makes a batch of a list of samples, by its import path.

    Raises:
        UnknownNameError: If it cannot be imported.
        UntrustedCodeError: If the path is not trusted.
    """
    return import_callable(name, "collate function", trusted)


def build_data(
    name: str,
    *,
    batch_size: int = 64,
    augment: bool = False,
    seed: int = 0,
    workers: int = 0,
    sampler: Sampler | None = None,
    collate: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """Loads the data set called `name`.

    A function of your own returns a `Data`, `(train, val)` or `(train, val, test)`, each anything that `as_batches`
    takes. It is given
    `batch_size`, `augment`, `seed`, `workers` and `collate_fn` where it has parameters of these names, and the options.

    Args:
        name: The name.
        batch_size: Samples in a batch.
        augment: Whether to augment training samples.
        seed: Seed of order and augmentation.
        workers: Processes that read ahead, for data that is read as it is needed.
        sampler: How the training samples of an epoch are drawn; None leaves it to the data set, which shuffles.
        collate: Import path of a function that makes a batch of a list of samples.
        options: Further arguments.

    Raises:
        UnknownNameError: If a name is unknown.
        DataError: If the options do not fit, or the data is missing or malformed.
    """
    source = find_data(name)
    collate_fn = find_collate(collate) if collate else None
    common: dict[str, Any] = {"batch_size": batch_size, "augment": augment, "seed": seed, "workers": workers}
    if collate_fn is not None:
        common["collate_fn"] = collate_fn
    given = {key: value for key, value in common.items() if takes(source, key)}
    if augment and not takes(source, "augment"):
        raise DataError(no_augmentation(name))
    if faults := signature_faults(source, options or {}, skip={*common, "collate_fn"}):
        raise DataError(f"Data set '{name}': {' '.join(message for _, message in faults)}")
    data = _made(name, source, {**given, **(options or {})})
    if isinstance(data, Data):
        if collate_fn is not None and "collate_fn" not in given:
            raise DataError(f"collate has no use: the data set '{name}' makes its own batches.")
        if workers and "workers" not in given:
            raise DataError(f"workers={workers} has no use: the data set '{name}' is not read by workers.")
    else:
        left = {
            key: common[key] for key in ("workers", "collate_fn") if key in common and key not in given
        }  # the rest has been used
        train, val, *test = (
            as_batches(part, batch_size, shuffle=number == 0, seed=seed, **left) for number, part in enumerate(data)
        )
        data = Data(train, val, _count_classes(train), _input_shape(train), test=test[0] if test else None)
    return data if sampler is None else replace(data, train=_drawn(data.train, sampler, name))


def _made(name: str, source: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Returns the `Data`, or the two or three parts of data, that a source makes."""
    try:
        made = source(**arguments)
    except EvolveError:
        raise
    except Exception as error:  # a source, the user's own too, may raise anything
        raise DataError(
            f"Data set '{name}' cannot be loaded with {dict(arguments)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Data) and (not isinstance(made, tuple | list) or len(made) not in (2, 3)):
        raise DataError(
            f"Data set '{name}' returned a {type(made).__name__}. Return a Data, (train, val) or (train, val, test)."
        )
    return made


def _drawn(train: Batches, sampler: Sampler, name: str) -> Batches:
    if sampler not in get_args(Sampler):
        raise DataError(f"There is no sampler '{sampler}'.{did_you_mean(sampler, get_args(Sampler))}")
    if not isinstance(train, OrderedBatches):
        raise DataError(
            f"sampler: {sampler} has no use for the data set '{name}', whose training part is a "
            f"{type(train).__name__} with an order of its own. Give its DataLoader a sampler."
        )
    return train.drawn(sampler)


def stratified_split(targets: Tensor, val_fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns sorted indices of a training and a validation part that hold the same share of every class.

    Raises:
        DataError: If the fraction is not between 0 and 1, or leaves a part empty.
    """
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in torch.unique(targets):
        members = (targets == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held.append(shuffled[: round(len(members) * val_fraction)])
    return _parts(len(targets), torch.cat(held) if held else targets, val_fraction)


def random_split(samples: int, val_fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns sorted indices of a training and a validation part that are drawn at random.

    Raises:
        DataError: If the fraction is not between 0 and 1, or leaves a part empty.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return _parts(samples, order[: round(samples * val_fraction)], val_fraction)


def _parts(samples: int, held: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}.")
    mask = torch.ones(samples, dtype=torch.bool)
    mask[held] = False
    train, val = mask.nonzero().flatten(), held.sort().values
    if not len(train) or not len(val):
        raise DataError(f"val_fraction {val_fraction} leaves {len(train)} samples to train on and {len(val)} held out.")
    return train, val


def _count_classes(batches: Batches) -> int | None:
    """Classes of in-memory integer targets; other data would have to be read through to tell."""
    classes = batches.classes() if isinstance(batches, TensorBatches) else None
    return int(classes.max()) + 1 if classes is not None and classes.dtype == torch.long else None


def _input_shape(batches: Batches) -> tuple[int, ...] | None:
    batch = batches.examples(1)
    first = batch[0] if isinstance(batch, tuple | list) and batch else None
    return tuple(first.shape[1:]) if isinstance(first, Tensor) else None
