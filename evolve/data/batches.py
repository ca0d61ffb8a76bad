"""Batches: what a training loop asks of its data, and the fast kind that lies in memory."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Self

from evolve.data.augment import Augment, Prepare
from evolve.data.order import Sampler, balanced_order, batch_bounds, epoch_order
from evolve.data.trees import Batch, count_samples, map_tensors, take, tensors_of
from evolve.errors import DataError


class Batches(ABC):
    """Data cut into batches that can be read again from any epoch and any batch.

    A batch is a tree (see `trees`): `(inputs, targets)`, a dict of tensors, whatever the task at hand takes apart.
    """

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples an epoch has."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch.

        Args:
            epoch: Number of the epoch; with the seed it determines order and augmentation.
            start: Batches to leave out, for a run that resumes in mid-epoch.
        """

    def onward(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches from there on, through that epoch and all that follow, without an end."""
        while True:
            yield from self.epoch(epoch, start)
            epoch, start = epoch + 1, 0

    @abstractmethod
    def examples(self, n: int) -> Batch:
        """Returns a batch of the first `n` samples (fewer if there are fewer); leaves every random state as it is."""

    def example(self, n: int) -> Tensor:
        """Returns the first `n` inputs of batches `(inputs, targets)`; see `examples`.

        Raises:
            DataError: If the batches are of another form.
        """
        batch = self.examples(n)
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[0], Tensor):
            raise DataError(
                f"A batch must be (inputs, targets) here, and this one is {form_of(batch)}. Return (input, target) "
                "from the data set, or give the DataLoader a collate_fn."
            )
        return batch[0]


class OrderedBatches(Batches):
    """Batches whose order is a function of (seed, epoch) alone.

    Args:
        samples: How many samples there are.
        batch_size: Samples in a batch. A last batch of one sample joins the batch before it (see `order`).
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of the order.

    Raises:
        DataError: If there is no sample, or `batch_size` is less than one.
    """

    def __init__(self, samples: int, batch_size: int, shuffle: bool, seed: int) -> None:
        if samples < 1:
            raise DataError("The data set is empty: it has no sample to train on or to evaluate.")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}.")
        self.shuffle = shuffle
        self.seed = seed
        self._samples = samples
        self._bounds = batch_bounds(samples, batch_size)
        self._balanced: Tensor | None = None  # the class of each sample, where classes are drawn equally often

    @property
    def samples(self) -> int:
        """How many samples an epoch has."""
        return self._samples

    def __len__(self) -> int:
        return len(self._bounds)

    @abstractmethod
    def classes(self) -> Tensor | None:
        """Returns the class number of each sample, of shape (N,), or None where nobody knows without reading it all."""

    def drawn(self, sampler: Sampler) -> Self:
        """Returns the same data, of which each epoch is drawn by another sampler.

        Raises:
            DataError: If classes are to be balanced and the samples have none that are known.
        """
        classes = self.classes() if sampler == "balanced" else None
        if sampler == "balanced" and classes is None:
            raise DataError(
                "The sampler 'balanced' needs one class number for each sample: whole numbers of shape (N,) as "
                "targets, or a data set with them as `targets` or `labels`. Use 'shuffle'."
            )
        other = copy.copy(self)
        other.shuffle, other._balanced = sampler == "shuffle", classes
        return other

    def order(self, epoch: int) -> Tensor | None:
        """Returns the indices of an epoch's samples in the order they are drawn, or None for the stored order."""
        if self._balanced is not None:
            return balanced_order(self._balanced, self.seed, epoch)
        return epoch_order(self._samples, self.seed, epoch) if self.shuffle else None


class TensorBatches(OrderedBatches):
    """Batches of tensors that lie in memory, on the CPU or a device.

    Order and augmentation are functions of (seed, epoch, batch) alone, so any batch can be had again bit for bit, and
    the global random state is never touched. A last batch of one sample joins the batch before it (see `order`).

    Args:
        inputs: All inputs, sample first: one tensor, of which uint8 images become floats batch by batch, or a tree of
            them, which is handed out as it is.
        targets: All targets, sample first: a tensor or a tree. Without them a batch is a batch of `inputs`, such as
            `{"input_ids": ..., "labels": ...}`; with them it is `(inputs, targets)`.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of order and augmentation.
        augment: Applied to each batch of `epoch`, before normalisation; for inputs of one tensor.
        normalise: Makes floats of stored values; without it uint8 is scaled to 0..1; for inputs of one tensor.

    Raises:
        DataError: If the tensors are empty or of different lengths, or a tree is to be augmented or normalised.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        augment: Augment | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(_rows(inputs, targets), batch_size, shuffle, seed)
        if not isinstance(inputs, Tensor) and (augment or normalise):
            raise DataError(
                f"augment and normalise take inputs of one tensor, not {form_of(inputs)}. Prepare them beforehand."
            )
        self.inputs = inputs
        self.targets = targets
        self._prepare = Prepare(seed, augment, normalise) if isinstance(inputs, Tensor) else None
        self._device = next(tensors_of(inputs))[1].device

    def classes(self) -> Tensor | None:
        """Returns the targets, or the "labels" of a mapping, where they are class numbers, else None."""
        found = self.targets
        if found is None and isinstance(self.inputs, Mapping):
            found = self.inputs.get("labels")
        whole = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
        return found.cpu() if whole else None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, from batch `start` on."""
        order = self.order(epoch)
        order = order if order is None else order.to(self._device)
        for batch in range(start, len(self._bounds)):
            first, end = self._bounds[batch]
            chosen = slice(first, end) if order is None else order[first:end]
            inputs = _select(self.inputs, chosen)
            if self._prepare is not None:
                inputs = self._prepare(inputs, epoch, batch)
            yield inputs if self.targets is None else (inputs, _select(self.targets, chosen))

    def examples(self, n: int) -> Batch:
        """Returns the first `n` samples, not augmented."""
        inputs = take(self.inputs, n)
        inputs = inputs if self._prepare is None else self._prepare.plain(inputs)
        return inputs if self.targets is None else (inputs, take(self.targets, n))


def _select(tree: Any, chosen: slice | Tensor) -> Any:
    """Returns rows of each tensor of a tree; one tensor takes the short way."""
    if isinstance(chosen, slice):
        return tree[chosen] if isinstance(tree, Tensor) else map_tensors(tree, lambda tensor: tensor[chosen])
    if isinstance(tree, Tensor):
        return tree.index_select(0, chosen)
    return map_tensors(tree, lambda tensor: tensor.index_select(0, chosen))


def _rows(inputs: Any, targets: Any) -> int:
    """Returns how many samples the tensors hold."""
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise DataError(
                f"Inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} do not pair up. "
                "Both need one row for each sample."
            )
        return len(inputs)
    whole = inputs if targets is None else (inputs, targets)
    for name, tensor in tensors_of(whole):
        if not tensor.ndim:
            raise DataError(f"The tensor{name} is a single number: give it one row for each sample.")
    return count_samples(whole)


def form_of(tree: Any) -> str:
    """Says in a few words what a batch looks like: "(Tensor, Tensor)", "a dict with the keys input_ids, labels"."""
    if isinstance(tree, tuple | list):
        inside = [type(part).__name__ for part in tree[:4]] + ["..."] * (len(tree) > 4)
        return f"({', '.join(inside)})"
    if hasattr(tree, "keys"):
        return f"a {type(tree).__name__} with the keys {', '.join(map(str, tree.keys()))}"
    return f"a {type(tree).__name__}"
