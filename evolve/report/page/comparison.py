"""What a page shows of several runs and searches next to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evolve.report.curves import Panel, shared_panels
from evolve.report.page.chart import Scale, chart, round_values
from evolve.report.page.detail import Detail
from evolve.report.run_data import RunData


def comparison(parts: Sequence[Mapping[str, Any]], runs: Sequence[RunData], detail: Detail) -> dict[str, Any]:
    """Returns what the template of a comparison takes.

    Args:
        parts: What the page shows of each run and search.
        runs: The runs among them.
        detail: How much of them is shown.
    """
    charts = [chart(panel, *_across(panel), {}, detail.points) for panel in shared_panels(runs)]
    tiles = [{name: value for name, value, _ in part["tiles"]} for part in parts]
    counted = Counter(name for found in tiles for name in found)
    columns = sorted(counted, key=lambda name: -counted[name])[:8]
    rows = [
        {"name": part["name"], "figures": [found.get(name, "") for name in columns]}
        for part, found in zip(parts, tiles, strict=True)
    ]
    data = {"charts": [each.values for each in charts], "epochs": [], "marks": []}
    return {"charts": charts, "columns": columns, "rows": rows, "data": data}


def _across(panel: Panel) -> tuple[Scale, list[tuple[float, str]]]:
    scale = Scale.over([0.0, *(x for curve in panel.curves for x, _ in curve.points)], margin=0.0)
    return scale, [(scale.at(value) / 10, f"{value:g}") for value in round_values(scale.low, scale.high)]
