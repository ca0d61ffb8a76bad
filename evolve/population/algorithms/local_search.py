"""`local_search`: up the hill, and on to another one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space


@algorithms.register("local_search")
class LocalSearch(Algorithm):
    """First improvement: goes on from the first neighbour that is better, and begins anew where none is.

    White et al. 2021, "Exploring the Loss Landscape in Neural Architecture Search", found it hard to beat where
    evaluations are little noisy. In a rooted space the first climb begins at the root.
    """

    moved = ("since",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.found: dict[int, Individual] = {}
        self.since = 0  # how many had been found when the climb began

    def ask(self) -> Proposal | None:
        """Returns an untried neighbour of where the climb stands; a random genome where there is none left."""
        current = self._current()
        if current is None:
            return self.fresh()
        left = self.neighbours(Proposal((current.id,), (), current.code, why="next to the best of this climb"))
        if left:
            return self.drawn(left)
        self.since = len(self.found)
        return self.fresh()

    def tell(self, individual: Individual) -> None:
        """Takes note of the individual as it was found first."""
        if individual.values is not None:
            self.found.setdefault(individual.id, individual)

    def living(self) -> Collection[int]:
        """Returns where the climb stands; and the root, in a space that has one."""
        current = self._current()
        return ([current.id] if current else []) + ([0] if self.space.rooted else [])

    def _current(self) -> Individual | None:
        """Where the climb stands. What a former one still finds is followed only if it beats everything before it."""
        found = list(self.found.values())
        record = max((each.value for each in found[: self.since]), default=float("-inf"))
        current: Individual | None = None
        climb: set[int] = set()
        for each in found[self.since :]:
            start = not each.parents or (self.space.rooted and each.parents == (0,))
            if not (start or each.parents[0] in climb or each.value > record):
                continue
            climb.add(each.id)
            if current is None or each.value > current.value:
                current = each
        return current
