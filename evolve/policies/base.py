"""What a policy is, what it is told, and how it answers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar, Protocol

from pydantic import model_validator
from typing_extensions import Self

from evolve.config import Named
from evolve.config.options import Monitor, Watching, check_options
from evolve.lineage import Record, Weighed
from evolve.registry import Registered, Registry, TypedOptions


@dataclass(frozen=True)
class Candidate:
    """One mutation that could be tried.

    Attributes:
        operator: Registered name.
        site: Dotted name of the place; None for the operator's default.
        options: The operator's options.
        entry: Position of the operator in the configuration's list.
    """

    operator: str
    site: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    entry: int = 0


@dataclass(frozen=True)
class Promise:
    """What a candidate promises, before it is made.

    Attributes:
        gain: The score; None where none can be given.
        params: Parameters it would add, about; likewise `flops` (of one sample's forward pass).
        note: Why there is no score.
    """

    gain: float | None
    params: int = 0
    flops: int = 0
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """What a policy chose, and why.

    Attributes:
        candidate: What to try.
        by: What the values are; "" where nothing was weighed.
        value: Its own; None where nothing was weighed.
        note: What is to be known of it beside the value.
        others: What was not chosen.
        region: Part of the model that the policy counts it to; "" where it tells no regions apart.
    """

    candidate: Candidate
    by: str = ""
    value: float | None = None
    note: str = ""
    others: Sequence[Weighed] = ()
    region: str = ""


@dataclass(frozen=True)
class Racer:
    """A copy of a model in training that was trained some steps further.

    Attributes:
        losses: The training loss of each step, before it was made.
        price: Part of the run's budget that a step takes.
        held_out: Loss on held-out data at the end.
    """

    losses: Sequence[float]
    price: float
    held_out: float


@dataclass(frozen=True)
class Race:
    """A model's own copy and a mutated one, trained on the same batches."""

    own: Racer
    child: Racer


class PolicyContext(Protocol):
    """What a policy may ask about the run. What costs time is worked out when it is asked for.

    Attributes:
        tried: Candidates that were refused since the mutation was due.
    """

    tried: list[Candidate]

    @property
    def records(self) -> Sequence[Record]:
        """Every mutation attempted so far, with the reasons for it."""

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """One mapping of metrics for each finished epoch."""

    @property
    def monitor(self) -> Monitor:
        """The metric that decisions look at."""

    @property
    def step(self) -> int:
        """Optimizer steps made."""

    @property
    def progress(self) -> float:
        """Which part of the budget is spent, from 0 to 1."""

    @property
    def in_seconds(self) -> bool:
        """Whether the budget is in seconds, so that prices are measured ones."""

    @property
    def epoch_steps(self) -> float | None:
        """Optimizer steps of an epoch; None while that is not known."""

    @property
    def held_until(self) -> float:
        """Part of the budget up to which the learning rate is held; 1 where nothing is known of that."""

    def losses(self, since: float) -> Sequence[tuple[float, float, float]]:
        """Returns the training losses since a step: steps of each stretch, mean logarithm of the step, mean loss."""

    def race(self, candidate: Candidate, steps: int, most: float) -> Race | None:
        """Trains a copy of the model and a mutated one on the next batches, at the present learning rate.

        None if the mutation is refused, or one of them was given up. Where the candidate is chosen then, the mutated
        copy becomes the model, and the run goes on behind those batches.

        Args:
            candidate: The mutation.
            steps: Optimizer steps.
            most: Part of the budget that those of the mutated copy may cost; both make fewer where it would be more.
        """

    def keep_own(self) -> None:
        """Lets the run go on from the copy that was not mutated in the last race, behind its batches."""

    def promise(self, candidate: Candidate, score: str, batches: int) -> Promise:
        """Returns what a score says of a candidate, from the next `batches` of the training data; nothing is built."""

    def depth(self, candidate: Candidate) -> float | None:
        """Returns how deep in the model a site lies, in [0, 1): 0 at the input; None where it is all of the model."""

    def child(self, candidate: Candidate | None, steps: int) -> float | None:
        """Trains a mutated copy of the model a little and returns its monitored metric on held-out data.

        None if the mutation is refused, or memory or a finite value give out. Of the mutated copies the one with the
        best value is kept: where its candidate is chosen then, it becomes the model.

        Args:
            candidate: None for a copy that is not mutated.
            steps: Optimizer steps.
        """


class Policy(Watching, Registered, ABC):
    """Chooses among candidates.

    Attributes:
        name: Registered name.
        Options: Typed options.
        needs_losses: Whether it looks at the training losses of single steps, which `heard` is told.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    needs_losses: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns what to try next, or None for nothing. `candidates` is never empty."""

    def heard(self, step: int, loss: float, progress: float) -> None:
        """Takes note of the training loss of a step.

        Args:
            step: Optimizer steps made, this one included.
            loss: Its loss.
            progress: Which part of the budget is spent.
        """

    def forget(self) -> None:
        """Lets go of what it has looked ahead to: the mutation was refused or taken back, or the budget is another."""

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns what it has looked ahead to since it was last asked: a sentence and figures (JSON values) of each."""
        return []

    def faults(self, operators: Collection[str]) -> list[tuple[tuple[str | int, ...], str]]:
        """Returns what in the policy's options does not go with the operators it may choose from, and where."""
        return []

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""


policies: Registry[type[Policy]] = Registry("policy", "evolve.policies", Policy)


def drawn(candidates: Sequence[Candidate], count: int, chance: random.Random) -> list[Candidate]:
    """Draws without repetition: operators in turn, in random order, each at random ones of its sites."""
    rows: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        rows.setdefault(candidate.entry, []).append(candidate)
    for row in rows.values():
        chance.shuffle(row)
    entries = list(rows)
    chance.shuffle(entries)
    turns = [candidate for turn in zip_longest(*(rows[entry] for entry in entries)) for candidate in turn if candidate]
    return turns[:count]


def untried(candidates: Sequence[Candidate], context: PolicyContext) -> list[Candidate]:
    """Returns the candidates that were not refused just now."""
    return [candidate for candidate in candidates if candidate not in context.tried]


class PolicyConfig(Named):
    """A policy by name with its options."""

    name: str = "round_robin"

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, policies)
        return self

    def build(self) -> Policy:
        """Returns the policy."""
        return policies.get(self.name)(**self.options)
