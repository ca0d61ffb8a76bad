"""Whether what schedules, policies and probation look at is measured, and gets better the way they take it to."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from evolve.config import KeyPath
from evolve.config.options import Monitor
from evolve.errors import did_you_mean
from evolve.evolver.config import EvolutionConfig

# What a line of metrics has beside losses and metrics.
_COUNTED = ("epoch", "step", "lr", "seconds", "flops", "progress", "params")


def metric_faults(config: EvolutionConfig, metrics: Collection[str], monitor: Monitor) -> Iterator[tuple[KeyPath, str]]:
    """Yields where the configuration looks at a metric that it cannot look at, and why.

    Args:
        config: The `evolution` section.
        metrics: What an evaluation gives, such as "loss" and "accuracy".
        monitor: The metric that is looked at where none is named.
    """
    for path, seen in config.watched(monitor):
        known = "max" if seen.metric.endswith("accuracy") else "min" if seen.metric.endswith("loss") else None
        if fault := not_measured(seen.metric, metrics):
            yield path, fault
        elif seen.mode and known and seen.mode != known:
            way = "rises" if known == "max" else "falls"
            yield path, f"'{seen.metric}' {way} as a model gets better, and mode: {seen.mode} is the other way."
        elif seen.guessed and seen.metric not in _COUNTED:
            yield path, f"'{seen.metric}' does not say which way is better: set its mode to min or max (task.metrics)."
        elif seen.unbounded:
            yield path, f"'{seen.metric}' neither falls to 0 nor has a best value that is known: look at another one."


def not_measured(metric: str, metrics: Collection[str]) -> str:
    """Says that a run does not measure a metric; "" where it does."""
    train = ["loss", *({"accuracy"} & set(metrics))]
    known = [*(f"val_{name}" for name in metrics), *(f"train_{name}" for name in train), *_COUNTED]
    if metric in known:
        return ""
    held_out = [name for name in known if name.startswith("val_")]
    shown = held_out if metric.startswith("val_") else known
    return f"this run has no '{metric}'.{did_you_mean(metric, known)} It measures {', '.join(shown)}."
