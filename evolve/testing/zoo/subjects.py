"""Small models, each with one trait that has broken somebody's mutation before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from evolve.mutation.api import mutate
from evolve.testing.zoo import images, returns, tokens, vectors


@dataclass(frozen=True)
class Subject:
    """A model to try operators on.

    Attributes:
        build: Makes the model, in the mode and dtype to try it in; the same weights for the same torch seed.
        inputs: Makes the arguments of a forward pass, a batch of 4.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def _noise(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(4, *shape)


def _words() -> Tensor:
    return torch.arange(24).reshape(4, 6) % 11


def _frozen() -> nn.Module:
    model = images.Chain()
    model.features.requires_grad_(False)
    return model


def _grown() -> nn.Module:
    return copy.deepcopy(_grown_once())


@cache
def _grown_once() -> nn.Module:
    """A model that has been mutated before: blocks behind and beside its layers."""
    model, example = images.Residual(), torch.zeros(2, 3, 8, 8)
    for operator, site in {"branch": "body", "attention": "stem", "deepen": "body.0", "swap": "body.2"}.items():
        mutate(model, operator, site=site, example_inputs=example, strict=True)
    return model


def _volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 3, stride=(1, 2, 2)), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(128, 3))


ZOO: dict[str, Subject] = {
    "chain": Subject(images.Chain, _noise(3, 8, 8)),
    "residual": Subject(images.Residual, _noise(3, 8, 8)),
    "concatenated": Subject(images.Concatenated, _noise(3, 8, 8)),
    "depthwise": Subject(images.Depthwise, _noise(3, 8, 8)),
    "normalised": Subject(images.Normalised, _noise(4, 9)),
    "layer_normed": Subject(images.LayerNormed, _noise(3, 8, 8)),
    "transposed": Subject(images.Transposed, _noise(2, 8)),
    "parametrised": Subject(images.Parametrised, _noise(3, 8, 8)),
    "staged": Subject(images.staged, _noise(3, 8, 8)),
    "grown": Subject(_grown, _noise(3, 8, 8)),
    "volume": Subject(_volume, _noise(2, 4, 10, 10)),
    "frozen": Subject(_frozen, _noise(3, 8, 8)),
    "transformer": Subject(tokens.Transformer, _words),
    "fused_attention": Subject(tokens.FusedAttention, _noise(3, 8, 8)),
    "cross_attention": Subject(tokens.CrossAttention, lambda: (torch.randn(4, 3, 4), torch.randn(4, 5, 6))),
    "grouped_queries": Subject(tokens.GroupedQueries, _words),
    "layered": Subject(lambda: tokens.Layered(tokens.Settings(2)), _words),
    "causal": Subject(tokens.Causal, _noise(3, 8)),
    "recurrent": Subject(tokens.Recurrent, _noise(5, 4)),
    "two_inputs": Subject(vectors.TwoInputs, lambda: {"a": torch.randn(4, 4), "b": torch.randn(4, 3)}),
    "control_flow": Subject(vectors.ControlFlow, _noise(6)),
    "iterates_children": Subject(vectors.IteratesChildren, _noise(5)),
    "gated": Subject(vectors.Gated, _noise(6)),
    "shared": Subject(vectors.Shared, _noise(6)),
    "in_dataclass": Subject(returns.InDataclass, _noise(6)),
    "in_fields": Subject(returns.InFields, _noise(3, 5)),
    "norm_in_single": Subject(returns.NormInSingle, _noise(3, 6)),
    "copies": Subject(vectors.Copies, _noise(5)),
}
