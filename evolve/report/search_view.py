"""How a search stands, for a terminal: what was evaluated, how fast, and the best so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evolve.population.individual import Individual
from evolve.population.objectives import COSTS, dominates
from evolve.report.printable import one_line
from evolve.training.eta import duration
from evolve.training.lines import compact

_SHOWN = 10  # of the best
_WINDOW = 60.0  # seconds over which the throughput is taken


@dataclass
class SearchView:
    """Takes in what is evaluated, and shows how the search stands.

    Attributes:
        objectives: Metric and mode of each, the most important first.
        budget: Unit and amount.
        workers: How many there are.
        counts: Of evaluations by what became of them.
        lost: Workers that were.
        best: The best few with their metrics, or all that no other one dominates.
    """

    objectives: Sequence[tuple[str, str]]
    budget: tuple[str, float]
    workers: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    best: list[tuple[Individual, Mapping[str, float]]] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=deque)

    def take(self, individual: Individual, status: str, metrics: Mapping[str, float], at: float) -> bool:
        """Takes in an evaluation; returns whether it is the best so far.

        Args:
            individual: As it stands after it.
            status: What became of it.
            metrics: What was measured.
            at: Seconds, of any clock.
        """
        self.counts[status] += 1
        if status not in ("done", "failed"):
            return False
        self._recent.append(at)
        while self._recent[0] < at - _WINDOW:
            self._recent.popleft()
        if status != "done" or individual.values is None:
            return False
        first = self.best[0][0].id if self.best else None
        others = [(each, found) for each, found in self.best if each.id != individual.id]
        if len(self.objectives) > 1:
            mine = individual.values
            beaten = any(dominates(each.values or (), mine) or each.values == mine for each, _ in others)
            kept = [(each, found) for each, found in others if not dominates(mine, each.values or ())]
            others = others if beaten else [*kept, (individual, metrics)]
        else:
            others.append((individual, metrics))
        others.sort(key=lambda one: (-one[0].value, one[0].id))
        self.best = others if len(self.objectives) > 1 else others[:_SHOWN]
        return bool(self.best) and self.best[0][0].id == individual.id != first

    @property
    def evaluated(self) -> int:
        """Evaluations that count."""
        return self.counts["done"] + self.counts["failed"]

    def rate(self) -> float | None:
        """Evaluations a minute lately; None before there are two."""
        if len(self._recent) < 2 or self._recent[-1] == self._recent[0]:
            return None
        return 60 * (len(self._recent) - 1) / (self._recent[-1] - self._recent[0])

    def shown(self, progress: float, elapsed: float, busy: int | None = None) -> RenderableType:
        """Returns it as something that rich prints.

        Args:
            progress: Which part of the budget is spent.
            elapsed: Seconds that the search has taken.
            busy: Workers that are at work; None where that is not known.
        """
        head = Table.grid(padding=(0, 2))
        told = Text(f"{progress:.0%} of {budget_words(*self.budget)}")
        head.add_row(told, ProgressBar(total=1.0, completed=progress, width=30))
        return Group(head, Text(self.line(elapsed, busy)), *([self.table()] if self.best else []))

    def line(self, elapsed: float, busy: int | None = None) -> str:
        """Says in a line what was done."""
        rate, workers = self.rate(), counted(self.workers, "worker")
        parts = self.done()
        parts += [f"{rate:,.{int(rate < 100)}f} a minute"] if rate else []
        parts += [f"{busy} of {workers} busy" if busy is not None else workers]
        return ", ".join([*parts, duration(elapsed)])

    def done(self) -> list[str]:
        """Says what came of the evaluations, and how many workers were lost."""
        others = [name for name in ("failed", "duplicate", "refused") if self.counts[name]]
        lost = [f"{counted(self.lost, 'worker')} lost"] if self.lost else []
        return [f"{self.evaluated:,} evaluated", *(f"{self.counts[name]:,} {name}" for name in others), *lost]

    def table(self) -> Table:
        """Returns the best, one a row."""
        names = self.columns()
        table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
        table.title = f"Front of {len(self.best)}" if len(self.objectives) > 1 else "Best so far"
        for heading in ("id", *names, "edits", "parents"):
            justify: Literal["left", "right"] = "left" if heading in ("edits", "parents") else "right"
            table.add_column(Text(one_line(heading)), justify=justify)
        for each, metrics in self.best[:_SHOWN]:
            edits = " ".join(edit.operator for edit in each.edits) or ("the first" if not each.parents else "")
            figures = [figure(name, metrics[name]) if name in metrics else "" for name in names]
            table.add_row(str(each.id), *figures, Text(one_line(edits)), " ".join(map(str, each.parents)))
        if len(self.best) > _SHOWN:
            table.add_row("…", *[""] * len(names), f"and {len(self.best) - _SHOWN} more", "")
        return table

    def columns(self) -> list[str]:
        """Returns what is shown of each: the objectives, then what it costs."""
        sought = [name for name, _ in self.objectives]
        measured = {name for _, metrics in self.best for name in metrics}
        return [*sought, *(name for name in COSTS if name in measured and name not in sought)]


def counted(count: int, noun: str) -> str:
    """Returns "1 worker", "2 workers"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def budget_words(unit: str, amount: float) -> str:
    """Returns a budget as it is told: "40 evaluations", "5m00s"."""
    if unit == "seconds":
        return duration(amount)
    return one_line(counted(int(amount), unit.removesuffix("s")))


def figure(name: str, value: float) -> str:
    """Returns a metric as it is shown."""
    if name in ("params", "flops"):
        return compact(value)
    if name == "latency":
        return f"{1000 * value:.3g} ms"
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"
