"""All individuals of a search as they stand, what was measured of them, and what each operator paid."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from evolve.population.archive import Archive
from evolve.population.individual import Individual


@dataclass
class History:
    """A search so far.

    Attributes:
        members: Individuals by id, as they were told last.
        metrics: What their last evaluation measured.
        first_values: The first objective, larger is better, after the first evaluation.
        statuses: What became of the first evaluation.
        ended: Why evaluations came to nothing, with how often.
        make_seconds: Of making children; likewise `train_seconds`.
    """

    members: dict[int, Individual] = field(default_factory=dict)
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    first_values: dict[int, float] = field(default_factory=dict)
    statuses: dict[int, str] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    make_seconds: float = 0.0
    train_seconds: float = 0.0

    @classmethod
    def read(cls, archive: Archive) -> History:
        """Reads it from an archive."""
        found = cls()
        for evaluation, individual in archive.finished():
            found.members[individual.id] = individual
            found.statuses.setdefault(individual.id, evaluation.status)
            found.make_seconds += evaluation.make_seconds
            found.train_seconds += evaluation.train_seconds
            if evaluation.status == "done":
                found.metrics[individual.id] = evaluation.metrics
                found.first_values.setdefault(individual.id, individual.value)
            elif evaluation.status in ("failed", "refused"):
                found.ended[f"{evaluation.status}: {evaluation.ended}"] += 1
        return found

    def reasons(self) -> list[tuple[int, str]]:
        """Returns why evaluations came to nothing, most frequent first; of those that differ in figures, one."""
        alike: dict[str, list[str]] = defaultdict(list)
        for why in self.ended:
            alike[re.sub(r"\d[\d.e+-]*", "#", why)].append(why)
        counted = [(sum(self.ended[why] for why in found), found[0]) for found in alike.values()]
        return sorted(counted, key=lambda pair: -pair[0])


@dataclass
class OperatorPaid:
    """What came of the children that an operator made.

    Attributes:
        operator: Its name.
        gains: Of the first objective over the parent's, each after its first evaluation; larger is better.
        none: Children that were not made, or known already.
    """

    operator: str
    gains: list[float] = field(default_factory=list)
    none: int = 0

    @property
    def better(self) -> str:
        """Share of the children that were better than their parent."""
        return f"{sum(gain > 0 for gain in self.gains) / len(self.gains):.0%}" if self.gains else ""

    @property
    def median_gain(self) -> float | None:
        """The median of the gains; None where there are none."""
        return median(self.gains) if self.gains else None


def paid(history: History) -> list[OperatorPaid]:
    """Returns for each operator how often it made a child, and how often that was better than its parent."""
    found: dict[str, OperatorPaid] = {}
    for each, member in history.members.items():
        if not member.parents or not member.edits:
            continue
        for operator in dict.fromkeys(edit.operator for edit in member.edits):
            one = found.setdefault(operator, OperatorPaid(operator))
            one.none += history.statuses[each] in ("duplicate", "refused")
            mine, parents = history.first_values.get(each), history.first_values.get(member.parents[0])
            if mine is not None and parents is not None:
                one.gains.append(mine - parents)
    return [found[operator] for operator in sorted(found)]
