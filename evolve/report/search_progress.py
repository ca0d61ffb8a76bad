"""What a search shows as it goes: a live table in a terminal, a line for each new best one elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from typing_extensions import Self

from evolve.population.events import Evaluated, SearchEnded, SearchEvent, WorkerLost
from evolve.population.evolving import Search
from evolve.report.printable import one_line
from evolve.report.search_view import SearchView, figure
from evolve.training.eta import duration
from evolve.training.lines import wrapped

_EVERY = 0.1  # part of the budget after which a line is written even if there is no new best one


class SearchProgress:
    """Listens to a search and shows it.

    Args:
        search: The search; it has not begun.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        budget = search.config.budget
        sought = [(each.metric, each.mode) for each in search.objectives]
        self._view = SearchView(sought, (budget.unit, budget.amount), search.executor.workers)
        self._console = Console()
        self._live: Live | None = None
        self._told = 0.0

    def __enter__(self) -> Self:
        for evaluation, individual in self._search.archive.finished():  # of a search that goes on
            self._view.take(individual, evaluation.status, evaluation.metrics, evaluation.finished_at or 0.0)
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._shown, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: SearchEvent) -> None:
        """Takes in an event."""
        if isinstance(event, WorkerLost):
            self._view.lost += 1
        elif isinstance(event, Evaluated):
            better = self._view.take(event.individual, event.status, event.metrics, time.time())
            if self._live is None and (better or event.search.progress >= self._told + _EVERY):
                self._told = event.search.progress
                self._write(better)
        elif isinstance(event, SearchEnded) and self._live is not None:
            self._live.refresh()

    def _shown(self) -> RenderableType:
        search = self._search
        return self._view.shown(search.progress, search.elapsed, search.busy)

    def _write(self, better: bool) -> None:
        search, view = self._search, self._view
        line = f"{search.progress:>4.0%}  {', '.join([*view.done(), duration(search.elapsed)])}"
        if view.best:
            best, metrics = view.best[0]
            first = view.objectives[0][0]
            front = f"front of {len(view.best)}, " if len(view.objectives) > 1 else ""
            line += f"; {front}{'new ' * better}best {first} {figure(first, metrics[first])} (individual {best.id})"
        lines = wrapped(one_line(line), first=" " * (len(line) - len(line.lstrip())), then="      ")
        sys.stdout.write("\n".join([*lines, ""]))
        sys.stdout.flush()
