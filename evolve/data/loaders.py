"""Batches that are read as they are needed: from a map-style data set, or from a user's own DataLoader."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from evolve.data.augment import Augment, Prepare
from evolve.data.batches import Batches, check_size
from evolve.data.order import batch_bounds, epoch_order, mix
from evolve.errors import DataError
from evolve.runtime.generators import preserved_rng, seed_generators
from evolve.runtime.memory import out_of_memory


class LoaderBatches(Batches):
    """Batches of a map-style data set, read by a DataLoader.

    The order is a function of (seed, epoch), and the random transforms of a sample see generators seeded from (seed,
    epoch, index): batches are the same whatever the number of workers and wherever a run resumed. The global random
    state of this process is left as it was.

    Args:
        dataset: Has `__len__` and `__getitem__`, which gives `(input, target)`.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of order, transforms and augmentation.
        workers: Processes that read ahead; 0 reads in this one.
        augment: Applied to each batch of `epoch`, before normalisation.
        normalise: Makes floats of stored values; without it uint8 is scaled to 0..1.

    Raises:
        DataError: If the data set is empty.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        workers: int = 0,
        augment: Augment | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._samples = len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare its length
        check_size(self._samples, batch_size)
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers
        self._prepare = Prepare(seed, augment, normalise)
        self._bounds = batch_bounds(self._samples, batch_size)

    @property
    def samples(self) -> int:
        """How many samples an epoch has."""
        return self._samples

    def __len__(self) -> int:
        return len(self._bounds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of one epoch, from batch `start` on; the ones before it are not read."""
        order = epoch_order(self._samples, self.seed, epoch).tolist() if self.shuffle else range(self._samples)
        loader: DataLoader[Any] = DataLoader(
            _Reseeded(self.dataset, self.seed, epoch),
            batch_sampler=[list(order[first:end]) for first, end in self._bounds[start:]],
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(mix(self.seed, epoch)),  # else it would draw from the global one
            collate_fn=collate,
        )
        for batch, item in enumerate(_items(loader), start):
            inputs, targets = as_pair(item)
            yield self._prepare(inputs, epoch, batch), targets

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns the first `n` inputs and targets; the data set's own transforms see one fixed seed."""
        with _reading():
            samples = _Reseeded(self.dataset, self.seed, 0).__getitems__(range(min(n, self._samples)))
        inputs, targets = as_pair(collate(samples))
        return self._prepare.plain(inputs), targets


class IterableBatches(Batches):
    """Batches of a user's own DataLoader, which keeps its order, its workers and its collation.

    Order and randomness are the loader's: give it a seeded `generator` for runs that repeat. A resume in mid-epoch
    reads the loader up to the batch. A sampler with `set_epoch` is given the epoch.

    Args:
        loader: Yields `(inputs, targets)`, or sequences that begin with them.

    Raises:
        DataError: If the loader has no length or no batch.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        try:
            self._batches = len(loader)
        except TypeError as error:
            raise DataError(
                "This DataLoader has no length, because its data set has none. Give the IterableDataset a __len__, so "
                "that learning rate schedules know how long an epoch is."
            ) from error
        if self._batches < 1:
            raise DataError("This DataLoader yields no batch. Is its data set empty, or smaller than a dropped batch?")
        self.loader = loader
        self._known = torch.empty(0), torch.empty(0)
        self._passes = 0  # that are being read now

    @property
    def samples(self) -> int:
        """How many samples an epoch has, as far as the loader knows."""
        size = self.loader.batch_size or 1
        if self.loader.drop_last:
            return self._batches * size
        if isinstance(self.loader.sampler, Sized) and self.loader.batch_size is not None:
            return len(self.loader.sampler)
        return len(self.loader.dataset) if isinstance(self.loader.dataset, Sized) else self._batches * size

    def __len__(self) -> int:
        return self._batches

    def onward(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches without an end, for a look ahead: afterwards the loader's generators are as they were."""
        with self._kept_generators():
            yield from super().onward(epoch, start)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the loader's batches; the ones before `start` are read and left out."""
        set_epoch = getattr(self.loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        loader = self.loader
        if self._passes and loader.persistent_workers:  # it has one iterator, and would restart the running pass
            loader = copy.copy(loader)
            loader._iterator = None
        self._passes += 1
        try:
            for item in islice(_items(loader), start, None):
                yield as_pair(item)
        finally:
            self._passes -= 1

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns `n` samples of the loader's next pass; they are kept, so that the loader is read once."""
        if len(self._known[0]) < n:
            self._known = self._read(n)
        inputs, targets = self._known
        return inputs[:n], targets[:n]

    def _read(self, n: int) -> tuple[Tensor, Tensor]:
        parts: list[tuple[Tensor, Tensor]] = []
        with preserved_rng(), self._kept_generators():
            for item in _items(self.loader):
                parts.append(as_pair(item))
                if sum(len(inputs) for inputs, _ in parts) >= n:
                    break
        inputs, targets = zip(*parts, strict=True)
        try:
            return torch.cat(inputs), torch.cat(targets)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in inputs[:4])
            raise DataError(
                f"The batches of this DataLoader have different shapes ({shapes}), so the probe batch of {n} samples "
                f"cannot be assembled. Give it a batch_size of at least {n}, or pad all batches to one shape."
            ) from error

    @contextmanager
    def _kept_generators(self) -> Iterator[None]:
        generators = [g for g in (self.loader.generator, getattr(self.loader.sampler, "generator", None)) if g]
        states = [generator.get_state() for generator in generators]
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


class _Reseeded(Dataset[Any]):
    """A data set whose samples draw from generators seeded by (seed, epoch, index)."""

    def __init__(self, dataset: Dataset[Any], seed: int, epoch: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = epoch

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        samples = []
        with preserved_rng():
            for index in indices:
                seed_generators(mix(self.seed, self.epoch, index))
                samples.append(self.dataset[index])
        return samples


def collate(samples: list[Any]) -> Any:
    """Puts samples together as torch's DataLoader does.

    Raises:
        DataError: If they have different shapes, or are of a kind that torch does not put together.
    """
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"Samples cannot be collated into a batch: {_differences(samples) or error} Pad or crop them in the data "
            "set, or pass a DataLoader with a collate_fn that does."
        ) from error


def _differences(samples: Sequence[Any]) -> str:
    """Says which shapes samples have where they differ."""
    rows = [sample if isinstance(sample, list | tuple) else [sample] for sample in samples]
    for position, what in enumerate(("inputs", "targets")):
        parts = [row[position] for row in rows if len(row) > position]
        shapes = list(dict.fromkeys(tuple(part.shape) for part in parts if isinstance(part, Tensor | np.ndarray)))
        if len(shapes) > 1:
            return f"their {what} have different shapes, such as {shapes[0]} and {shapes[1]}."
    return ""


def _items(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields the batches of a loader; what fails in its data set, workers or collate_fn becomes a `DataError`."""
    with _reading():
        batches = iter(loader)
    while True:
        with _reading():
            item = next(batches, _END)
        if item is _END:
            return
        yield item


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a data set, the user's own, may raise anything
        if out_of_memory(error):
            raise
        text = str(error).strip()
        cause = text.splitlines()[-1] if text.startswith("Caught ") else text  # a worker's, after its traceback
        advice = ""
        if "equal size" in text or "resize storage" in text:
            advice = " The samples have different shapes: give the DataLoader a collate_fn that pads them."
        raise DataError(f"Reading the data failed: {type(error).__name__}: {cause}{advice}") from error


_END = object()


def as_pair(item: Any) -> tuple[Tensor, Tensor]:
    """Returns the inputs and targets of a collated batch.

    Raises:
        DataError: If it does not begin with two tensors.
    """
    if isinstance(item, list | tuple) and len(item) >= 2:
        inputs, targets = item[0], item[1]
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return inputs, targets
    found = f"({', '.join(type(x).__name__ for x in item)})" if isinstance(item, list | tuple) else type(item).__name__
    raise DataError(
        f"A batch must be (inputs, targets), both tensors; this one is {found}. "
        "Return (input, target) from the data set, or give the DataLoader a collate_fn."
    )
