"""When a mutation is due."""

from __future__ import annotations

from pydantic import model_validator
from typing_extensions import Self

from evolve.config import Named
from evolve.config.options import check_options
from evolve.schedules.base import Clock, Schedule, schedules
from evolve.schedules.counting import At, Every
from evolve.schedules.gain import Gain
from evolve.schedules.gap import Gap
from evolve.schedules.plateau import Plateau
from evolve.schedules.settled import Settled

__all__ = ["At", "Clock", "Every", "Gain", "Gap", "Plateau", "Schedule", "ScheduleConfig", "Settled", "schedules"]


class ScheduleConfig(Named):
    """A schedule by name with its options."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_options(self, schedules)
        return self

    def build(self) -> Schedule:
        """Returns the schedule."""
        return schedules.get(self.name)(**self.options)
