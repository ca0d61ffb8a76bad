"""What a page shows of one run, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evolve.lineage import Reasons, Record, Weighed
from evolve.report.architecture_changes import blocks, compare
from evolve.report.curves import panels, steps_of
from evolve.report.forecasts import HEADINGS, forecast_rows
from evolve.report.page.chart import Scale, chart, round_values, uprights
from evolve.report.page.detail import Detail
from evolve.report.paid import metric_changes, standing, what_paid
from evolve.report.run_data import RunData
from evolve.report.search_view import figure
from evolve.training.eta import duration

_MOST_BLOCKS = 400  # more cannot be told apart
# Where the mark of an attempt ends, by what became of it: refusals are many, and low. Many marks leave the curves free.
_TOPS = {"applied": 0, "taken_back": 500, "refused": 940}
_LOW_TOPS = {"applied": 880, "taken_back": 920, "refused": 960}
_MANY = 100
_LONG = 300  # rows that a browser lays out when they are looked at


def run_part(run: RunData, detail: Detail) -> dict[str, Any]:
    """Returns what the template of a run takes.

    Args:
        run: As it was read.
        detail: How much of it is shown.
    """
    shown = run.records[-detail.rows :]
    ends = [line["step"] for line in run.metrics if "step" in line] + [r.step for r in run.records if r.step]
    across = Scale.over([0.0, *ends], margin=0.0) if ends else Scale(0.0, 1.0)
    tops = _LOW_TOPS if sum(standing(record) != "refused" for record in run.records) > _MANY else _TOPS
    marks = {
        kind: uprights((r.step or 0 for r in run.records if standing(r) == kind), across, top)
        for kind, top in tops.items()
    }
    charts = [chart(panel, across, _epochs(run, across), marks, detail.points) for panel in panels(run)]
    changes = metric_changes(run)
    steps = steps_of(run)
    return {
        "kind": "run",
        "name": run.folder.name or str(run.folder),
        "folder": str(run.folder),
        "unreadable": run.unreadable,
        "tiles": _tiles(run),
        "charts": charts,
        "counted": "epoch" if steps else "step",
        "rows": [_row(record, changes, run, detail) for record in shown],
        "long": max(len(shown), len(run.architecture.last)) > _LONG,
        "left_out": len(run.records) - len(shown),
        "metric": run.watched,
        "paid": [_paid(one, run.watched) for one in what_paid(run)],
        "forecasts": forecast_rows(run.forecasts, detail.rows),
        "forecast_headings": HEADINGS,
        "architecture": compare(run.architecture.first, run.architecture.last)[: detail.modules],
        "blocks": _blocks(run),
        "first_known": run.architecture.first is not None,
        "sessions": run.environment.sessions[-5:],
        "config": run.config[: detail.config],
        "seed": _seeds(run),
        "data": {
            "charts": [each.values for each in charts],
            "epochs": [[across.at(step), epoch] for step, epoch in _thinned(steps)],
            "marks": [[across.at(record.step or 0), record.index] for record in shown],
            **_weighed(shown, detail),
        },
    }


def _blocks(run: RunData) -> list[dict[str, Any]]:
    """Returns for each architecture its parts, how long it is beside the longest in percent, and its size."""
    sides = dict(zip(("before", "after"), blocks(run.architecture.first, run.architecture.last), strict=True))
    parts = {
        side: [(name, sum(block.params for block in found), found) for name, found in parts]
        for side, parts in sides.items()
    }
    sizes = {side: sum(size for _, size, _ in found) for side, found in parts.items()}
    longest = max(sizes.values()) or 1
    return [
        {"name": side, "parts": found, "length": 100 * sizes[side] / longest, "size": figure("params", sizes[side])}
        for side, found in parts.items()
        if 0 < sum(len(each) for _, _, each in found) <= _MOST_BLOCKS
    ]


@dataclass(frozen=True)
class _Row:
    record: Record
    standing: str
    site: str
    delta: str
    change: str
    better: bool
    told: str
    reason: str
    params: str


def _row(record: Record, changes: dict[int, float], run: RunData, detail: Detail) -> _Row:
    change, metric = changes.get(record.index), run.watched
    return _Row(
        record=record,
        standing=standing(record),
        site=detail.cut(record.site),
        delta="" if record.max_abs_diff is None else f"{record.max_abs_diff:.2g}",
        change="" if change is None or metric is None else signed(metric, change),
        better=change is not None and (change < 0 if run.modes.get(metric or "") == "min" else change > 0),
        told=detail.cut(record.message),
        reason=detail.cut(record.reason or ""),
        params=f"{record.params_after - record.params_before:+,}" if record.success else "",
    )


def signed(metric: str, change: float) -> str:
    """Returns a change with its sign."""
    return ("+" if change > 0 else "−" if change < 0 else "±") + figure(metric, abs(change)).lstrip("-")  # noqa: RUF001


def _paid(one: Any, metric: str | None) -> dict[str, Any]:
    change = one.median_change
    return {
        **vars(one),
        "params": f"{one.params:+,}",
        "flops": ("+" if one.flops >= 0 else "−") + figure("flops", abs(one.flops)),  # noqa: RUF001
        "change": "" if change is None or metric is None else signed(metric, change),
        "counted": len(one.changes),
    }


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Returns name, value and remark of what is seen first."""
    applied = sum(record.success for record in run.records)
    back = sum(record.status == "rolled_back" for record in run.records)
    tiles, metric = [], run.watched
    if metric is not None and (best := run.best(metric)) is not None:
        tiles.append((f"best {metric}", figure(metric, best[metric]), f"after epoch {best.get('epoch', '?')}"))
    if metric != "val_accuracy" and (best := run.best("val_accuracy")) is not None:
        tiles.append(("best val_accuracy", figure("val_accuracy", best["val_accuracy"]), ""))
    refused = len(run.records) - applied - back
    tiles.append(("mutations applied", f"{applied:,}", f"{refused:,} refused, {back:,} taken back"))
    last = run.metrics[-1] if run.metrics else {}
    if params := last.get("params"):
        first = run.records[0].params_before if run.records else params
        tiles.append(("parameters", figure("params", params), f"from {figure('params', first)}"))
    counted = [(r.flops_before, r.flops_after) for r in run.records if r.flops_before and r.flops_after]
    if counted and counted[0][0] and counted[-1][1]:
        tiles.append(("FLOPs a sample", figure("flops", counted[-1][1]), f"from {figure('flops', counted[0][0])}"))
    if "epoch" in last:
        tiles.append(("epochs", f"{last['epoch']:g}", f"{last.get('step', 0):,.0f} steps"))
    seconds = sum(record.seconds for record in run.records)
    if run.records and math.isfinite(seconds):
        tiles.append(("making mutations took", duration(seconds), ""))
    return tiles


def _epochs(run: RunData, across: Scale) -> list[tuple[float, str]]:
    """Returns where round epochs stand, or round steps where no line knows its epoch."""
    steps = steps_of(run)
    if not steps:
        return [(across.at(value) / 10, f"{value:g}") for value in round_values(across.low, across.high)]
    wanted = {value for value in round_values(0, max(epoch for _, epoch in steps)) if value == int(value)}
    return [(across.at(step) / 10, f"{epoch:g}") for step, epoch in steps if epoch in wanted]


def _seeds(run: RunData) -> str:
    """Returns the seed of the run as its configuration says it; what mutations drew from is in their records."""
    lines = (line.strip() for line in run.config.splitlines())
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("seed:")), "")


def _thinned(steps: Sequence[tuple[float, float]], most: int = 2000) -> list[tuple[float, float]]:
    return list(steps[:: math.ceil(len(steps) / most) or 1])


def _chosen_by(choice: Reasons) -> str:
    by = f", by {choice.by}" if choice.by else ""
    return f"{choice.policy}{by}" + (f", of {choice.candidates:,} candidates" if choice.candidates else "")


def _weighed(records: Sequence[Record], detail: Detail) -> dict[str, Any]:
    """What the policy weighed, with every text once."""
    names: dict[str, int] = {}

    def number(text: str | None) -> int:
        return names.setdefault(detail.cut(text or ""), len(names))

    def told(one: Weighed) -> list[Any]:
        value = one.value if one.value is not None and math.isfinite(one.value) else None
        shown = None if value is None else float(f"{value:.4g}")
        return [number(one.operator), number(one.site or one.region), shown, number(one.note)]

    def best(choice: Reasons) -> list[Weighed]:
        return sorted(choice.others, key=lambda one: -math.inf if one.value is None else one.value, reverse=True)

    choices = {
        record.index: [
            number(_chosen_by(record.choice)),
            told(record.choice.chosen),
            [told(other) for other in best(record.choice)[: detail.others]],
            max(0, len(record.choice.others) - detail.others),
        ]
        for record in records
        if record.choice is not None
    }
    return {"choices": choices, "names": list(names)}
