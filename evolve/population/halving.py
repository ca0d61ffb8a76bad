"""Which children are trained longer: the best of each rung."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass, field

from evolve.population.individual import Individual

_MARGIN = 2  # who may still be promoted: so many times more than those that could be by now


@dataclass
class _Rung:
    """Who came to a rung, the best first, and what became of them."""

    order: list[tuple[float, int]] = field(default_factory=list)  # (-value, id)
    seen: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)  # promoted, failed, or let go for good

    def best(self, count: int) -> list[int]:
        return [each for _, each in self.order[:count]]


@dataclass
class Halving:
    """Asynchronous successive halving (Li et al. 2020): of each rung the best few are trained some times longer.

    Who has fallen far behind is let go, so that its weights can be deleted, and is not promoted later on, when so many
    have come that it would be among the best again.

    Args:
        factor: Of whom one is promoted, and by how much longer it has been trained then.
        rungs: Promotions that a child can get.
    """

    factor: int = 3
    rungs: int = 2
    _rungs: list[_Rung] = field(default_factory=list)

    def tell(self, individual: Individual) -> None:
        """Takes note of what an individual was worth when it came to its rung; what it does later is another matter."""
        while len(self._rungs) <= individual.rung:
            self._rungs.append(_Rung())
        for rung in self._rungs[: individual.rung if individual.values else None]:
            rung.gone.add(individual.id)  # it has risen above these; one that failed is promoted from nowhere
        rung = self._rungs[individual.rung]
        if individual.values is None or individual.id in rung.seen:
            return
        rung.seen.add(individual.id)
        place = (-individual.value, individual.id)
        insort(rung.order, place)
        kept = self._kept(rung)
        rung.gone.update(each for _, each in rung.order[kept : kept + 1])  # pushed out by it
        if place > rung.order[min(kept, len(rung.order)) - 1]:
            rung.gone.add(individual.id)

    def promote(self, out: Collection[int]) -> int | None:
        """Returns the id of one to be trained longer, of the highest rung that has one; None where there is none.

        Args:
            out: Those that are being evaluated.
        """
        for rung in reversed(self._rungs[: self.rungs]):
            for each in rung.best(len(rung.order) // self.factor):
                if each not in rung.gone and each not in out:
                    return each
        return None

    def waiting(self) -> set[int]:
        """Returns the ids of those that may still be promoted."""
        rungs = self._rungs[: self.rungs]
        return {each for rung in rungs for each in rung.best(self._kept(rung)) if each not in rung.gone}

    def times(self, rung: int) -> float:
        """Returns for how many first trainings' length a child is trained to come to a rung from the one below."""
        return float(self.factor**rung - self.factor ** (rung - 1)) if rung else 1.0

    def _kept(self, rung: _Rung) -> int:
        return max(self.factor, _MARGIN * len(rung.order) // self.factor)
