"""`population_based`: all members are trained in turns, and the worst make room for children of the best."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("population_based")
class PopulationBased(Algorithm):
    """Population-based training of architectures: a member that comes back among the worst is replaced by a child.

    Chebykin et al. 2023, "Shrink-Perturb Improves Architecture Mixing during Population Based Training for Neural
    Architecture Search". A child has a parent of the best, is crossed with another of these where the space can cross
    them, and mutated; its inherited weights are shrunk and perturbed where the space has `shake`. Steady-state: whoever
    comes back is judged at once, and nobody waits for a generation.
    """

    class Options(TypedOptions):
        """How many are trained, and which of them are the best and the worst.

        Attributes:
            population: How many are trained in turns.
            quarter: Which share of them are the best, and the worst.
        """

        population: Annotated[int, Field(ge=2)] = 12
        quarter: Annotated[float, Field(gt=0, le=0.5)] = 0.25

    trains_on = True
    moved = ("begun", "trained", "judged", "replaced")

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.population = Population()  # who came back last stands last; those replaced stay here
        self.told: dict[int, int] = {}  # by id, how often
        self.begun = 0
        self.trained: dict[str, int] = {}  # by id, what `told` was when it was sent to be trained on
        self.judged: dict[str, int] = {}  # by id, what `told` was when it was judged
        self.replaced: list[int] = []

    def ask(self) -> Proposal | None:
        """Returns a child where a member is missing or has to go; else the member that has waited longest."""
        members = [each for each in self.population if each.id not in self.replaced]
        if len(members) + self.begun - len(self.told) < self.options.population:
            return self._begin(members)
        idle = [each for each in members if self.told[each.id] != self.trained.get(str(each.id))]
        for each in idle:
            if self.judged.get(str(each.id)) == self.told[each.id]:
                continue
            self.judged[str(each.id)] = self.told[each.id]
            if each in self._worst(members):
                self.replaced.append(each.id)
                return self._begin([other for other in members if other is not each])
        if not idle:
            return None
        self.trained[str(idle[0].id)] = self.told[idle[0].id]
        return Proposal(again=idle[0].id, why="trained on in its turn")

    def tell(self, individual: Individual) -> None:
        """Takes the individual in as the one that came last, or lets it go where it failed."""
        if self.space.rooted and individual.id == 0:
            return
        self.told[individual.id] = self.told.get(individual.id, 0) + 1
        self.population.remove(individual)
        if individual.values is not None:
            self.population.add(individual)

    def living(self) -> Collection[int]:
        """Returns the members; and the root, in a space that has one."""
        members = [each.id for each in self.population if each.id not in self.replaced]
        return members + ([0] if self.space.rooted else [])

    def _begin(self, members: list[Individual]) -> Proposal | None:
        """Returns a child of one of the best, once the first members are out; before, a random genome."""
        proposal = self._child(members) if self.begun >= self.options.population and members else None
        proposal = proposal or self.fresh()
        self.begun += proposal is not None
        return proposal

    def _child(self, members: list[Individual]) -> Proposal | None:
        best = self._ranked(members)[: self._share]
        one, other = (self.chance.choice(best) for _ in range(2))
        child = self.crossed(one, other, f"of the best {len(best)}")
        if child is None or self.space.shake is None:
            return child
        return replace(child, edits=(*child.edits, self.space.shake))

    def _worst(self, members: list[Individual]) -> list[Individual]:
        """Who has to go. Children that are out for the first time count among the worst, lest everybody be replaced."""
        best = self.options.population - self._share
        return self._ranked(members)[best:]

    @property
    def _share(self) -> int:
        return max(1, int(self.options.population * self.options.quarter))

    def _ranked(self, members: list[Individual]) -> list[Individual]:
        return sorted(members, key=lambda each: (-each.value, each.id))
