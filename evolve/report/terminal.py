"""A run folder as text for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.errors import EvolveError
from evolve.lineage import Lineage, Record
from evolve.report.printable import one_line

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60

Metrics = dict[str, float]  # the numbers of one epoch


# Which way is better where nobody says so.
_MODES: Mapping[str, str] = {"train_loss": "min", "val_loss": "min", "val_accuracy": "max"}


def run_report(folder: Path, modes: Mapping[str, str] = _MODES, monitor: str | None = None) -> Group:
    """Returns curves, mutations and parameters over time of a run.

    Args:
        folder: The run folder.
        modes: Which way a metric is better, "min" or "max"; the best value of others is not told.
        monitor: The metric that decisions looked at.

    Raises:
        EvolveError: If the folder holds no run.
    """
    if not (folder / "lineage.jsonl").is_file():
        seeds = sorted(path.parent.name for path in folder.glob("seed-*/lineage.jsonl"))
        hint = f"one of {', '.join(seeds)} in it, and see its summary.json" if seeds else "the one `evolve run` printed"
        raise EvolveError(f"'{folder}' is not a run folder: it has no lineage.jsonl. Give {hint}.")
    records = Lineage.read(folder / "lineage.jsonl")
    metrics, unreadable = _read_metrics(folder / "metrics.jsonl")
    parts: list[RenderableType] = [Text(one_line(str(folder)), style="bold"), Text()]
    if unreadable:
        parts += [Text(f"{unreadable} lines of metrics.jsonl are unreadable and left out.", style="yellow"), Text()]
    parts += _curves(metrics, modes)
    parts += [Text(), _mutations(records), Text(), _summary(metrics, records, modes, monitor)]
    return Group(*parts)


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


def _curves(metrics: list[Metrics], modes: Mapping[str, str]) -> list[RenderableType]:
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
            best = (min if modes.get(key) == "min" else max)(_finite(values) or values)
            told = _number(key, best) if key in modes else ""
            label = "parameters" if key == "params" else one_line(key.replace("_", " "))
            table.add_row(label, _sparkline(values), _number(key, values[0]), told, _number(key, values[-1]))
    return [table]


def _number(key: str, value: float) -> str:
    if key == "params":
        return f"{value:,}"
    return f"{value:.2%}" if key == "val_accuracy" else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def _sparkline(values: list[float]) -> str:
    """One bar a value, or a mean of neighbours where there are more values than columns; "?" for NaN and infinity."""
    if len(values) > _WIDTH:
        edges = [round(i * len(values) / _WIDTH) for i in range(_WIDTH + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
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


def _summary(metrics: list[Metrics], records: list[Record], modes: Mapping[str, str], monitor: str | None) -> Text:
    applied = sum(record.success for record in records)
    words = [f"{applied} mutations applied, {len(records) - applied} refused."]
    last = metrics[-1] if metrics else {}
    if records:
        words.append(f"Parameters {records[0].params_before:,} → {last.get('params', records[-1].params_after):,}.")
    if "val_accuracy" in last and "epoch" in last:
        words.append(f"Held-out accuracy {last['val_accuracy']:.2%} after epoch {last['epoch']}.")
    watched = monitor or ""
    if watched in modes and (found := [line for line in metrics if isfinite(line.get(watched, math.nan))]):
        best = (min if modes[watched] == "min" else max)(found, key=lambda line: line[watched])
        words.append(f"Best {watched} {_number(watched, best[watched])} after epoch {best.get('epoch', '?')}.")
    return Text(" ".join(words))
