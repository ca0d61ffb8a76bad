"""The lines that a run shows, made of numbers and records alone; none is longer than a terminal is wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evolve.budget import Budget
from evolve.lineage import Record
from evolve.training.eta import duration

WIDTH = 80  # columns of a terminal
_UNITS = ("", "k", "M", "G", "T", "P", "E")


def epoch_lines(
    metrics: Mapping[str, Any], budget: Budget, width: int = WIDTH, *, left: float | None = None
) -> list[str]:
    """Returns the line of an epoch; where it would be too long, the last of its parts go to further lines.

    Args:
        metrics: Of the epoch.
        budget: How long the run is.
        width: Columns.
        left: Seconds that the rest of the run will take; told where there is room for it.
    """
    parts = [
        where(metrics["epoch"], metrics["progress"], budget),
        *_results(metrics, "train"),
        *_results(metrics, "val"),
    ]
    parts += [f"lr {_short(metrics['lr'])}", f"{compact(metrics['params'])} params", f"{metrics['seconds']:.1f}s"]
    lines = _packed(parts, width)
    told = f"  {duration(left)} left" if left is not None and metrics["progress"] < 1 else ""
    if len(lines[-1]) + len(told) <= width:
        lines[-1] += told
    return lines


def run_time(elapsed: float, left: float | None) -> str:
    """Says how long a run has taken, and how long it will still take where that is known."""
    taken = f"run {duration(elapsed)}"
    return taken if left is None else f"{taken}, {duration(left)} left"


def where(epoch: int, progress: float, budget: Budget) -> str:
    """Says which epoch it is, of how many or, where epochs are not the budget, which part of it is spent."""
    if budget.unit != "epochs":
        return f"epoch {epoch:>3} {progress:>6.1%}"
    epochs = f"{budget.amount:g}"
    return f"epoch {epoch:>{len(epochs)}}/{epochs}"


def mutation_lines(record: Record, width: int = WIDTH) -> list[str]:
    """Returns what became of an attempted mutation."""
    sign = "+" if record.success else "-"
    state = "" if record.success else f" {record.status.replace('_', ' ')}:"
    return wrapped(f"{sign} {record.operator} at '{record.site}':{state} {record.message}", width, "  ", "    ")


def wrapped(text: str, width: int = WIDTH, first: str = "", then: str = "") -> list[str]:
    """Returns text in lines that break between words; a word that is longer than a line breaks behind a separator.

    Args:
        text: The text.
        width: Columns.
        first: Indentation of the first line.
        then: Indentation of the other lines.
    """
    lines: list[str] = []
    line = first
    for word in text.split():
        start = then if lines else first
        if line != start and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = start = then
        gap = "" if line == start else " "
        while len(line) + len(gap) + len(word) > width:
            room = width - len(line) - len(gap)
            end = max((word.rfind(mark, 0, room) + 1 for mark in "._/-:,"), default=0) or room
            lines.append(line + gap + word[:end])
            line, gap, word = then, "", word[end:]
        line += gap + word
    return [*lines, line]


def compact(count: float) -> str:
    """Returns 11,689,512 as 11.7M."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{_UNITS[unit]}"


def _results(metrics: Mapping[str, Any], kind: str) -> list[str]:
    loss, accuracy = metrics.get(f"{kind}_loss"), metrics.get(f"{kind}_accuracy")
    words = [] if loss is None else [f"{loss:.4f}" if abs(loss) < 1000 else f"{loss:.3g}"]
    if accuracy is not None:
        words.append(f"{accuracy:>5.1%}" if accuracy < 0.9995 else " 100%")
    more = [key for key in metrics if key.startswith(f"{kind}_") and key not in (f"{kind}_loss", f"{kind}_accuracy")]
    others = [f"{key.replace('_', ' ')} {metrics[key]:.4g}" for key in more]
    return [" ".join([kind, *words]), *others] if words else others


def _short(rate: float) -> str:
    """Returns a learning rate in few letters: 0.05, 5.5e-4."""
    return f"{rate:.2g}" if not rate or rate >= 1e-3 else f"{rate:.1e}".replace("e-0", "e-").replace(".0e", "e")


def _packed(parts: list[str], width: int) -> list[str]:
    """Joins parts by two spaces, or by one where that saves a line; what is still too long goes to further lines."""
    for gap in ("  ", " "):
        if len(gap.join(parts)) <= width:
            return [gap.join(parts)]
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            line = f"    {part}" if lines else part
            lines += [line] if len(line) <= width else wrapped(part, width, "    " if lines else "", "    ")
    return lines
