"""`regularized`: aging evolution, in which the oldest goes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pydantic import PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("regularized")
class Regularized(Algorithm):
    """Regularized evolution: the best of a sample becomes a parent, and whenever a child comes the oldest goes.

    Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search". There 100 live and 25 are drawn,
    for 20,000 evaluations; the defaults are those of NATS-Bench (Dong et al. 2021), for some hundred.
    """

    class Options(TypedOptions):
        """How many live, how many are drawn, and how children are made.

        Attributes:
            population: How many live.
            sample: How many of them are drawn, of whom the best becomes a parent.
            as_published: Whether a structure that was evaluated may come again, and every single edit has the same
                chance, whatever its operator.
        """

        population: PositiveInt = 10
        sample: PositiveInt = 3
        as_published: bool = False

    moved = ("begun",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.population = Population()
        self.begun = 0
        self._told: set[int] = set()

    def ask(self) -> Proposal | None:
        """Returns a random genome while the population is small, then a child of the best of a sample."""
        if self.begun < self.options.population or not len(self.population):
            self.begun += 1
            return self._random()
        chosen = self.chance.sample(list(self.population), min(self.options.sample, len(self.population)))
        parent = max(chosen, key=lambda each: each.value)
        why = f"the best of a sample of {len(chosen)}"
        if not self.options.as_published:
            return self.child(parent, why) or self._random()
        edits = self.space.edits(parent)
        if not edits:
            return self._random()
        edit = self.chance.choice(edits)
        return Proposal((parent.id,), (edit,), self.space.code(parent.code, [edit]), known=True, why=why)

    def tell(self, individual: Individual) -> None:
        """Takes the individual in, and lets the oldest go."""
        if individual.values is None:
            self.population.remove(individual)
        elif individual.id not in self._told or individual.id in self.population.members:  # the dead stay dead
            self.population.add(individual)
        self._told.add(individual.id)
        if len(self.population) > self.options.population:
            self.population.remove(self.population.oldest())

    def living(self) -> Collection[int]:
        """Returns the population; and the root, in a space that has one."""
        return [each.id for each in self.population] + ([0] if self.space.rooted else [])

    def _random(self) -> Proposal | None:
        if self.options.as_published:
            return replace(self.space.draw(self.chance), known=True)
        return self.fresh()
