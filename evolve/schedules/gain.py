"""A schedule that compares what the present model still gains for its compute with what a larger one promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from evolve.config.options import Watched
from evolve.errors import EvolveError
from evolve.registry import TypedOptions
from evolve.schedules.base import Clock, Schedule, schedules

Span = Sequence[Mapping[str, Any]]  # lines of metrics between two changes of the model
_FEWEST = 6  # lines of a span that is fitted: too few say nothing of where a curve with three unknowns ends
# What is tried: time constants in lengths of the window, 0.1 to 10, and exponents, 0.1 to 3.
_TIMES = [0.1 * 1.05**k for k in range(95)]
_POWERS = [0.1 * 1.05**k for k in range(70)]


@dataclass(frozen=True)
class Approach:
    """A loss that approaches an end, exponentially or by a power of the compute, from the last known point on.

    Attributes:
        end: Where it would end.
        excess: How far it is above that now.
        time: Compute in which an exponential's excess falls to 1/e; of a power, the compute spent up to now.
        power: The exponent of the power, infinite for the exponential.
    """

    end: float
    excess: float
    time: float
    power: float = math.inf

    def after(self, compute: float) -> float:
        """Returns the loss after so much more compute."""
        if math.isinf(self.power):
            return self.end + self.excess * math.exp(-compute / self.time)
        return self.end + self.excess * math.pow(1 + compute / self.time, -self.power)

    @property
    def rate(self) -> float:
        """How much the loss falls for one more unit of compute."""
        return self.excess / self.time * (1 if math.isinf(self.power) else self.power)

    def promised(self, part: float, cost: float) -> Approach:
        """Returns how a model goes on from here that ends lower by a part and needs `cost` times the compute."""
        end = self.end * (1 - part)
        excess = self.end + self.excess - end
        ahead = 1.0 if math.isinf(self.power) else math.pow(self.excess / excess, 1 / self.power)
        return Approach(end, excess, cost * self.time * ahead, self.power)


@schedules.register("gain")
class Gain(Schedule):
    """When a larger model would lower the loss faster for the same FLOPs, and the budget left repays the change.

    The loss since the last change of the model is fitted by curves that approach an end, exponentially or by a power of
    the compute (Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017), each weighed by how well
    it fits. A larger model is taken to end lower by the part `promise` and to need `cost` times the FLOPs for the same
    approach. A mutation is due when such a model would lower the loss faster for a FLOP than the present one does: if
    losses fall like this, changing there is the best for every budget. Where it would not end better by the part
    `worth` within the budget left, none is due. The seconds that epochs took may stand for FLOPs: twice the FLOPs may
    take hardly longer on the machine at hand.

    What growths bring and cost in this run is averaged in, the last one weighing half, so that growing ends where it
    does not pay.
    """

    at_epoch_ends = True

    class Options(TypedOptions):
        """The metric (null: the monitor), what compute is, what is promised for what cost, what is worth it, epochs."""

        metric: str | None = None
        per: Literal["flops", "seconds"] = "flops"
        promise: Annotated[float, Field(gt=0, lt=1)] = 0.1
        cost: Annotated[float, Field(gt=1)] = 2.0
        worth: Annotated[float, Field(ge=0, lt=1)] = 0.005
        window: Annotated[int, Field(ge=_FEWEST)] = 16

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needs_flops = self.options.per == "flops"
        self._asked = 0  # finished epochs when a mutation was due last

    def watched(self) -> list[Watched]:
        """Returns the metric."""
        return [Watched("metric", self.monitor.metric, self.monitor.mode, unbounded=self.monitor.unbounded)]

    def due(self, clock: Clock) -> str | None:
        """Returns the reason when a larger model is worth it."""
        metric = self.monitor.metric
        if not clock.epoch_end or clock.lacks(metric) or not math.isfinite(clock.metric(metric, self.name)):
            return None
        clock.metric(self.options.per, self.name)
        history = self._with_compute(clock.history)
        spans = _spans([line for line in history if math.isfinite(line.get(metric, math.nan))])
        present = spans[-1]
        if len(present) < _FEWEST or len(clock.history) - self._asked < _FEWEST:
            return None
        left = _left(history, clock.progress)
        promise, cost = self._promise(spans), self._cost(spans)
        if promise <= 0:
            return None
        kept = self._fit(present)
        grown = [(weight, curve.promised(promise, cost)) for weight, curve in kept]
        if _mean(grown, lambda curve: curve.rate) < _mean(kept, lambda curve: curve.rate):
            return None
        ends = [_mean(curves, lambda curve: curve.after(left)) for curves in (grown, kept)]
        if ends[0] > ends[1] * (1 - self.options.worth):
            return None
        self._asked = len(clock.history)
        return (
            f"a larger model gains more for its compute: {promise:.1%} less {self._what} is promised for "
            f"{cost:.3g} times the {'FLOPs' if self.needs_flops else 'seconds'}, {ends[0]:.4g} at the end of the "
            f"budget against {ends[1]:.4g}"
        )

    def _with_compute(self, history: Span) -> list[dict[str, Any]]:
        """Returns the history with what was spent until the end of each epoch."""
        if self.options.per == "flops":
            return [{**line, "compute": line["flops"]} for line in history]
        spent = accumulate(line["seconds"] for line in history)
        return [{**line, "compute": seconds} for line, seconds in zip(history, spent, strict=True)]

    def _fit(self, lines: Span) -> list[tuple[float, Approach]]:
        recent = lines[-self.options.window :]
        return fit_approaches([line["compute"] for line in recent], [self._falling(line) for line in recent])

    def _falling(self, line: Mapping[str, Any]) -> float:
        return self.monitor.falling(line[self.monitor.metric])

    @property
    def _what(self) -> str:
        """What falls: a loss, or what a metric with a bound is short of that."""
        monitor = self.monitor
        return monitor.metric if monitor.mode == "min" else f"of what {monitor.metric} is short of {monitor.bound:g}"

    def _promise(self, spans: Sequence[Span]) -> float:
        """What growths have brought so far, the last one weighing half; the configured promise before the first."""
        growths = _growths(spans)
        ends = [[_mean(self._fit(span), lambda curve: curve.end) for span in growth] for growth in growths]
        return _latest(self.options.promise, [1 - after / before for before, after in ends if before > 0])

    def _cost(self, spans: Sequence[Span]) -> float:
        """What growths have cost so far, likewise."""
        found = [_step_cost(large) / _step_cost(small) for small, large in _growths(spans)]
        return _latest(self.options.cost, found)

    def state(self) -> dict[str, Any]:
        """Returns when a mutation was due last."""
        return {"asked": self._asked}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up when a mutation was due last."""
        self._asked = state["asked"]


def fit_approaches(compute: Sequence[float], losses: Sequence[float]) -> list[tuple[float, Approach]]:
    """Returns the curves that a loss may follow, each with its probability: a noisy curve does not say which it is.

    For each time constant and each exponent the line of least squares through the losses gives the end, which is never
    below 0, and the excess. Its likelihood is that of normal noise of unknown size, no curve being likelier beforehand.
    Where a curve does not fall, its end is the mean of the losses and it has no excess.

    Args:
        compute: Spent since the start of the run; increasing, of any unit.
        losses: At these points; more than three.
    """
    length, last = compute[-1] - compute[0], compute[-1]
    # How each curve falls, 1 at the last point.
    shapes = [(time * length, math.inf, [math.exp((last - c) / length / time) for c in compute]) for time in _TIMES]
    shapes += [(last, power, [math.pow(last / c, power) for c in compute]) for power in _POWERS]
    curves, errors = [], []
    for time, power, falling in shapes:
        end, excess = _line(falling, losses)
        if end < 0:
            end, excess = 0.0, sum(f * y for f, y in zip(falling, losses, strict=True)) / sum(f * f for f in falling)
        curve = Approach(end, excess, time, power)
        if excess <= 0:
            curve, falling = Approach(sum(losses) / len(losses), 0.0, length), [0.0] * len(losses)
        curves.append(curve)
        errors.append(sum((curve.end + curve.excess * f - y) ** 2 for f, y in zip(falling, losses, strict=True)))
    tiny = 1e-12 * sum(y * y for y in losses)  # rounding: no curve fits better
    least = max(min(errors), tiny)
    weights = [math.pow(least / max(error, tiny), (len(losses) - 2) / 2) for error in errors]
    return [(weight / sum(weights), curve) for weight, curve in zip(weights, curves, strict=True)]


def _mean(curves: Sequence[tuple[float, Approach]], value: Callable[[Approach], float]) -> float:
    return sum(weight * value(curve) for weight, curve in curves)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line through points (least squares)."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    return middle_y - slope * middle_x, slope


def _spans(history: Span) -> list[list[Mapping[str, Any]]]:
    """Cuts the history where the number of parameters changes."""
    spans: list[list[Mapping[str, Any]]] = []
    for line in history:
        if not spans or spans[-1][-1]["params"] != line["params"]:
            spans.append([])
        spans[-1].append(line)
    return spans


def _growths(spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """The spans before and after each growth, where both are long enough to be fitted."""
    known = [span for span in spans if len(span) >= _FEWEST]
    return [(small, large) for small, large in pairwise(known) if large[-1]["params"] > small[-1]["params"]]


def _latest(value: float, found: Sequence[float]) -> float:
    """An average in which what was found last weighs as much as all before it."""
    for one in found:
        value = (value + one) / 2
    return value


def _step_cost(span: Span) -> float:
    return float((span[-1]["compute"] - span[0]["compute"]) / (span[-1]["step"] - span[0]["step"]))


def _left(history: Span, progress: float) -> float:
    """Compute that fits in the rest of the budget at the present pace."""
    before, last = history[-2:]
    spent = last["compute"] - before["compute"]
    if spent <= 0:
        raise EvolveError(
            "Schedule 'gain' needs a model whose FLOPs can be counted; this one's are 0. Use per: seconds, or the "
            "schedule 'plateau'."
        )
    pace: float = spent / (last["progress"] - before["progress"])
    return float((1 - progress) * pace)
