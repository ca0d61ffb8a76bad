"""What a schedule is, and what it may know of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from evolve.config.options import Watching
from evolve.errors import EvolveError
from evolve.registry import Registered, Registry, TypedOptions


class Clock(NamedTuple):
    """Where a run stands after an optimizer step.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps made.
        epoch_end: Whether this step was the last of its epoch.
        history: One mapping of metrics for each finished epoch.
        progress: Which part of the run's budget is spent, from 0 to 1.
        leaving: Returns what `narrow` would take out of the model as it stands: positions by group. None where nobody
            can tell.
    """

    epoch: int
    step: int
    epoch_end: bool
    history: Sequence[Mapping[str, Any]] = ()
    progress: float = 0.0
    leaving: Callable[[], Mapping[str, Sequence[int]]] | None = None

    def lacks(self, name: str) -> bool:
        """Whether the last finished epoch was not evaluated, so that it has no such metric."""
        line = self.history[-1]
        return name not in line and not any(key.startswith("val_") for key in line)

    def metric(self, name: str, schedule: str) -> float:
        """Returns a metric of the last finished epoch.

        Args:
            name: Its key in the epoch's line.
            schedule: Who asks for it.

        Raises:
            EvolveError: If there is none of this name.
        """
        value = self.history[-1].get(name)
        if value is None:
            known = ", ".join(k for k, v in self.history[-1].items() if isinstance(v, float))
            raise EvolveError(f"Schedule '{schedule}' watches '{name}', which is not among {known}.")
        return float(value)


class Schedule(Watching, Registered, ABC):
    """Says after each optimizer step whether a mutation is due.

    Attributes:
        name: Registered name.
        Options: Typed options.
        needs_flops: Whether it can do nothing for a model whose FLOPs cannot be counted.
        needs_operator: The operator without which it has nothing to look at; "" for none.
        at_epoch_ends: Whether a mutation can be due at the end of an epoch alone; it need not be asked in between then.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    needs_flops: bool = False
    needs_operator: ClassVar[str] = ""
    at_epoch_ends: bool = False

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    @property
    def needs_progress(self) -> bool:
        """Whether it asks how much of the budget is spent."""
        return getattr(self.options, "progress", None) is not None

    @abstractmethod
    def due(self, clock: Clock) -> str | None:
        """Returns the reason why a mutation is due now, or None."""

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""


schedules: Registry[type[Schedule]] = Registry("schedule", "evolve.schedules", Schedule)


class Average:
    """An exponential moving average that weighs its first values right (as the moments in Adam, Kingma and Ba 2015).

    Args:
        keep: Share of the old average that stays when a value comes in; 0 keeps the last value alone.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self.total = self.weight = 0.0

    def add(self, value: float) -> float:
        """Takes a value in and returns the average."""
        self.total = self._keep * self.total + value
        self.weight = self._keep * self.weight + 1
        return self.total / self.weight
