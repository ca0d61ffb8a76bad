"""What is sought: metrics and costs, and which individuals are best where there are several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from typing import Literal

from evolve.population.individual import Individual

COSTS = ("params", "flops", "latency")


@dataclass(frozen=True)
class Objective:
    """One thing that is sought.

    Attributes:
        metric: A metric of the task, such as "val_accuracy", or a cost: "params", "flops" (of one sample's forward
            pass) or "latency" (seconds of the forward pass of one sample).
        mode: Which way is better.
    """

    metric: str
    mode: Literal["min", "max"]

    def value(self, metrics: Mapping[str, float]) -> float:
        """Returns what was measured as a value of which more is better; minus infinity for NaN.

        Raises:
            KeyError: If it was not measured.
        """
        found = metrics[self.metric]
        if math.isnan(found):
            return -math.inf
        return found if self.mode == "max" else -found


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is at least as good in everything, and better in something."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def front(individuals: Sequence[Individual]) -> list[Individual]:
    """Returns those that no other dominates, the best by the first objective first; of equals the first."""
    return fronts(individuals)[0] if any(each.values for each in individuals) else []


def fronts(individuals: Sequence[Individual]) -> list[list[Individual]]:
    """Sorts individuals that have values into fronts: each is dominated by the ones before alone (Deb et al. 2002)."""
    left = sorted(
        (each for each in individuals if each.values), key=lambda each: (*(-v for v in each.values or ()), each.id)
    )
    found = []
    while left:
        best: list[Individual] = []
        rest: list[Individual] = []
        for each in left:  # who comes later in this order dominates nobody who came before
            beaten = any(all(map(ge, b.values or (), each.values or ())) for b in best)
            (rest if beaten else best).append(each)
        found.append(best)
        left = rest
    return found


def preferred(individuals: Sequence[Individual]) -> list[int]:
    """Returns ids in the crowded-comparison order of NSGA-II (Deb et al. 2002): by front, then by crowding.

    Of equals the first is preferred.
    """
    order = []
    for front in fronts(individuals):
        crowding = crowding_distances([each.values or () for each in front])
        order += [
            each.id for _, each in sorted(zip(crowding, front, strict=True), key=lambda pair: (-pair[0], pair[1].id))
        ]
    return order


def crowding_distances(values: Sequence[Sequence[float]]) -> list[float]:
    """Returns for each of a front how far apart its neighbours are, over all objectives; infinite at the ends."""
    distances = [0.0] * len(values)
    for objective in zip(*values, strict=True):
        order = sorted(range(len(objective)), key=objective.__getitem__)
        span = objective[order[-1]] - objective[order[0]]
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, each, after in zip(order, order[1:], order[2:], strict=False):
            if 0 < span < math.inf:
                distances[each] += (objective[after] - objective[before]) / span
    return distances
