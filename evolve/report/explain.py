"""Why a mutation was made and what came of it: facts that the run wrote down, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError
from evolve.lineage import Record
from evolve.report.run_data import Metrics, read_run


@dataclass(frozen=True)
class Point:
    """A metric at the end of an epoch.

    Attributes:
        epoch: Epochs finished; None where its line does not say so.
        step: Optimizer steps made.
        value: The metric.
    """

    epoch: int | None
    step: int
    value: float


@dataclass(frozen=True)
class Explanation:
    """What was recorded of one attempt.

    Attributes:
        record: The attempt.
        refused_before: What was tried first when the same mutation was due, and refused.
        tried_next: What was tried after it, where it was refused itself.
        metric: The metric that is told of.
        before: It at the end of the last epoch before the attempt; None where there is none.
        after: It at the end of the first epoch after it; None where there is none, or the run went back.
        between: Numbers of other mutations that were applied between the two.
    """

    record: Record
    refused_before: list[Record]
    tried_next: list[Record]
    metric: str
    before: Point | None
    after: Point | None
    between: list[int]

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        points = {"before": self.before, "after": self.after}
        return {
            "version": 1,
            "record": self.record.model_dump(mode="json"),
            "refused_before": [record.index for record in self.refused_before],
            "tried_next": [record.index for record in self.tried_next],
            "metric": self.metric,
            **{key: None if point is None else vars(point) for key, point in points.items()},
            "between": self.between,
        }


def explain(run: Path, number: int, metric: str | None = None) -> Explanation:
    """Returns what a run recorded of one of its mutations.

    Args:
        run: The run folder.
        number: Of the mutation, as in `Record.index`; negative ones count from the end.
        metric: The metric to tell of; that of the probation or "val_loss" if None.

    Raises:
        EvolveError: If the folder holds no run, or there is no such mutation.
    """
    data = read_run(run)
    records = data.records
    if not -len(records) <= number < len(records):
        told = f"they are numbered 0 to {len(records) - 1}" if records else "it has none"
        raise EvolveError(f"'{run}' has no mutation {number}: {told}. `evolve report {run}` lists them.")
    number %= len(records)
    record = records[number]
    metric = metric or (record.verdict.metric if record.verdict else "val_loss")
    before, after = _around(data.metrics, record, metric)
    refused = takewhile(lambda one: _same_round(one, record) and not _ended(one), reversed(records[:number]))
    following = records[number + 1 :] if not _ended(record) else []
    between = [] if after is None else [r.index for r in records[number + 1 :] if r.success and _by(r, after)]
    return Explanation(
        record=record,
        refused_before=list(refused)[::-1],
        tried_next=list(takewhile(lambda one: _same_round(one, record), following)),
        metric=metric,
        before=before,
        after=after if record.success else None,
        between=between,
    )


def _same_round(one: Record, other: Record) -> bool:
    return one.step is not None and (one.epoch, one.step) == (other.epoch, other.step)


def _ended(record: Record) -> bool:
    """Whether no other candidate was tried after it: it was applied, also where it was taken back later."""
    return record.success or record.verdict is not None


def _by(record: Record, point: Point) -> bool:
    return record.step is not None and record.step < point.step


def _around(lines: Sequence[Metrics], record: Record, metric: str) -> tuple[Point | None, Point | None]:
    """The last value at or before the attempt and the first one after it."""
    step, before, after = record.step, None, None
    for line in lines if step is not None else ():
        value, at = line.get(metric), line.get("step")
        if isinstance(value, float) and isinstance(at, int) and math.isfinite(value):
            epoch = line.get("epoch")
            point = Point(None if epoch is None else int(epoch), at, value)
            if at <= (step or 0):
                before = point
            elif after is None:
                after = point
    return before, after
