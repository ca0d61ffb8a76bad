"""`nsga2`: several objectives at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.objectives import preferred
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("nsga2")
class Nsga2(Algorithm):
    """NSGA-II: earlier fronts before later ones, and within a front who stands alone before who stands in a crowd.

    Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", in its steady-state form (Durillo
    et al. 2009): whenever a child comes, one of the last front goes, so that no worker waits for a generation.
    """

    class Options(TypedOptions):
        """How many live, and how many children have two parents.

        Attributes:
            population: How many live.
            crossover: Share of children that two parents are crossed for, where the space can cross them.
        """

        population: PositiveInt = 20
        crossover: Annotated[float, Field(ge=0, le=1)] = 0.0

    multi_objective = True
    moved = ("begun",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.population = Population()
        self.begun = 0
        self._order: list[int] = []  # ids, who is preferred first

    def ask(self) -> Proposal | None:
        """Returns a random genome while the population is small, then a child of who wins a tournament of two."""
        if self.begun < self.options.population or not len(self.population):
            self.begun += 1
            return self.fresh()
        one = self._winner()
        why = "won a tournament of two by front and crowding"
        if self.chance.random() < self.options.crossover:
            return self.crossed(one, self._winner(), why) or self.fresh()
        return self.child(one, why) or self.fresh()

    def tell(self, individual: Individual) -> None:
        """Takes the individual in, and lets one of the last front go."""
        if individual.values is None:
            self.population.remove(individual)
        else:
            self.population.add(individual)
        self._order = preferred(list(self.population))
        if len(self.population) > self.options.population:
            self.population.remove(self.population.members[self._order.pop()])

    def living(self) -> Collection[int]:
        """Returns the population; and the root, in a space that has one."""
        return [*self.population.members, *([0] if self.space.rooted else [])]

    def _winner(self) -> Individual:
        places = [self.chance.randrange(len(self._order)) for _ in range(2)]
        return self.population.members[self._order[min(places)]]
