"""What a loss will be at the end of a budget, for a model as it is and for larger ones. Knows no torch.

A loss falls with the steps D as a power of them, L = a + b * D**-x. With the exponent that language models have in the
data they have seen (0.28: Hoffmann et al. 2022, Training compute-optimal large language models) only the slope
dL/d(log D) at present has to be measured: a curve that is fitted freely to a tenth of a run says little of its end. A
larger model has fewer steps left and a steeper slope. Both are known from a race of some steps on the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

EXPONENT = 0.3  # with which a loss falls with the steps
NEXT = 0.8  # what a further growth adds, relative to the one before it
SIZES = 4  # growths that are looked ahead
NORMAL = 1.2816  # standard errors within which a value lies in 80 of 100 cases
_FEWEST = 3  # stretches of a curve from which a slope is taken


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


@dataclass(frozen=True)
class Outlook:
    """What a race says of the end of a budget.

    Attributes:
        slope: How fast the loss of the model as it is falls with the logarithm of the steps.
        lead: How much faster that of the larger one does.
        needed: The lead with which both would end alike.
        ends: The losses at the end without growth, after one, two and more; of training batches at the learning rate of
            the race: where the learning rate falls at the end, all of them end lower.
    """

    slope: Estimate
    lead: Estimate
    needed: float
    ends: Sequence[Estimate]

    @property
    def best(self) -> int:
        """Growths with the lowest end."""
        return min(range(len(self.ends)), key=lambda growths: self.ends[growths].value)


class Foreseen(BaseModel):
    """A race and what it said of the end of the budget, as it is kept with a run.

    Attributes:
        step: Steps that were made before it; likewise `progress`, the part of the budget that was spent.
        operator: What made the larger model.
        steps: Length of the race.
        cost: Cost of a step of the larger model in steps of the model as it was.
        slope: See `Outlook`, with its standard error; likewise `lead`.
        needed: See `Outlook`.
        ends: See `Outlook`, each with its standard error.
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
    ends: list[tuple[float, float]]
    grows: bool

    def told(self) -> str:
        """Returns it in a sentence."""
        kept, grown = self.ends[:2]
        return (
            f"forecast of the loss at the end: {grown[0]:.4g} ± {NORMAL * grown[1]:.2g} with {self.operator}, "
            f"{kept[0]:.4g} ± {NORMAL * kept[1]:.2g} as it is; the model {'grows' if self.grows else 'stays'}"
        )


def outlook(level: float, slope: Estimate, lead: Estimate, steps: float, left: float, ratio: float) -> Outlook:
    """Follows a model and larger ones to the end of a budget.

    The slope of the model as it is falls off as a power of the steps; the lead of a larger one does not, as what it has
    over the other still grows where that one no longer learns.

    Args:
        level: Loss at present.
        slope: Of the model as it is; likewise `lead`, that of the larger one over it.
        lead: See there.
        steps: Made so far.
        left: Steps of the model as it is that the rest of the budget pays for.
        ratio: Cost of a step of the larger one in steps of the model as it is.
    """

    def falls(growths: int) -> tuple[float, float]:
        more = max(left, 0.0) / ratio**growths / steps
        return (1 - (1 + more) ** -EXPONENT) / EXPONENT, math.log1p(more)

    ends = []
    for growths in range(SIZES + 1):
        own, gained = falls(growths)
        fall = slope.times(own) + lead.times(gained * sum(NEXT**k for k in range(growths)))
        ends.append(Estimate(level - fall.value, fall.error))
    missed = slope.value * (falls(0)[0] - falls(1)[0])
    return Outlook(slope, lead, missed / falls(1)[1] if left > 0 else math.inf, ends)


def slope(points: Sequence[tuple[float, float, float]]) -> Estimate | None:
    """Returns how fast a loss falls with the logarithm of the step: the weighted line through points of its curve.

    Args:
        points: Weight, logarithm of the step and loss of each.

    Returns:
        The slope, positive where the loss falls; None of fewer than three points.
    """
    if len(points) < _FEWEST:
        return None
    total = math.fsum(w for w, _, _ in points)
    middle = math.fsum(w * x for w, x, _ in points) / total
    mean = math.fsum(w * y for w, _, y in points) / total
    width = math.fsum(w * (x - middle) ** 2 for w, x, _ in points)
    rise = math.fsum(w * (x - middle) * (y - mean) for w, x, y in points) / width
    misses = math.fsum(w * (y - mean - rise * (x - middle)) ** 2 for w, x, y in points) / (len(points) - 2)
    return Estimate(-rise, math.sqrt(misses / width))


def lead(step: int, own: Sequence[float], other: Sequence[float]) -> Estimate:
    """Returns how much faster than one model another one learns: the difference of their slopes.

    They are trained on the same batches from one point on. The second half of the race counts: in the first one a
    larger model makes up for what its birth cost it.

    Args:
        step: Steps that both had made before.
        own: Losses of one in each step of the race.
        other: Losses of the other, of as many steps.
    """
    half = len(own) // 2
    gaps = [mine - its for mine, its in zip(own[half:], other[half:], strict=True)]
    logs = [math.log((step + half + i + 1) / step) for i in range(len(gaps))]
    length = statistics.fmean(logs)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
    return Estimate(statistics.fmean(gaps) / length, error / length)
