"""What each operator paid in a run, from recorded facts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from evolve.lineage import Record
from evolve.report.run_data import RunData


@dataclass
class Paid:
    """One operator.

    Attributes:
        operator: Registered name.
        tried: Attempts.
        applied: Those that are in the model; likewise `refused` and `taken_back`.
        params: Parameters that its applied mutations added or took away.
        flops: FLOPs of a sample that they added or took away.
        changes: Of the watched metric, one for each applied mutation that was followed by an epoch.
    """

    operator: str
    tried: int = 0
    applied: int = 0
    refused: int = 0
    taken_back: int = 0
    params: int = 0
    flops: int = 0
    changes: list[float] = field(default_factory=list)

    @property
    def median_change(self) -> float | None:
        """The median of the changes; None where there are none."""
        return median(self.changes) if self.changes else None


def standing(record: Record) -> str:
    """Returns "applied", "taken_back" or "refused"."""
    if record.success:
        return "applied"
    return "taken_back" if record.status == "rolled_back" else "refused"


def what_paid(run: RunData) -> list[Paid]:
    """Returns what each operator paid, in the order in which they were tried first."""
    found: dict[str, Paid] = {}
    changes = metric_changes(run)
    for record in run.records:
        paid = found.setdefault(record.operator, Paid(record.operator))
        paid.tried += 1
        kind = standing(record)
        setattr(paid, kind, getattr(paid, kind) + 1)
        if record.success:
            paid.params += record.params_after - record.params_before
            paid.flops += (record.flops_after or 0) - (record.flops_before or 0)
        if record.index in changes:
            paid.changes.append(changes[record.index])
    return list(found.values())


def metric_changes(run: RunData) -> dict[int, float]:
    """Returns by how much the watched metric changed after each applied mutation, by the record's index.

    From the last epoch before it to the last one before the next mutation that stayed. Mutations with no epoch between
    them are told as one: each has the change of all. What would have come of the model without it is not known.
    """
    metric = run.watched
    lines = [line for line in run.metrics if metric in line and "step" in line and math.isfinite(line[metric or ""])]
    steps = [line["step"] for line in lines]
    applied = [(record, record.step) for record in run.records if record.success and record.step is not None]
    changes = {}
    for record, step in applied:
        begins = bisect_right(steps, step) - 1
        ends = _next(applied, step, steps, begins)
        if metric is not None and 0 <= begins < ends:
            changes[record.index] = lines[ends][metric] - lines[begins][metric]
    return changes


def _next(applied: Sequence[tuple[Record, int]], step: int, steps: Sequence[float], begins: int) -> int:
    """The last line before the next mutation with an epoch of its own."""
    for _, later in applied:
        if later > step and (ends := bisect_right(steps, later) - 1) > begins:
            return ends
    return len(steps) - 1
