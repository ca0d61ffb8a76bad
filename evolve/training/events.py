"""What happens in a run, as one stream of typed events that anybody can listen to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import nn

from evolve.budget import Budget
from evolve.errors import EvolveError
from evolve.lineage import Lineage, Record, Verdict


class Run(Protocol):
    """What a callback can see of the run that an event belongs to, and ask of it."""

    @property
    def model(self) -> nn.Module:
        """The model as it stands."""

    @property
    def lineage(self) -> Lineage:
        """Every mutation attempted so far."""

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """One mapping of metrics for each finished epoch."""

    def stop(self) -> None:
        """Asks the run to end after the present step."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        run: The run.
    """

    run: Run


@dataclass(frozen=True)
class RunBegun(Event):
    """Training begins, or goes on after a stop.

    Attributes:
        budget: How long the run is.
        epoch_steps: Optimizer steps of one epoch.
        step: Optimizer steps made before; 0 in a run that was not resumed.
        progress: How much of the budget is spent, from 0 to 1.
    """

    budget: Budget
    epoch_steps: int
    step: int
    progress: float


@dataclass(frozen=True)
class StepMade(Event):
    """An optimizer step.

    Attributes:
        epoch: Epochs finished before it.
        step: Optimizer steps made, this one included.
        epoch_step: Optimizer steps made in this epoch, this one included.
        loss: Training loss of the step.
        progress: How much of the budget is spent, from 0 to 1.
    """

    epoch: int
    step: int
    epoch_step: int
    loss: float
    progress: float


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch is over and was evaluated; at the end of a run it may be a part of one.

    Attributes:
        metrics: Its line: epoch, step, train_loss, val_loss, ...
    """

    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class MutationTried(Event):
    """A mutation was attempted, or the record of an earlier attempt has changed because it was taken back.

    Attributes:
        record: What became of it.
    """

    record: Record


@dataclass(frozen=True)
class ForecastMade(Event):
    """A policy has looked ahead to the end of the budget, whether a mutation follows or not, or it has come to that.

    Attributes:
        text: What it expects and what it does, or what became of it, in a sentence.
        facts: The figures, as JSON values; those of the policy `forecast` are in `evolve.policies.projection`, as
            `Foreseen` and `Realised`.
    """

    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class VerdictGiven(Event):
    """A mutation has come to the end of its probation.

    Attributes:
        verdict: Whether it was kept, and why.
        records: The records of the mutations that it is about, as they are now.
    """

    verdict: Verdict
    records: Sequence[Record]


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """The run was saved.

    Attributes:
        path: The folder of the checkpoint.
        step: Optimizer steps made by then.
    """

    path: Path
    step: int


@dataclass(frozen=True)
class BestImproved(Event):
    """The run has never done so well before.

    Attributes:
        metric: What is compared.
        value: The new best.
        previous: The one before; None for the first.
    """

    metric: str
    value: float
    previous: float | None


@dataclass(frozen=True)
class RunFinished(Event):
    """Training has ended: the budget is spent, or the run was asked to stop.

    Attributes:
        finished: Whether the budget is spent.
    """

    finished: bool


Callback: TypeAlias = Callable[[Any], None]
"""Takes every event of a run. It may look at `event.run` and call `event.run.stop()`.

Where it has `state_dict` and `load_state_dict`, what it remembers (JSON values) is saved with each checkpoint.
"""


class EventStream:
    """Hands each event to all who listen, in the order in which they came.

    Args:
        callbacks: Those who listen; one alone may stand for itself.

    Raises:
        EvolveError: If one cannot be called.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._own: list[tuple[Callback, tuple[type[Event], ...]]] = []
        self._heard: dict[type[Event], bool] = {}
        self.callbacks = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
        wrong = [callback for callback in self.callbacks if not callable(callback)]
        if wrong:
            raise EvolveError(f"A callback is a function that takes an event; found {wrong[0]!r}.")

    def listen(self, callback: Callback, *kinds: type[Event]) -> None:
        """Adds a part of the library that listens; it hears of each event before the user's callbacks do.

        Args:
            callback: Who listens.
            kinds: Of events that it hears of; none for all.
        """
        self._own.append((callback, kinds or (Event,)))
        self._heard.clear()

    def heard(self, kind: type[Event]) -> bool:
        """Whether anybody hears of a kind of events: one of each step need not be made for nobody."""
        if kind not in self._heard:
            self._heard[kind] = any(issubclass(kind, kinds) for _, kinds in self._own)
        return self._heard[kind] or bool(self.callbacks)

    def emit(self, *events: Event) -> None:
        """Tells everybody of events, in their order.

        Raises:
            EvolveError: If a callback of the user's fails; the others have heard of all events then.
        """
        fault: EvolveError | None = None
        for event in events:
            for own, kinds in self._own:
                if isinstance(event, kinds):
                    own(event)
            for callback in self.callbacks:
                try:
                    callback(event)
                except Exception as error:  # a user's callback may raise anything
                    fault = fault or _failed(callback, event, error)
        if fault is not None:
            raise fault

    def state(self) -> dict[str, list[Any]]:
        """Returns what the user's callbacks remember, as JSON values: by their names, those of one name in their order.

        None stands for one that remembers nothing.
        """
        return {
            name: [c.state_dict() if hasattr(c, "state_dict") else None for c in named]
            for name, named in self._by_name().items()
        }

    def load_state(self, state: Mapping[str, Sequence[Any]] | Sequence[Any]) -> None:
        """Gives the user's callbacks back what they remembered; extra ones begin anew.

        Args:
            state: From `state`. That of older checkpoints is a list: it goes by position.
        """
        pairs = list(zip(self.callbacks, state, strict=False))
        if isinstance(state, Mapping):
            pairs = [
                pair
                for name, named in self._by_name().items()
                for pair in zip(named, state.get(name, ()), strict=False)
            ]
        for callback, remembered in pairs:
            if remembered is not None and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(remembered)

    def _by_name(self) -> dict[str, list[Callback]]:
        """The user's callbacks by name: not all processes have all of them, nor a run that goes on those it had."""
        found: dict[str, list[Callback]] = {}
        for callback in self.callbacks:
            found.setdefault(callback_name(callback), []).append(callback)
        return found


def _failed(callback: Callback, event: Event, error: Exception) -> EvolveError:
    fault = EvolveError(
        f"The callback {callback_name(callback)} failed on {type(event).__name__}: {type(error).__name__}: {error}"
    )
    fault.__cause__ = error
    return fault


def callback_name(callback: Callback) -> str:
    """Returns how a message calls a callback."""
    return getattr(callback, "__qualname__", type(callback).__qualname__)
