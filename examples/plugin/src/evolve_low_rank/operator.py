"""The operator `low_rank`: a term beside a linear layer that starts at zero."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

import evolve
from evolve.errors import NotApplicable
from evolve.operators import Change, OperatorOptions, operators
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import call_parts_around


class LowRankLinear(nn.Linear):
    """`layer(x) + x @ down.T @ up.T`, with `up` zero at first; keeps the layer's own parameters.

    Args:
        layer: The layer whose place it takes.
        rank: Rows of `down` (rank, in_features) and columns of `up` (out_features, rank).
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, **like) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, **like))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return super().forward(x) + x @ self.down.T @ self.up.T


@operators.register("low_rank")
class LowRank(evolve.MutationOperator):
    """Adds a low-rank term to a linear layer (Hu et al. 2021)."""

    name = "low_rank"
    preserves = "exact"

    class Options(OperatorOptions):
        """`rank`: that of the term, at most that of the layer."""

        rank: int = Field(default=4, ge=1)

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Returns the rank, which is all that `apply` needs; reads the model and never changes it."""
        if type(site.module) is not nn.Linear or site.span is not None:
            raise NotApplicable(f"'{site.name}' is not an nn.Linear. Name one as the site.")
        return {"rank": min(self.options.rank, site.module.in_features, site.module.out_features)}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Puts the extended layer in the layer's place, from the plan alone."""
        layer, rank = site.module, plan["rank"]
        extended = LowRankLinear(layer, rank).train(layer.training)
        model.set_submodule(site.name, extended)
        call_parts_around(model, extended)
        added = rank * (layer.in_features + layer.out_features)
        return Change(f"'{site.name}' has a term of rank {rank} (+{added:,} parameters).", added)
