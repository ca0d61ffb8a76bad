"""Batches: what a training loop asks of its data, and the fast kind that lies in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import Tensor

from evolve.data.augment import Augment, Prepare
from evolve.data.order import batch_bounds, epoch_order
from evolve.errors import DataError


class Batches(ABC):
    """Data cut into batches that can be read again from any epoch and any batch."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples an epoch has."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches `(inputs, targets)` of one epoch.

        Args:
            epoch: Number of the epoch; with the seed it determines order and augmentation.
            start: Batches to leave out, for a run that resumes in mid-epoch.
        """

    def onward(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches from there on, through that epoch and all that follow, without an end."""
        while True:
            yield from self.epoch(epoch, start)
            epoch, start = epoch + 1, 0

    @abstractmethod
    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns the first `n` inputs and targets (fewer if there are fewer); leaves every random state as it is."""

    def example(self, n: int) -> Tensor:
        """Returns the first `n` inputs; see `examples`."""
        return self.examples(n)[0]


class TensorBatches(Batches):
    """Batches of tensors that lie in memory, on the CPU or a device.

    Order and augmentation are functions of (seed, epoch, batch) alone, so any batch can be had again bit for bit, and
    the global random state is never touched. A last batch of one sample joins the batch before it (see `order`).

    Args:
        inputs: All inputs, sample first; uint8 images become floats batch by batch.
        targets: All targets, sample first.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of order and augmentation.
        augment: Applied to each batch of `epoch`, before normalisation.
        normalise: Makes floats of stored values; without it uint8 is scaled to 0..1.

    Raises:
        DataError: If the tensors are empty or of different lengths.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        augment: Augment | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise DataError(
                f"Inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} do not pair up. "
                "Both need one row for each sample."
            )
        check_size(len(inputs), batch_size)
        self.inputs = inputs
        self.targets = targets
        self.shuffle = shuffle
        self.seed = seed
        self._prepare = Prepare(seed, augment, normalise)
        self._bounds = batch_bounds(len(inputs), batch_size)

    @property
    def samples(self) -> int:
        """How many samples an epoch has."""
        return len(self.inputs)

    def __len__(self) -> int:
        return len(self._bounds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of one epoch, from batch `start` on."""
        order = epoch_order(self.samples, self.seed, epoch).to(self.inputs.device) if self.shuffle else None
        for batch in range(start, len(self._bounds)):
            first, end = self._bounds[batch]
            if order is None:
                inputs, targets = self.inputs[first:end], self.targets[first:end]
            else:
                chosen = order[first:end]
                inputs, targets = self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen)
            yield self._prepare(inputs, epoch, batch), targets

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns the first `n` inputs, not augmented, and their targets."""
        return self._prepare.plain(self.inputs[:n]), self.targets[:n]


def check_size(samples: int, batch_size: int) -> None:
    """Rejects empty data and batch sizes below 1.

    Raises:
        DataError: If either is less than one.
    """
    if samples < 1:
        raise DataError("The data set is empty: it has no sample to train on or to evaluate.")
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}.")
