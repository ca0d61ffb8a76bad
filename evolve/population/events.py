"""What a search tells its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from evolve.population.individual import Individual

Status = Literal["done", "failed", "duplicate", "refused"]


class RunningSearch(Protocol):
    """What callbacks may ask of a search.

    Attributes:
        evaluations: How many are finished.
    """

    evaluations: int

    @property
    def progress(self) -> float:
        """Which part of the budget is spent, from 0 to 1."""

    def stop(self) -> None:
        """Asks the search to end."""


@dataclass(frozen=True)
class SearchBegun:
    """A search begins, or goes on.

    Attributes:
        search: The search.
        taken_up: Evaluations that were finished before.
    """

    search: RunningSearch
    taken_up: int


@dataclass(frozen=True)
class Evaluated:
    """An individual has come back.

    Attributes:
        search: The search; its `stop` ends it.
        individual: Who, as it stands now.
        status: What became of it: "done"; "failed" (it diverged, memory or time ran out, an error); "duplicate" (its
            structure was evaluated before); "refused" (it could not be made).
        metrics: What was measured.
    """

    search: RunningSearch
    individual: Individual
    status: Status
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class WorkerLost:
    """A worker died or did not answer in time; another one has its number.

    Attributes:
        search: The search.
        worker: Its number.
        why: What happened.
    """

    search: RunningSearch
    worker: int
    why: str


@dataclass(frozen=True)
class SearchEnded:
    """A search ends.

    Attributes:
        search: The search.
        finished: Whether its budget is spent, or its space searched through; false where it was stopped.
    """

    search: RunningSearch
    finished: bool


SearchEvent = SearchBegun | Evaluated | WorkerLost | SearchEnded
SearchCallback = Callable[[SearchEvent], None]
