"""What a run writes to its folder as it goes: the mutation log and the metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evolve.lineage import Record
from evolve.training.events import EpochEnded, Event, MutationTried, RunBegun, RunFinished, VerdictGiven


class RunFiles:
    """Keeps `lineage.jsonl` and `metrics.jsonl` of a run up to date.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[Record] | None = None  # what the log on disk holds, as far as this process knows

    def __call__(self, event: Event) -> None:
        """Writes what an event changes."""
        if isinstance(event, MutationTried):
            self._log(event.run.lineage.records)
        elif isinstance(event, RunBegun | RunFinished | EpochEnded | VerdictGiven):
            self._log(event.run.lineage.records)
            _replace(self._folder / "metrics.jsonl", map(json.dumps, event.run.history))

    def _log(self, records: list[Record]) -> None:
        """Appends new records; where older ones have changed, all are written anew."""
        file, known = self._folder / "lineage.jsonl", self._written
        if known is None or records[: len(known)] != known:
            _replace(file, (record.model_dump_json() for record in records))
        elif len(records) > len(known):
            with file.open("a", encoding="utf-8") as log:
                log.writelines(record.model_dump_json() + "\n" for record in records[len(known) :])
                log.flush()
                os.fsync(log.fileno())
        self._written = list(records)


def _replace(file: Path, lines: Iterable[Any]) -> None:
    temporary = file.with_name(file.name + ".new")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, file)
