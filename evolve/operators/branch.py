"""`branch`: a second way around a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from evolve.blocks.layers import ConvChain, LinearBlock, has_batch_norm, rounded
from evolve.blocks.shortcuts import like_site
from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OddKernel, OperatorOptions, operators
from evolve.operators.past import past_beside, planned, spatial_past
from evolve.operators.shapes import dtype_of_flow, site_shape
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.attach import attach


@operators.register("branch")
class Branch(MutationOperator):
    """Adds a parallel branch to a site, `out = f(x) + g(x)`; its last layer starts at zero: exact.

    Convolutions (a plain or a depthwise-separable one) for (N, C, ...), an MLP for (N, ..., F); branches as in
    Inception (Szegedy et al. 2015) and ResNeXt (Xie et al. 2017).
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `branch`.

        Attributes:
            kind: "conv", "separable" or "mlp"; "auto" takes conv or mlp by what stands there.
            kernel: Kernel size of a convolutional branch, odd.
            ratio: Hidden units of an MLP relative to the site's input.
        """

        kind: Literal["auto", "conv", "separable", "mlp"] = "auto"
        kernel: OddKernel = 3
        ratio: float = Field(default=1.0, gt=0, le=16)

        @model_validator(mode="after")
        def _options_are_used(self) -> Self:
            idle = {"mlp": "kernel", "conv": "ratio", "separable": "ratio"}.get(self.kind)
            if idle is not None and getattr(self, idle) != type(self).model_fields[idle].default:
                raise ValueError(f"{idle} does nothing in a branch of kind '{self.kind}'; drop it")
            return self

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the kind, the widths and the stride."""
        if site.module is model and site.span is None:
            raise NotApplicable("There is no place for a branch around the whole model. Name a submodule as the site.")
        shape = site_shape(site, probe)
        spatial = shape.layout == "channels_first"
        kind = self.options.kind if self.options.kind != "auto" else ("conv" if spatial else "mlp")
        if (kind == "mlp") == spatial:
            raise NotApplicable(
                f"A branch of kind '{kind}' does not suit '{site.name}', whose channels are "
                f"{'axis 1' if spatial else 'the last axis'}. Choose another one, or kind: auto."
            )
        past = spatial_past(model, site, probe, shape, beside=True) if spatial else []
        if not spatial:
            past_beside(model, site, probe, shape, ())  # an MLP joins no positions, but the site may delay them
        return {
            "kind": kind,
            "dims": shape.dims,
            "inputs": shape.inputs,
            "outputs": shape.outputs,
            "hidden": rounded(shape.inputs * self.options.ratio),
            "stride": list(shape.stride),
            "batch_norm": has_batch_norm(site.layers),
            **planned(past),
            **dtype_of_flow(model, site, probe, behind=False),
        }

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Builds the branch and sets it to work beside the site."""
        inputs, outputs, kernel = plan["inputs"], plan["outputs"], self.options.kernel
        block: nn.Module
        if plan["kind"] == "mlp":
            block = LinearBlock(inputs, plan["hidden"], outputs)
        else:
            separable = plan["kind"] == "separable"
            widths = [inputs, inputs, outputs] if separable else [inputs, outputs]
            kernels, depthwise = ([kernel, 1], [True, False]) if separable else ([kernel], [False])
            stride = tuple(plan["stride"])
            block = ConvChain(
                plan["dims"], widths, kernels, depthwise, stride, plan["batch_norm"], plan.get("past", ())
            )
        added = sum(parameter.numel() for parameter in block.parameters())
        attach(model, site, like_site(block, site.layers, model, plan.get("dtype")), name=self.name, parallel=True)
        what = f"{plan['kind']} {inputs}→{outputs}"
        return Change(f"Added a parallel branch ({what}) to '{site.name}' (+{added:,} parameters).", added)
