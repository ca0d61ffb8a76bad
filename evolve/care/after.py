"""What is done for a model right after it was mutated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evolve.care.config import CareConfig
from evolve.care.ema import EMA
from evolve.care.new_parameters import NewParameters
from evolve.care.recalibrate import recalibrate
from evolve.mutation.api import MutationResult
from evolve.structure.tracing.tape import Shape
from evolve.surgery.optimizer import forget
from evolve.surgery.parts import new_parts


class TrainingRun(Protocol):
    """What is known of a training run: `TrainState` is one."""

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    ema: EMA | None
    new_parameters: NewParameters | None


def grown(result: MutationResult) -> bool:
    """Whether a mutation was applied and brought parameters."""
    return bool(result) and result.record.params_after > result.record.params_before


def after_mutation(
    config: CareConfig,
    run: TrainingRun,
    shapes: Mapping[str, Shape],
    applied: Sequence[MutationResult],
    batches: Iterable[tuple[Tensor, Tensor]],
    adopted: bool = False,
) -> None:
    """Lets all that goes with a model's parameters follow them, and gives the care that comes once.

    Args:
        config: What care.
        run: The run.
        shapes: Of the parameters before; see `structure.probe.parameter_shapes`.
        applied: What was done to the model since, in order.
        batches: Training data for the statistics of BatchNorm.
        adopted: Whether the model has taken up what a child of it has learned. Then averages begin anew, as all values
            are others, and what is new is not young any more.
    """
    model = run.model
    cuts = [cut for result in applied for cut in result.cuts]
    if run.ema is not None:
        redrawn = list(shapes) if adopted else [name for result in applied for name in result.redrawn]
        run.ema.follow(model, cuts, redrawn)
    growth = any(map(grown, applied)) and not adopted
    if growth and config.moments == "reset":
        forget(run.optimizer, model.parameters())
    if run.new_parameters is not None:
        run.new_parameters.add(model, new_parts(model, shapes, cuts) if growth else {}, cuts)
    if config.batchnorm:
        recalibrate(model, (inputs.to(run.device) for inputs, _ in islice(batches, config.batchnorm)))
