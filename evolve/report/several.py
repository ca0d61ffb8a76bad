"""Several runs and searches as one table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.report.curves import logarithmic
from evolve.report.printable import one_line
from evolve.report.run_data import RunData
from evolve.report.search_status import open_archive, read_view
from evolve.report.search_view import figure
from evolve.report.terminal import sparkline

_WIDTH = 15  # of a curve


def several_report(subjects: Sequence[RunData | Path]) -> Group:
    """Returns a table with a row for each run, and one with a row for each search.

    Args:
        subjects: Runs as they were read, and folders of searches.
    """
    runs = [one for one in subjects if isinstance(one, RunData)]
    searches = [one for one in subjects if not isinstance(one, RunData)]
    folders = [one.folder if isinstance(one, RunData) else one for one in subjects]
    above = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    parts: list[RenderableType] = [_runs(runs, above)] if runs else []
    return Group(*parts, *([_searches(searches, above)] if searches else []))


def _name(folder: Path, above: Path) -> Text:
    """What tells a folder from the others: its path in the folder that all of them lie in."""
    return Text(one_line(str(folder.absolute().relative_to(above))), style="bold")


def _runs(runs: Sequence[RunData], above: Path) -> Table:
    table = _table("run", "metric", "curve", "best", "epochs", "params", "applied", "refused")
    for run in runs:
        metric = run.watched
        values = [line[metric] for line in run.metrics if metric in line] if metric else []
        best, last = run.best(metric) if metric else None, run.metrics[-1] if run.metrics else {}
        applied = sum(record.success for record in run.records)
        table.add_row(
            _name(run.folder, above),
            Text(one_line(metric or "")),
            sparkline(values, _WIDTH, log=run.modes.get(metric or "") == "min" and logarithmic(values))
            if values
            else "",
            figure(metric, best[metric]) if metric and best else "",
            f"{last['epoch']:g}" if "epoch" in last else "0",
            figure("params", last["params"]) if "params" in last else "",
            str(applied),
            str(len(run.records) - applied),
        )
    return table


def _searches(folders: Sequence[Path], above: Path) -> Table:
    table = _table("search", "best", "evaluated")
    for folder in folders:
        with open_archive(folder) as archive:
            view, _, _ = read_view(archive)
        told = ""
        if view.best:
            who, metrics = view.best[0]
            found = ", ".join(f"{name} {figure(name, metrics[name])}" for name in view.columns() if name in metrics)
            told = f"individual {who.id}: {found}"
        table.add_row(_name(folder, above), Text(one_line(told)), ", ".join(view.done()))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        left = heading in ("run", "search", "metric", "curve") or headings[0] == "search"
        name = heading in ("run", "search")
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=headings[0] == "run" and not name, overflow="fold"
        )
    return table
