"""A plain multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from evolve.models.lookup import models


@models.register("mlp")
def mlp(in_features: int, hidden: Sequence[int], num_classes: int) -> nn.Sequential:
    """Builds flatten → (Linear → ReLU) for each hidden width → Linear.

    Args:
        in_features: Inputs per sample, after flattening.
        hidden: Width of each hidden layer; empty for a linear classifier.
        num_classes: Outputs.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([in_features, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear([in_features, *hidden][-1], num_classes))
    return nn.Sequential(*layers)
