"""The `task` section of a configuration, and how a task is made of what stands for one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from pydantic import ValidationError, ValidationInfo, model_validator
from typing_extensions import Self

from evolve.config import Named, OptionFaults, explain, is_trusted, signature_faults
from evolve.errors import EvolveError, UnknownNameError
from evolve.plugins import import_callable, is_import_path
from evolve.tasks.base import FunctionTask, Task, tasks
from evolve.tasks.losses import Loss
from evolve.tasks.metrics import LOSS, Metric, MetricConfig


class TaskConfig(Named):
    """What a batch is: a task by name or import path, and what is measured.

    An import path names a class that inherits from `evolve.tasks.Task`, or a function `(model, batch) -> loss` or
    `-> (loss, outputs)`.

    Attributes:
        metrics: What is measured beside the loss; null for what the task measures by itself.
    """

    name: str = "classification"
    metrics: list[MetricConfig] | None = None

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        try:
            found = _find(self.name, is_trusted(info))
        except UnknownNameError as error:
            raise OptionFaults([(("name",), str(error))]) from error
        labels = [metric.called for metric in self.metrics or ()]
        if doubled := next((label for label in labels if labels.count(label) > 1), None):
            raise OptionFaults([(("metrics",), f"two metrics are called '{doubled}': give one of them a label.")])
        if LOSS in labels:
            raise OptionFaults([(("metrics",), f"'{LOSS}' is what the task minimises: give the metric another label.")])
        if _is_task(found):
            try:
                found.Options.read(self.options)
            except ValidationError as error:
                faults = explain(error, found.Options, self.options)
                raise OptionFaults([(("options", *path), message) for path, message in faults]) from error
        elif faults := signature_faults(found, self.options, skip=set(list(inspect.signature(found).parameters)[:2])):
            raise OptionFaults([(("options", *path), message) for path, message in faults])
        return self

    def takes_loss(self) -> bool:
        """Whether a loss of outputs and targets may take the place of the task's own."""
        found = _find(self.name)
        return _is_task(found) and found.takes_loss

    def measured(self) -> list[Metric]:
        """Returns what is measured beside the loss."""
        found = _find(self.name)
        return _metrics(found if _is_task(found) else Task, self.metrics)

    def build(self, loss: Loss | None = None) -> tuple[Task, list[Metric]]:
        """Returns the task and what it measures.

        Args:
            loss: Instead of the task's own.

        Raises:
            EvolveError: If the task takes no loss.
        """
        found = _find(self.name)
        if not _is_task(found):
            task: Task = FunctionTask(partial(found, **self.options) if self.options else found)
        else:
            task = _made(found, self.options, loss)
        if loss is not None and not task.takes_loss:
            raise EvolveError(
                f"The task '{self.name}' computes its loss by itself, so that no other can take its place. Leave out "
                "the loss (training.loss), or use a task on inputs and targets, such as classification."
            )
        return task, _metrics(task, self.metrics)


def _find(name: str, trusted: bool = True) -> Any:
    if is_import_path(name) and name not in tasks:
        return import_callable(name, "task", trusted)
    return tasks.get(name)


TaskSource: TypeAlias = Task | TaskConfig | str | Callable[[Any, Any], Any]
"""What stands for a task: one, its configuration, its name, or a function `(model, batch) -> loss`."""


def build_task(source: TaskSource | None, loss: Loss | None = None) -> tuple[Task, list[Metric]]:
    """Returns the task that something stands for, and what it measures.

    Args:
        source: What stands for it; None for a classification.
        loss: A function of outputs and targets instead of the task's own.

    Raises:
        UnknownNameError: If it is a name of none.
        EvolveError: If the task takes no loss.
    """
    if source is None:
        source = TaskConfig()
    if isinstance(source, str):
        _find(source)  # its own error, and not one of a section
        source = TaskConfig(name=source)
    if isinstance(source, TaskConfig):
        return source.build(loss)
    if isinstance(source, type) or not (isinstance(source, Task) or callable(source)):
        made = f": make one, {source.__name__}()" if isinstance(source, type) and issubclass(source, Task) else ""
        raise EvolveError(
            f"A task is an instance of evolve.tasks.Task, a TaskConfig, a name, or a function (model, batch) -> loss; "
            f"found {source!r}{made}. Metrics: TaskConfig(metrics=[...])."
        )
    task = source if isinstance(source, Task) else FunctionTask(source)
    if loss is not None:
        raise EvolveError("Give a task by its name together with a loss, or a task that has its own; not both.")
    return task, _metrics(task, None)


def _metrics(task: Task | type[Task], asked: Sequence[MetricConfig] | None) -> list[Metric]:
    """Returns the metrics that are asked for, or those that a task measures by itself."""
    configs = [MetricConfig.model_validate(metric) for metric in task.measures] if asked is None else asked
    return [config.build() for config in configs]


def _is_task(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, Task)


def _made(cls: Any, options: dict[str, Any], loss: Loss | None) -> Task:
    return cls(loss=loss, **options) if cls.takes_loss else cls(**options)  # type: ignore[no-any-return]
