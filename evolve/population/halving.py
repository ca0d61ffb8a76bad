"""Which children are trained longer: the best of each rung."""

from __future__ import annotations

from dataclasses import dataclass, field

from evolve.population.individual import Individual


@dataclass
class Halving:
    """Asynchronous successive halving (Li et al. 2020): of each rung the best few are trained some times longer.

    Args:
        factor: Of whom one is promoted, and by how much longer it has been trained then.
        rungs: Promotions that a child can get.
    """

    factor: int = 3
    rungs: int = 2
    _found: list[dict[int, float]] = field(default_factory=list)

    def tell(self, individual: Individual) -> None:
        """Takes note of what an individual was worth when it came to its rung; what it does later is another matter."""
        while len(self._found) <= individual.rung:
            self._found.append({})
        self._found[individual.rung].setdefault(individual.id, individual.value)

    def promote(self, out: set[int]) -> int | None:
        """Returns the id of one to be trained longer, of the highest rung that has one; None where there is none.

        Args:
            out: Those that are being evaluated.
        """
        waiting = self.waiting()
        for rung in reversed(range(min(self.rungs, len(self._found)))):
            found = self._found[rung]
            best = sorted(found, key=lambda each: (-found[each], each))[: len(found) // self.factor]
            for each in best:
                if each in waiting and not self._above(each, rung) and each not in out:
                    return each
        return None

    def waiting(self) -> set[int]:
        """Returns the ids of those that may still be promoted."""
        found = set()
        for rung, values in enumerate(self._found[: self.rungs]):
            best = sorted(values, key=lambda each: (-values[each], each))[: max(1, len(values) // self.factor)]
            found |= {each for each in best if not self._above(each, rung)}
        return found

    def steps(self, rung: int, steps: int) -> int:
        """Returns for how many steps a child is trained to come to a rung, when its first training has `steps`."""
        return steps if rung == 0 else steps * (self.factor**rung - self.factor ** (rung - 1))

    def _above(self, each: int, rung: int) -> bool:
        return any(each in values for values in self._found[rung + 1 :])
