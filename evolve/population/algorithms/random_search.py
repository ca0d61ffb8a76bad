"""`random`: the control that every search has to beat."""

from __future__ import annotations

from collections.abc import Collection

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Proposal


@algorithms.register("random")
class RandomSearch(Algorithm):
    """Evaluates random genomes, no structure twice (Li and Talwalkar 2019 show how hard it is to beat)."""

    def ask(self) -> Proposal | None:
        """Returns a random genome."""
        return self.fresh()

    def tell(self, individual: Individual) -> None:
        """Learns nothing."""

    def living(self) -> Collection[int]:
        """Nobody has children but the root, in a space that has one."""
        return [0] if self.space.rooted else []
