"""Batches that are read as they are needed: from a map-style data set, or from a user's own DataLoader."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from evolve.data.augment import Augment, Prepare
from evolve.data.batches import Batches, OrderedBatches
from evolve.data.collate import Collate, as_tuple, collate, prepared
from evolve.data.order import mix
from evolve.data.trees import Batch, count_samples, join, take
from evolve.errors import DataError
from evolve.runtime.generators import preserved_rng, seed_generators
from evolve.runtime.memory import out_of_memory

logger = logging.getLogger(__name__)


class LoaderBatches(OrderedBatches):
    """Batches of a map-style data set, read by a DataLoader.

    The order is a function of (seed, epoch), and the random transforms of a sample see generators seeded from (seed,
    epoch, index): batches are the same whatever the number of workers and wherever a run resumed. The global random
    state of this process is left as it was.

    Args:
        dataset: Has `__len__` and `__getitem__`, which gives a sample; one with `__getitems__`, which gives many at a
            time, is read by that, and its transforms see one seed for each batch.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of order, transforms and augmentation.
        workers: Processes that read ahead; 0 reads in this one.
        collate_fn: Makes a batch of a list of samples, torch's way by default.
        augment: Applied to the inputs of each batch of `epoch`, before normalisation.
        normalise: Makes floats of stored values; without it uint8 inputs are scaled to 0..1. Both are for batches
            `(inputs, ...)` whose inputs are one tensor; others are handed out as they are.

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
        collate_fn: Collate | None = None,
        augment: Augment | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(len(dataset), batch_size, shuffle, seed)  # type: ignore[arg-type]  # torch's Dataset declares no length
        self.dataset = dataset
        self.workers = workers
        self.collate_fn = collate_fn
        self._prepare = Prepare(seed, augment, normalise)

    def classes(self) -> Tensor | None:
        """Returns the class numbers that the data set holds as `targets` or `labels`, as torchvision's do, or None."""
        return _classes(self.dataset)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, from batch `start` on; the ones before it are not read."""
        drawn = self.order(epoch)
        order = range(self._samples) if drawn is None else drawn.tolist()
        loader: DataLoader[Any] = DataLoader(
            _Reseeded(self.dataset, self.seed, epoch),
            batch_sampler=[list(order[first:end]) for first, end in self._bounds[start:]],
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(mix(self.seed, epoch)),  # else it would draw from the global one
            collate_fn=self.collate_fn or collate,
        )
        for batch, item in enumerate(_items(loader), start):
            yield prepared(item, partial(self._prepare, epoch=epoch, batch=batch))

    def examples(self, n: int) -> Batch:
        """Returns the first `n` samples; the data set's own transforms see one fixed seed."""
        with _reading():
            samples = _Reseeded(self.dataset, self.seed, 0).__getitems__(range(min(n, self._samples)))
            batch = (self.collate_fn or collate)(samples)
        return prepared(batch, self._prepare.plain)


class IterableBatches(Batches):
    """Batches of a user's own DataLoader, which keeps its order, its workers and its collation.

    Order and randomness are the loader's: give it a seeded `generator` for runs that repeat. A resume in mid-epoch
    reads the loader up to the batch. A sampler with `set_epoch` is given the epoch. Batches are handed out as the
    loader makes them; where it collates as torch does, a list `[inputs, targets]` becomes a tuple.

    Args:
        loader: Yields batches: trees of tensors, or anything that the task at hand takes apart.

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
        self._known = 0  # samples that `examples` has at hand
        self._examples: Batch = None
        self._counted = True  # whether the samples of its batches can be
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

    def onward(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields batches without an end, for a look ahead: afterwards the loader's generators are as they were."""
        with self._kept_generators():
            yield from super().onward(epoch, start)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the loader's batches; the ones before `start` are read and left out."""
        samplers: list[Any] = [self.loader.sampler, self.loader.batch_sampler]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        loader = self.loader
        if self._passes and loader.persistent_workers:  # it has one iterator, and would restart the running pass
            loader = copy.copy(loader)
            loader._iterator = None
        self._passes += 1
        try:
            for item in islice(_items(loader), start, None):
                yield self._tuple(item)
        finally:
            self._passes -= 1

    def examples(self, n: int) -> Batch:
        """Returns `n` samples of the loader's next pass; they are kept, so that the loader is read once.

        Where the samples of a batch cannot be counted (a graph, packed sequences), it is the first batch as it is.

        Raises:
            DataError: If several batches are needed and have tensors of different shapes.
        """
        if self._known < n:
            self._known, self._examples = self._read(n)
        return take(self._examples, n) if self._counted else self._examples

    def _read(self, n: int) -> tuple[int, Batch]:
        """Returns a joined batch, and for how many samples it is enough."""
        parts: list[Batch] = []
        known = 0
        with preserved_rng(), self._kept_generators():
            for item in _items(self.loader):
                batch = self._tuple(item)
                try:
                    known += count_samples(batch)
                except DataError as error:
                    logger.info("Examples are the loader's first batch, whole: %s", error)
                    self._counted = False
                    return n, batch
                parts.append(batch)
                if known >= n:
                    break
        try:
            return max(known, n), join(parts)
        except DataError as error:
            raise DataError(
                f"A probe batch of {n} samples cannot be assembled from this DataLoader. {error} Or give it a "
                f"batch_size of at least {n}."
            ) from error

    def _tuple(self, item: Any) -> Batch:
        return as_tuple(item) if self.loader.collate_fn is default_collate else item

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
        read_many = getattr(self.dataset, "__getitems__", None) if _reads_many(self.dataset) else None
        samples = []
        with preserved_rng():
            if read_many is not None:
                seed_generators(mix(self.seed, self.epoch, *indices[:1]))
                return list(read_many(list(indices)))
            for index in indices:
                seed_generators(mix(self.seed, self.epoch, index))
                samples.append(self.dataset[index])
        return samples


def _reads_many(dataset: Any) -> bool:
    """Whether a data set reads many samples at a time; a `Subset` has the method, but may have nothing behind it."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


def _classes(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _classes(dataset.dataset)
        return whole if whole is None else whole[torch.as_tensor(dataset.indices)]
    found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if not isinstance(found, Tensor | np.ndarray | list) or len(found) != len(dataset):
        return None
    try:
        classes = torch.as_tensor(found)
    except (TypeError, ValueError):  # a list of anything but numbers
        return None
    return classes if classes.ndim == 1 and not classes.is_floating_point() else None


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
            advice = ". The samples have different shapes: give the DataLoader a collate_fn that pads them."
        raise DataError(f"Reading the data failed: {type(error).__name__}: {cause}{advice}") from error


_END = object()
