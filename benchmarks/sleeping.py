"""A search space for measuring the search itself: its children sleep, for times with a heavy tail."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt

from evolve.population.individual import Edit, Individual, Proposal
from evolve.population.jobs import Blobs, Evaluator, Json, Setup
from evolve.population.space import Space
from evolve.registry import TypedOptions

TAIL = 2.0  # shape of the Pareto distribution: the variance is infinite


class Sleeping(Space):
    """Numbers, all different; children read the weights of their parents."""

    class Options(TypedOptions):
        """Mean seconds of a training, the most it may take (null for any), and bytes of weights."""

        seconds: NonNegativeFloat = 0.0
        longest: NonNegativeFloat | None = None
        size: NonNegativeInt = 100

    def draw(self, chance: random.Random) -> Proposal:
        """Returns a random number."""
        return Proposal(code=chance.randrange(2**50))

    def edits(self, individual: Individual) -> Sequence[Edit]:
        """Returns the powers of two."""
        return [Edit("add", str(2**power)) for power in range(50)]

    def code(self, code: Any, edits: Sequence[Edit]) -> int:
        """Returns the sum."""
        return int(code) + sum(int(edit.where) for edit in edits)

    def key(self, code: Any) -> str:
        """Returns the number."""
        return str(code)

    def features(self, code: Any) -> list[float]:
        """Returns the number."""
        return [float(code)]

    def evaluator(self, setup: Setup) -> Evaluator:
        """Returns what sleeps."""
        return Sleeper(self.options.seconds, self.options.longest, self.options.size)


class Sleeper(Evaluator):
    """Sleeps in place of training."""

    def __init__(self, seconds: float, longest: float | None, size: int) -> None:
        self.seconds, self.longest, self.size = seconds, longest, size

    def make(self, order: Json, blobs: Blobs) -> Json:
        """Reads the parent's weights, and is what was proposed."""
        for name in order["weights"]:
            assert len(blobs.read(name)) >= self.size
        return {"genome": order["code"], "key": str(order["code"]), "code": order["code"], "metrics": {}}

    def train(self, order: Json, blobs: Blobs) -> Json:
        """Sleeps, and writes weights."""
        chance = random.Random(order["seed"])
        slept = self.seconds * (TAIL - 1) / TAIL * chance.paretovariate(TAIL) if self.seconds else 0.0
        slept = slept if self.longest is None else min(slept, self.longest)
        if slept:
            time.sleep(slept)
        name = blobs.write(str(order["individual"]).encode().ljust(self.size))
        return {"metrics": {"fitness": chance.random(), "slept": slept}, "weights": [name], "steps": 1}
