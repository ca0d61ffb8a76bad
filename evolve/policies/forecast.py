"""`forecast`: the size that the rest of the budget wants, by a race of a few steps and what it says of the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from evolve.lineage import Weighed
from evolve.policies.base import Candidate, Choice, Policy, PolicyContext, Race, policies
from evolve.policies.projection import (
    EXPONENT,
    SHAPE,
    Estimate,
    Foreseen,
    Outlook,
    Realised,
    lead,
    outlook,
    place,
    slope,
    written,
)
from evolve.registry import TypedOptions

logger = logging.getLogger(__name__)

_PLENTY = 25.0  # epochs: a model that has more of them left is short of data, not of steps
_DEARER = 2.0  # times what a step costs now, that one costs about after a growth
_CHEAP = 1.25  # times the seconds of a step now: a larger model that takes no more is worth having at once
_DEAR = 1.6  # likewise: what takes more is not tried again, as that is no error of the clock
_TRIAL = 0.015  # of the budget: what a model's own steps may cost in a race that is to show a larger one's seconds
_FEWEST = 8  # steps of a run before which nothing is said there
_AS_GOOD = 0.05  # of the held-out loss, by which a larger model may be behind there
_SHORTEST = 0.1  # of the steps so far: a shorter race says nothing, nor does one of fewer than 8 steps
_LAST = 0.05  # of the budget: over its steps the loss that was forecast is averaged
_Part = Annotated[float, Field(ge=0, le=1)]


@policies.register("forecast")
class Forecast(Policy):
    """Grows where the larger model is forecast to end better within the budget that is left.

    Model and mutated copy are trained on the same batches, the next ones, for a part of the steps so far. That
    gives the slope of either loss in the logarithm of the steps, and what a step of either costs of the budget:
    FLOPs or seconds. Both losses are followed to the end of the budget (see `projection`); where the larger one is
    ahead after the race, and by all that is known ends no higher, the copy becomes the model, with what it has
    learned. Where it does not grow, the model goes on from its own copy, so that only the other one's steps were in
    vain. The first race is held in a part of the budget (`between`), as before it says too little of the end, and a
    model that grows later ends no better for it; and not in the first steps (`after`), where it would be all noise.
    There is another one later where two growths were forecast to be better than one.

    Where the larger model, too, has more than 25 epochs left, it is not steps that are short but data: training data
    that are seen so often teach nothing new (their worth falls by 1 / e in some 15 epochs: Muennighoff et al. 2023,
    Scaling data-constrained language models). There the larger one is taken at any time after a race of a few
    steps, unless its held-out loss is higher by a twentieth. The same holds where seconds are the budget and a step of
    the larger model takes hardly longer, as is usual for small models, which do not fill a device.

    What races may cost in all is bounded, and what one may cost to half of that. What the loss comes to that was
    forecast is told, too. The first candidate of the first operator that can be applied takes part, so operators are
    listed in the order in which they are wanted. Each forecast is told as an event and kept in the run's
    `forecasts.jsonl`; what led to a mutation is in its record too.
    """

    needs_losses = True

    class Options(TypedOptions):
        """When there are races, how long one is, and what all of them may cost.

        Attributes:
            between: Parts of the budget between which it may grow for the first time by how the losses fall.
            after: Steps of a run before which a race is too short to tell two sizes apart by them.
            look: Steps of a race, as a part of the steps so far.
            most: Part of the budget that races may take from the training.
        """

        between: tuple[_Part, _Part] = (0.05, 0.12)
        after: Annotated[int, Field(ge=1)] = 500
        look: Annotated[float, Field(gt=0, le=1)] = 0.3
        most: Annotated[float, Field(gt=0, lt=1)] = 0.08

        @field_validator("between")
        @classmethod
        def _rising(cls, between: tuple[float, float]) -> tuple[float, float]:
            if between[0] >= between[1]:
                raise ValueError(f"is a first and a later part of the budget; found {list(between)}")
            return between

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._settled = False  # a larger model is so far behind that no further race is worth its cost
        self._spent = 0.0  # part of the budget that went into copies which came to nothing
        self._expected: list[float] = []  # up to which part of the budget; loss and standard error
        self._came: list[float] = [0, 0.0]  # steps shortly before that, and the sum of their losses
        self._slope: list[float] = []  # step of a growth, slope that was expected of the model, its standard error
        self._again = False  # two growths were forecast to be better than the one that was made
        self._plenty = True  # as far as is known, a larger model has epochs enough as well
        self._cheap = True  # as far as is known, a step of a larger model may take hardly more seconds
        self._news: list[tuple[str, dict[str, Any]]] = []

    def choose(self, candidates: Sequence[Candidate], context: PolicyContext) -> Choice | None:
        """Returns the growth that is forecast to pay, None where none is."""
        step, most = context.step, min(self.options.most / 2, self.options.most - self._spent)
        if context.tried or self._settled or step < _FEWEST or not context.progress:
            return None
        if most < _shortest(step) * context.progress / step:
            logger.info("No race: what races may cost of the budget, %.0f %%, is spent.", 100 * self.options.most)
            return None
        plenty = self._plenty and _epochs(context, step / context.progress) >= _DEARER * _PLENTY
        early = plenty or not self._in_time(context)
        trial = self._cheap and context.in_seconds and _shortest(step) * context.progress / step <= _TRIAL
        if early and not (plenty or trial):
            logger.info("No race: it is too early or too late (options `between` and `after` of `forecast`).")
            return None
        steps = _shortest(step) if early else max(int(self.options.look * step), _shortest(step))
        firsts = {candidate.entry: candidate for candidate in reversed(candidates)}
        for _, candidate in sorted(firsts.items()):
            began = context.progress
            race = context.race(candidate, steps, most)
            if race is not None:
                return self._decide(candidate, race, context, began, early, plenty)
            self._spent += context.progress - began  # what a race that was given up has cost
        return None

    def _in_time(self, context: PolicyContext) -> bool:
        """Whether a race that is to tell by how the losses fall would be neither too early nor too late."""
        first, last = self.options.between
        if context.progress < first or context.step < self.options.after:
            return False
        return context.progress <= last or self._again

    def _decide(
        self, candidate: Candidate, race: Race, context: PolicyContext, began: float, early: bool, plenty: bool
    ) -> Choice | None:
        steps = len(race.own.losses)
        beside = context.progress - began - steps * (race.own.price + race.child.price)
        self._spent += max(0.0, beside)  # of seconds, copies and mutations take a part
        found = _outlook(race, context, began, self._slope) if steps >= _shortest(context.step) else None
        short = plenty and _epochs(context, (1 - began) / race.child.price) >= _PLENTY
        self._plenty = self._plenty and short == plenty
        cheap = context.in_seconds and race.child.price <= _CHEAP * race.own.price
        if steps >= _shortest(context.step):
            self._cheap = self._cheap and race.child.price <= _DEAR * race.own.price
        if found is None or (early and not short and not cheap):
            logger.info("A race of %d steps decides nothing: it was too short, or the larger model too dear.", steps)
            self._spent += steps * race.child.price
            context.keep_own()
            return None
        behind = race.child.held_out - race.own.held_out
        if early or cheap:
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
            self._settled = not early and not cheap and found.gap.value + found.gap.error < 0
            self._again = False
            context.keep_own()
            return None
        steeper = found.slope + found.lead
        self._slope = [context.step + steps, steeper.value, steeper.error]
        self._again = not early and not cheap and found.ends[2].value < found.ends[1].value
        others = [
            Weighed(operator=candidate.operator if growths else "", value=end.value, note=_told(growths, end))
            for growths, end in enumerate(found.told)
            if growths != 1
        ]
        by, told = f"loss {place(foreseen.until)}", found.told[1]
        return Choice(candidate, by, told.value, _told(1, told), others)

    def heard(self, step: int, loss: float, progress: float) -> None:
        """Notes what a loss comes to that was forecast."""
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
            self._expected = []

    def forget(self) -> None:
        """Lets go of what was forecast; what races have cost stays."""
        self._expected, self._slope = [], []
        self._settled, self._again, self._plenty, self._cheap = False, False, True, True

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the races since it was last asked, and what became of their forecasts."""
        told, self._news = self._news, []
        return told

    def state(self) -> dict[str, Any]:
        """Returns what races have cost, whether there is to be another, and what is forecast."""
        return {
            "settled": self._settled,
            "spent": self._spent,
            "expected": self._expected,
            "came": self._came,
            "slope": self._slope,
            "again": self._again,
            "plenty": self._plenty,
            "cheap": self._cheap,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` returned."""
        self._settled, self._spent = state["settled"], state["spent"]
        self._expected, self._came = list(state["expected"]), list(state["came"])
        self._slope, self._again = list(state["slope"]), state["again"]
        self._plenty, self._cheap = state["plenty"], state["cheap"]


def _epochs(context: PolicyContext, steps: float) -> float:
    """Returns how many epochs so many steps are; 0 where that is not known."""
    return steps / context.epoch_steps if context.epoch_steps else 0.0


def _outlook(race: Race, context: PolicyContext, began: float, before: Sequence[float]) -> Outlook | None:
    """What a race says of the end, where so much of the budget was spent; None without a slope.

    Args:
        race: The race.
        context: The run behind it.
        began: Part of the budget that was spent before it.
        before: The growth before, if any: step, slope that was expected and its standard error. A short curve since
            then says little of the slope.
    """
    own, start, steps = race.own, context.step, len(race.own.losses)
    now = math.log(start + steps)
    raced = [(1.0, math.log(start + i + 1), loss) for i, loss in enumerate(own.losses)]
    present, ahead = slope([*context.losses(start / 2), *raced], now), lead(start, own.losses, race.child.losses)
    if present is None or ahead is None:
        return None
    if before:
        step, expected, error = before
        later = math.pow((start + steps) / step, -EXPONENT)
        present = present.joined(Estimate(expected * later, math.hypot(error, SHAPE * expected) * later))
    half = steps // 2
    mean = math.fsum(own.losses[half:]) / (steps - half)  # in the middle of that half, from where it falls further
    scatter = math.fsum((loss - mean) ** 2 for loss in own.losses[half:]) / (steps - half)
    fallen = present.times(-math.log((start + steps) / (start + (steps + half) / 2)))
    level = Estimate(mean, math.sqrt(scatter / (steps - half))) + fallen
    if min(own.losses) > 0:
        level = Estimate(max(level.value, min(own.losses) / 2), level.error)
    spent = context.progress  # where FLOPs or seconds are the budget, the race is counted in it
    spent += steps * own.price if spent == began else 0.0
    until = context.held_until if spent < context.held_until - _LAST else 1.0
    left, held = ((end - spent) / own.price for end in (1.0, until - _LAST / 2))
    return outlook(level, present, *ahead, start + steps, left, held, until, race.child.price / own.price)


def _shortest(step: int) -> int:
    """How long a race has to be, after so many steps, to say something."""
    return max(math.ceil(_SHORTEST * step), 8)


def _told(growths: int, end: Estimate) -> str:
    what = "as it is" if growths == 0 else f"{growths} growths" if growths > 1 else "grown once"
    return f"{what}: {written(end.value, end.error)}"
