"""`gradient`: what the slope of the loss promises most of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from evolve.lineage import Weighed
from evolve.options import TypedOptions
from evolve.policies.base import Candidate, Choice, Policy, Promise, Situation, policies, untried


@policies.register("gradient")
class Gradient(Policy):
    """The candidate with the highest score; those that have none come last."""

    name = "gradient"

    class Options(TypedOptions):
        """The score, what it is divided by, and the batches that it looks at."""

        score: Literal["gradmax", "sensli", "senn", "tiny"] = "gradmax"
        per: Literal["flops", "params"] | None = None
        batches: PositiveInt = 1

    def choose(self, candidates: Sequence[Candidate], situation: Situation) -> Choice | None:
        """Returns the candidate with the highest score."""
        options = self.options
        weighed = [
            (candidate, situation.promise(candidate, options.score, options.batches))
            for candidate in untried(candidates, situation)
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
