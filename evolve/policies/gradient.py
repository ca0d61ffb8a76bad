"""`gradient`: what the slope of the loss promises most of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from evolve.lineage import Weighed
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, Promise, drawn, policies
from evolve.registry import TypedOptions


@policies.register("gradient")
class Gradient(Policy):
    """The candidate with the highest score; those that have none come last.

    Where there are more candidates than are weighed, they are drawn: operators in turn, each at random sites.
    """

    class Options(TypedOptions):
        """The score, what it is divided by, batches that it looks at, most candidates weighed, seed of their draw."""

        score: Literal["gradmax", "sensli", "senn", "tiny"] = "senn"
        per: Literal["flops", "params"] | None = None
        batches: PositiveInt = 2
        candidates: PositiveInt = 8
        seed: NonNegativeInt = 0

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the candidate with the highest score."""
        options = self.options
        chance = random.Random(f"{options.seed} {len(context.records) - len(context.tried)}")
        weighed = [
            (candidate, context.promise(candidate, options.score, options.batches))
            for candidate in drawn(candidates, options.candidates, chance)
            if candidate not in context.tried
        ]
        if not weighed:
            return None
        weighed.sort(key=lambda pair: (pair[1].gain is None, -(self._value(pair[1]) or 0.0)))
        (best, promise), *others = weighed
        return Choice(
            best,
            options.score + (f" per {options.per}" if options.per else ""),
            self._value(promise),
            promise.note,
            [
                Weighed(operator=candidate.operator, site=candidate.site, value=self._value(other), note=other.note)
                for candidate, other in others
            ],
        )

    def _value(self, promise: Promise) -> float | None:
        if promise.gain is None or self.options.per is None:
            return promise.gain
        return promise.gain / max(1, promise.flops if self.options.per == "flops" else promise.params)
