"""What a run expected of the end of its budget, and what it came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evolve.policies.projection import Foreseen, written
from evolve.report.printable import one_line
from evolve.training.run_files import FORECASTS

HEADINGS = ("step", "lead", "needed", "as it is", "grown", "decision", "came to")


def read_forecasts(folder: Path) -> list[Foreseen]:
    """Returns the forecasts of a run folder, none where it has none; lines that hold none are left out."""
    file, found = folder / FORECASTS, []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            one = Foreseen.model_validate_json(line)
        except ValidationError:  # half a line at the end, of a run that was killed
            continue
        found += [one] if len(one.ends) > 1 else []
    return found


def forecast_rows(forecasts: list[Foreseen], metrics: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns what was expected, and the training loss of the last epoch: a cell for each of `HEADINGS`.

    Args:
        forecasts: What was expected.
        metrics: One mapping for each epoch.
    """
    came_to = metrics[-1].get("train_loss") if metrics else None
    return [
        (
            str(one.step),
            f"{one.lead[0]:.3g}",
            f"{one.needed:.3g}",
            *(written(*end) for end in one.ends[:2]),
            one_line(f"{one.operator}, for {one.cost:.2f} times the cost" if one.grows else "stays"),
            "-" if came_to is None else f"{came_to:.4g}",
        )
        for one in forecasts
    ]


def forecast_table(rows: list[tuple[str, ...]]) -> RenderableType:
    """Returns the rows as a table for the terminal."""
    table = Table(title="Forecasts of the training loss at the end", title_justify="left", box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "decision" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
