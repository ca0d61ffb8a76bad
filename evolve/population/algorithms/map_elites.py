"""`map_elites`: the best of every kind."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, Literal

from pydantic import PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.individual import Individual, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions

_FIRST = 10  # individuals by which the cells are laid first; again whenever they have doubled

Cell = tuple[int, ...]


@algorithms.register("map_elites")
class MapElites(Algorithm):
    """MAP-Elites: a grid over what individuals are like, of which every cell keeps its best; all of them are parents.

    Mouret and Clune 2015, "Illuminating Search Spaces by Mapping Elites". Where the bounds of cells lie is not known
    beforehand, so that they follow the quantiles of what was found (as Fontaine et al. 2019 have it).
    """

    class Options(TypedOptions):
        """What the grid is laid over, and how fine it is.

        Attributes:
            over: "space" for the descriptors of the search space, such as counts of what genomes are made of;
                "objectives" for all objectives but the first, such as costs.
            cells: Cells along each of them.
            random: Random genomes at the beginning.
        """

        over: Literal["space", "objectives"] = "space"
        cells: PositiveInt = 6
        random: PositiveInt = 10

    multi_objective = True
    moved = ("begun",)

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.elites: dict[Cell, Individual] = {}
        self.begun = 0
        self._bounds: list[list[float]] = []
        self._seen: list[list[float]] = []

    def ask(self) -> Proposal | None:
        """Returns a random genome at the beginning, then a child of any elite."""
        if self.begun < self.options.random or not self.elites:
            self.begun += 1
            return self.fresh()
        cell, parent = self.chance.choice(list(self.elites.items()))
        return self.child(parent, f"the best of cell {cell}") or self.fresh()

    def tell(self, individual: Individual) -> None:
        """Puts the individual into its cell, if it is the best there."""
        self.elites = {cell: each for cell, each in self.elites.items() if each.id != individual.id}
        if individual.values is None:
            return
        self._seen.append(self._descriptors(individual))
        count = len(self._seen)
        if count >= _FIRST and count % _FIRST == 0 and (count // _FIRST).bit_count() == 1:
            self._lay()
        self._place(individual)

    def living(self) -> Collection[int]:
        """Returns the elites; and the root, in a space that has one."""
        return [each.id for each in self.elites.values()] + ([0] if self.space.rooted else [])

    def _descriptors(self, individual: Individual) -> list[float]:
        if self.options.over == "objectives":
            return list((individual.values or ())[1:])
        return self.space.descriptors(individual.code)

    def _place(self, individual: Individual) -> None:
        found = self._descriptors(individual)
        cell = tuple(
            bisect_right(bounds, each) for bounds, each in zip(self._bounds or [[]] * len(found), found, strict=True)
        )
        if cell not in self.elites or individual.value > self.elites[cell].value:
            self.elites[cell] = individual

    def _lay(self) -> None:
        """Lays the cells anew; of elites that meet in one the best stays."""
        self._bounds = [quantiles(values, self.options.cells) for values in zip(*self._seen, strict=True)]
        elites, self.elites = self.elites, {}
        for each in elites.values():
            self._place(each)


def quantiles(values: Sequence[float], parts: int) -> list[float]:
    """Returns the bounds that cut values into parts that hold about as many each; fewer where many are equal."""
    ordered = sorted(values)
    return sorted({ordered[len(ordered) * part // parts] for part in range(1, parts)} - {ordered[0]})
