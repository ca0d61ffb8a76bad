"""Workers that can be lost: what keeps their clocks, finds out, and puts another one in the place."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from evolve.errors import EvolveError
from evolve.population.executors.base import Executor
from evolve.population.jobs import Answer, Json
from evolve.registry import TypedOptions

logger = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between two looks at workers that may have ended or run out of time
_STARTS = 5  # workers in a row that ended before they were ready


class PoolOptions(TypedOptions):
    """What all pools take.

    Attributes:
        workers: How many there are.
        timeout: Seconds that one call may take, the making of a child or its training; null for no limit.
    """

    workers: PositiveInt = 2
    timeout: PositiveFloat | None = None


class Worker(ABC):
    """One worker, as the driver sees it. When it begins, it says that it is ready, or why it refuses.

    Attributes:
        number: Its own; the one that takes its place has it too.
        ready: Whether its evaluator is made.
        has_made: Whether it was called to make an individual.
        called_at: When it was called; None while it is idle.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = self.has_made = False
        self.called_at: float | None = None
        self._begun_at = time.monotonic()

    @abstractmethod
    def send(self, method: str, order: Json) -> None:
        """Sends an order; whether it arrives is found out later."""

    @abstractmethod
    def receive(self) -> Json | None:
        """Returns what it has sent; None if it has ended."""

    @abstractmethod
    def ended(self) -> bool:
        """Whether it has ended, where that is known without what it sends."""

    @abstractmethod
    def ending(self) -> str:
        """Returns how it has ended."""

    @abstractmethod
    def end(self) -> None:
        """Ends it, whatever it is doing, and waits until it is gone."""

    def seconds(self) -> float:
        """Returns how long it has been at a call, once it was ready for it."""
        return time.monotonic() - self.called_at if self.ready and self.called_at is not None else 0.0

    def age(self) -> float:
        """Returns for how many seconds it has been there."""
        return time.monotonic() - self._begun_at


class Pool(Executor):
    """Workers beside the driver.

    One that ends, or does not answer in time, costs the child it was at, and is replaced.
    """

    Options = PoolOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._workers: list[Worker] = []
        self._lost: list[Answer] = []
        self._starts = 0
        self._slowest_start = 0.0  # seconds

    @property
    def workers(self) -> int:
        """As many as the options say."""
        return int(self.options.workers)

    def idle(self) -> list[int]:
        """Returns the numbers of those that are at nothing."""
        lost = {answer.worker for answer in self._lost}
        return [each.number for each in self._workers if each.called_at is None and each.number not in lost]

    def call(self, worker: int, method: str, order: Json) -> None:
        """Sends an order. What is to be trained may have gone with the worker that made it: it is lost then."""
        called = self._workers[worker]
        if method != "make" and not called.has_made:
            self._lost.append(Answer(worker, None, "the worker that made it has ended"))
            return
        called.has_made = True
        called.called_at = time.monotonic()
        called.send(method, order)

    def wait(self, timeout: float | None = None) -> list[Answer]:
        """Waits for answers, and looks after the workers meanwhile."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        answers, self._lost = self._lost, []
        while not answers and any(each.called_at is not None for each in self._workers):
            left = end - time.monotonic()
            answers = self._look(max(0.0, min(_LOOK, left)))
            if left <= 0:
                break
        return answers

    def _begin(self) -> None:
        """Begins all workers, and waits until they are ready."""
        for number in range(self.workers):
            self._workers.append(self._new(number))
        while not all(worker.ready for worker in self._workers):
            self._look(_LOOK)

    @abstractmethod
    def _new(self, number: int) -> Worker:
        """Begins a worker."""

    def _start_limit(self) -> float:
        """Returns after how many seconds a worker that is not ready has hung; infinite where it may have to wait."""
        return math.inf

    @abstractmethod
    def _heard(self, workers: Collection[Worker], seconds: float) -> Collection[Worker]:
        """Returns those that have sent something or have ended, as soon as there are some."""

    def _look(self, seconds: float) -> list[Answer]:
        heard = self._heard(self._workers, seconds)
        news = [self._news(worker, worker in heard) for worker in list(self._workers)]
        return [answer for answer in news if answer is not None]

    def _news(self, worker: Worker, heard: bool) -> Answer | None:
        """Takes what a worker has sent; where it is lost, puts another one in its place."""
        message = worker.receive() if heard else None
        if message is not None and worker.ready:
            return self._answered(worker, message)
        if message is not None:
            self._begun(worker, message)
            return None
        if heard or worker.ended():
            why = worker.ending()
        elif self.options.timeout is not None and worker.seconds() > self.options.timeout:
            why = f"it did not answer within {self.options.timeout:g} seconds"
        elif not worker.ready and worker.age() > self._start_limit():
            others = f"; others were after {self._slowest_start:.1f}" if self._slowest_start else ""
            why = f"it was not ready after {worker.age():.0f} seconds{others}"
        else:
            return None
        if worker.called_at is None:  # of others, the answer tells
            logger.warning("Worker %d is replaced, though it was idle: %s", worker.number, why)
        worker.end()
        self._starts += not worker.ready
        if self._starts >= _STARTS:
            raise EvolveError(
                f"{self._starts} workers in a row ended before they were ready; the last one: {why}. "
                "Use fewer where memory is short; the executor 'in_process' shows what else may be wrong."
            )
        self._workers[worker.number] = self._new(worker.number)
        return None if worker.called_at is None else Answer(worker.number, None, why, worker.seconds())

    def _answered(self, worker: Worker, content: Json) -> Answer:
        seconds, worker.called_at = worker.seconds(), None
        return Answer(worker.number, content, seconds=seconds)

    def _begun(self, worker: Worker, message: Json) -> None:
        if "refused" in message:
            raise EvolveError(message["refused"])
        self._starts = 0
        self._slowest_start = max(self._slowest_start, worker.age())
        worker.ready = True
        if worker.called_at is not None:  # the clock of a call does not count the start
            worker.called_at = time.monotonic()
