"""`in_process`: one worker, in the process of the search itself. The default."""

from __future__ import annotations

import json
import time
from pathlib import Path

from evolve.population.blobs import BlobFolder
from evolve.population.executors.base import Executor, executors
from evolve.population.jobs import Answer, Evaluator, Json, Setup
from evolve.population.worker import create_evaluator, encode, respond


@executors.register("in_process")
class InProcess(Executor):
    """Does what it was called for while it is waited for: easy to debug, but a crash of a child ends the search.

    Attributes:
        evaluator: Who does it; one is made of the setup if None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.evaluator: Evaluator | None = None
        self._message: bytes | None = None

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def start(self, setup: Setup, blobs: Path) -> None:
        """Makes the evaluator, unless it has one."""
        self.evaluator = self.evaluator or create_evaluator(setup)
        self._blobs = BlobFolder(blobs)

    def idle(self) -> list[int]:
        """Returns 0, unless it was called."""
        return [] if self._message else [0]

    def call(self, worker: int, method: str, order: Json) -> None:
        """Takes the order."""
        self._message = encode([method, order])

    def wait(self, timeout: float | None = None) -> list[Answer]:
        """Does what was ordered, however long it takes."""
        if self._message is None or self.evaluator is None:
            return []
        message, self._message = self._message, None
        begun = time.monotonic()
        content = json.loads(respond(self.evaluator, self._blobs, message))
        return [Answer(0, content, seconds=time.monotonic() - begun)]

    def close(self) -> None:
        """Forgets what was ordered."""
        self._message = None
