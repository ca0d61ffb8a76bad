"""The curves of runs as a picture file, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError, missing_package
from evolve.lineage import Record
from evolve.report.curves import Panel, panels, shared_panels
from evolve.report.paid import standing
from evolve.report.printable import one_line
from evolve.report.run_data import RunData

_COLORS = {"applied": "#15803d", "taken_back": "#c2410c", "refused": "#8a93a1"}
_COLUMNS = 3


def draw_curves(runs: Sequence[RunData], file: Path) -> None:
    """Writes the curves of a run with its mutations, or those of several runs over each other.

    Args:
        runs: As they were read.
        file: Ends with .png or .svg.

    Raises:
        EvolveError: If matplotlib cannot be imported, there is nothing to draw, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvolveError(missing_package(f"A {file.suffix} picture", "matplotlib", error)) from error
    found = panels(runs[0]) if len(runs) == 1 else shared_panels(runs)
    if not found:
        raise EvolveError("There are no curves to draw: no epoch has finished, or the runs have no metric in common.")
    rows = math.ceil(len(found) / _COLUMNS)
    figure = Figure(figsize=(4.6 * min(len(found), _COLUMNS), 2.9 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, min(len(found), _COLUMNS), squeeze=False).flat, found, strict=False):
        _draw(axes, panel, runs[0].records if len(runs) == 1 else [])
    for axes in figure.axes[len(found) :]:
        axes.remove()
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise EvolveError(f"'{file}' cannot be written: {error}.") from error


def _draw(axes: Any, panel: Panel, records: Sequence[Record]) -> None:
    """Draws a panel; names are text, whatever signs of mathematics are in them."""
    for curve in panel.curves:
        finite = [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
        label = one_line(curve.label)
        axes.plot(
            [x for x, _ in finite], [y for _, y in finite], label=label if not label.startswith("_") else f" {label}"
        )
    for kind, color in _COLORS.items():
        tried = [record.step for record in records if record.step is not None and standing(record) == kind]
        top, style = 0.06 if kind == "refused" else 1.0, "--" if kind == "taken_back" else "-"
        for step in sorted(set(tried)):
            axes.axvline(step, ymax=top, color=color, linewidth=0.9, alpha=0.6, linestyle=style)
    if panel.log:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: panel.written(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_title(one_line(panel.title), parse_math=False, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.curves) > 1:
        for text in axes.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
