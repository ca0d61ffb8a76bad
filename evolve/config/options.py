"""Checks the options of things found by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from evolve.config import Named, OptionFaults, explain
from evolve.errors import UnknownNameError


@dataclass(frozen=True)
class Watched:
    """A metric that a schedule or policy looks at.

    Attributes:
        option: The option that names it.
        metric: Its key in the metrics of an epoch.
        mode: Which way is taken for better: "min" or "max"; None where it does not matter.
        unbounded: Whether it rises without a best value that is known, where one is needed.
        guessed: Whether nobody says which way is better, so that falling is taken for it.
    """

    option: str
    metric: str
    mode: Literal["min", "max"] | None = None
    unbounded: bool = False
    guessed: bool = False


@dataclass(frozen=True)
class Monitor:
    """The metric that a run is judged by.

    Attributes:
        metric: Its key in the metrics of an epoch.
        mode: Which way is better.
        bound: The best value there can be, of a metric that rises; None where none is known.
        others: Further metrics that the run measures, for what looks at another one than the monitor.
    """

    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    bound: float | None = None
    others: tuple[Monitor, ...] = field(default=(), compare=False, repr=False)

    def of(self, metric: str, mode: Literal["min", "max"] | None = None) -> Monitor:
        """Returns how another metric of the run is looked at; its way is told by its name where nobody knows it.

        Args:
            metric: Its key in the metrics of an epoch.
            mode: Which way is taken for better, where that is said.
        """
        for known in (self, *self.others):
            if known.metric == metric and mode in (None, known.mode):
                return known
        return _by_name(metric, mode)

    def knows(self, metric: str) -> bool:
        """Whether anything but a guess says which way a metric is better."""
        return metric.endswith(("accuracy", "loss")) or metric in (self.metric, *(each.metric for each in self.others))

    @property
    def unbounded(self) -> bool:
        """Whether it rises and nobody knows how far."""
        return self.mode == "max" and self.bound is None

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another; NaN never is."""
        return value < other if self.mode == "min" else value > other

    def falling(self, value: float) -> float:
        """Returns the value as one that falls as a model gets better: what is missing to the bound, or its negative."""
        if self.mode == "min":
            return value
        return -value if self.bound is None else self.bound - value

    def rising(self, value: float) -> float:
        """Turns what `falling` returned into a value of the metric again: it is its own inverse."""
        return self.falling(value)


class Watching:
    """Base of schedules and policies that look at a metric: the run's monitor, unless their options name another."""

    options: Any
    _monitor = Monitor()

    def follow(self, monitor: Monitor) -> None:
        """Takes the run's monitor for the metric to look at, where the options name none.

        Args:
            monitor: That of the run.
        """
        self._monitor = monitor

    @property
    def monitor(self) -> Monitor:
        """The metric that is looked at."""
        metric = getattr(self.options, "metric", None)
        mode: Literal["min", "max"] | None = getattr(self.options, "mode", None)
        return self._monitor.of(metric or self._monitor.metric, mode)

    def watched(self) -> list[Watched]:
        """Returns the metrics that it looks at; a run that does not measure them is refused before it begins."""
        return []


def _by_name(metric: str, mode: Literal["min", "max"] | None = None) -> Monitor:
    """Returns a metric to be looked at whose way is told by its name: an accuracy rises, all else falls."""
    rises = metric.endswith("accuracy")
    mode = mode or ("max" if rises else "min")
    return Monitor(metric, mode, 1.0 if rises and mode == "max" else None)


class _Finder(Protocol):
    def get(self, name: str) -> Any: ...


def check_options(config: Named, registry: _Finder) -> None:
    """Checks a section's name and options against the registry.

    Raises:
        OptionFaults: With every fault, and where in the section it lies.
    """
    try:
        cls = registry.get(config.name)
    except UnknownNameError as error:
        raise OptionFaults([(("name",), str(error))]) from error
    try:
        cls.Options.read(config.options)
    except ValidationError as error:
        faults = explain(error, cls.Options, config.options)
        raise OptionFaults([(("options", *path), message) for path, message in faults]) from error
