"""What a batch is, its loss and its metrics. Importing this package files the built-in tasks."""

from evolve.tasks.base import FunctionTask, Task, loss_and_outputs, tasks
from evolve.tasks.config import TaskConfig, TaskSource, build_task
from evolve.tasks.detection import Detection
from evolve.tasks.huggingface import HuggingFace
from evolve.tasks.language import LanguageModeling
from evolve.tasks.losses import Loss, LossConfig
from evolve.tasks.metrics import Metric, MetricConfig, MetricMeter
from evolve.tasks.supervised import (
    Classification,
    Multilabel,
    Regression,
    Segmentation,
    Supervised,
    call_model,
)

__all__ = [
    "Classification",
    "Detection",
    "FunctionTask",
    "HuggingFace",
    "LanguageModeling",
    "Loss",
    "LossConfig",
    "Metric",
    "MetricConfig",
    "MetricMeter",
    "Multilabel",
    "Regression",
    "Segmentation",
    "Supervised",
    "Task",
    "TaskConfig",
    "TaskSource",
    "build_task",
    "call_model",
    "loss_and_outputs",
    "tasks",
]
