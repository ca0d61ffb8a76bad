"""`elitist`: the best few are parents. The default."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("elitist")
class Elitist(Algorithm):
    """A steady-state (mu + 1) evolution: parents win tournaments, and of mu + 1 the worst goes.

    In contrast to aging evolution, who is best stays. (Smith 1980 and Whitley 1989 introduced the scheme.)
    """

    class Options(TypedOptions):
        """How many live, and how strongly the best are preferred.

        Attributes:
            population: How many live.
            tournament: How many of them are drawn, of whom the best becomes a parent.
        """

        population: PositiveInt = 10
        tournament: PositiveInt = 3

    moved = ("begun",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.population = Population()
        self.begun = 0

    def ask(self) -> Proposal | None:
        """Returns a random genome while the population is small, then a child of who wins a tournament."""
        if self.begun < self.options.population or not len(self.population):
            self.begun += 1
            return self.fresh()
        chosen = self.chance.sample(list(self.population), min(self.options.tournament, len(self.population)))
        parent = max(chosen, key=lambda each: each.value)
        return self.child(parent, f"won a tournament of {len(chosen)}") or self.fresh()

    def tell(self, individual: Individual) -> None:
        """Takes the individual in, and lets the worst go."""
        if individual.values is None:
            self.population.remove(individual)
            return
        self.population.add(individual)
        if len(self.population) > self.options.population:
            self.population.remove(self.population.worst())

    def living(self) -> Collection[int]:
        """Returns the population; and the root, in a space that has one, whom random genomes grow out of."""
        return [each.id for each in self.population] + ([0] if self.space.rooted else [])
