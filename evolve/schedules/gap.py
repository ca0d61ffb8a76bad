"""A schedule that grows fast while the model underfits, and slowly while it overfits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from evolve.config.options import Watched
from evolve.registry import TypedOptions
from evolve.schedules.base import Average, Clock, Schedule, schedules


@schedules.register("gap")
class Gap(Schedule):
    """After a part of the budget that is the longer, the more the training metric is ahead of the validation metric.

    Growing late regularises and growing early lets the larger model fit, so the interval between two mutations is
    `longest / (1 + exp((middle - gap) / width))`, the gap smoothed over the epochs. After FRAGrow (Wu et al., "When To
    Grow? A Fitting Risk-Aware Policy for Layer Growing in Deep Neural Networks", AAAI 2024), whose interval is in
    epochs and whose width is 1.
    """

    at_epoch_ends = True

    class Options(TypedOptions):
        """How the interval depends on the gap.

        The gap is in percentage points of accuracy or, for `loss`, the percentage of the validation loss that the
        training loss is below it.
        """

        metric: Literal["accuracy", "loss"] = "accuracy"
        longest: Annotated[float, Field(gt=0, le=1)] = 0.25
        middle: float = 5.0
        width: Annotated[float, Field(gt=0)] = 1.0
        stop: Annotated[float, Field(gt=0, le=1)] = 1.0
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._average = Average(self.options.smoothing)
        self._since = 0.0  # the progress at the last mutation that was due

    def watched(self) -> list[Watched]:
        """Returns the metric in training and in validation."""
        return [Watched("metric", f"{kind}_{self.options.metric}") for kind in ("train", "val")]

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when the interval that the gap asks for is over."""
        if not clock.epoch_end or clock.lacks(f"val_{self.options.metric}"):
            return None
        gap = self._gap(clock)
        if not math.isfinite(gap):  # a loss that is infinite for once says nothing of the gap
            return None
        gap = self._average.add(gap)
        exponent = min((self.options.middle - gap) / self.options.width, 700.0)  # exp of more is no float
        interval = self.options.longest / (1 + math.exp(exponent))
        self._since = min(self._since, clock.progress)  # of a run that goes on with a larger budget
        if clock.progress - self._since < interval or clock.progress > self.options.stop:
            return None
        self._since = clock.progress
        return f"{self.options.metric} gap {gap:.3g} %: {interval:.2g} of the budget was to wait"

    def _gap(self, clock: Clock) -> float:
        train, val = (clock.metric(f"{kind}_{self.options.metric}", self.name) for kind in ("train", "val"))
        if self.options.metric == "accuracy":
            return 100 * (train - val)
        return 100 * (val - train) / abs(val) if val else 0.0

    def state(self) -> dict[str, Any]:
        """Returns the average gap and when a mutation was due last."""
        return {"average": [self._average.total, self._average.weight], "since": self._since}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._average.total, self._average.weight = state["average"]
        self._since = state["since"]
