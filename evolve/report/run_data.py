"""What lies in a run folder, read once for every way to show it. No code that the folder names is run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evolve.errors import EvolveError
from evolve.lineage import Lineage, Record
from evolve.report.forecasts import Forecasts, read_forecasts
from evolve.training.architecture import Architecture
from evolve.training.environment import ENVIRONMENT, Environment
from evolve.training.folder import read_file
from evolve.training.opening import CONFIG
from evolve.training.run_files import ARCHITECTURE, METRICS

Metrics = dict[str, float]  # the numbers of one epoch

LINEAGE = "lineage.jsonl"
# Which way is better where nobody says so.
MODES: Mapping[str, str] = {"train_loss": "min", "val_loss": "min", "val_accuracy": "max"}


@dataclass(frozen=True)
class RunData:
    """A run as it was written down.

    Attributes:
        folder: Where it lies.
        metrics: The numbers of each epoch.
        unreadable: Lines of metrics that hold none.
        records: Every mutation attempted.
        modes: Which way a metric is better, "min" or "max", where that is known.
        monitor: The metric that decisions looked at; None where that is not known.
        environment: With what it was trained; without sessions where that was not written down.
        architecture: What the model was before and after; empty where that was not written down.
        config: The text of its configuration, "" where there is none.
        forecasts: What it expected of its end, and what it came to.
    """

    folder: Path
    metrics: list[Metrics]
    unreadable: int
    records: list[Record]
    modes: Mapping[str, str] = field(default_factory=lambda: dict(MODES))
    monitor: str | None = None
    environment: Environment = field(default_factory=Environment)
    architecture: Architecture = field(default_factory=Architecture)
    config: str = ""
    forecasts: Forecasts = field(default_factory=Forecasts)

    @property
    def watched(self) -> str | None:
        """The metric that the run is looked at by: the monitor, or the first one that was measured."""
        measured = dict.fromkeys(key for line in self.metrics for key in line)
        known = [self.monitor, "val_accuracy", "val_loss", *(key for key in measured if key.startswith("val_"))]
        return next((key for key in known if key in measured), None)

    def best(self, metric: str) -> Metrics | None:
        """Returns the line with the best value of a metric; None where there is none, or its way is not known."""
        found = [line for line in self.metrics if math.isfinite(line.get(metric, math.nan))]
        if metric not in self.modes or not found:
            return None
        return (min if self.modes[metric] == "min" else max)(found, key=lambda line: line[metric])


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / LINEAGE).is_file()


def read_run(folder: Path, modes: Mapping[str, str] = MODES, monitor: str | None = None) -> RunData:
    """Reads a run.

    Args:
        folder: The run folder.
        modes: Which way a metric is better; the best value of others is not told.
        monitor: The metric that decisions looked at.

    Raises:
        EvolveError: If the folder holds no run, or its log cannot be read.
    """
    if not is_run(folder):
        raise EvolveError(
            f"'{folder}' is not a run folder: it has no {LINEAGE}. Give the one that `evolve run` printed."
        )
    metrics, unreadable = _read_metrics(folder / METRICS)
    config = folder / CONFIG
    return RunData(
        folder=folder,
        metrics=metrics,
        unreadable=unreadable,
        records=Lineage.read(folder / LINEAGE),
        modes=modes,
        monitor=monitor,
        environment=read_file(folder / ENVIRONMENT, Environment) or Environment(),
        architecture=read_file(folder / ARCHITECTURE, Architecture) or Architecture(),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        forecasts=read_forecasts(folder),
    )


def _read_metrics(path: Path) -> tuple[list[Metrics], int]:
    """Returns the numbers of each line, and how many lines have none; half a line at the end is left out."""
    if not path.is_file():
        return [], 0
    *lines, _ = path.read_bytes().split(b"\n")
    found = [numbers for line in lines if (numbers := _numbers(line)) is not None]
    return found, len(lines) - len(found)


def _numbers(line: bytes) -> Metrics | None:
    """Returns the numbers in a line of metrics; None where it is no such line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if isinstance(value, float) or abs(value) < 2**63}
