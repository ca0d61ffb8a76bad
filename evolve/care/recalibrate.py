"""Running statistics of BatchNorm that fit a model whose weights have jumped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evolve.structure.isolation import undisturbed


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Takes the running statistics of all BatchNorm layers that train from some batches, and changes nothing else.

    They become the plain means over the batches (as in Izmailov et al. 2018, "Averaging Weights Leads to Wider
    Optima").

    Args:
        model: In the modes in which it is trained: layers in eval mode keep their statistics.
        batches: Inputs on the model's device.

    Returns:
        How many layers have new statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    if not norms:
        return 0
    with undisturbed(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        for inputs in batches:
            model(inputs)
        found = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    for norm, values in zip(norms, found, strict=True):
        for buffer, value in zip(norm.buffers(recurse=False), values, strict=True):
            buffer.copy_(value)
    return len(norms)
