"""Whether a change leaves a model that can be trained: its tensors finite, some of its parameters trainable."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evolve.structure.outputs import is_finite


class LookCloserError(Exception):
    """Asks for another attempt that looks closely at the model before the change; hardly ever needed."""


class Health:
    """What was wrong with a model before a change, and which of its tensors there were.

    Args:
        model: The model before the change.
        closely: Look at the values of its tensors.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, *, closely: bool = False) -> None:
        self._closely = closely
        self._names = {name for name, _ in _tensors(model)}
        self._broken = {name for name, tensor in _tensors(model) if not is_finite(tensor)} if closely else set()
        self._trains = any(parameter.requires_grad for parameter in model.parameters())

    @torch.no_grad()
    def faults(self, model: nn.Module) -> list[str]:
        """Says what is wrong with the changed model that was not wrong before.

        Raises:
            LookCloserError: If something is, and it is not known whether it was before.
        """
        found = []
        parameters = dict(model.named_parameters())
        for name, tensor in _tensors(model):
            if name in self._broken or is_finite(tensor):
                continue
            kind = "parameter" if name in parameters else "buffer"
            new = name not in self._names
            if new and kind == "buffer" and _masks(tensor):
                continue
            if not new and not self._closely:
                raise LookCloserError
            found.append(f"the {'new ' if new else ''}{kind} '{name}' holds NaN or infinity")
        if self._trains and not any(parameter.requires_grad for parameter in parameters.values()):
            found.append("no trainable parameter is left")
        return found


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _masks(tensor: Tensor) -> bool:
    """Whether -inf is all there is beside finite values, as in a mask that is added to scores."""
    return not bool((torch.isnan(tensor) | (tensor == math.inf)).any())
