"""Whether a change leaves a model that can be trained: its tensors finite, some of its parameters trainable."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evolve.structure.outputs import single_or_wider


class Health:
    """What was wrong with a model before a change, and which of its tensors there were.

    Args:
        model: The model before the change.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {name for name, _ in _tensors(model)}
        self._broken = {name for name, tensor in _tensors(model) if not _finite(tensor)}
        self._trains = any(parameter.requires_grad for parameter in model.parameters())

    def faults(self, model: nn.Module) -> list[str]:
        """Says what is wrong with the changed model that was not wrong before."""
        found = []
        parameters = dict(model.named_parameters())
        for name, tensor in _tensors(model):
            if name in self._broken or _finite(tensor):
                continue
            kind = "parameter" if name in parameters else "buffer"
            new = name not in self._names
            if new and kind == "buffer" and _masks(tensor):
                continue
            found.append(f"the {'new ' if new else ''}{kind} '{name}' holds NaN or infinity")
        if self._trains and not any(parameter.requires_grad for parameter in parameters.values()):
            found.append("no trainable parameter is left")
        return found


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite: a sum hides no other one and is much quicker to take, but it may overflow."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return True
    wide = tensor.to(single_or_wider(tensor.dtype))
    return bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())


def _masks(tensor: Tensor) -> bool:
    """Whether -inf is all there is beside finite values, as in a mask that is added to scores."""
    return not bool((torch.isnan(tensor) | (tensor == math.inf)).any())
