"""When a mutation is due."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from evolve.config import Named
from evolve.errors import EvolveError
from evolve.options import TypedOptions, check_options
from evolve.registry import Registry


@dataclass(frozen=True)
class Clock:
    """Where a run stands after an optimizer step.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps made.
        epoch_end: Whether this step was the last of its epoch.
        history: One mapping of metrics for each finished epoch.
    """

    epoch: int
    step: int
    epoch_end: bool
    history: Sequence[Mapping[str, Any]] = ()


class Schedule(ABC):
    """Says after each optimizer step whether a mutation is due.

    Attributes:
        name: Registered name.
        Options: Typed options.
    """

    name: ClassVar[str]
    Options: ClassVar[type[TypedOptions]] = TypedOptions

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options(**options)

    @abstractmethod
    def due(self, clock: Clock) -> str | None:
        """Returns the reason why a mutation is due now, or None."""

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most keep no state
        """Takes up what `state` returned."""


schedules: Registry[type[Schedule]] = Registry("schedule", "evolve.schedules")


class _EpochsOrSteps(TypedOptions):
    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (getattr(self, "epochs", None) is None) == (getattr(self, "steps", None) is None):
            raise ValueError("give either 'epochs' or 'steps'")
        return self


@schedules.register("every")
class Every(Schedule):
    """Every N epochs or every N optimizer steps, between `start` and `stop` (both included)."""

    name = "every"

    class Options(_EpochsOrSteps):
        """Either `epochs` or `steps`; `start` and `stop` count in the same unit."""

        epochs: PositiveInt | None = None
        steps: PositiveInt | None = None
        start: NonNegativeInt = 0
        stop: PositiveInt | None = None

    def due(self, clock: Clock) -> str | None:
        """Returns the reason at every N-th epoch end or step."""
        by_epoch = self.options.epochs is not None
        count, period = (clock.epoch, self.options.epochs) if by_epoch else (clock.step, self.options.steps)
        inside = self.options.start <= count and (self.options.stop is None or count <= self.options.stop)
        if not inside or count % period or (by_epoch and not clock.epoch_end):
            return None
        return f"every {period} {'epochs' if by_epoch else 'steps'}"


@schedules.register("at")
class At(Schedule):
    """At given epochs or optimizer steps."""

    name = "at"

    class Options(_EpochsOrSteps):
        """Either `epochs` or `steps`: the counts after which a mutation is due."""

        epochs: list[PositiveInt] | None = None
        steps: list[PositiveInt] | None = None

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when a listed count is reached."""
        if self.options.epochs is not None:
            return f"epoch {clock.epoch}" if clock.epoch_end and clock.epoch in self.options.epochs else None
        return f"step {clock.step}" if clock.step in self.options.steps else None


@schedules.register("plateau")
class Plateau(Schedule):
    """When a metric has not improved for `patience` epochs; a mutation starts the count anew."""

    name = "plateau"

    class Options(TypedOptions):
        """The metric of the epoch's line to watch, which way is better, and by how much at least."""

        metric: str = "val_loss"
        mode: Literal["min", "max"] = "min"
        patience: PositiveInt = 3
        min_delta: float = 0.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._best: float | None = None
        self._waited = 0

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when patience is at its end."""
        if not clock.epoch_end:
            return None
        value = clock.history[-1].get(self.options.metric)
        if value is None:
            known = ", ".join(k for k, v in clock.history[-1].items() if isinstance(v, float))
            raise EvolveError(f"Schedule 'plateau' watches '{self.options.metric}', which is not among {known}.")
        sign = 1 if self.options.mode == "max" else -1
        if self._best is None or sign * (value - self._best) > self.options.min_delta:
            self._best, self._waited = value, 0
            return None
        self._waited += 1
        if self._waited < self.options.patience:
            return None
        self._waited = 0
        return f"{self.options.metric} not better than {self._best:.4g} for {self.options.patience} epochs"

    def state(self) -> dict[str, Any]:
        """Returns the best value and the epochs waited."""
        return {"best": self._best, "waited": self._waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the best value and the epochs waited."""
        self._best, self._waited = state["best"], state["waited"]


class ScheduleConfig(Named):
    """A schedule by name with its options."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, schedules)
        return self

    def build(self) -> Schedule:
        """Returns the schedule."""
        return schedules.get(self.name)(**self.options)
