"""`hill_climb`: a few children, each trained a little; the best goes on."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from evolve.lineage import Weighed
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, drawn, policies
from evolve.registry import TypedOptions

logger = logging.getLogger(__name__)


@policies.register("hill_climb")
class HillClimb(Policy):
    """Neural architecture search by hill climbing (NASH, Elsken, Metzen and Hutter 2017).

    Each child is a mutated copy that keeps the weights. All are trained on the same batches, and the one that does best
    on held-out data, by the run's monitor, becomes the model, with what it has learned meanwhile. The model that is not
    mutated takes part: where it wins, nothing is changed.
    """

    class Options(TypedOptions):
        """Children, optimizer steps of each, and the seed of the draw."""

        children: PositiveInt = 4
        steps: PositiveInt = 50
        seed: NonNegativeInt = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._rounds = 0

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the best child's mutation."""
        if context.tried:
            return None  # the best child was refused on the model itself: there is no second best that was trained
        monitor = context.monitor
        chance = random.Random(f"{self.options.seed} {self._rounds}")
        self._rounds += 1
        own = context.child(None, self.options.steps)
        if own is None:
            logger.warning("The model's own copy came to nothing: there is nothing to compare children with.")
            return None
        weighed: list[tuple[float, Candidate | None]] = [(own, None)]
        refused: list[Weighed] = []
        for candidate in drawn(candidates, self.options.children, chance):
            found = context.child(candidate, self.options.steps)
            if found is not None:
                weighed.append((found, candidate))
            else:
                refused.append(Weighed(operator=candidate.operator, site=candidate.site, note="refused, or given up"))
        weighed.sort(key=lambda pair: monitor.falling(pair[0]))
        (value, best), *others = weighed
        if best is None:
            rest = ", ".join(f"{other.operator} {score:.4g}" for score, other in others if other)
            logger.info(
                "No child came to a better %s than the model's own, %.4g, after %d steps (%s).",
                monitor.metric,
                value,
                self.options.steps,
                rest,
            )
            return None
        told = [
            Weighed(
                operator=candidate.operator if candidate else "",
                site=candidate.site if candidate else None,
                value=score,
                note="" if candidate else "not mutated",
            )
            for score, candidate in others
        ]
        return Choice(best, f"{monitor.metric} after {self.options.steps} steps", value, "", [*told, *refused])

    def state(self) -> dict[str, Any]:
        """Returns how often it was asked: each time it draws other children."""
        return {"rounds": self._rounds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up how often it was asked."""
        self._rounds = state["rounds"]
