"""What can be searched: genomes, and the edits that lead from one to the next. Knows no torch."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Evaluator, Setup
from evolve.registry import Registered, Registry, TypedOptions

spaces: Registry[type[Space]] = Registry("search space", "evolve.spaces")


class Space(Registered, ABC):
    """A set of genomes, each known by a small JSON value, its code.

    Args:
        **options: Its own.

    Attributes:
        name: Registered name.
        Options: Typed options.
        rooted: Whether all genomes grow out of one, which is evaluated before anything else.
        shake: An edit that leaves the structure as it is and renews inherited weights in part (shrink and perturb);
            None where the space has none.
        trains: Whether evaluating an individual again trains it on, so that the last evaluation counts; else each is
            another look at the same, and their mean counts.
    """

    Options: ClassVar[type[TypedOptions]] = TypedOptions
    rooted: ClassVar[bool] = False
    shake: ClassVar[Edit | None] = None
    trains: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.read(options)

    @abstractmethod
    def draw(self, chance: random.Random) -> Proposal:
        """Returns a random genome: what random search evaluates, and what populations begin with."""

    @abstractmethod
    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns every edit that leads from an individual to a neighbour, always in the same order."""

    @abstractmethod
    def code(self, code: Any, edits: Sequence[Edit]) -> Any:
        """Returns the code of what edits make of the genome that has this code."""

    def key(self, code: Any) -> str | None:
        """Returns the key of a structure, the same for two that are isomorphic; None where it has to be built first."""
        return None

    @abstractmethod
    def features(self, code: Any) -> list[float]:
        """Returns numbers by which two genomes are alike, always as many; for models of the fitness."""

    def descriptors(self, code: Any) -> list[float]:
        """Returns the few numbers over which `map_elites` lays its cells; the first two features unless overridden."""
        return self.features(code)[:2]

    def cross(self, one: Individual, other: Individual, chance: random.Random) -> Proposal | None:
        """Returns a child of two, before it is mutated; None where these cannot be crossed soundly."""
        return None

    @abstractmethod
    def evaluator(self, setup: Setup) -> Evaluator:
        """Returns what makes genomes and evaluates them, in a worker."""
