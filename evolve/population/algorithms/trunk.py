"""`trunk`: one network is trained all the time, and a child that is better after the same training takes its place."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("trunk")
class Trunk(Algorithm):
    """A (1 + lambda) evolution strategy in which the parent is trained on beside its children.

    Who inherits weights and is trained a little more is better than its parent was, whatever was changed. So each round
    the trunk is trained on for as long as its children, all from the weights that it had before, and the best of them
    is the next trunk. At least one training in `children` + 1 is part of its history. Workers wait for the last of a
    round. (Hill climbing by network morphisms: Elsken et al. 2017, where the unchanged network is among the children.)
    """

    class Options(TypedOptions):
        """How many children a round has.

        Attributes:
            children: Children of each round (lambda).
        """

        children: PositiveInt = 1

    trains_on = True
    moved = ("asked",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.trunk: Individual | None = None
        self.newborn = Population()
        self.asked = 0
        self.told = 0

    def ask(self) -> Proposal | None:
        """Returns the children of a round, then the trunk itself; None while the last of them are out."""
        begun = self.told - self.told % self._round
        self.asked = max(self.asked, begun)  # it was told of what others had trained on
        place = self.asked - begun
        if place == self._round:
            return None
        proposal = self._next(place)
        self.asked += proposal is not None
        return proposal

    def tell(self, individual: Individual) -> None:
        """Takes the individual in; with the last one of a round, the best becomes the trunk."""
        if self.space.rooted and individual.id == 0 and self.trunk is None and not self.told:
            self.trunk = individual if individual.values is not None else None
            return
        self.told += 1
        if self.trunk is not None and individual.id == self.trunk.id:
            self.trunk = individual
        elif individual.values is not None:
            self.newborn.add(individual)
        if self.told % self._round == 0:
            grown = [*([self.trunk] if self.trunk else []), *self.newborn]
            self.trunk = max(grown, key=lambda each: (each.value, -each.id), default=None)
            self.newborn = Population()

    def living(self) -> Collection[int]:
        """Returns the trunk and its children; and the root, in a space that has one."""
        trunk = [self.trunk.id] if self.trunk else []
        return [*trunk, *self.newborn.members, *([0] if self.space.rooted else [])]

    @property
    def _round(self) -> int:
        return 1 + int(self.options.children)

    def _next(self, place: int) -> Proposal | None:
        if self.trunk is None:
            return self.fresh()
        if place == self.options.children:  # the last one: its children have taken its weights by then
            return Proposal(again=self.trunk.id, why="trained on for as long as its children")
        return self.child(self.trunk, "of the trunk") or self.fresh()
