"""The metric that a run is judged by: found among what it measures, and how long it has not become better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evolve.config.options import Monitor
from evolve.errors import EvolveError, did_you_mean
from evolve.tasks import Metric
from evolve.training.config import MonitorConfig
from evolve.training.events import EpochEnded, Event, MutationTried

MONITOR = "training.monitor.metric: "
_FEWEST_EPOCHS = 20  # where patience is a part of the epochs: a part of the first few says nothing


def find_monitor(config: MonitorConfig, metrics: Sequence[Metric]) -> Monitor:
    """Returns the metric that decisions look at, and which way is better.

    Args:
        config: Its name, and the way where the user says it.
        metrics: What the run measures beside the loss.

    Raises:
        EvolveError: If nobody says which way is better.
    """
    known = {f"val_{metric.label}": metric.monitor for metric in metrics}
    others = tuple(found for found in known.values() if found is not None)
    if (found := known.get(config.metric)) is not None:
        same = config.mode in (None, found.mode)
        return replace(found if same else Monitor(config.metric, config.mode or found.mode), others=others)
    if config.metric == "val_loss":
        return Monitor(config.metric, config.mode or "min", others=others)
    names = [*known, "val_loss"]
    if not config.metric.startswith("val_"):
        raise EvolveError(
            f"{MONITOR}'{config.metric}' is no metric on held-out data."
            f"{did_you_mean(config.metric, names)} Look at one of {', '.join(names)}."
        )
    if config.mode is None:
        if config.metric in known:
            raise EvolveError(
                f"{MONITOR}'{config.metric}' does not say which way is better. Set training.monitor.mode to min or "
                "max, or the metric's own mode (task.metrics)."
            )
        raise EvolveError(
            f"{MONITOR}'{config.metric}' is not measured by this run.{did_you_mean(config.metric, names)} Look at one "
            f"of {', '.join(names)}; with training.monitor.mode also at what a metric computes under a name of its own."
        )
    return Monitor(config.metric, config.mode, others=others)


def best_value(history: Sequence[Mapping[str, Any]], monitor: Monitor) -> tuple[int, float] | None:
    """Returns the number of the line with the best value, the first of them, and that; None where there is none."""
    best: tuple[int, float] | None = None
    for number, line in enumerate(history):
        value = line.get(monitor.metric, math.nan)
        if math.isfinite(value) and (best is None or monitor.better(value, best[1])):
            best = number, value
    return best


def last_is_best(history: Sequence[Mapping[str, Any]], monitor: Monitor) -> bool:
    """Whether no line before the last one has as good a value."""
    best = best_value(history, monitor)
    return best is not None and best[0] == len(history) - 1


def out_of_patience(history: Sequence[Mapping[str, Any]], monitor: Monitor, patience: float | None) -> bool:
    """Whether so many epochs have gone by since the best value, or such a part of those so far was worse than it."""
    if patience is None:
        return False
    best = best_value(history, monitor)
    since = len(history) - (0 if best is None else best[0] + 1)
    if patience >= 1:
        return since >= patience
    if best is not None:  # one that was as good later on was not worse
        since = next(n for n, line in enumerate(reversed(history)) if line.get(monitor.metric) == best[1])
    return since >= max(patience * len(history), _FEWEST_EPOCHS)


class Patience:
    """Listens to a run, and knows after each epoch whether patience is at its end.

    It looks where an epoch has ended, before what is on probation is judged, and where a mutation was taken back.

    Attributes:
        over: Whether it is.

    Args:
        monitor: The metric that is looked at.
        epochs: For how many, or for which part of those so far, it may not become better; None for any.
    """

    HEARS = (EpochEnded, MutationTried)

    def __init__(self, monitor: Monitor, epochs: float | None) -> None:
        self.over = False
        self._monitor, self._epochs = monitor, epochs

    def __call__(self, event: Event) -> None:
        """Looks at the epochs so far."""
        self.look(event.run.history)

    def look(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Looks at a history, such as that of a run that is taken up."""
        self.over = out_of_patience(history, self._monitor, self._epochs)
