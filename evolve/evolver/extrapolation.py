"""What a metric that falls will be if a run goes on as it did, and how sure that is. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Student's t that 95 % of a sample lie below, by degrees of freedom from 1 on; and the normal distribution's.
_STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860)
_NORMAL = 1.645
MOST = len(_STUDENT) + 2  # points that a trend is taken from
_WITHOUT_TREND = 0.1  # of the value
_EXACT = 1e-9  # scatter, relative to the values, below which a curve counts as met

# Shapes of learning curves over the step, from one that never ends to one that soon does.
_SHAPES: tuple[Callable[[float], float], ...] = (math.log, lambda x: x**-0.5, lambda x: 1 / x, lambda x: x**-2)


@dataclass(frozen=True)
class Extrapolation:
    """A metric at a later step.

    Attributes:
        value: The best guess.
        margin: How far it is at most above that; where there is a trend, with a probability of 95 %.
        points: How many values the trend was taken from; 0 where there were too few for one.
    """

    value: float
    margin: float
    points: int


def extrapolate(points: Sequence[tuple[int, float]], step: int, noise: float) -> Extrapolation:
    """Extrapolates a learning curve.

    Curves `a + b f(step)` are fitted to the last points by least squares, for f the logarithm and the powers -1/2, -1
    and -2. How a curve goes on is known less than how it went, so that all of them are averaged, by how likely each
    makes the points (as in Domhan et al. 2015, with fewer curves). The margin grows with the scatter about the curves,
    with the distance and with how far the curves part, and with few points it is wide; but it reaches no further than a
    tenth above the last value or, where that is higher, the promised one. Nothing steeper than the last rise is
    promised, and nothing below zero where no value has been there. With fewer than three points there is no trend: the
    last value is promised, with a margin of a tenth of it, which is enough to tell a wreck from a stumble.

    Args:
        points: Steps (> 0) and values, in order, the last one at present.
        step: When.
        noise: Standard error of the difference of two values because they are measured on a sample.
    """
    points = points[-MOST:]
    n, last = len(points), points[-1][1]
    sampling = _NORMAL * noise
    if n < 3:
        return Extrapolation(last, math.hypot(_WITHOUT_TREND * abs(last), sampling), 0)
    curves = [_fit(shape, points, step) for shape in _SHAPES]
    best = min(misses for _, _, misses in curves)
    weights = [(best / misses) ** (n / 2) for _, _, misses in curves]  # likelihoods, but for a factor
    total = math.fsum(weights)
    value = math.fsum(w * guess for w, (guess, _, _) in zip(weights, curves, strict=True)) / total
    (earlier, before), (now, _) = points[-2:]
    rise = max(0.0, (last - before) / (now - earlier) * (step - now))
    value = min(value, last + rise)
    if all(found >= 0 for _, found in points):
        value = max(value, 0.0)
    spread = math.fsum(
        w * (variance + (guess - value) ** 2) for w, (guess, variance, _) in zip(weights, curves, strict=True)
    )
    margin = math.hypot(_STUDENT[n - 3] * math.sqrt(spread / total), sampling)
    most = max(value, last) + math.hypot(_WITHOUT_TREND * abs(last), sampling)
    return Extrapolation(value, min(margin, most - value), n)


def _fit(shape: Callable[[float], float], points: Sequence[tuple[int, float]], step: int) -> tuple[float, float, float]:
    """Fits a curve; returns its value at a step, the variance of a prediction there, and the sum of squared misses."""
    n, scale = len(points), points[-1][0]  # steps in units of the present one keep the numbers near 1
    xs, ys = [shape(at / scale) for at, _ in points], [value for _, value in points]
    middle, mean = math.fsum(xs) / n, math.fsum(ys) / n
    width = math.fsum((x - middle) ** 2 for x in xs)
    slope = math.fsum((x - middle) * (y - mean) for x, y in zip(xs, ys, strict=True)) / width
    away = shape(step / scale) - middle
    misses = math.fsum((y - mean - slope * (x - middle)) ** 2 for x, y in zip(xs, ys, strict=True))
    misses = max(misses, (_EXACT * max(map(abs, ys))) ** 2, 1e-300)
    return mean + slope * away, misses / (n - 2) * (1 + 1 / n + away**2 / width), misses


def standard_error(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns the standard error of the mean difference of values in pairs; 0 for a single pair.

    A pair is left out where a value is NaN or infinite, as some metrics are on a batch that is too little for them.
    """
    differences = [b - a for a, b in zip(before, after, strict=True) if math.isfinite(b - a)]
    n = len(differences)
    if n < 2:
        return 0.0
    mean = math.fsum(differences) / n
    return math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
