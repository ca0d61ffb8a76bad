"""`attention`: squeeze-excite or self-attention behind a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.blocks.layers import SelfAttention, SqueezeExcite, heads_for, positions, rounded
from evolve.blocks.shortcuts import like_site
from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.past import past_behind, planned
from evolve.operators.shapes import dtype_of_flow, site_shape
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import attach


@operators.register("attention")
class Attention(MutationOperator):
    """Inserts attention behind a zero gate: exact.

    Squeeze-excite (Hu et al. 2018) weighs the channels of (N, C, ...); self-attention (Vaswani et al. 2017) joins the
    positions of an image or the tokens of (N, L, D). In a causal model a position sees itself and earlier ones only.
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `attention`.

        Attributes:
            kind: "squeeze_excite", "self" or, "auto", the first for (N, C, ...), the second for (N, L, D).
            ratio: Hidden units of squeeze-excite relative to the channels.
        """

        kind: Literal["auto", "squeeze_excite", "self"] = "auto"
        ratio: float = Field(default=0.25, gt=0, le=4)

        @model_validator(mode="after")
        def _ratio_is_used(self) -> Self:
            if self.kind == "self" and self.ratio != type(self).model_fields["ratio"].default:
                raise ValueError("ratio belongs to squeeze-excite and does nothing with kind: self; drop it")
            return self

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the kind and its widths."""
        if site.module is model and site.span is None:
            raise NotApplicable("Behind the whole model there is no place for a block. Name a submodule as the site.")
        shape, shapes = site_shape(site, probe), probe.shapes(site)
        spatial = shape.layout == "channels_first"
        kind = self.options.kind
        if kind == "auto":
            kind = "squeeze_excite" if spatial else "self"
        if kind == "squeeze_excite" and not spatial:
            raise NotApplicable(f"Squeeze-excite needs (N, C, ...); the channels of '{site.name}' are its last axis.")
        if kind == "self" and not spatial and (shapes is None or len(shapes[1]) != 3):
            raise NotApplicable(
                f"Self-attention needs (N, L, D); '{site.name}' gives {shapes[1] if shapes else 'unknown'}."
            )
        if kind == "self" and shapes is not None and positions(shapes[1], spatial) == 1:
            raise NotApplicable(f"'{site.name}' gives {shapes[1]}: one position has nothing to attend to.")
        first = 2 if spatial else 1
        past = past_behind(model, site, probe, shape, tuple(range(2, 2 + shape.dims)) if spatial else (1,))
        width = shape.outputs
        return {
            "kind": kind,
            "channels": width,
            "hidden": rounded(width * self.options.ratio),
            "spatial": spatial,
            **planned([axis - first for axis in past]),
            **dtype_of_flow(model, site, probe, behind=True),
        }

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Builds the block and sets it to work behind the site."""
        width = plan["channels"]
        block: nn.Module
        if plan["kind"] == "self":
            block = SelfAttention(width, heads_for(width), plan["spatial"], plan.get("past", ()))
        else:
            block = SqueezeExcite(width, plan["hidden"], plan.get("past", ()))
        added = sum(parameter.numel() for parameter in block.parameters())
        attach(model, site, like_site(block, site.layers, model, plan.get("dtype")), name=self.name, parallel=False)
        what = "self-attention" if plan["kind"] == "self" else "squeeze-excite"
        return Change(f"Inserted {what} over {width} channels behind '{site.name}' (+{added:,} parameters).", added)
