"""Everything that training moves, remembered, so that a run can go back to before a mutation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from evolve.runtime.generators import random_state, set_random_state
from evolve.runtime.memory import free_memory, out_of_memory
from evolve.structure.isolation import ModuleState
from evolve.surgery.optimizer import OptimizerState
from evolve.training import TrainState

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Snapshot:
    """Remembers a training state on creation; `restore` puts it back bit for bit, objects keeping their identity.

    Model, optimizer, learning rate schedule, loss scaling, moving average, care of new parts, random generators and the
    counts of what is done are covered; what was spent stays spent. Copies of tensors are kept in the memory of the
    host, so that a full accelerator does not get fuller; what a mutation replaces stays alive where it is.

    Args:
        state: What training moves, between two optimizer steps.
    """

    def __init__(self, state: TrainState) -> None:
        host = torch.device("cpu")
        self._state = state
        self._model = ModuleState(state.model, parameters=True, device=host)
        self._optimizer = OptimizerState(state.optimizer, device=host)
        self._scheduler = copy.deepcopy(state.scheduler.state_dict()) if state.scheduler else None
        self._scaler = copy.deepcopy(state.scaler)
        self._averages = None
        if state.ema is not None:
            shadow = {name: value.to(host, copy=True) for name, value in state.ema.shadow.items()}
            self._averages = (state.ema.updates, shadow)
        self._newborns = copy.deepcopy(state.new_parameters.state()) if state.new_parameters else None
        self._counts = state.counts()
        self._random = random_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back; gradients are cleared. May be called once or more often."""
        state = self._state
        state.optimizer.zero_grad()
        for parameter in state.model.parameters():
            parameter.grad = None
        self._model.restore()
        self._optimizer.restore()
        if state.scheduler is not None and self._scheduler is not None:
            state.scheduler.load_state_dict(copy.deepcopy(self._scheduler))
        state.scaler = copy.deepcopy(self._scaler)  # one that was stopped within a step could not begin another
        if state.ema is not None and self._averages is not None:
            state.ema.updates, shadow = self._averages
            state.ema.shadow = {name: value.to(state.device, copy=True) for name, value in shadow.items()}
        if state.new_parameters is not None and self._newborns is not None:
            state.new_parameters.load_state(self._newborns, state.device)
        state.take_counts({**self._counts, "seconds": state.seconds, "flops": state.flops})
        set_random_state(self._random)


def unless_memory_runs_out(before: Snapshot, when: str, work: Callable[[], T]) -> T | None:
    """Does what may take more memory than there is; where it does, goes back to before.

    Args:
        before: What to go back to.
        when: Where in a run this is, for the log.
        work: What to do.

    Returns:
        What the work returned, or None where all is as before.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        logger.warning("Memory ran out %s: %s", when, str(error))
    before.restore()  # only here, where the error no longer holds what the work had computed
    free_memory()
    return None
