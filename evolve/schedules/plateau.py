"""A schedule that waits until a metric improves no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from evolve.config.options import Watched
from evolve.registry import TypedOptions
from evolve.schedules.base import Average, Clock, Schedule, schedules


@schedules.register("plateau")
class Plateau(Schedule):
    """When the smoothed metric has not improved for `patience` epochs; then it begins anew, with nothing remembered."""

    at_epoch_ends = True

    class Options(TypedOptions):
        """What to watch (null: the run's monitor), which way is better, by which part of the best value, smoothing."""

        metric: str | None = None
        mode: Literal["min", "max"] | None = None
        patience: PositiveInt = 3
        min_delta: NonNegativeFloat = 0.01
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._begin()

    def _begin(self) -> None:
        self._average = Average(self.options.smoothing)
        self._best: float | None = None
        self._waited = 0

    def watched(self) -> list[Watched]:
        """Returns the metric and its mode."""
        return [Watched("metric", self.monitor.metric, self.monitor.mode)]

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when patience is at its end."""
        if not clock.epoch_end or clock.lacks(self.monitor.metric):
            return None
        found = clock.metric(self.monitor.metric, self.name)
        if math.isfinite(found):
            value = self._average.add(found)
            sign = 1 if self.monitor.mode == "max" else -1
            if self._best is None or sign * (value - self._best) > self.options.min_delta * abs(self._best):
                self._best, self._waited = value, 0
                return None
        elif self._best is None:
            return None
        self._waited += 1
        if self._waited < self.options.patience:
            return None
        best = self._best
        self._begin()
        return f"{self.monitor.metric} not better than {best:.4g} for {self.options.patience} epochs"

    def state(self) -> dict[str, Any]:
        """Returns the average, the best of it, and the epochs waited."""
        average = [self._average.total, self._average.weight]
        return {"average": average, "best": self._best, "waited": self._waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._average.total, self._average.weight = state["average"]
        self._best, self._waited = state["best"], state["waited"]
