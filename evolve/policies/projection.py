"""What a loss will be at the end of a budget, for a model as it is and for larger ones. Knows no torch.

A loss falls with the steps D as a power of them, L = a + b * D**-x. With the exponent that language models have in the
data they have seen (0.28: Hoffmann et al. 2022, Training compute-optimal large language models) only the slope
dL/d(log D) at present has to be measured: a curve that is fitted freely to a tenth of a run says little of its end.
Where it is so steep that the loss would fall below zero, the floor is zero, and the slope gives the exponent. A
larger model has fewer steps left and a steeper slope. How much steeper shows in a race of some steps on the same
batches, where the noise of the batches cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel, ConfigDict

EXPONENT = 0.3  # with which a loss falls with the steps
SHAPE = 0.3  # standard error of a fall to the end, as a part of it, for what is not known of the shape of the curve
NEXT = 0.8  # what a further growth adds, relative to the one before it
SIZES = 4  # growths that are looked ahead
NORMAL = 1.2816  # standard errors within which a value lies in 80 of 100 cases
_NONE = 1e-9  # of a loss: what is left of it where a growth is forecast to take more than all
_FEWEST = 3  # points from which a slope is taken
_BORN = 1 / 3  # of a race, in which a larger model makes up for what its birth cost it


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error."""

    value: float
    error: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, math.hypot(self.error, other.error))

    def times(self, factor: float) -> Estimate:
        """Returns so many times the figure."""
        return Estimate(self.value * factor, abs(factor) * self.error)

    def joined(self, other: Estimate) -> Estimate:
        """Returns what both say of the same figure, each by its certainty."""
        own, its = (max(one.error, 1e-12) ** -2 for one in (self, other))
        return Estimate((own * self.value + its * other.value) / (own + its), (own + its) ** -0.5)


@dataclass(frozen=True)
class Outlook:
    """What a race says of the end of a budget.

    Attributes:
        slope: How fast the loss of the model as it is falls with the logarithm of the steps.
        gap: How far the larger one is below it after the race.
        lead: How much faster that of the larger one falls.
        needed: The lead with which both would end alike.
        gain: How much lower the larger one ends.
        ends: The losses at the end without growth, after one, two and more; of training batches at the learning rate of
            the race: where the learning rate falls at the end, all of them end lower.
        until: Part of the budget up to which the learning rate is held; 1 where it always is, or falls already.
        told: The losses there.
    """

    slope: Estimate
    gap: Estimate
    lead: Estimate
    needed: float
    gain: Estimate
    ends: Sequence[Estimate]
    until: float
    told: Sequence[Estimate]


class Foreseen(BaseModel):
    """A race and what it said of the end of the budget, as it is kept with a run.

    Attributes:
        step: Steps that were made before it; likewise `progress`, the part of the budget that was spent.
        operator: What made the larger model.
        steps: Length of the race.
        cost: Cost of a step of the larger model in steps of the model as it was.
        slope: See `Outlook`, with its standard error; likewise `lead`.
        needed: See `Outlook`.
        until: See `Outlook`: the part of the budget at whose end `ends` are.
        ends: Training losses there without growth, after one, two and more, each with its standard error.
        grows: Whether the larger model was taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    step: int
    progress: float
    operator: str
    steps: int
    cost: float
    slope: tuple[float, float]
    lead: tuple[float, float]
    needed: float
    until: float
    ends: list[tuple[float, float]]
    grows: bool

    @property
    def expected(self) -> tuple[float, float]:
        """The loss that is to come of what was decided, and its standard error."""
        return self.ends[1] if self.grows else self.ends[0]

    def told(self) -> str:
        """Returns it in a sentence."""
        kept, grown = (written(*end) for end in self.ends[:2])
        return (
            f"forecast of the loss {place(self.until)}: {grown} with {self.operator}, {kept} as it is; the model "
            f"{'grows' if self.grows else 'stays'}"
        )


class Realised(BaseModel):
    """What a loss came to that had been forecast, as it is kept with a run.

    Attributes:
        step: Optimizer steps made by then; likewise `progress`, the part of the budget that was spent.
        loss: Mean training loss of the last steps before that.
        steps: How many steps these were.
        expected: What had been forecast, and its standard error: by the last forecast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    step: int
    progress: float
    loss: float
    steps: int
    expected: tuple[float, float]

    def told(self) -> str:
        """Returns it in a sentence."""
        return f"the loss {place(self.progress)} came to {self.loss:.4g}; forecast were {written(*self.expected)}"


def place(progress: float) -> str:
    """Returns which part of the budget is spent, in words."""
    return "at the end" if progress >= 1 else f"at {progress:.0%} of the budget, where the learning rate begins to fall"


def written(value: float, error: float) -> str:
    """Returns a loss with the interval in which it lies in 80 of 100 cases; one that would be below zero as zero."""
    return "zero" if value <= 0 else f"{value:.4g} ± {NORMAL * error:.2g}"


def outlook(
    level: Estimate,
    slope: Estimate,
    gap: Estimate,
    lead: Estimate,
    steps: float,
    left: float,
    held: float,
    until: float,
    ratio: float,
) -> Outlook:
    """Follows a model and larger ones to the end of a budget.

    Args:
        level: Loss of the model as it is, at present.
        slope: How fast it falls with the logarithm of the steps.
        gap: How far the larger model is below it at present.
        lead: How much faster that one falls.
        steps: Made so far.
        left: Steps of the model as it is that the rest of the budget pays for.
        held: Those of them until what is told.
        until: See `Outlook`.
        ratio: Cost of a step of the larger one in steps of the model as it is.
    """

    known = level, slope, gap, lead
    # Each in turn is off by its error.
    moved = [[one.value + one.error * (one is other) for one in known] for other in known]

    def estimate(figure: Callable[[Sequence[float]], float]) -> Estimate:
        """The figure, and how far it moves where what it follows from is off by its error."""
        value = figure([one.value for one in known])
        return Estimate(value, math.hypot(*(figure(each) - value for each in moved)))

    def after(growths: int, ahead: float, values: Sequence[float]) -> float:
        level, slope, gap, lead = values
        more = sum(NEXT**k for k in range(growths))
        born = level - more * gap if level <= 0 else max(level - more * gap, _NONE * level)
        return end(born, slope + more * lead, 1 + max(ahead, 0.0) / ratio**growths / steps)

    def after_all(ahead: float) -> list[Estimate]:
        ends = [estimate(partial(after, growths, ahead)) for growths in range(SIZES + 1)]
        return [one + Estimate(0.0, SHAPE * (level.value - one.value)) for one in ends]

    gain = estimate(lambda values: after(0, left, values) - after(1, left, values))
    ends, times = after_all(left), 1 + max(left, 0.0) / ratio / steps
    needed = _slope_to(level.value - gap.value, ends[0].value, times) - slope.value
    return Outlook(slope, gap, lead, needed, gain, ends, until, after_all(held))


def end(level: float, slope: float, times: float) -> float:
    """Returns what a loss comes to where it is followed to so many times the steps.

    One above zero is taken to have its floor there or above, one that is below to have none: a likelihood that goes
    from one to the other is forecast too high until it has.

    Args:
        level: At present; likewise `slope`, by how much it falls with the logarithm of the steps.
        slope: See above.
        times: Steps then, over those at present.
    """
    if level <= 0 or slope <= EXPONENT * level:
        return level - slope * (1 - math.pow(times, -EXPONENT)) / EXPONENT
    return level * math.pow(times, -slope / level)


def _slope_to(level: float, goal: float, times: float) -> float:
    """Returns the slope with which `end` is `goal`; infinite where there are no steps left."""
    if times <= 1:
        return math.inf
    found = (level - goal) * EXPONENT / (1 - math.pow(times, -EXPONENT))
    if level <= 0 or found <= EXPONENT * level:
        return found
    return level * math.log(level / goal) / math.log(times) if goal > 0 else math.inf


def slope(points: Sequence[tuple[float, float, float]], now: float) -> Estimate | None:
    """Returns how fast a loss falls with the logarithm of the step at present, by points of its curve.

    It is the weighted line over the power of the steps that a loss is taken to be, not over their logarithm: of a curve
    that flattens, that would be the slope in the middle of the points.

    Args:
        points: Weight, logarithm of the step and loss of each.
        now: Logarithm of the step at which the slope is asked for.

    Returns:
        The slope, positive where the loss falls; None of fewer than three points.
    """
    if len(points) < _FEWEST:
        return None
    points = [(weight, _place(log, now), loss) for weight, log, loss in points]
    total = math.fsum(w for w, _, _ in points)
    middle = math.fsum(w * x for w, x, _ in points) / total
    mean = math.fsum(w * y for w, _, y in points) / total
    width = math.fsum(w * (x - middle) ** 2 for w, x, _ in points)
    rise = math.fsum(w * (x - middle) * (y - mean) for w, x, y in points) / width
    misses = math.fsum(w * (y - mean - rise * (x - middle)) ** 2 for w, x, y in points) / (len(points) - 2)
    return Estimate(-rise, math.sqrt(misses / width))


def _place(log: float, now: float) -> float:
    """Returns how far a loss with a slope of one at present is below what it was; zero at present."""
    return (1 - math.exp(-EXPONENT * (log - now))) / EXPONENT


def lead(step: int, own: Sequence[float], other: Sequence[float]) -> tuple[Estimate, Estimate] | None:
    """Returns how far another model is below one at the end of a race, and how much faster its loss falls.

    They are trained on the same batches from one point on. It is the line through their differences, as `slope` draws
    it, without the first third of the race: there a larger model makes up for what its birth cost it.

    Args:
        step: Steps that both had made before.
        own: Losses of one in each step of the race.
        other: Losses of the other, of as many steps.

    Returns:
        Both; None of a race that is too short.
    """
    first, now = int(_BORN * len(own)), math.log(step + len(own))
    gaps = [mine - its for mine, its in zip(own[first:], other[first:], strict=True)]
    logs = [math.log(step + first + i + 1) for i in range(len(gaps))]
    found = slope([(1.0, log, -gap) for log, gap in zip(logs, gaps, strict=True)], now)
    if found is None:
        return None
    places = [_place(log, now) for log in logs]
    before_end = -math.fsum(places) / len(places)
    scatter = found.error * math.sqrt(math.fsum((place + before_end) ** 2 for place in places) / len(places))
    middle = Estimate(math.fsum(gaps) / len(gaps), scatter)
    return middle + found.times(before_end), found
