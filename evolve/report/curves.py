"""The curves of a run as points, for whoever draws them: metrics, then parameters, FLOPs and latency over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evolve.lineage import Record
from evolve.report.run_data import RunData
from evolve.report.search_view import figure

_DECADE = 8.0  # from here on a curve of positive numbers is drawn over its logarithm
_NOT_DRAWN = {"epoch", "step", "progress", "params"}
_MOST = 24  # panels
_MOST_SHARED = 6
# What a run measures of itself beside its metrics.
_OTHERS = {"lr": "learning rate", "seconds": "seconds of an epoch", "flops": "FLOPs spent in training"}

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: What it is.
        points: Steps and values; a value may be NaN or infinite.
    """

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        title: What is shown.
        curves: The curves.
        log: Whether it is drawn over the logarithm.
        written: Makes text of a value.
    """

    title: str
    curves: Sequence[Curve]
    log: bool
    written: Callable[[float], str]

    @property
    def finite(self) -> list[Point]:
        """The points that can be drawn."""
        return [point for curve in self.curves for point in curve.points if math.isfinite(point[1])]


def panels(run: RunData) -> list[Panel]:
    """Returns the panels of a run, that of its watched metric first."""
    measured = dict.fromkeys(key for line in run.metrics for key in line if key not in _NOT_DRAWN)
    groups: dict[str, list[str]] = {}
    for key in sorted(measured, key=lambda key: (key != run.watched, not key.startswith("val_"))):
        groups.setdefault(key.removeprefix("val_").removeprefix("train_"), []).append(key)
    metrics = [_panel(name, keys, run) for name, keys in groups.items() if name not in _OTHERS]
    others = [_panel(name, groups[name], run) for name in _OTHERS if name in groups]
    return [panel for panel in [*metrics[:_MOST], *_costs(run), *others] if panel.finite]


def shared_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Returns panels of what at least two runs have measured, and of what they cost: a curve for each run."""
    found: dict[str, list[tuple[RunData, Panel]]] = {}
    for run in runs:
        for panel in panels(run):
            found.setdefault(panel.title, []).append((run, panel))
    joined = []
    for title, pairs in found.items():
        if len(pairs) < 2:
            continue
        curves = [Curve(run.folder.name, _held_out(panel).points) for run, panel in pairs]
        joined.append(Panel(title, curves, all(panel.log for _, panel in pairs), pairs[0][1].written))
    return joined[:_MOST_SHARED]


def _held_out(panel: Panel) -> Curve:
    return next((curve for curve in panel.curves if curve.label.startswith("val ")), panel.curves[0])


def logarithmic(values: Iterable[float]) -> bool:
    """Whether values are better seen over their logarithm: all are positive, and some are much larger than others."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= _DECADE


def steps_of(run: RunData) -> list[tuple[float, float]]:
    """Returns the step and the epoch of each line of metrics that has them."""
    found = [(line["step"], line["epoch"]) for line in run.metrics if "step" in line and "epoch" in line]
    return [pair for pair in found if all(map(math.isfinite, pair))]


def _panel(name: str, keys: Sequence[str], run: RunData) -> Panel:
    curves = []
    for key in keys:
        points = [(line["step"], float(line[key])) for line in run.metrics if key in line and "step" in line]
        curves.append(Curve(key.replace("_", " "), points))
    falls = any(run.modes.get(key) == "min" for key in keys) or name == "loss"
    log = falls and logarithmic(value for curve in curves for _, value in curve.points)
    return Panel(_OTHERS.get(name, name.replace("_", " ")), curves, log, lambda value: figure(name, value))


def _costs(run: RunData) -> list[Panel]:
    """What the model costs, a level between two mutations."""
    timed = [(float(each.step), each.seconds) for each in run.architecture.latency]
    end = max((line["step"] for line in run.metrics if "step" in line), default=None)
    known = [(line["step"], line["params"]) for line in run.metrics if "params" in line and "step" in line]
    params = _levels(run.records, lambda r: (r.params_before, r.params_after)) or known
    flops = _levels(run.records, lambda r: (r.flops_before, r.flops_after))
    found = {"params": ("parameters", params), "flops": ("FLOPs a sample", flops)}
    made = [_cost(title, key, points, end) for key, (title, points) in found.items()]
    levels = [one for before, after in pairwise(timed) for one in ((after[0], before[1]), after)]
    return [*made, _cost("latency of the probe batch", "latency", [*timed[:1], *levels], end)]


def _cost(title: str, key: str, points: list[Point], end: float | None) -> Panel:
    whole = [*points, (end, points[-1][1])] if points and end is not None and end > points[-1][0] else points
    return Panel(title, [Curve(title, whole)], logarithmic(y for _, y in whole), lambda value: figure(key, value))


def _levels(records: Iterable[Record], costs: Callable[[Record], tuple[int | None, int | None]]) -> list[Point]:
    """The cost before and after each mutation that is in the model, from the first attempt on."""
    points: list[Point] = []
    for record in records:
        before, after = costs(record)
        if record.step is None or before is None or after is None:
            continue
        at, before, after = (min(value, 10**300) for value in (record.step, before, after))  # of whatever origin
        points += [] if points else [(0.0, float(before))]
        points += [(float(at), float(before)), (float(at), float(after))] if record.success else []
    return points
