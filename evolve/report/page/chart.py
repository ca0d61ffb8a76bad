"""Panels as shapes that stretch to any width: positions in thousandths of the plot, text beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evolve.report.curves import Panel, Point

_TICKS = 5


@dataclass(frozen=True)
class Chart:
    """What a page draws.

    Attributes:
        title: What is shown.
        log: Whether over the logarithm.
        lines: Label and path of each curve.
        x_ticks: Position in percent from the left, and text.
        y_ticks: Position in percent from the top, and text.
        marks: A path for each kind of mark.
        values: Of each curve, position in thousandths, and text: to be shown where one points.
    """

    title: str
    log: bool
    lines: Sequence[tuple[str, str]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Mapping[str, str] = field(default_factory=dict)
    values: Sequence[Any] = ()


@dataclass(frozen=True)
class Scale:
    """Numbers to thousandths of a length.

    Attributes:
        low: What stands at 0; likewise `high`, at 1000.
        log: Whether logarithms are evenly spaced.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False, margin: float = 0.05) -> Scale:
        """Returns a scale that all finite values fit on, with a margin on both sides."""
        found = [cls(0, 1, log).moved(value) for value in values if math.isfinite(value)] or [0.0]
        low, high = min(found), max(found)
        room = (high - low) * margin or (margin and (abs(high) * 0.1 or 1.0))
        return cls(low - room, high + room, log)

    def moved(self, value: float) -> float:
        """Returns the value, or its logarithm."""
        held = float(max(-1e250, min(value, 1e250)))  # a margin still fits beyond
        return math.log10(max(held, 1e-250)) if self.log else held

    def at(self, value: float) -> float:
        """Returns where a value stands, from 0 to 1000."""
        return round(1000 * (self.moved(value) - self.low) / ((self.high - self.low) or 1), 1)

    def ticks(self) -> list[float]:
        """Returns round values on the scale, few enough to be written beside it."""
        if self.log and self.high - self.low >= 1:
            whole = range(math.ceil(self.low), math.floor(self.high) + 1)
            close = [10.0**e * m for e in range(whole.start - 1, whole.stop) for m in (1, 2, 5)]
            found = close if len(whole) < 3 else [10.0**e for e in whole[:: math.ceil(len(whole) / _TICKS)]]
            return [value for value in found if self.low <= math.log10(value) <= self.high]
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        return round_values(low, high)


def round_values(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Returns multiples of 1, 2 or 5 times a power of ten between two numbers."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / most
    power = 10 ** math.floor(math.log10(rough))
    step = next((power * m for m in (1, 2, 5) if power * m >= rough), power * 10)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def chart(
    panel: Panel, across: Scale, x_ticks: Sequence[tuple[float, str]], marks: Mapping[str, str], most: int
) -> Chart:
    """Returns a panel as it is drawn.

    Args:
        panel: What to draw.
        across: The scale of steps.
        x_ticks: As in `Chart`; likewise `marks`.
        most: Points of a curve.
    """
    up = Scale.over((y for _, y in panel.finite), panel.log)
    thinned = [(curve.label, thin(curve.points, most)) for curve in panel.curves]
    lines = [(label, path(points, across, up)) for label, points in thinned]
    values = [[label, [[across.at(x), panel.written(y)] for x, y in points]] for label, points in thinned]
    return Chart(panel.title, panel.log, lines, x_ticks, beside(up, panel.written), marks, values)


def beside(up: Scale, written: Callable[[float], str]) -> list[tuple[float, str]]:
    """Returns the ticks of an upright axis; what would be written twice stands there once."""
    texts = {written(value).replace(".00%", "%"): 100 - up.at(value) / 10 for value in up.ticks()}
    return [(place, text) for text, place in texts.items()]


def path(points: Iterable[Point], across: Scale, up: Scale) -> str:
    """Returns a line as the `d` of a path, broken where there is no number."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(y) and math.isfinite(x):
            parts.append(f"{pen}{across.at(x):g} {1000 - up.at(y):g}")
            pen = "L"
        else:
            pen = "M"
    if len(parts) == 1:
        return parts[0] + "h.1"  # a round end shows as a dot
    return "".join(parts)


def dots(points: Iterable[Point], across: Scale, up: Scale) -> str:
    """Returns points as lines of no length: their round ends are what is seen."""
    return "".join(f"M{across.at(x):g} {1000 - up.at(y):g}h.1" for x, y in points if math.isfinite(x + y))


def uprights(at: Iterable[float], across: Scale, top: int) -> str:
    """Returns upright lines from the bottom to `top`, one for each place."""
    return "".join(f"M{place:g} 1000V{top}" for place in dict.fromkeys(across.at(x) for x in at))


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Returns about `most` points, if there are more; the lowest and highest of neighbours stay."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = [points[0]]
    size = math.ceil(len(points) / max(1, most // 2))
    for start in range(0, len(points), size):
        part = [point for point in points[start : start + size] if math.isfinite(point[1])]
        ends = (
            {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])} if part else set(points[start : start + 1])
        )
        kept += sorted(ends)
    return [*kept, points[-1]]
