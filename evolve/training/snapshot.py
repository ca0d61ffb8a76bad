"""Everything that training moves, remembered in memory, so that a run can go back to before a mutation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from evolve.runtime.generators import random_state, set_random_state
from evolve.structure.isolation import ModuleState
from evolve.surgery.optimizer import OptimizerState


class Stateful(Protocol):
    """What can be remembered and put back, as learning rate schedules and gradient scalers can."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what there is to remember."""

    def load_state_dict(self, state: Any) -> Any:
        """Takes up what `state_dict` returned."""


class Snapshot:
    """Remembers a training on creation; `restore` puts it back bit for bit, objects keeping their identity.

    Copies of tensors are kept in the memory of the host, so that a full accelerator does not get fuller; what a
    mutation replaces stays alive where it is.

    Args:
        model: The model, between two optimizer steps.
        optimizers: Its optimizers.
        also: Whatever else goes back with them.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], also: Iterable[Stateful] = ()) -> None:
        host = torch.device("cpu")
        self._root, self._optimizers = model, optimizers
        self._model = ModuleState(model, parameters=True, device=host)
        self._state = OptimizerState(optimizers, device=host)
        self._also = [(thing, _copied(thing.state_dict())) for thing in also]
        self._random = random_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back; gradients are cleared. May be called once or more often."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self._model.restore()
        self._state.restore()
        for parameter in self._root.parameters():  # of those too that were out of the model until now
            parameter.grad = None
        for thing, remembered in self._also:
            thing.load_state_dict(_copied(remembered))
            if isinstance(thing, torch.amp.GradScaler):  # one that was stopped within a step could not begin another
                thing._per_optimizer_states.clear()
        set_random_state(self._random)


def _copied(state: Any) -> Any:
    """Copies a tree of values; tensors go to the host."""
    return tree_map(lambda leaf: leaf.to("cpu", copy=True) if isinstance(leaf, Tensor) else copy.deepcopy(leaf), state)
