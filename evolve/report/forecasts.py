"""What a run expected of its end, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evolve.policies.projection import Foreseen, Realised, written
from evolve.report.printable import one_line
from evolve.training.run_files import FORECASTS

HEADINGS = ("step", "lead", "needed", "where", "as it is", "grown", "decision", "came to")
_LINE: TypeAdapter[Foreseen | Realised] = TypeAdapter(Foreseen | Realised)


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of a run.

    Attributes:
        made: What was expected, in the order in which it was.
        came: What they came to, where the run has come so far.
    """

    made: list[Foreseen] = field(default_factory=list)
    came: list[Realised] = field(default_factory=list)


def read_forecasts(folder: Path) -> Forecasts:
    """Returns the forecasts of a run folder, none where it has none; lines that hold none are left out."""
    file, found = folder / FORECASTS, Forecasts()
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            one = _LINE.validate_json(line)
        except ValidationError:  # half a line at the end, of a run that was killed
            continue
        if isinstance(one, Realised):
            found.came.append(one)
        elif len(one.ends) > 1:
            found.made.append(one)
    return found


def forecast_rows(forecasts: Forecasts, most: int | None = None) -> list[tuple[str, ...]]:
    """Returns what was expected and what the loss came to: a cell for each of `HEADINGS`.

    Args:
        forecasts: Those of a run.
        most: How many of the last are told; None for all.
    """
    made = forecasts.made if most is None else forecasts.made[-most:]
    return [
        (
            str(one.step),
            f"{one.lead[0]:.3g}",
            f"{one.needed:.3g}",
            "the end" if one.until >= 1 else f"{one.until:.0%}",
            *(written(*end) for end in one.ends[:2]),
            one_line(f"{one.operator}, for {one.cost:.2f} times the cost" if one.grows else "stays"),
            next((f"{came.loss:.4g}" for came in forecasts.came if _of(came, one)), "-"),
        )
        for one in made
    ]


def _of(came: Realised, made: Foreseen) -> bool:
    return came.progress == made.until and came.step > made.step


def forecast_table(rows: list[tuple[str, ...]]) -> RenderableType:
    """Returns the rows as a table for the terminal."""
    table = Table(title="Forecasts of the training loss", title_justify="left", box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "decision" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
