"""What crosses the border to a worker: orders and answers of JSON values, and weights as blobs of safetensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once.

    Attributes:
        space: Name and options of the search space.
        config: The resolved configuration of a run: model, data, task, optimizer, training; empty where the space needs
            none.
        threads: Of torch, in each worker; None leaves them as they are.
        device: Where children are trained: "cpu", "cuda:1"; None for what the configuration says.
    """

    space: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    device: str | None = None


class Blobs(Protocol):
    """Where weights are read from and written to, by the hash of what they hold."""

    def read(self, name: str) -> bytes:
        """Returns a blob."""

    def write(self, content: bytes) -> str:
        """Keeps a blob and returns its name."""


class Evaluator(ABC):
    """Makes individuals and evaluates them, in a worker. One at a time: what was made last is what is trained.

    Orders and answers are mappings of JSON values. An order has:

    - `individual`, its id, and `seed`, of all that is drawn;
    - `genome`, that of the first parent, or of the individual itself where it is trained on (`again` is true); null
      where it is made from nothing; `code`, the code that was proposed, or null;
    - `other`, the genome of a second parent, or null;
    - `edits`, a list of `[operator, where]`;
    - `weights`, names of the blobs that hold those of the first parent, later ones over earlier ones;
    - `rung`, how often its training will have been made longer, and `length`, how many budgets of a child it gets now;
    - `seconds`, the most that it may take, or null.
    """

    @abstractmethod
    def make(self, order: Json, blobs: Blobs) -> Json:
        """Makes an individual.

        Returns:
            `{"refused": why}`, or `genome`, `key` (the canonical hash of the structure), `code`, and `metrics` that are
            known by now, such as `params` and `flops`.
        """

    @abstractmethod
    def train(self, order: Json, blobs: Blobs) -> Json:
        """Trains the individual that was made last, and evaluates it.

        Returns:
            `{"failed": why}` (it diverged, memory ran out, its time was over), or `metrics`, `weights` (names of blobs,
            as in an order) and `steps`, the optimizer steps made.
        """


@dataclass(frozen=True)
class Answer:
    """What came back from a worker.

    Attributes:
        worker: Its number.
        content: What the evaluator answered; None where the worker was lost.
        lost: Why it was: it died, or did not answer in time. Another worker has its number by then.
        seconds: From the call to the answer.
    """

    worker: int
    content: Json | None
    lost: str = ""
    seconds: float = 0.0
