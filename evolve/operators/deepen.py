"""`deepen`: a residual block behind a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.blocks.layers import (
    ConvChain,
    LinearBlock,
    TransformerBlock,
    has_batch_norm,
    heads_for,
    positions,
    rounded,
)
from evolve.blocks.shortcuts import like_site
from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OddKernel, OperatorOptions, operators
from evolve.operators.past import past_behind, planned, spatial_past
from evolve.operators.shapes import SiteShape, dtype_of_flow, site_shape
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import attach

Block = Literal["auto", "basic", "bottleneck", "depthwise", "inverted", "mlp", "transformer"]
_RATIOS = {"basic": 1.0, "bottleneck": 0.25, "depthwise": 1.0, "inverted": 4.0, "mlp": 1.0, "transformer": 4.0}


@operators.register("deepen")
class Deepen(MutationOperator):
    """Inserts a residual block behind a site; its last layer starts at zero, so it starts as the identity.

    For (N, C, ...) convolutions with norms, the last one's gamma 0: basic, bottleneck (He et al. 2015),
    depthwise-separable or inverted (Sandler et al. 2018). For (N, ..., F) a pre-norm MLP or transformer block. Exact in
    train and eval mode, unlike identity-initialised layers (Net2DeeperNet, Chen et al. 2016), whose BatchNorm needs
    calibration. Zero gamma: Goyal et al. 2017.
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `deepen`.

        Attributes:
            block: Kind of block; "auto" takes what suits the layers that stand there.
            ratio: Hidden channels or features relative to the site's output; the usual one of the block if None.
            kernel: Kernel size of a convolutional block, odd.
        """

        block: Block = "auto"
        ratio: float | None = Field(default=None, gt=0, le=16)
        kernel: OddKernel = 3

        @model_validator(mode="after")
        def _kernel_is_used(self) -> Self:
            if self.block in ("mlp", "transformer") and self.kernel != type(self).model_fields["kernel"].default:
                raise ValueError(f"kernel does nothing in a block of kind '{self.block}'; drop it")
            return self

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the kind of block and its width."""
        if site.module is model and site.span is None:
            raise NotApplicable("Behind the whole model there is no place for a block. Name a submodule as the site.")
        shape = site_shape(site, probe)
        block = self._suited(site, shape, probe)
        hidden = rounded(shape.outputs * (self.options.ratio or _RATIOS[block]))
        return {
            "block": block,
            "dims": shape.dims,
            "channels": shape.outputs,
            "hidden": hidden,
            "batch_norm": has_batch_norm(site.layers),
            **planned(self._past(model, site, probe, shape, block)),
            **dtype_of_flow(model, site, probe, behind=True),
        }

    def _past(self, model: nn.Module, site: Site, probe: Probe, shape: SiteShape, block: str) -> list[Any]:
        if shape.layout == "channels_first":
            return spatial_past(model, site, probe, shape, beside=False)
        joined = (1,) if block == "transformer" else ()
        return [axis - 1 for axis in past_behind(model, site, probe, shape, joined)]

    def _suited(self, site: Site, shape: SiteShape, probe: Probe) -> str:
        wanted: str = self.options.block
        spatial = shape.layout == "channels_first"
        if wanted != "auto":
            if (wanted in {"mlp", "transformer"}) == spatial:
                raise NotApplicable(
                    f"A block of kind '{wanted}' does not suit '{site.name}', whose channels are "
                    f"{'axis 1' if spatial else 'the last axis'}. Choose another one, or block: auto."
                )
            if wanted == "transformer" and not self._has_tokens(site, probe):
                raise NotApplicable(
                    f"A transformer block needs (N, L, D) with more than one token, which '{site.name}' does not give. "
                    "Choose block: mlp."
                )
            return wanted
        if spatial:
            convs = [layer for layer in site.layers if isinstance(layer, nn.modules.conv._ConvNd)]
            return "inverted" if any(conv.groups == conv.in_channels > 1 for conv in convs) else "basic"
        attends = any(isinstance(layer, nn.MultiheadAttention) for layer in site.layers)
        return "transformer" if attends and self._has_tokens(site, probe) else "mlp"

    def _has_tokens(self, site: Site, probe: Probe) -> bool:
        shapes = probe.shapes(site)
        return shapes is None or (len(shapes[1]) == 3 and positions(shapes[1], channels_first=False) > 1)

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Builds the block and sets it to work behind the site."""
        width, hidden, kind = plan["channels"], plan["hidden"], plan["block"]
        kernel = self.options.kernel
        block: nn.Module
        if kind == "mlp":
            block = LinearBlock(width, hidden)
        elif kind == "transformer":
            block = TransformerBlock(width, hidden, heads_for(width), plan.get("past", ()))
        else:
            widths, kernels, depthwise = {
                "basic": ([width, hidden, width], [kernel, kernel], [False, False]),
                "bottleneck": ([width, hidden, hidden, width], [1, kernel, 1], [False] * 3),
                "depthwise": ([width, width, width], [kernel, 1], [True, False]),
                "inverted": ([width, hidden, hidden, width], [1, kernel, 1], [False, True, False]),
            }[kind]
            block = ConvChain(
                plan["dims"], widths, kernels, depthwise, batch=plan["batch_norm"], past=plan.get("past", ())
            )
        added = sum(parameter.numel() for parameter in block.parameters())
        attach(model, site, like_site(block, site.layers, model, plan.get("dtype")), name=self.name, parallel=False)
        what = f"{kind} block {width}→{hidden}→{width}"
        return Change(f"Inserted a residual {what} behind '{site.name}' (+{added:,} parameters).", added)
