"""Deletes weights that nobody needs any more, while workers write others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from evolve.population.archive import Archive
from evolve.population.blobs import BlobFolder
from evolve.population.orders import Work
from evolve.population.planner import Planner


@dataclass
class Collector:
    """Knows which weights were dropped: those of individuals that no longer live, and those that later ones replaced.

    Args:
        archive: Says who has which.
        blobs: Where they lie.
        planner: Says who lives.
    """

    archive: Archive
    blobs: BlobFolder
    planner: Planner
    _dropped: set[str] = field(default_factory=set)

    def drop(self, names: Iterable[str]) -> None:
        """Takes note of blobs that an individual no longer has."""
        self._dropped.update(names)

    def collect(self, out: Iterable[Work]) -> None:
        """Deletes what was dropped, unless somebody else has it, or what is out was told to read it."""
        living = self.planner.living()
        self._dropped.update(self.archive.release(living))
        self.planner.gone |= self.planner.individuals.keys() - living
        asked = {name for work in out for name in work.order["weights"]}
        self.blobs.delete(self._dropped - asked - self.archive.held())
        self._dropped &= asked

    def collect_all(self) -> None:
        """Deletes all that nobody has, such as what a killed worker has left. No worker may be running."""
        self.blobs.collect(self.archive.held())
