"""`bandit`: what has paid before."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from evolve.config.options import Watched
from evolve.errors import EvolveError
from evolve.lineage import Record, Weighed
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, policies, untried
from evolve.registry import TypedOptions

Arm = tuple[str, str]  # an operator, and a region of the model
# What a fall or rise of the loss counts at most. Where next to nothing is left, as of an accuracy of 1, the logarithm
# tells of rounding and of few samples; beside such a reward all others would be nothing, as rewards are taken in parts
# of the largest.
_MOST = math.log(10)


@policies.register("bandit")
class Bandit(Policy):
    """An upper confidence bound over arms, each an operator in a region of the model (UCB1, Auer et al. 2002).

    Each arm is played once; then the highest bound counts. The reward of a mutation is by how much the logarithm of the
    held-out loss falls in an epoch after it, over the growth of the logarithm of FLOPs: the exponent of a scaling law
    (Kaplan et al. 2020), in which a large step counts as many small ones that come to the same. Parameters, or the
    median of the seconds that the epochs took, may stand for FLOPs. The loss is the lowest of the epochs until the next
    mutation, against the lowest of as many epochs before: one bad epoch is no gain of who comes after. More than
    tenfold counts as tenfold. A mutation that was refused has the reward 0. Where the monitor rises, what it is short
    of its best value stands for the loss. All of it is read off the log, so that a resumed run knows what the stopped
    one knew.
    """

    class Options(TypedOptions):
        """Regions, how much is tried out, what the reward looks at and is over, and the seed of the draw in an arm."""

        regions: PositiveInt = 3
        exploration: NonNegativeFloat = 0.5
        metric: str | None = None
        per: Literal["flops", "seconds", "params"] = "flops"
        least: PositiveFloat = 0.25
        seed: NonNegativeInt = 0

    def watched(self) -> list[Watched]:
        """Returns the metric."""
        return [Watched("metric", self.monitor.metric, self.monitor.mode, unbounded=self.monitor.unbounded)]

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns a random candidate of an arm that was not played yet, or of the one with the highest bound."""
        arms: dict[Arm, list[Candidate]] = {}
        for candidate in untried(candidates, context):
            arms.setdefault((candidate.operator, self._region(context.depth(candidate))), []).append(candidate)
        if not arms:
            return None
        rewards = self.rewards(context.records, context.history)
        largest = max((abs(reward) for found in rewards.values() for reward in found), default=0.0) or 1.0
        plays = sum(map(len, rewards.values()))
        chance = random.Random(f"{self.options.seed} {len(context.records)}")
        weighed = []
        for arm in arms:
            found = rewards.get(arm, [])
            mean = sum(found) / largest / (len(found) + 1)  # as if each arm had been worth nothing once
            bound = self.options.exploration * math.sqrt(2 * math.log(plays + 2) / (len(found) + 1))
            weighed.append((not found, mean + bound, chance.random(), arm, len(found)))
        weighed.sort(reverse=True)
        (_, value, _, best, played), *others = weighed
        return Choice(
            chance.choice(arms[best]),
            "bound on the reward of the arm",
            value,
            _told(best, played),
            [
                Weighed(operator=arm[0], value=bound, note=_told(arm, count), region=arm[1])
                for _, bound, _, arm, count in others
            ],
            region=best[1],
        )

    def rewards(self, records: Sequence[Record], history: Sequence[Mapping[str, Any]]) -> dict[Arm, list[float]]:
        """Returns the rewards of each arm so far, those that no epoch has shown yet left out."""
        turns = [record for record in records if record.choice is not None and record.choice.policy == self.name]
        found: dict[Arm, list[float]] = {}
        for record, after in zip_longest(turns, turns[1:]):
            end = len(history) if after is None else after.epoch or 0
            reward = self._reward(record, history, end) if record.success else 0.0
            if reward is not None:
                found.setdefault(_arm(record), []).append(reward)
        return found

    def _reward(self, record: Record, history: Sequence[Mapping[str, Any]], end: int) -> float | None:
        """The reward of a mutation by the epochs from it on until `end`; None where there are none."""
        at = record.epoch or 0
        if end <= at or at < 1:
            return None
        lines = history[max(0, 2 * at - end) : at], history[at:end]
        old, new = (self._lowest(part) for part in lines)
        if old is None:
            return None
        if new is None:
            return 0.0
        fall = max(-_MOST, min(math.log(max(old, 1e-12) / max(new, 1e-12)), _MOST)) / (end - at)
        return fall / math.log(max(self._growth(record, *lines), 1 + self.options.least))

    def _growth(self, record: Record, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> float:
        """How many times as much the model cost after a mutation."""
        if self.options.per == "seconds":
            old, new = (median(self._figure(line, "seconds") for line in lines) for lines in (before, after))
        elif self.options.per == "params":
            old, new = record.params_before, record.params_after
        else:
            old, new = record.flops_before or 0, record.flops_after or 0
        return new / old if old else 0.0

    def _lowest(self, lines: Sequence[Mapping[str, Any]]) -> float | None:
        """The lowest that is a number."""
        return min(filter(math.isfinite, map(self._metric, lines)), default=None)

    def _metric(self, line: Mapping[str, Any]) -> float:
        return self.monitor.falling(self._figure(line, self.monitor.metric))

    def _figure(self, line: Mapping[str, Any], name: str) -> float:
        value = line.get(name)
        if not isinstance(value, float):
            known = ", ".join(key for key, number in line.items() if isinstance(number, float))
            raise EvolveError(f"Policy 'bandit' looks at '{name}', which is not among {known}.")
        return value

    def _region(self, depth: float | None) -> str:
        count = self.options.regions
        return "everywhere" if depth is None else f"region {int(depth * count) + 1} of {count}"


def _arm(record: Record) -> Arm:
    return record.operator, record.choice.chosen.region if record.choice else ""


def _told(arm: Arm, played: int) -> str:
    return f"{arm[1]}, tried {played} times"
