"""What a run expected of the end of its budget, and what it came to."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evolve.policies.projection import NORMAL, Foreseen
from evolve.report.printable import one_line
from evolve.training.run_files import FORECASTS


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


def forecast_table(forecasts: list[Foreseen], came_to: float | None) -> RenderableType:
    """Returns what was expected, and the training loss at the end.

    Args:
        forecasts: At least one.
        came_to: Mean training loss of the last epoch; None of a run that has not ended one.
    """
    table = Table(title="Forecasts of the training loss at the end", title_justify="left", box=None, pad_edge=False)
    for heading in ("step", "lead", "needed", "as it is", "grown", "decision", "came to"):
        table.add_column(heading, justify="left" if heading == "decision" else "right", no_wrap=True)
    for one in forecasts:
        kept, grown = (f"{value:.4g} ± {NORMAL * error:.2g}" for value, error in one.ends[:2])
        table.add_row(
            str(one.step),
            f"{one.lead[0]:.3g}",
            f"{one.needed:.3g}",
            kept,
            grown,
            Text(one_line(f"{one.operator}, for {one.cost:.2f} times the cost" if one.grows else "stays")),
            "-" if came_to is None else f"{came_to:.4g}",
        )
    return table
