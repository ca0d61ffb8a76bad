"""What an Evolver trains, made of its arguments."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evolve.data import Batches
from evolve.distributed.world import World
from evolve.errors import MisfitError, NotApplicable
from evolve.evolver.output import flops_per_sample
from evolve.structure.unworkable import refuse_wrapped
from evolve.tasks import Loss, TaskSource, build_task
from evolve.training import TrainingConfig, TrainState, create_state
from evolve.training.lr_schedule import LrScheduleConfig
from evolve.training.monitor import find_monitor
from evolve.training.optim import OptimizerConfig


def set_up(
    model: nn.Module,
    data: Batches,
    training: TrainingConfig,
    *,
    optimizer: Optimizer | OptimizerConfig | None,
    lr_schedule: LrScheduleConfig | LRScheduler | None,
    task: TaskSource | None,
    loss: Loss | None,
    probe: int,
    world: World | None = None,
) -> TrainState:
    """Returns everything that training moves.

    Args:
        model: Placed where it is trained.
        data: What it is trained on.
        training: How to train.
        optimizer: An optimizer, or the configuration of one.
        lr_schedule: Likewise.
        task: What a batch is.
        loss: Instead of the task's own, and of the configured one.
        probe: Samples on which FLOPs are counted.
        world: The processes that train it together.

    Raises:
        EvolveError: If an option is refused.
        MisfitError: If the task cannot take a batch apart, or a model that several devices train is wrapped already.
    """
    if world is not None and world.size > 1:
        _refuse_wrapped(model)
    built, metrics = build_task(task, loss or (training.loss.build() if training.loss else None))
    monitor = find_monitor(training.monitor, metrics)
    inputs: Any = built.arguments(model, data.examples(probe))
    return create_state(
        model,
        optimizer if isinstance(optimizer, Optimizer) else (optimizer or OptimizerConfig()).build(model),
        training,
        built,
        metrics=metrics,
        monitor=monitor,
        lr_schedule=lr_schedule,
        epoch_steps=math.ceil(len(data) / training.accumulate),
        epoch_samples=data.samples,
        flops_per_sample=flops_per_sample(model, inputs, needed=training.flops is not None),
        world=world,
    )


def _refuse_wrapped(model: nn.Module) -> None:
    try:
        refuse_wrapped(model)
    except NotApplicable as error:
        raise MisfitError(f"An Evolver takes the plain model, and wraps it in DDP itself. {error}") from error
