"""The space of networks that grow out of one by mutation operators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PositiveInt

from evolve.population.breeding import Breeder
from evolve.population.editing import SHRINK
from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Evaluator, Setup
from evolve.population.space import Space, spaces
from evolve.registry import TypedOptions


@spaces.register("networks")
class Networks(Space):
    """All that mutation operators make of a model.

    An edit is an operator and a region of the model, by depth; at which of the region's sites it is made is drawn where
    the child is. The code of a network counts the edits of each kind that lie between it and the first one: as two of
    them can lead to many structures, the key of a structure is known when it has been built.
    """

    rooted = True
    trains = True
    shake = SHRINK

    class Options(TypedOptions):
        """What the operators are called, how many regions there are, and the most edits of a random network."""

        operators: tuple[str, ...]
        regions: PositiveInt = 3
        walk: PositiveInt = 3

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        regions = range(1, self.options.regions + 1)
        self._edits = [Edit(operator, str(region)) for operator in self.options.operators for region in regions]

    def draw(self, chance: random.Random) -> Proposal:
        """Returns a child of the first network with one to some edits."""
        edits = tuple(chance.choice(self._edits) for _ in range(chance.randint(1, self.options.walk)))
        return Proposal((0,), edits, self.code({}, edits), why="drawn at random")

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every operator in every region; whether it has a site there is found where the child is made."""
        return self._edits

    def code(self, code: Any, edits: Sequence[Edit]) -> dict[str, int]:
        """Returns the counts with those of the edits."""
        return counted(code or {}, [edit for edit in edits if edit.operator in self.options.operators])

    def features(self, code: Any) -> list[float]:
        """Returns how many edits of each kind there are, after a constant."""
        return [1.0, *(float((code or {}).get(name_of(edit), 0)) for edit in self._edits)]

    def descriptors(self, code: Any) -> list[float]:
        """Returns how many edits there are in all, and how many of the first operator."""
        counts = code or {}
        first = [count for name, count in counts.items() if name.partition("@")[0] == self.options.operators[0]]
        return [float(sum(counts.values())), float(sum(first))]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal | None:
        """Returns the first one, with its weights, and what the other has been edited by beside.

        Only structure is taken of the other: its edits are made anew, where their places are there, and keep the
        function as these operators do. Weights of two networks that were trained apart are never mixed.
        """
        more = {name: count for name, count in (other.code or {}).items() if count > (one.code or {}).get(name, 0)}
        if one.id == other.id or not more:
            return None
        return Proposal((one.id, other.id), (), {**(one.code or {}), **more}, why="edits of both parents")

    def evaluator(self, setup: Setup) -> Evaluator:
        """Returns what makes and trains networks."""
        return Breeder.from_setup(setup)


def name_of(edit: Edit) -> str:
    """What an edit is called among counts, such as "widen@2"."""
    return f"{edit.operator}@{edit.where}"


def counted(code: Mapping[str, int], edits: Sequence[Edit]) -> dict[str, int]:
    """Returns counts with those of more edits."""
    found = dict(code)
    for edit in edits:
        found[name_of(edit)] = found.get(name_of(edit), 0) + 1
    return found
