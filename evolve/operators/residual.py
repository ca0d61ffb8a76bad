"""`residual`: a shortcut over a site, `out = f(x) + g(x)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from torch import nn

from evolve.blocks.shortcuts import ConvProjection, GatedIdentity, LinearProjection, like_site
from evolve.errors import NotApplicable
from evolve.lineage import Preserves
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.past import past_beside, planned, spatial_past
from evolve.operators.shapes import dtype_of_flow, site_shape
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import attach, links_at


@operators.register("residual")
class Residual(MutationOperator):
    """Inserts a shortcut (He et al. 2015) over a site that maps one tensor to one tensor.

    Same shape: the identity behind a scalar gate. Another shape: a projection, Conv 1x1 + BatchNorm for (N, C, ...),
    Linear for (N, ..., F). With `init: zero` gate, gamma or weights start at zero and the function is preserved bit
    for bit, in train and in eval mode (zero gamma: Goyal et al. 2017; zero gate: Bachlechner et al. 2020).
    """

    class Options(OperatorOptions):
        """Options of `residual`.

        Attributes:
            init: "zero" (preserving), "identity" (the shortcut passes its input on) or "random" (PyTorch's default).
        """

        init: Literal["zero", "identity", "random"] = "zero"

    @property
    def preserves(self) -> Preserves:  # type: ignore[override]
        """Exact for `init: zero`, else not."""
        return "exact" if self.options.init == "zero" else "no"

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the kind of shortcut, its channels and strides."""
        if any(isinstance(link.block, GatedIdentity | ConvProjection | LinearProjection) for link in links_at(site)):
            raise NotApplicable(f"'{site.name}' has a shortcut already. Choose another site.")
        if site.module is model and site.span is None:
            raise NotApplicable("There is no place for a shortcut over the whole model. Name a submodule as the site.")
        shape = site_shape(site, probe)
        past: list[list[int]] = []
        if shape.layout == "channels_first" and not shape.same:
            past = spatial_past(model, site, probe, shape, beside=True)
        else:
            past_beside(model, site, probe, shape, ())  # it joins no positions, but the site may delay them
        return {**asdict(shape), **planned(past), **dtype_of_flow(model, site, probe, behind=False)}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Builds the shortcut and sets it to work beside the site."""
        inputs, outputs, dims = plan["inputs"], plan["outputs"], plan["dims"]
        stride = tuple(plan["stride"])
        shortcut: nn.Module
        if plan["same"]:
            shortcut, added, what = GatedIdentity(0.0 if self.options.init == "zero" else 1.0), 1, "a gated identity"
        elif plan["layout"] == "channels_first":
            shortcut = ConvProjection(dims, inputs, outputs, stride, plan.get("past", ()))
            added = inputs * outputs + 3 * outputs
            what = f"a projection {inputs}→{outputs} of stride {_text(stride)}"
        else:
            shortcut = LinearProjection(inputs, outputs)
            added, what = inputs * outputs + outputs, f"a linear projection {inputs}→{outputs}"
        self._initialise(shortcut)
        attach(model, site, like_site(shortcut, site.layers, model, plan.get("dtype")), name=self.name, parallel=True)
        return Change(f"Inserted {what} over '{site.name}' (+{added:,} parameters).", added)

    def _initialise(self, shortcut: nn.Module) -> None:
        init = self.options.init
        if isinstance(shortcut, ConvProjection):
            if init == "zero":
                nn.init.zeros_(shortcut.norm.weight)
            if init == "identity":
                nn.init.dirac_(shortcut.conv.weight)
                nn.init.zeros_(shortcut.conv.bias)  # type: ignore[arg-type]
        elif isinstance(shortcut, LinearProjection):
            if init == "zero":
                nn.init.zeros_(shortcut.linear.weight)
            if init == "identity":
                nn.init.eye_(shortcut.linear.weight)
            if init != "random":
                nn.init.zeros_(shortcut.linear.bias)
        elif isinstance(shortcut, GatedIdentity) and init == "random":
            nn.init.uniform_(shortcut.gate, -1.0, 1.0)

    def default_site(self, sites: list[str]) -> str:
        """`features` where the model has it, else the first site."""
        return "features" if "features" in sites else sites[0]


def _text(stride: tuple[int, ...]) -> str:
    return str(stride[0]) if len(set(stride)) == 1 else "x".join(map(str, stride))
