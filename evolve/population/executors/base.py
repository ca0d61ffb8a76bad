"""What an executor is: workers that are called by their numbers, and answer. Knows no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from typing_extensions import Self

from evolve.population.jobs import Answer, Json, Setup
from evolve.registry import Registered, Registry, TypedOptions


class Executor(Registered, ABC):
    """Workers, each with an evaluator of its own that does one thing at a time.

    A context: leaving it ends the workers. They also end with the process that has started them, however that ends.

    Args:
        **options: Its own.

    Attributes:
        name: Registered name.
        Options: Typed options.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many there are."""

    @abstractmethod
    def start(self, setup: Setup, blobs: Path) -> None:
        """Begins the workers, and returns when all of them are ready.

        Args:
            setup: What they need to know.
            blobs: The folder of weights.

        Raises:
            EvolveError: If they cannot begin, with the reason.
        """

    @abstractmethod
    def idle(self) -> list[int]:
        """Returns the numbers of the workers that can be called."""

    @abstractmethod
    def call(self, worker: int, method: str, order: Json) -> None:
        """Gives an idle worker something to do.

        Args:
            worker: Its number.
            method: "make", or "train" for what the same worker has made last.
            order: As evaluators take it.
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Answer]:
        """Returns what has been answered, one or more; nothing when the time is over, or no worker is busy.

        A worker that was lost is replaced by a new one under its number.

        Args:
            timeout: Seconds; None for no limit.

        Raises:
            EvolveError: If a worker cannot be replaced.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, whatever they are doing, and leaves no process behind. Closing twice is allowed."""

    def facts(self) -> Json:
        """Returns what is kept of it in the archive: its name and options."""
        return {"executor": self.name, "workers": self.workers, **self.options.model_dump(mode="json")}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


executors: Registry[type[Executor]] = Registry("executor", "evolve.executors")
