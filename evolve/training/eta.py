"""How long a run has taken, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_MARKS = 64


class Eta:
    """Estimates the time left from the pace over the later half of what it has seen.

    So the estimate follows a model that grows, and still averages over more and more steps, evaluations and mutations
    as the run goes on.

    Args:
        clock: Seconds that rise.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._marks: list[tuple[float, float]] = []  # time and progress, evenly spread
        self._apart = 0.0  # progress between two of them
        self._last = (0.0, 0.0)

    def see(self, progress: float) -> None:
        """Notes which part of the budget is spent now, from 0 to 1."""
        self._last = (self._clock(), progress)
        while self._marks and self._marks[-1][1] > progress:  # a run may go back
            self._marks.pop()
        if not self._marks or progress - self._marks[-1][1] >= self._apart:
            self._marks.append(self._last)
        if len(self._marks) > _MOST_MARKS:
            del self._marks[1::2]
            self._apart = (progress - self._marks[0][1]) / _MOST_MARKS

    @property
    def elapsed(self) -> float:
        """Seconds since the first look."""
        return self._last[0] - self._marks[0][0] if self._marks else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the budget is spent; None where nothing can be told yet."""
        if not self._marks:
            return None
        now, progress = self._last
        middle = (self._marks[0][1] + progress) / 2
        since, before = max((mark for mark in self._marks if mark[1] <= middle), key=lambda mark: mark[1])
        return (1 - progress) * (now - since) / (progress - before) if progress > before else None


def duration(seconds: float) -> str:
    """Returns a time in few letters: 45s, 12m05s, 3h20m, 5d03h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
