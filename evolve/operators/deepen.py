"""`deepen`: a residual block behind a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.blocks import ConvBlock, LinearBlock, like_site
from evolve.operators.shapes import site_shape
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import attach


@operators.register("deepen")
class Deepen(MutationOperator):
    """Inserts a residual block behind a site; its last layer starts at zero, so it starts as the identity.

    Conv-BatchNorm-ReLU-Conv-BatchNorm with gamma 0 for (N, C, ...), LayerNorm-Linear-GELU-Linear with zero weights
    for (N, ..., F): exact in train and eval mode, unlike identity-initialised layers (Net2DeeperNet, Chen et al. 2016),
    whose BatchNorm needs calibration. Zero gamma: Goyal et al. 2017.
    """

    name = "deepen"
    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `deepen`.

        Attributes:
            ratio: Hidden channels or features relative to the site's output.
            kernel: Kernel size of a convolutional block, odd.
        """

        ratio: float = Field(default=1.0, gt=0, le=16)
        kernel: int = Field(default=3, ge=1, le=15, multiple_of=1)

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the kind of block and its width."""
        if self.options.kernel % 2 == 0:
            raise NotApplicable(f"kernel={self.options.kernel} is even and would shift the sizes; choose an odd one.")
        if site.module is model and site.span is None:
            raise NotApplicable("Behind the whole model there is no place for a block. Name a submodule as the site.")
        shape = site_shape(site, probe)
        hidden = max(1, round(shape.outputs * self.options.ratio))
        return {"layout": shape.layout, "dims": shape.dims, "channels": shape.outputs, "hidden": hidden}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Builds the block and sets it to work behind the site."""
        width, hidden = plan["channels"], plan["hidden"]
        block: nn.Module
        if plan["layout"] == "channels_first":
            kernel = self.options.kernel
            block = ConvBlock(plan["dims"], width, hidden, kernel)
            nn.init.zeros_(block.norm2.weight)
            added = 2 * width * hidden * kernel ** plan["dims"] + 2 * hidden + 2 * width
            what = f"convolutional block {width}→{hidden}→{width}"
        else:
            block = LinearBlock(width, hidden)
            nn.init.zeros_(block.linear2.weight)
            nn.init.zeros_(block.linear2.bias)
            added = 2 * width + (width + 1) * hidden + (hidden + 1) * width
            what = f"linear block {width}→{hidden}→{width}"
        attach(model, site, like_site(block, site.layers), name=self.name, parallel=False)
        return Change(f"Inserted a residual {what} behind '{site.name}' (+{added:,} parameters).", added)
