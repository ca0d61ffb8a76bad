"""Metrics by name: those of torchmetrics, or functions of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor
from typing_extensions import Self

from evolve.config import Named, OptionFaults, is_trusted, signature_faults
from evolve.config.options import Monitor
from evolve.errors import MisfitError, UnknownNameError, described
from evolve.plugins import import_callable, is_import_path
from evolve.tasks.base import Task
from evolve.tasks.torchmetric import direction_of, find_metric, make_metric

LOSS = "loss"  # measured beside all metrics
ACCURACY = "accuracy"  # of classes it is counted in training too, where a library's metric would take too long


class MetricConfig(Named):
    """A metric: one of torchmetrics by name (`f1`, `rmse`, `JaccardIndex`), or an import path.

    An import path names a torchmetrics class of your own, or a function `(predictions, targets) -> number`, which is
    averaged over the batches by their samples. In Python the function or class itself will do.

    Attributes:
        label: What it is called in the run: `val_<label>`; the name if null.
        mode: Which way is better; null for what torchmetrics says. A function needs it where decisions look at it.
    """

    label: str | None = Field(default=None, min_length=1, pattern=r"^\w+$")
    mode: Literal["min", "max"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_function(cls, value: Any) -> Any:
        if callable(value):
            return {"name": _import_path(value)}
        if isinstance(value, dict) and callable(value.get("name")):
            return {**value, "name": _import_path(value["name"])}
        return value

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
        return _usual_label(self.name)

    def build(self) -> Metric:
        """Returns the metric."""
        return Metric(self.called, self.name, dict(self.options), self.mode)


def _import_path(metric: Callable[..., Any]) -> str:
    """Returns by what a metric is found, in a run that goes on too."""
    name = getattr(metric, "__qualname__", "<locals>")
    if "<" in name:
        raise ValueError(f"{metric!r} has no import path: define a function at the top level of a module or notebook.")
    return f"{metric.__module__}:{name}"


def _usual_label(name: str) -> str:
    return name.replace(":", ".").rpartition(".")[2]


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
        """Whether it may compute several numbers, each with a name of its own, as mean average precision does."""
        own = is_import_path(self.name) and inspect.isclass(self.target)
        return own or self.name in ("map", "MeanAveragePrecision", "mean_average_precision")

    def named(self, part: str) -> str:
        """Returns what one of several numbers is called: its own name, after a label that the user chose."""
        usual = self.label == _usual_label(self.name)
        return part if usual or part == self.label else f"{self.label}_{part}"

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
            except MisfitError:
                raise
            except Exception as error:  # a metric, the user's own too, may raise anything
                whole = " These targets are the whole batch: give metrics a task class with `compared`."
                raise MisfitError(
                    f"The metric '{metric.label}' does not take predictions {_shown(predictions)} and targets "
                    f"{_shown(targets)}: {described(error).strip()}{whole if targets is batch else ''}"
                ) from error

    def _take(self, metric: Metric, predictions: Any, targets: Any, samples: int) -> None:
        if not inspect.isclass(metric.target):
            value = _number(metric, metric.target(predictions, targets, **metric.options))
            self._sums[metric.label] = self._sums.get(metric.label, 0.0) + value * samples
            return
        if metric.label not in self._made:
            made = _made(metric, self._task, self._task.for_metrics(predictions, targets))
            self._made[metric.label] = made.to(predictions.device) if isinstance(predictions, Tensor) else made
        self._made[metric.label].update(predictions, targets)

    def compute(self) -> dict[str, float]:
        """Returns the metrics by label; one that is NaN where nothing was counted stays NaN.

        Raises:
            MisfitError: If a metric gives more than one number.
        """
        found: dict[str, float] = {}
        if self._hits:
            hits = torch.cat(self._hits)
            found[ACCURACY] = int(hits.sum()) / len(hits) if len(hits) else math.nan
        for metric in self._others:
            if metric.label in self._sums:
                found[metric.label] = self._sums[metric.label] / max(self._samples, 1)
            elif metric.label in self._made:
                for name, value in _numbers(metric, self._made[metric.label]).items():
                    if name in found or name == LOSS:
                        raise MisfitError(f"Two metrics are called '{name}': give '{metric.label}' another label.")
                    found[name] = value
        return found


def _made(metric: Metric, task: Task, decided: Mapping[str, Any]) -> Any:
    """Makes a metric of torchmetrics; what it refuses is told."""
    given = {**decided, **metric.options}
    if "task" in inspect.signature(metric.target).parameters and "task" not in given:
        raise MisfitError(
            f"The metric '{metric.label}' is one of classes, and the task '{task.name}' does "
            "not say which kind: set its options, such as {task: binary} or {task: multiclass, num_classes: 3}, or "
            "take a metric that goes with the task."
        )
    try:
        return make_metric(metric.target, metric.options, decided)
    except ImportError as error:
        raise MisfitError(f"The metric '{metric.label}' needs a library: {error}") from error
    except Exception as error:  # the user's own may raise anything
        options = f"the options {metric.options}" if metric.options else "its defaults"
        raise MisfitError(f"The metric '{metric.label}' cannot be made with {options}: {described(error)}") from error


def _numbers(metric: Metric, made: Any) -> dict[str, float]:
    """Returns the single numbers in what a metric computes: mean average precision gives several by name."""
    try:
        value = made.compute()
    except Exception as error:  # the user's own may raise anything
        raise MisfitError(
            f"The metric '{metric.label}' cannot be computed of the held-out data: {described(error)}"
        ) from error
    if isinstance(value, Mapping):
        single = {k: v for k, v in value.items() if isinstance(v, Tensor) and v.numel() == 1 and k != "classes"}
        return {metric.named(name): float(number) for name, number in single.items()}
    return {metric.label: _number(metric, value)}


def _number(metric: Metric, value: Any) -> float:
    """Returns what a metric gives as a number."""
    if value is None:
        return math.nan
    single = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float | np.number)
    if single:
        return float(value)
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise MisfitError(
        f"The metric '{metric.label}' gives {found}, and a run looks at one number. {_averaging(metric.target)}"
    )


def _averaging(target: Callable[..., Any]) -> str:
    """Says how a metric gives one number."""
    known = inspect.signature(target).parameters
    for option, value in (("average", "macro"), ("multioutput", "uniform_average")):
        if option in known:
            return f"Average them (options: {{{option}: {value}}})."
    return "Take another metric." if inspect.isclass(target) else "Let the function return the mean."


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
    return f"a {type(value).__name__}"
