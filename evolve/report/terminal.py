"""A run folder as text for the terminal."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from math import isfinite, log10

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.lineage import Record
from evolve.report.curves import logarithmic
from evolve.report.forecasts import forecast_rows, forecast_table
from evolve.report.paid import standing
from evolve.report.printable import one_line
from evolve.report.run_data import RunData

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
# Of an attempt, and of what became of it: where several share a column, the first of them is shown.
_MARKS = {"applied": ("▲", "green"), "taken_back": ("▽", "yellow"), "refused": ("·", "dim")}


def run_report(run: RunData) -> Group:
    """Returns curves, mutations and parameters over time of a run."""
    parts: list[RenderableType] = [Text(one_line(str(run.folder)), style="bold"), Text()]
    if run.unreadable:
        parts += [Text(f"{run.unreadable} lines of metrics.jsonl are unreadable and left out.", style="yellow"), Text()]
    parts += [*_curves(run), Text(), _mutations(run.records), Text()]
    if run.forecasts.made:
        parts += [forecast_table(forecast_rows(run.forecasts)), Text()]
    return Group(*parts, _summary(run))


def _curves(run: RunData) -> list[RenderableType]:
    metrics = run.metrics
    if not metrics:
        return [Text("No epoch has finished yet.")]
    table = Table(box=None, pad_edge=False, show_header=True)
    for heading in ("", f"epoch 1-{len(metrics)}", "first", "best", "last"):
        table.add_column(
            heading, justify="left" if heading in ("", f"epoch 1-{len(metrics)}") else "right", no_wrap=True
        )
    held_out = dict.fromkeys(key for line in metrics for key in line if key.startswith("val_") and key != "val_loss")
    for key in ("train_loss", "val_loss", *held_out, "params"):
        values = [line[key] for line in metrics if key in line]
        if values:
            best = (min if run.modes.get(key) == "min" else max)(_finite(values) or values)
            told = _number(key, best) if key in run.modes else ""
            over = run.modes.get(key) == "min" and logarithmic(values)
            label = "parameters" if key == "params" else one_line(key.replace("_", " ")) + (", log" if over else "")
            curve = sparkline(values, log=over)
            table.add_row(label, curve, _number(key, values[0]), told, _number(key, values[-1]))
    if any(record.step is not None for record in run.records):
        table.add_row("mutations", _marks(run))
        legend = "  ".join(f"{sign} {kind.replace('_', ' ')}" for kind, (sign, _) in _MARKS.items())
        table.add_row("", Text(legend, style="dim"))
    return [table]


def _marks(run: RunData) -> Text:
    """A sign in the column of the epoch that each attempt came after; those before the first stand in its column."""
    ends = [line.get("step", 0) for line in run.metrics]
    width = min(len(ends), _WIDTH)
    columns: dict[int, str] = {}
    for record in run.records:
        if record.step is None:
            continue
        epoch = max(0, bisect_left(ends, record.step + 1) - 1)
        column, kind = min(epoch * width // len(ends), width - 1), standing(record)
        if column not in columns or list(_MARKS).index(kind) < list(_MARKS).index(columns[column]):
            columns[column] = kind
    return Text.assemble(*(_MARKS[columns[n]] if n in columns else " " for n in range(width)))


def _number(key: str, value: float) -> str:
    if key == "params":
        return f"{value:,}"
    return f"{value:.2%}" if key == "val_accuracy" else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def sparkline(values: list[float], width: int = _WIDTH, *, log: bool = False) -> str:
    """Returns one bar a value, or a mean of neighbours where there are more values than columns.

    Args:
        values: "?" stands for NaN and infinity.
        width: Columns.
        log: Whether the bars are as high as logarithms; all finite values are positive then.
    """
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    values = [max(-1e300, min(value, 1e300)) if isfinite(value) else value for value in values]  # their span is finite
    if log:
        values = [log10(value) if isfinite(value) else value for value in values]
    finite = _finite(values) or [0.0]
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / span * steps)] if isfinite(value) else "?" for value in values)


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if isfinite(value)]


def _mutations(records: list[Record]) -> RenderableType:
    if not records:
        return Text("No mutation was attempted.")
    table = Table(title="Mutations", title_justify="left", box=None, pad_edge=False)
    for heading in ("#", "epoch", "step", "params", "max|Δ|", "status", "mutation"):
        wraps = heading in ("status", "mutation")
        table.add_column(heading, justify="left" if wraps else "right", no_wrap=heading != "mutation")
    for record in records:
        delta = "-" if record.max_abs_diff is None else f"{record.max_abs_diff:.2g}"
        what = one_line(f"{record.operator} at '{record.site}'")
        why = f" ({record.reason})" if record.reason else ""
        table.add_row(
            str(record.index),
            "-" if record.epoch is None else str(record.epoch),
            "-" if record.step is None else str(record.step),
            f"{record.params_after - record.params_before:+,}",
            delta,
            Text(record.status.replace("_", " "), style="green" if record.success else "yellow"),
            Text.assemble((what, "bold"), one_line(f"{why}: {record.message}")),
        )
    return table


def _summary(run: RunData) -> Text:
    metrics, records = run.metrics, run.records
    applied = sum(record.success for record in records)
    words = [f"{applied} mutations applied, {len(records) - applied} refused."]
    last = metrics[-1] if metrics else {}
    if records:
        words.append(f"Parameters {records[0].params_before:,} → {last.get('params', records[-1].params_after):,}.")
    if "val_accuracy" in last and "epoch" in last:
        words.append(f"Held-out accuracy {last['val_accuracy']:.2%} after epoch {last['epoch']}.")
    watched = run.monitor or ""
    if best := run.best(watched):
        words.append(f"Best {watched} {_number(watched, best[watched])} after epoch {best.get('epoch', '?')}.")
    return Text(" ".join(words))
