"""What a run writes to its folder as it goes: the mutation log, the metrics, and what is told of model and machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evolve.lineage import Record
from evolve.training.architecture import Architecture, module_lines
from evolve.training.environment import named_devices, note_session
from evolve.training.events import EpochEnded, Event, ForecastMade, MutationTried, RunBegun, RunFinished, VerdictGiven
from evolve.training.folder import append_text, read_file, replace_text

METRICS, ARCHITECTURE, FORECASTS = "metrics.jsonl", "architecture.json", "forecasts.jsonl"


class RunFiles:
    """Keeps the JSON files of a run up to date: lineage, metrics, forecasts, environment and architecture.

    Args:
        folder: Of the run.
        inputs: The probe batch, on which the model's latency is measured.

    Raises:
        CheckpointError: When called, if a file cannot be written.
    """

    HEARS = (RunBegun, RunFinished, EpochEnded, MutationTried, ForecastMade, VerdictGiven)

    def __init__(self, folder: Path, inputs: Any) -> None:
        self._folder, self._inputs = folder, inputs
        self._architecture = Architecture()
        self._step = 0  # when the last epoch ended
        self._written: list[Record] | None = None  # what the log on disk holds, as far as this process knows

    def __call__(self, event: Event) -> None:
        """Writes what an event changes."""
        if isinstance(event, RunBegun):
            self._written = None  # another process may have gone on and been killed since
            self._begin(event)
        if isinstance(event, ForecastMade):
            append_text(self._folder / FORECASTS, json.dumps(event.facts) + "\n")
        elif isinstance(event, MutationTried):
            self._log(event.run.lineage.records)
        elif isinstance(event, self.HEARS):
            self._log(event.run.lineage.records)
            lines = "".join(json.dumps(line) + "\n" for line in event.run.history)
            replace_text(self._folder / METRICS, lines)
            if isinstance(event, EpochEnded):
                self._step = int(event.metrics["step"])
            self._describe(event)

    def _begin(self, event: RunBegun) -> None:
        """Notes with what the run is trained from here on, and what it begins with."""
        self._step = event.step
        self._drop_forecasts(event.step)
        note_session(self._folder, named_devices(event.run.model), event.step)
        begun = Architecture(first=None if event.step else module_lines(event.run.model))
        self._architecture = read_file(self._folder / ARCHITECTURE, Architecture) or begun

    def _drop_forecasts(self, step: int) -> None:
        """Drops what was forecast after the checkpoint from which the run goes on: it will be again."""
        file = self._folder / FORECASTS
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() and not file.is_symlink() else []
        kept = [line for line in lines if _made_before(step, line)]
        if kept != lines:
            replace_text(file, b"".join(kept).decode())

    def _describe(self, event: Event) -> None:
        """Writes what the model is, if it has changed."""
        now = self._architecture.now(event.run.model, self._inputs, self._step)
        if now != self._architecture:
            self._architecture = now
            replace_text(self._folder / ARCHITECTURE, now.model_dump_json())

    def _log(self, records: list[Record]) -> None:
        """Appends new records; where older ones have changed, all are written anew."""
        file, known = self._folder / "lineage.jsonl", self._written
        if known is None or records[: len(known)] != known:
            replace_text(file, "".join(record.model_dump_json() + "\n" for record in records))
        elif len(records) > len(known):
            append_text(file, "".join(record.model_dump_json() + "\n" for record in records[len(known) :]))
        self._written = list(records)


def _made_before(step: int, line: bytes) -> bool:
    """Whether a forecast is of an earlier step; half a line, of a run that was killed, is none.

    What a forecast came to is told with a step, before the checkpoint that was written behind it.
    """
    try:
        found = json.loads(line)
        return bool(found["step"] < step + ("loss" in found))
    except (ValueError, LookupError, TypeError):
        return False
