"""When a mutation is due."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from evolve.budget import whole
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
        progress: Which part of the run's budget is spent, from 0 to 1.
    """

    epoch: int
    step: int
    epoch_end: bool
    history: Sequence[Mapping[str, Any]] = ()
    progress: float = 0.0


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


Fraction = Annotated[float, Field(gt=0, lt=1)]


class _OneUnit(TypedOptions):
    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(getattr(self, unit) is not None for unit in ("epochs", "steps", "progress")) != 1:
            raise ValueError("give either 'epochs' or 'steps' or 'progress'")
        return self


@schedules.register("every")
class Every(Schedule):
    """Every N epochs, optimizer steps or parts of the budget, between `start` and `stop` (both included)."""

    name = "every"

    class Options(_OneUnit):
        """`epochs`, `steps` or `progress`; `start` and `stop` count in the same unit."""

        epochs: PositiveInt | None = None
        steps: PositiveInt | None = None
        progress: Fraction | None = None
        start: NonNegativeFloat = 0
        stop: PositiveFloat | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._parts = 0  # of the budget that were over when last looked

    def due(self, clock: Clock) -> str | None:
        """Returns the reason at every N-th epoch end or step, or with the step that finishes a part of the budget."""
        if self.options.progress is not None:
            parts, before = whole(clock.progress / self.options.progress), self._parts
            self._parts = parts
            due = parts > before and self._inside(parts * self.options.progress)
            return f"every {self.options.progress:.3g} of the budget" if due else None
        if self.options.epochs is not None:
            due = clock.epoch_end and clock.epoch % self.options.epochs == 0 and self._inside(clock.epoch)
            return f"every {self.options.epochs} epochs" if due else None
        due = clock.step % self.options.steps == 0 and self._inside(clock.step)
        return f"every {self.options.steps} steps" if due else None

    def _inside(self, count: float) -> bool:
        rounding = 1e-9  # three tenths are more than 0.3 in floats
        after_stop = self.options.stop is not None and count > self.options.stop + rounding
        return self.options.start <= count + rounding and not after_stop

    def state(self) -> dict[str, Any]:
        """Returns the parts of the budget that are over."""
        return {"parts": self._parts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the parts of the budget that are over."""
        self._parts = state["parts"]


@schedules.register("at")
class At(Schedule):
    """At given epochs, optimizer steps or parts of the budget."""

    name = "at"

    class Options(_OneUnit):
        """`epochs`, `steps` or `progress`: the counts after which a mutation is due."""

        epochs: list[PositiveInt] | None = None
        steps: list[PositiveInt] | None = None
        progress: list[Fraction] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reached = 0  # entries of `progress` that the run has come to

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when a listed count is reached."""
        if self.options.progress is not None:
            before = self._reached
            self._reached = sum(clock.progress * (1 + 1e-12) >= fraction for fraction in self.options.progress)
            return f"{clock.progress:.3g} of the budget" if self._reached > before else None
        if self.options.epochs is not None:
            return f"epoch {clock.epoch}" if clock.epoch_end and clock.epoch in self.options.epochs else None
        return f"step {clock.step}" if clock.step in self.options.steps else None

    def state(self) -> dict[str, Any]:
        """Returns how many parts of the budget were reached."""
        return {"reached": self._reached}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up how many parts of the budget were reached."""
        self._reached = state["reached"]


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
