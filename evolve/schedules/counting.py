"""Schedules that count: every so many, or at given ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from evolve.budget import whole
from evolve.registry import TypedOptions
from evolve.schedules.base import Clock, Schedule, schedules

Fraction = Annotated[float, Field(gt=0, lt=1)]
T = TypeVar("T")
Counts = Annotated[list[T], Field(min_length=1)]


class _OneUnit(TypedOptions):
    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(getattr(self, unit) is not None for unit in ("epochs", "steps", "progress")) != 1:
            raise ValueError("give either 'epochs' or 'steps' or 'progress'")
        return self


@schedules.register("every")
class Every(Schedule):
    """Every N epochs, optimizer steps or parts of the budget, between `start` and `stop` (both included)."""

    class Options(_OneUnit):
        """`epochs`, `steps` or `progress`; `start` and `stop` count in the same unit."""

        epochs: PositiveInt | None = None
        steps: PositiveInt | None = None
        progress: Fraction | None = None
        start: NonNegativeFloat = 0
        stop: PositiveFloat | None = None

        @model_validator(mode="after")
        def _some_count_is_inside(self) -> Self:
            if self.stop is not None and self.stop < self.start:
                raise ValueError(f"stop ({self.stop:g}) lies before start ({self.start:g}), so nothing would be due")
            if self.progress is not None and self.start > 1:
                raise ValueError(f"start is a part of the budget beside progress, at most 1; found {self.start:g}")
            return self

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at_epoch_ends = self.options.epochs is not None
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

    class Options(_OneUnit):
        """`epochs`, `steps` or `progress`: the counts after which a mutation is due."""

        epochs: Counts[PositiveInt] | None = None
        steps: Counts[PositiveInt] | None = None
        progress: Counts[Fraction] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at_epoch_ends = self.options.epochs is not None
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
