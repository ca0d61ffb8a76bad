"""By what a run in a folder was judged, read off its configuration without running any code that it names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evolve.config import Section, load_yaml, validate
from evolve.config.options import Monitor
from evolve.errors import EvolveError
from evolve.tasks import TaskConfig
from evolve.training.config import MonitorConfig
from evolve.training.monitor import find_monitor
from evolve.training.opening import CONFIG

logger = logging.getLogger(__name__)

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Judged:
    """How the metrics of a run are read.

    Attributes:
        modes: Which way each metric is better, where that is known.
        monitor: The metric that decisions looked at; None where that is not known.
    """

    modes: dict[str, Mode]
    monitor: Monitor | None = None


class _Looked(Section):
    task: TaskConfig = TaskConfig()
    monitor: MonitorConfig = MonitorConfig()


def judged(run: Path) -> Judged:
    """Returns how the metrics of the run in a folder are read; losses and accuracy at least."""
    modes: dict[str, Mode] = {"val_loss": "min", "train_loss": "min", "val_accuracy": "max", "train_accuracy": "max"}
    file = run / CONFIG
    if not file.is_file():
        return Judged(modes)
    raw, places, faults = load_yaml(file)
    training = raw.get("training")
    asked = {"task": raw.get("task"), "monitor": training.get("monitor") if isinstance(training, dict) else None}
    needed = {key: value for key, value in asked.items() if value is not None}
    try:
        looked = validate(_Looked, needed, places, file, faults, trusted=False)
        measured = looked.task.measured()
        monitor = find_monitor(looked.monitor, measured)
    except EvolveError as error:  # a damaged file, a metric of the user's own: the curves are shown all the same
        logger.info("%s does not say how all metrics are read: %s", file, error)
        return _declared(raw, modes)
    known = {f"val_{metric.label}": metric.monitor.mode for metric in measured if metric.monitor is not None}
    return Judged({**modes, **known, monitor.metric: monitor.mode}, monitor)


def _declared(raw: Mapping[str, Any], modes: dict[str, Mode]) -> Judged:
    """Reads what stands in the file itself: of a metric that is a function, nothing else is known."""
    task, training = _part(raw, "task"), _part(raw, "training")
    metrics = task.get("metrics")
    for metric in metrics if isinstance(metrics, list) else ():
        if isinstance(metric, dict) and (mode := _mode(metric)):
            modes[f"val_{metric.get('label') or metric.get('name')}"] = mode
    monitor = _part(training, "monitor")
    name = str(monitor.get("metric", "val_loss"))
    way = _mode(monitor) or modes.get(name)
    return Judged(modes) if way is None else Judged({**modes, name: way}, Monitor(name, way))


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, dict) else {}


def _mode(section: Mapping[str, Any]) -> Mode | None:
    match section.get("mode"):
        case "min":
            return "min"
        case "max":
            return "max"
    return None
