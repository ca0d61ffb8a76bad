"""Probation: a mutation has so many steps to show that it does not harm, or all goes back to before it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from evolve.config import Section
from evolve.data import Batches
from evolve.errors import EvolveError
from evolve.evolver.extrapolation import extrapolate, standard_error
from evolve.lineage import Lineage, Verdict
from evolve.training import Batch, TrainState, evaluate
from evolve.training.snapshot import Snapshot

logger = logging.getLogger(__name__)


class ProbationConfig(Section):
    """How mutations are put to the test.

    Attributes:
        steps: Optimizer steps after which a mutation is judged; earlier where the run ends.
        metric: What it is judged by, on the validation data.
    """

    steps: Annotated[int, Field(ge=1)]
    metric: Literal["val_loss", "val_accuracy"] = "val_loss"


@dataclass(frozen=True)
class Score:
    """A metric on the batches of the validation data."""

    values: list[float]
    samples: list[int]

    @property
    def mean(self) -> float:
        """Over the samples."""
        return math.fsum(v * n for v, n in zip(self.values, self.samples, strict=True)) / sum(self.samples)


@dataclass
class _Trial:
    """What was before a mutation.

    Attributes:
        snapshot: All that training moves.
        progress: All else that the run has to go back to.
        began: Optimizer steps made by then.
        before: The metric.
        curve: Steps and values of the metric since the model last changed, the present one too.
        records: Numbers of the mutations on probation.
        ahead: Steps that the model was trained for beside the run's own.
    """

    snapshot: Snapshot
    progress: Mapping[str, Any]
    began: int
    before: Score
    curve: list[tuple[int, float]]
    records: list[int]
    ahead: int = 0


class Probation:
    """Puts mutations to the test, one after the other.

    Args:
        config: For how long, and by what.
        state: The run.
        batches: The validation data.
    """

    def __init__(self, config: ProbationConfig, state: TrainState, batches: Batches) -> None:
        self._config = config
        self._state = state
        self._batches = batches
        self._trial: _Trial | None = None

    @property
    def records(self) -> list[int]:
        """Numbers of the mutations that are on probation now."""
        return self._trial.records if self._trial else []

    def remember(
        self,
        snapshot: Snapshot,
        progress: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        lineage: Lineage,
    ) -> None:
        """To be called right before a mutation.

        Args:
            snapshot: Of the run as it is now.
            progress: What `end` is to return if all goes back, beside what training moves.
            history: The metrics of each epoch.
            lineage: The mutations so far: the trend begins after the last one.
        """
        state, metric = self._state, self._config.metric
        changed = max((record.step or 0 for record in lineage.applied), default=0)
        before = score(state, self._batches.epoch(0), metric)
        curve = [(line["step"], line[metric]) for line in history if changed < line["step"] < state.step]
        curve.append((state.step, before.mean))
        self._trial = _Trial(snapshot, progress, state.step, before, curve, [])

    def begin(self, records: list[int], ahead: int = 0) -> None:
        """Puts mutations on probation together.

        Args:
            records: Their numbers; where there are none, nothing is to be tested.
            ahead: Steps that the model made as a child, beside the run's own: the trend is followed further by them.
        """
        if self._trial and records:
            self._trial.records, self._trial.ahead = records, ahead
        else:
            self._trial = None

    def verdict(self, finished: bool) -> Verdict | None:
        """Compares the metric with what the trend before the mutation promised for now; None while it is not time.

        Args:
            finished: Whether the run is at its end, so that there will be no other time.
        """
        trial, step, metric = self._trial, self._state.step, self._config.metric
        if trial is None or not (step >= trial.began + self._config.steps or finished):
            return None
        found = score(self._state, self._batches.epoch(0), metric)
        noise = standard_error(trial.before.values, found.values)
        promised = extrapolate([(at, self._falling(value)) for at, value in trial.curve], step + trial.ahead, noise)
        bound = promised.value + promised.margin
        kept = self._falling(found.mean) <= bound
        return self._told(trial, kept, found.mean, self._falling(promised.value), self._falling(bound), promised.points)

    def condemn(self) -> Verdict | None:
        """The verdict where the loss is no number any more; None where nothing is on probation."""
        trial = self._trial
        return self._told(trial, False, None, trial.before.mean, trial.before.mean, 0) if trial else None

    def end(self, verdict: Verdict) -> Mapping[str, Any] | None:
        """Carries out a verdict; returns what the run has to go back to if it goes back."""
        trial, self._trial = self._trial, None
        if verdict.kept or trial is None:
            return None
        trial.snapshot.restore()
        return trial.progress

    def _falling(self, value: float) -> float:
        """Makes a metric one that falls, and back: an accuracy the share of errors."""
        return 1 - value if self._config.metric == "val_accuracy" else value

    def _told(
        self, trial: _Trial, kept: bool, found: float | None, promised: float, bound: float, points: int
    ) -> Verdict:
        verdict = Verdict(
            kept=kept,
            steps=self._state.step - trial.began,
            metric=self._config.metric,
            before=trial.before.mean,
            promised=promised,
            bound=bound,
            found=found,
            points=points,
        )
        logger.log(logging.INFO if kept else logging.WARNING, "%s", verdict)
        return verdict


def score(state: TrainState, batches: Iterable[Batch], metric: str) -> Score:
    """Returns a metric of `evaluate` batch by batch.

    Raises:
        EvolveError: If the targets are not classes, so that there is no accuracy.
    """
    values, samples = [], []
    for batch in batches:
        metrics = evaluate(state, [batch])
        name = metric.removeprefix("val_")
        if name not in metrics:
            raise EvolveError(
                f"Probation looks at {metric}, but these targets are no classes. Use probation.metric: val_loss."
            )
        values.append(metrics[name])
        samples.append(len(batch[0]))
    return Score(values, samples)
