"""Mutations in training loops under Accelerate: `pip install accelerate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evolve.errors import EvolveError, missing_package
from evolve.evolver.controller import MutationController
from evolve.evolver.loop import Loop
from evolve.integrations.base_model import BaseModel
from evolve.integrations.folder import read_records, read_training, write_records, write_training
from evolve.surgery.optimizer import Optimizers, as_optimizers

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise EvolveError(missing_package(f"'{__name__}'", "accelerate", error)) from error

logger = logging.getLogger(__name__)


def prepared_loop(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizers,
    *,
    example_inputs: Any,
    also: Sequence[Any] = (),
    **options: Any,
) -> Loop:
    """Returns a `Loop` over what `accelerator.prepare` returned.

    Mutations look at what is inside: a prepared optimizer makes no step while gradients are accumulated, so it could
    not be tried.

    Args:
        accelerator: That prepared them.
        model: As it was returned.
        optimizer: Likewise, one or several.
        example_inputs: See `evolve.Loop`.
        also: Likewise; the accelerator's gradient scaler is added.
        **options: Other arguments of `evolve.Loop`.

    Raises:
        EvolveError: If several processes train the model, or an argument is of another type.
    """
    if accelerator.num_processes > 1:
        raise EvolveError("evolve mutates models that are trained by one process. Launch one.")
    scaler = getattr(accelerator, "scaler", None)
    return Loop(
        accelerator.unwrap_model(model),
        [unwrapped(one) for one in as_optimizers(optimizer)],
        example_inputs=example_inputs,
        also=[*also, *([scaler] if scaler is not None else [])],
        **options,
    )


def register(accelerator: Accelerator, controller: MutationController) -> None:
    """Makes `accelerator.save_state` and `load_state` know of mutations.

    `save_state` adds the records and the state of the controller to the folder. `load_state` gives the model the
    architecture of the folder, in place and with its optimizers, before Accelerate loads weights and state into them:
    from the base model on to a later one, or back.

    Args:
        accelerator: That prepared model and optimizers.
        controller: New, over the base model; see `prepared_loop`.

    Raises:
        EvolveError: If a mutation was made already: there is no way back to the base model.
    """
    loop = controller.loop
    if any(record.success for record in controller.lineage):
        raise EvolveError("The model was mutated already. Call register before the first mutation.")
    base = BaseModel(loop.model, loop.optimizers)

    def save(models: list[nn.Module], weights: list[Any], folder: str) -> None:
        if controller.testing:
            logger.warning("%s is written while a mutation is on probation: resumed from, it is kept.", folder)
        write_records(folder, controller.lineage)
        write_training(folder, controller.state(keep=True))

    def load(models: list[nn.Module], folder: str) -> None:
        records, state = read_records(folder), read_training(folder)
        base.become(records, controller.lineage)
        controller.load_state(state)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Returns the optimizer in what Accelerate made of it."""
    inner: Optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return inner
