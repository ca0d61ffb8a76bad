"""`forecast`: the size that the rest of the budget wants, by a race of a few steps and what it says of the end."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from evolve.lineage import Weighed
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, Race, policies
from evolve.policies.projection import Estimate, Foreseen, Outlook, Realised, lead, outlook, place, slope, way, written
from evolve.registry import TypedOptions

logger = logging.getLogger(__name__)

_FEWEST = 40  # steps of a run before which nothing is said of its end
_EARLY = 0.05  # of the budget: before it, a race says too little of a run that is short of steps
_AS_GOOD = 0.5  # of the held-out loss, by which a larger model may be behind where steps are not what is short
_SHORTEST = 0.1  # of the steps so far: a shorter race says nothing, nor does one of fewer than 8 steps
_LOW = 0.25  # of the first loss: one below it may come down to zero
_LAST = 0.05  # of the budget: over its steps the loss that was forecast is averaged


@policies.register("forecast")
class Forecast(Policy):
    """Grows where the larger model is forecast to end better within the budget that is left.

    Model and mutated copy are trained on the same batches, the next ones, for a part of the steps so far. That
    gives the slope of either loss in the logarithm of the steps, and what a step of either costs of the budget:
    FLOPs or seconds. Both losses are followed to the end of the budget (see `projection`); where the larger one is
    ahead after the race, and by all that is known ends no higher, the copy becomes the model, with what it has
    learned. Where both would come down to zero before the end, and the loss is below a quarter of the first one, it
    is not steps that are short but data: the larger one is taken unless its held-out loss is higher by half. There,
    races begin early; else not before a twentieth of the budget is spent. Where it does not grow, the model goes on
    from its own copy, so that only the other one's steps were in vain. What races may cost in all is bounded, and
    what one may cost to half of that. What the loss comes to that was forecast is told, too.

    The first candidate of the first operator that can be applied takes part, so operators are listed in the order in
    which they are wanted. Each forecast is told as an event and kept in the run's `forecasts.jsonl`; what led to a
    mutation is in its record too.
    """

    needs_losses = True

    class Options(TypedOptions):
        """Length of a race, and what all of them may cost.

        Attributes:
            look: Steps of a race, as a part of the steps so far.
            most: Part of the budget that races may take from the training.
        """

        look: Annotated[float, Field(gt=0, le=1)] = 0.3
        most: Annotated[float, Field(gt=0, lt=1)] = 0.08

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._settled = False  # a larger model is so far behind that no further race is worth its cost
        self._spent = 0.0  # part of the budget that went into copies which came to nothing
        self._expected: list[float] = []  # up to which part of the budget; loss and standard error
        self._came: list[float] = [0, 0.0]  # steps shortly before that, and the sum of their losses
        self._first = 0.0  # training loss of the first step
        self._news: list[tuple[str, dict[str, Any]]] = []

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the growth that is forecast to pay, None where none is."""
        steps, most = self._race(context)
        if context.tried or self._settled or not steps or (context.progress < _EARLY and not self._plenty(context)):
            return None
        firsts = {candidate.entry: candidate for candidate in reversed(candidates)}
        for _, candidate in sorted(firsts.items()):
            began = context.progress
            race = context.race(candidate, steps, most)
            if race is not None:
                return self._decide(candidate, race, context, began)
            self._spent += context.progress - began  # what a race that was given up has cost
        return None

    def _race(self, context: PolicyContext) -> tuple[int, float]:
        """Returns how long a race may be, 0 where there is none to be had, and what the larger model's may cost.

        That is half of what all races may, so that there is something left for another one.
        """
        step, most = context.step, min(self.options.most / 2, self.options.most - self._spent)
        if step < _FEWEST or not context.progress:
            return 0, most
        price = context.progress / step
        if most < _shortest(step) * price:
            logger.info("No race: what races may cost of the budget, %.0f %%, is spent.", 100 * self.options.most)
            return 0, most
        return int(self.options.look * step), most

    def _decide(self, candidate: Candidate, race: Race, context: PolicyContext, began: float) -> Choice | None:
        steps = len(race.own.losses)
        found = _outlook(race, context, began) if steps >= _shortest(context.step) else None
        if found is None:
            logger.info("A race of %d steps says nothing: a step of the larger model is too dear.", steps)
            self._spent += steps * race.child.price
            context.keep_own()
            return None
        kept, grown = found.ends[:2]
        plenty = max(kept.value, grown.value) <= 0 and self._low(statistics.fmean(race.own.losses[steps // 2 :]))
        behind = race.child.held_out - race.own.held_out
        if plenty:
            grows = behind < _AS_GOOD * abs(race.own.held_out)
        else:
            ahead = found.gap.value > found.gap.error
            grows = ahead and found.gain.value > -found.gain.error and behind < found.lead.error
        foreseen = Foreseen(
            step=context.step,
            progress=began,
            operator=candidate.operator,
            steps=steps,
            cost=race.child.price / race.own.price,
            slope=(found.slope.value, found.slope.error),
            lead=(found.lead.value, found.lead.error),
            needed=found.needed,
            until=found.until,
            ends=[(end.value, end.error) for end in found.told],
            grows=grows,
        )
        self._expected, self._came = [foreseen.until, *foreseen.expected], [0, 0.0]
        self._news.append((foreseen.told(), foreseen.model_dump()))
        self._spent += steps * (race.own if grows else race.child).price
        if not grows:
            self._settled = kept.value > 0 and found.gap.value + found.gap.error < 0
            context.keep_own()
            return None
        others = [
            Weighed(operator=candidate.operator if growths else "", value=end.value, note=_told(growths, end))
            for growths, end in enumerate(found.told)
            if growths != 1
        ]
        by, told = f"loss {place(foreseen.until)}", found.told[1]
        return Choice(candidate, by, told.value, _told(1, told), others)

    def heard(self, step: int, loss: float, progress: float) -> None:
        """Notes the first loss, and what one comes to that was forecast."""
        if math.isfinite(loss):
            self._first = self._first or loss
        if not self._expected or progress <= self._expected[0] - _LAST:
            return
        until, *expected = self._expected
        if progress <= until:
            self._came = [self._came[0] + 1, self._came[1] + loss]
        if progress >= until:
            count, total = self._came
            if count:
                found = Realised(
                    step=step, progress=until, loss=total / count, steps=int(count), expected=tuple(expected)
                )
                self._news.append((found.told(), found.model_dump()))
            self.forget()

    def forget(self) -> None:
        """Lets go of what was forecast; what races have cost stays."""
        self._expected, self._came = [], [0, 0.0]

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the races since it was last asked, and what became of their forecasts."""
        told, self._news = self._news, []
        return told

    def _plenty(self, context: PolicyContext) -> bool:
        """Whether the model's training loss would come down to zero within the budget, by its curve alone."""
        step, points = context.step, context.losses(context.step / 2)
        present = slope(points)
        if present is None or context.progress == 0:
            return False
        total = math.fsum(count for count, _, _ in points)
        past = math.fsum(count * (math.log(step) - place) for count, place, _ in points) / total
        level = math.fsum(count * loss for count, _, loss in points) / total - present.value * past
        far = way(step, step * (1 - context.progress) / context.progress)
        return self._low(level) and level <= present.value * far

    def _low(self, loss: float) -> bool:
        """Whether a loss has come far down from where it began; before that, its slope says nothing of the data."""
        return loss < _LOW * self._first

    def state(self) -> dict[str, Any]:
        """Returns what races have cost, whether there is to be another, and what is forecast."""
        return {
            "settled": self._settled,
            "spent": self._spent,
            "expected": self._expected,
            "came": self._came,
            "first": self._first,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._settled, self._spent = state["settled"], state["spent"]
        self._expected, self._came = list(state["expected"]), list(state["came"])
        self._first = state["first"]


def _outlook(race: Race, context: PolicyContext, began: float) -> Outlook | None:
    """What a race says of the end, where so much of the budget was spent before; None without a slope."""
    own, start, steps = race.own, context.step, len(race.own.losses)
    raced = [(1.0, math.log(start + i + 1), loss) for i, loss in enumerate(own.losses)]
    present, ahead = slope([*context.losses(start / 2), *raced]), lead(start, own.losses, race.child.losses)
    if present is None or ahead is None:
        return None
    half = steps // 2
    mean = math.fsum(own.losses[half:]) / (steps - half)  # in the middle of that half, from where it falls further
    scatter = math.fsum((loss - mean) ** 2 for loss in own.losses[half:]) / (steps - half)
    fallen = present.times(-math.log((start + steps) / (start + (steps + half) / 2)))
    level = Estimate(mean, math.sqrt(scatter / (steps - half))) + fallen
    now = context.progress  # where FLOPs or seconds are the budget, the race is counted in it
    now += steps * own.price if now == began else 0.0
    until = context.held_until if now < context.held_until - _LAST else 1.0
    left, held = ((end - now) / own.price for end in (1.0, until - _LAST / 2))
    return outlook(level, present, *ahead, start + steps, left, held, until, race.child.price / own.price)


def _shortest(step: int) -> float:
    """How long a race has to be, after so many steps, to say something."""
    return max(_SHORTEST * step, 8)


def _told(growths: int, end: Estimate) -> str:
    what = "as it is" if growths == 0 else f"{growths} growths" if growths > 1 else "grown once"
    return f"{what}: {written(end.value, end.error)}"
