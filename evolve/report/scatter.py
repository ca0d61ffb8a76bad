"""Points as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from evolve.report.search_view import figure

_WIDTH, _HEIGHT = 60, 14


def scatter(points: Sequence[tuple[float, float, bool]], x: str, y: str) -> Text:
    """Draws points; those that are marked are shown as "●", over the others.

    Args:
        points: Each with its two values and whether it is marked.
        x: What the first value is; likewise `y`.
    """
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for across, up, marked in sorted(points, key=lambda point: point[2]):
        column = round((across - left) / ((right - left) or 1) * (_WIDTH - 1))
        row = _HEIGHT - 1 - round((up - low) / ((high - low) or 1) * (_HEIGHT - 1))
        grid[row][column] = "●" if marked else ("·" if grid[row][column] == " " else grid[row][column])
    labels = [figure(y, high), *[""] * (_HEIGHT - 2), figure(y, low)]
    margin = max(len(y), *map(len, labels))
    text = Text(f"{y:>{margin}}\n")
    for label, cells in zip(labels, grid, strict=True):
        text.append(f"{label:>{margin}} │")
        text.append("".join(cells), style="green")
        text.append("\n")
    first, last = figure(x, left), figure(x, right)
    gap = max(1, _WIDTH - len(first) - len(last) - len(x) - 2)
    text.append(f"{'':>{margin}} └{'─' * _WIDTH}\n{'':>{margin}}  {first} {x:>{gap + len(x)}} {last}")
    return text
