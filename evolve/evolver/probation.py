"""Probation: a mutation has so many steps to show that it does no harm."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from evolve.config import Section
from evolve.evolver.extrapolation import extrapolate, standard_error
from evolve.evolver.loop import Loop, Score
from evolve.lineage import Lineage, Verdict

logger = logging.getLogger(__name__)


class ProbationConfig(Section):
    """How mutations are put to the test.

    Attributes:
        steps: Optimizer steps after which a mutation is judged; earlier where the run ends.
        metric: What it is judged by, on the validation data; null for the monitor of the run.
    """

    steps: Annotated[int, Field(ge=1)]
    metric: Annotated[str, Field(min_length=1)] | None = None


@dataclass
class _Trial:
    """What was before a mutation.

    Attributes:
        began: Optimizer steps made by then.
        before: The metric.
        curve: Steps and values of the metric since the model last changed, the present one too.
        records: Numbers of the mutations on probation.
        ahead: Steps that the model was trained for beside the run's own.
    """

    began: int
    before: Score
    curve: list[tuple[int, float]]
    records: list[int]
    ahead: int = 0


class Probation:
    """Judges mutations, one after the other. Going back is the controller's business.

    Args:
        config: For how long, and by what.
        loop: The training.
    """

    def __init__(self, config: ProbationConfig, loop: Loop) -> None:
        self._config = config
        self._loop = loop
        self._monitor = loop.monitor.of(config.metric or loop.monitor.metric)
        self._trial: _Trial | None = None

    @property
    def records(self) -> list[int]:
        """Numbers of the mutations that are on probation now."""
        return self._trial.records if self._trial else []

    @property
    def began(self) -> int | None:
        """Optimizer steps made when the mutation was; None where nothing is on probation."""
        return self._trial.began if self._trial else None

    def remember(self, history: Sequence[Mapping[str, Any]], lineage: Lineage) -> None:
        """To be called right before a mutation.

        Args:
            history: The metrics of each epoch.
            lineage: The mutations so far: the trend begins after the last one.
        """
        step, metric = self._loop.step, self._monitor.metric
        changed = max((record.step or 0 for record in lineage.applied), default=0)
        before = self._loop.score(metric)
        curve = [(line["step"], line[metric]) for line in history if changed < line["step"] < step and metric in line]
        curve.append((step, before.value))
        self._trial = _Trial(step, before, curve, [])

    def begin(self, records: list[int], ahead: int = 0) -> None:
        """Puts mutations on probation together.

        Args:
            records: Their numbers; where there are none, nothing is on probation any more.
            ahead: Steps that the model made as a child, beside the run's own: the trend is followed further by them.
        """
        if self._trial and records:
            self._trial.records, self._trial.ahead = records, ahead
        else:
            self._trial = None

    def verdict(self) -> Verdict | None:
        """Compares the metric with what the trend before the mutation promised for now.

        None while it is not time: that is after the configured steps, or at the end of the run.
        """
        trial, step = self._trial, self._loop.step
        if trial is None or not (step >= trial.began + self._config.steps or self._loop.over):
            return None
        found = self._loop.score(self._monitor.metric)
        if not math.isfinite(found.value):
            return self.condemn()
        points = [(at, self._monitor.falling(value)) for at, value in trial.curve if math.isfinite(value)]
        if not math.isfinite(trial.before.value):  # nothing to compare with, and nothing that could have been harmed
            return self._judged(trial, True, found.value, None, None, 0)
        noise = standard_error(trial.before.values, found.values)
        promised = extrapolate(points, step + trial.ahead, noise)
        bound = promised.value + promised.margin
        kept = self._monitor.falling(found.value) <= bound
        return self._judged(
            trial, kept, found.value, self._monitor.rising(promised.value), self._monitor.rising(bound), promised.points
        )

    def condemn(self) -> Verdict | None:
        """The verdict where the metric is no longer finite; None where nothing is on probation."""
        trial = self._trial
        return self._judged(trial, False, None, None, None, 0) if trial else None

    def _judged(
        self,
        trial: _Trial,
        kept: bool,
        found: float | None,
        promised: float | None,
        bound: float | None,
        points: int,
    ) -> Verdict:
        before = trial.before.value if math.isfinite(trial.before.value) else None
        verdict = Verdict(
            kept=kept,
            steps=self._loop.step - trial.began,
            metric=self._monitor.metric,
            before=before,
            promised=before if promised is None else promised,
            bound=before if bound is None else bound,
            found=found,
            points=points,
        )
        logger.log(logging.INFO if kept else logging.WARNING, "%s", verdict)
        return verdict
