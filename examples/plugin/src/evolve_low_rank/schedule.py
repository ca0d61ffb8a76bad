"""The schedule `doubling`: ever longer from one mutation to the next."""

from pydantic import PositiveInt

from evolve.registry import TypedOptions
from evolve.schedules import Clock, Schedule, schedules


@schedules.register("doubling")
class Doubling(Schedule):
    """After `first` epochs, then after twice, four times, eight times as many."""

    at_epoch_ends = True

    class Options(TypedOptions):
        """`first`: epochs before the first mutation."""

        first: PositiveInt = 1

    def due(self, clock: Clock) -> str | None:
        """Returns the reason at the ends of the epochs first, 2 first, 4 first, ..."""
        if not clock.epoch_end or clock.epoch % self.options.first:
            return None
        times = clock.epoch // self.options.first
        return f"epoch {clock.epoch}, {times} times {self.options.first}" if times & (times - 1) == 0 else None
