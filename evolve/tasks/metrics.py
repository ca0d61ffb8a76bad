"""Metrics by name: those of torchmetrics, or functions of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor
from typing_extensions import Self

from evolve.config import Named, OptionFaults, is_trusted, signature_faults
from evolve.config.options import Monitor
from evolve.errors import MisfitError, UnknownNameError
from evolve.plugins import import_callable, is_import_path
from evolve.tasks.base import Task
from evolve.tasks.torchmetric import direction_of, find_metric, make_metric

ACCURACY = "accuracy"  # of classes it is counted in training too, where a library's metric would take too long


class MetricConfig(Named):
    """A metric: one of torchmetrics by name (`f1`, `rmse`, `JaccardIndex`), or an import path.

    An import path names a torchmetrics class of your own, or a function `(predictions, targets) -> number`, which is
    averaged over the batches by their samples.

    Attributes:
        label: What it is called in the run: `val_<label>`; the name if null.
        mode: Which way is better; null for what torchmetrics says. A function needs it where decisions look at it.
    """

    label: str | None = Field(default=None, min_length=1, pattern=r"^\w+$")
    mode: Literal["min", "max"] | None = None

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        if self.name == ACCURACY and not self.options:
            return self
        try:
            found, _ = _find(self.name, is_trusted(info))
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        given = set() if inspect.isclass(found) else set(list(inspect.signature(found).parameters)[:2])
        faults = signature_faults(found, self.options, skip=given | _DISTRIBUTED)
        # What a metric needs beside them, such as the number of classes, comes with the data.
        if faults := [fault for fault in faults if fault[0]]:
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    @property
    def called(self) -> str:
        """What it is called in a run, without `val_`."""
        if self.label:
            return self.label
        return self.name.replace(":", ".").rpartition(".")[2]

    def build(self) -> Metric:
        """Returns the metric."""
        return Metric(self.called, self.name, dict(self.options), self.mode)


# Parameters of torchmetrics' classes that are of no use in a configuration.
_DISTRIBUTED = {"dist_sync_on_step", "process_group", "dist_sync_fn", "distributed_available_fn", "sync_on_compute"}


def _find(name: str, trusted: bool = True) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns what a name stands for, and options that come with it."""
    return (import_callable(name, "metric", trusted), {}) if is_import_path(name) else find_metric(name)


@dataclass(frozen=True)
class Metric:
    """A metric that a run measures.

    Attributes:
        label: What it is called.
        name: What it is found by.
        given: The user's options.
        wanted: Which way is better, where the user says so.
    """

    label: str
    name: str
    given: Mapping[str, Any]
    wanted: Literal["min", "max"] | None = None

    @cached_property
    def target(self) -> Callable[..., Any]:
        """A torchmetrics class, or a function of predictions and targets."""
        return _find(self.name)[0]

    @cached_property
    def options(self) -> dict[str, Any]:
        """Its arguments."""
        return {**_find(self.name)[1], **self.given}

    @property
    def several(self) -> bool:
        """Whether it computes several numbers, each with a name of its own, as mean average precision does."""
        return self.name in ("map", "MeanAveragePrecision", "mean_average_precision")

    def counted(self, task: Task) -> bool:
        """Whether it is the accuracy that training counts too."""
        counts = type(task).right_answers is not Task.right_answers
        return counts and self.name == ACCURACY and self.label == ACCURACY and not self.given

    @cached_property
    def monitor(self) -> Monitor | None:
        """How it is looked at, if anybody says which way is better."""
        name = f"val_{self.label}"
        if self.name == ACCURACY:
            return Monitor(name, self.wanted or "max", 1.0)
        mode, bound = direction_of(self.target, self.options) if inspect.isclass(self.target) else (None, None)
        mode = self.wanted or mode
        return None if mode is None else Monitor(name, mode, bound)


class MetricMeter:
    """Takes in batch after batch, and gives the metrics of all of them.

    Args:
        task: Says what is compared.
        metrics: What is measured.
    """

    def __init__(self, task: Task, metrics: Sequence[Metric]) -> None:
        self._task = task
        self._counted = any(metric.counted(task) for metric in metrics)
        self._others = [metric for metric in metrics if not metric.counted(task)]
        self._made: dict[str, Any] = {}
        self._sums: dict[str, float] = {}
        self._hits: list[Tensor] = []
        self._samples = 0

    def update(self, outputs: Any, batch: Any) -> None:
        """Takes in a batch.

        Raises:
            MisfitError: If a metric does not take what the task compares.
        """
        samples = self._task.count(batch)
        self._samples += samples
        if self._counted and (hits := self._task.right_answers(outputs, batch)) is not None:
            self._hits.append(hits)
        if not self._others:
            return
        if outputs is None:
            raise MisfitError(
                "Metrics need the model's outputs, and the loss of this task returns none: return (loss, outputs)."
            )
        predictions, targets = self._task.compared(outputs, batch)
        for metric in self._others:
            try:
                self._take(metric, predictions, targets, samples)
            except Exception as error:  # a metric, the user's own too, may raise anything
                raise MisfitError(
                    f"The metric '{metric.label}' does not take {_shown(predictions)} and {_shown(targets)}: "
                    f"{type(error).__name__}: {str(error).strip()}"
                ) from error

    def _take(self, metric: Metric, predictions: Any, targets: Any, samples: int) -> None:
        if not inspect.isclass(metric.target):
            value = metric.target(predictions, targets, **metric.options)
            self._sums[metric.label] = self._sums.get(metric.label, 0.0) + float(value) * samples
            return
        if metric.label not in self._made:
            decided = self._task.for_metrics(predictions, targets)
            made = make_metric(metric.target, metric.options, decided)
            self._made[metric.label] = made.to(predictions.device) if isinstance(predictions, Tensor) else made
        self._made[metric.label].update(predictions, targets)

    def compute(self) -> dict[str, float]:
        """Returns the metrics by label; one that is NaN where nothing was counted stays NaN.

        Raises:
            MisfitError: If a metric gives more than one number.
        """
        found: dict[str, float] = {}
        if self._hits:
            found[ACCURACY] = int(torch.cat(self._hits).sum()) / self._samples
        for metric in self._others:
            if metric.label in self._sums:
                found[metric.label] = self._sums[metric.label] / max(self._samples, 1)
            elif metric.label in self._made:
                found |= _numbers(metric.label, self._made[metric.label].compute())
        return found


def _numbers(label: str, value: Any) -> dict[str, float]:
    """Returns the single numbers in what a metric computed: mean average precision gives several by name."""
    if isinstance(value, Mapping):
        return {k: float(v) for k, v in value.items() if isinstance(v, Tensor) and v.numel() == 1 and k != "classes"}
    if isinstance(value, Tensor) and value.numel() != 1:
        raise MisfitError(
            f"The metric '{label}' gives {value.numel()} numbers, and a run looks at one: average them (options: "
            "{average: macro})."
        )
    return {label: float(value) if value is not None else math.nan}


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
    return f"a {type(value).__name__}"
