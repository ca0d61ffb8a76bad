"""A run as tables for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evolve.lineage import Record
from evolve.training.events import EpochEnded, Event, RunBegun, RunFinished, StepMade, VerdictGiven
from evolve.training.folder import append_text, replace_text
from evolve.training.loggers import Logger, loggers

_MUTATION = ("index", "step", "epoch", "operator", "site", "status", "params_before", "params_after", "message")


@loggers.register("csv")
class CSVLogger(Logger):
    """Writes `metrics.csv` (a line for each epoch), `steps.csv` (the loss of steps) and `mutations.csv`.

    They always hold what the run holds: what it went back over is taken out.

    Args:
        dir: The folder.
        loss_every: Optimizer steps between two lines of `steps.csv`; 0 for none.
    """

    def __init__(self, dir: str, loss_every: int = 10) -> None:
        super().__init__(loss_every)
        self._folder = Path(dir)
        self._last = 0  # step of the last line of `steps.csv`

    def __call__(self, event: Event) -> None:
        """Writes what an event changes."""
        if isinstance(event, StepMade) and event.step <= self._last:
            self._go_back(event.step - 1)
        super().__call__(event)
        if isinstance(event, RunBegun | EpochEnded | VerdictGiven | RunFinished):
            history = event.run.history
            keys = list(dict.fromkeys(key for line in history for key in line))
            self._replace("metrics.csv", keys, [[line.get(key, "") for key in keys] for line in history])
            records = [record.model_dump() for record in event.run.lineage]
            self._replace("mutations.csv", _MUTATION, [[record[key] for key in _MUTATION] for record in records])

    def begin(self, event: RunBegun) -> None:
        """Takes out what a run that was stopped wrote after its last checkpoint."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._go_back(event.step)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds the loss of a step; the metrics of epochs are written as a whole."""
        if "step_loss" in values:
            append_text(self._folder / "steps.csv", f"{step},{values['step_loss']!r}\n")
            self._last = step

    def mutation(self, record: Record, applied: int) -> None:
        """Mutations are written as a whole."""

    def end(self, event: RunFinished) -> None:
        """Nothing is open."""

    def _go_back(self, step: int) -> None:
        """Keeps the losses up to a step."""
        file = self._folder / "steps.csv"
        lines = file.read_text(encoding="utf-8").splitlines()[1:] if file.is_file() else []
        kept = [line for line in lines if line.partition(",")[0].isdecimal() and int(line.partition(",")[0]) <= step]
        if self.loss_every:
            replace_text(file, "".join(f"{line}\n" for line in ["step,step_loss", *kept]))
        self._last = int(kept[-1].partition(",")[0]) if kept else 0

    def _replace(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([header, *rows] if header else [])
        replace_text(self._folder / name, text.getvalue())
