"""A run folder as text for the terminal."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.errors import EvolveError
from evolve.lineage import Lineage, Record

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def run_report(folder: Path) -> Group:
    """Returns curves, mutations and parameters over time of a run.

    Raises:
        EvolveError: If the folder holds no run.
    """
    if not (folder / "lineage.jsonl").is_file():
        raise EvolveError(
            f"'{folder}' is no run folder: it has no lineage.jsonl. Give the folder that `evolve run` named."
        )
    records = Lineage.read(folder / "lineage.jsonl")
    metrics = _read_metrics(folder / "metrics.jsonl")
    parts: list[RenderableType] = [Text(str(folder), style="bold"), Text()]
    parts += _curves(metrics)
    parts += [Text(), _mutations(records), Text(), _summary(metrics, records)]
    return Group(*parts)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _curves(metrics: list[dict[str, Any]]) -> list[RenderableType]:
    if not metrics:
        return [Text("No epoch was finished yet.")]
    table = Table(box=None, pad_edge=False, show_header=True)
    for heading in ("", f"epoch 1-{len(metrics)}", "first", "best", "last"):
        table.add_column(
            heading, justify="left" if heading in ("", f"epoch 1-{len(metrics)}") else "right", no_wrap=True
        )
    for key, label, best, style in (
        ("train_loss", "train loss", min, "{:.4f}"),
        ("val_loss", "val loss", min, "{:.4f}"),
        ("val_accuracy", "val accuracy", max, "{:.2%}"),
        ("params", "parameters", None, "{:,}"),
    ):
        values = [line[key] for line in metrics if line.get(key) is not None]
        if values:
            top = style.format(best(values)) if best else ""
            table.add_row(label, _sparkline(values), style.format(values[0]), top, style.format(values[-1]))
    return [table]


def _sparkline(values: list[float]) -> str:
    """One bar a value, or a mean of neighbours where there are more values than columns."""
    if len(values) > _WIDTH:
        edges = [round(i * len(values) / _WIDTH) for i in range(_WIDTH + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)


def _mutations(records: list[Record]) -> RenderableType:
    if not records:
        return Text("No mutation was attempted.")
    table = Table(title="Mutations", title_justify="left", box=None, pad_edge=False)
    for heading in ("#", "epoch", "step", "params", "max|Δ|", "status", "mutation"):
        wraps = heading in ("status", "mutation")
        table.add_column(heading, justify="left" if wraps else "right", no_wrap=heading != "mutation")
    for record in records:
        delta = "-" if record.max_abs_diff is None else f"{record.max_abs_diff:.2g}"
        what = f"{record.operator} at '{record.site}'"
        why = f" ({record.reason})" if record.reason else ""
        table.add_row(
            str(record.index),
            "-" if record.epoch is None else str(record.epoch),
            "-" if record.step is None else str(record.step),
            f"{record.params_after - record.params_before:+,}",
            delta,
            Text(record.status.replace("_", " "), style="green" if record.success else "yellow"),
            Text.assemble((what, "bold"), f"{why}: {record.message}"),
        )
    return table


def _summary(metrics: list[dict[str, Any]], records: list[Record]) -> Text:
    applied = sum(record.success for record in records)
    words = [f"{applied} mutations applied, {len(records) - applied} refused."]
    if records:
        last = metrics[-1]["params"] if metrics else records[-1].params_after
        words.append(f"Parameters {records[0].params_before:,} → {last:,}.")
    if metrics and "val_accuracy" in metrics[-1]:
        words.append(f"Held-out accuracy {metrics[-1]['val_accuracy']:.2%} after epoch {metrics[-1]['epoch']}.")
    return Text(" ".join(words))
