"""`mu_plus_lambda`: generations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("mu_plus_lambda")
class MuPlusLambda(Algorithm):
    """A (mu + lambda) evolution strategy: of the parents and all children of a generation the best mu live on.

    Beyer and Schwefel 2002, "Evolution Strategies: A Comprehensive Introduction". Workers wait for the last child of a
    generation; `elitist` and `nsga2` let none wait.
    """

    class Options(TypedOptions):
        """How many live, how many children a generation has, and how many of these have two parents.

        Attributes:
            population: How many live on (mu); the first generation has as many, all random.
            children: Children of each generation (lambda).
            crossover: Share of children that two parents are crossed for, where the space can cross them.
        """

        population: PositiveInt = 10
        children: PositiveInt = 10
        crossover: Annotated[float, Field(ge=0, le=1)] = 0.0

    moved = ("asked",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.population = Population()
        self.newborn = Population()
        self.asked = 0
        self._told: set[int] = set()

    def ask(self) -> Proposal | None:
        """Returns a child of parents drawn with equal chances; None when the generation is out as a whole."""
        if self.asked >= self._size(len(self._told)):
            return None
        proposal = self._child() if self.asked >= self.options.population and len(self.population) else self.fresh()
        self.asked += proposal is not None
        return proposal

    def tell(self, individual: Individual) -> None:
        """Takes the individual in; with the last one of a generation, the best live on."""
        for group in (self.population, self.newborn):
            if individual.id in group.members:  # evaluated once more
                group.add(individual) if individual.values is not None else group.remove(individual)
                return
        if individual.id in self._told:
            return
        if individual.values is not None:
            self.newborn.add(individual)
        if self.space.rooted and individual.id == 0:
            return
        before = self._size(len(self._told))
        self._told.add(individual.id)
        if len(self._told) == before:
            self._select()

    def living(self) -> Collection[int]:
        """Returns parents and children; and the root, in a space that has one."""
        return [*self.population.members, *self.newborn.members, *([0] if self.space.rooted else [])]

    def _size(self, told: int) -> int:
        """How many individuals all generations have together, up to the one that is being evaluated."""
        first: int = self.options.population
        more: int = self.options.children
        return first if told < first else first + more * (1 + (told - first) // more)

    def _select(self) -> None:
        for individual in self.newborn:
            self.population.add(individual)
        self.newborn = Population()
        while len(self.population) > self.options.population:
            self.population.remove(self.population.worst())

    def _child(self) -> Proposal | None:
        parents = list(self.population)
        one = self.chance.choice(parents)
        if self.chance.random() < self.options.crossover:
            return self.crossed(one, self.chance.choice(parents), "drawn of the parents") or self.fresh()
        return self.child(one, "drawn of the parents") or self.fresh()
