"""What a process is to others that train the same model: nothing, where it trains alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class World:
    """One process that trains alone. `Ranks` are several; whoever holds a world need not know which it is.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        solo: Whether this process does something by itself just now: then nothing is told or compared.
    """

    rank = 0
    size = 1
    solo = False

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether what is done now is done by several."""
        return self.size > 1 and not self.solo

    def tell(self, value: Any, long: bool = False) -> Any:
        """Returns rank 0's value, of what JSON knows.

        Args:
            value: That of this rank, which counts if it is the first.
            long: Whether it may be long in coming.
        """
        return value

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums over all ranks."""
        return list(values)

    def gather(self, value: Any, patience: timedelta | None = None) -> list[Any]:
        """Returns the values of all ranks, of what JSON knows, in their order.

        Args:
            value: This rank's.
            patience: How long to wait for the others; as long as the process group does if None.
        """
        return [value]

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have on rank 0, in place."""

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Lets rank 0 do something, and returns what came of it, of what JSON knows, on all ranks.

        Raises:
            EvolveError: On all ranks, where it raised one.
        """
        return work()

    def in_turns(self, work: Callable[[], T]) -> T:
        """Does something on the first rank of each machine, then on the others: these find what it has downloaded."""
        return work()

    def stopping(self, asked: bool) -> bool:
        """Whether the run is to stop, as all ranks know it; `asked` is what this one was asked."""
        return asked

    def agree_to_stop(self, asked: bool) -> None:
        """Lets all ranks stop where one was asked to."""

    def take_stop(self, asked: bool) -> None:
        """Takes note of what all ranks were told: whether rank 0 was asked to stop while it did something alone."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets this rank do something that the others wait for."""
        yield

    @contextmanager
    def watched(self, doing: str) -> Iterator[None]:
        """Tells of a lost connection to the others as of that."""
        yield
