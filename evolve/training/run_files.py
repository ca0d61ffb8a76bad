"""What a run writes to its folder as it goes: the mutation log and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

from evolve.lineage import Record
from evolve.training.events import EpochEnded, Event, MutationTried, RunBegun, RunFinished, VerdictGiven
from evolve.training.folder import append_text, replace_text


class RunFiles:
    """Keeps `lineage.jsonl` and `metrics.jsonl` of a run up to date.

    Args:
        folder: Of the run.

    Raises:
        CheckpointError: When called, if a file cannot be written.
    """

    HEARS = (RunBegun, RunFinished, EpochEnded, MutationTried, VerdictGiven)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[Record] | None = None  # what the log on disk holds, as far as this process knows

    def __call__(self, event: Event) -> None:
        """Writes what an event changes."""
        if isinstance(event, RunBegun):
            self._written = None  # another process may have gone on and been killed since
        if isinstance(event, MutationTried):
            self._log(event.run.lineage.records)
        elif isinstance(event, self.HEARS):
            self._log(event.run.lineage.records)
            lines = "".join(json.dumps(line) + "\n" for line in event.run.history)
            replace_text(self._folder / "metrics.jsonl", lines)

    def _log(self, records: list[Record]) -> None:
        """Appends new records; where older ones have changed, all are written anew."""
        file, known = self._folder / "lineage.jsonl", self._written
        if known is None or records[: len(known)] != known:
            replace_text(file, "".join(record.model_dump_json() + "\n" for record in records))
        elif len(records) > len(known):
            append_text(file, "".join(record.model_dump_json() + "\n" for record in records[len(known) :]))
        self._written = list(records)
