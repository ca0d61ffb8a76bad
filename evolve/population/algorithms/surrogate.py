"""`surrogate`: a model of the fitness says what to evaluate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from evolve.population.algorithms.base import Algorithm, algorithms
from evolve.population.algorithms.gaussian_process import Array, Kernel, Posterior, expected_improvement, likeliest
from evolve.population.individual import Individual, Population, Proposal
from evolve.population.rates import Rates
from evolve.population.space import Space
from evolve.registry import TypedOptions


@algorithms.register("surrogate")
class Surrogate(Algorithm):
    """Bayesian optimization: a Gaussian process is fitted to what was found, and the most promising neighbour chosen.

    White et al. 2021, "BANANAS", showed what it is worth for architectures; the process is that of Rasmussen and
    Williams 2006, over `Space.features`. Who is still being evaluated counts as if it were as good as expected.
    """

    class Options(TypedOptions):
        """How it begins, where it looks, and how much it fits.

        Attributes:
            random: Random genomes at the beginning.
            best: How many of the best have all their neighbours looked at; these are the parents.
            elsewhere: How many random genomes are looked at besides.
            refit: After how many individuals the kernel is chosen anew.
            memory: To how many individuals the process is fitted at most, the latest.
        """

        random: PositiveInt = 10
        best: PositiveInt = 5
        elsewhere: NonNegativeInt = 50
        refit: PositiveInt = 10
        memory: PositiveInt = 1000

    moved = ("power", "noise", "fitted")

    def __init__(self, space: Space, seed: int = 0, rates: Rates | None = None, **options: Any) -> None:
        super().__init__(space, seed, rates, **options)
        self.best = Population()
        self.power, self.noise = Kernel().power, Kernel().noise
        self.fitted = 0  # individuals, when the kernel was chosen
        self._out: dict[int, list[float]] = {}
        self._features: dict[int, list[float]] = {}
        self._values: dict[int, float] = {}

    def ask(self) -> Proposal | None:
        """Returns a random genome at the beginning, then the candidate of which the most improvement is expected."""
        if len(self._values) + len(self._out) < self.options.random or len(self._values) < 2:
            return self.fresh()
        candidates = self._candidates()
        if not candidates:
            return self.fresh()
        features = np.array([self.space.features(each.code) for each in candidates], dtype=np.float64)
        known = np.array(list(self._features.values())[-self.options.memory :], dtype=np.float64)
        targets = clipped(np.array(list(self._values.values())[-self.options.memory :], dtype=np.float64))
        if not self.fitted or len(self._values) >= self.fitted + self.options.refit:
            kernel = likeliest(known, targets)
            self.power, self.noise, self.fitted = kernel.power, kernel.noise, len(self._values)
        seen = Posterior(Kernel(self.power, self.noise), known, targets)
        out = np.array(list(self._out.values()), dtype=np.float64).reshape(-1, features.shape[1])
        posterior = seen.and_with(out)
        gain = expected_improvement(posterior.mean(features), posterior.deviation(features), float(targets.max()))
        return candidates[int(gain.argmax())]

    def remember(self, individual: Individual) -> None:
        """Takes note of what was proposed, and that it is out."""
        super().remember(individual)
        if individual.id not in self._values and individual.code is not None:
            self._out[individual.id] = self.space.features(individual.code)

    def tell(self, individual: Individual) -> None:
        """Takes note of what was found."""
        self._out.pop(individual.id, None)
        if individual.values is None:
            self.best.remove(individual)
            return
        self._features[individual.id] = self.space.features(individual.code)
        self._values[individual.id] = individual.value
        self.best.add(individual)
        if len(self.best) > self.options.best:
            self.best.remove(self.best.worst())

    def living(self) -> Collection[int]:
        """Returns the best few; and the root, in a space that has one."""
        return [*self.best.members, *([0] if self.space.rooted else [])]

    def _candidates(self) -> list[Proposal]:
        """What is looked at: nothing that was proposed before."""
        found = []
        for each in self.best:
            found += self.neighbours(
                Proposal((each.id,), (), each.code, why="the most improvement is expected, nearby")
            )
        for _ in range(self.options.elsewhere):
            proposal = self.space.draw(self.chance)
            if not self.known(proposal):
                found.append(proposal)
        return found


def clipped(values: Array) -> Array:
    """Returns values with mean 0 and deviation 1, the bad ones raised: what lies far below the median tells little.

    Raised are those that lie further below the median than the best lies above it.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros_like(values)
    middle, best = float(np.median(finite)), float(finite.max())
    raised = np.maximum(values, middle - (best - middle))
    return np.asarray((raised - raised.mean()) / max(float(raised.std()), 1e-12))
