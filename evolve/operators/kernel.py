"""`kernel`: a larger kernel, zeros around the old one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.structure.probe import Probe
from evolve.structure.sites import Site
from evolve.surgery.resize import Cut, resize


@operators.register("kernel")
class Kernel(MutationOperator):
    """Enlarges the kernel of a convolution by zeros around its weights, and its padding with it: exact.

    Net2Net and network morphism (Wei et al. 2016) call it kernel-size morphing.
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `kernel`.

        Attributes:
            add: Positions to add along each spatial axis, even: half of them on each side.
        """

        add: int = Field(default=2, ge=2, le=30, multiple_of=2)

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the new padding."""
        conv = site.module
        if site.span is not None or site.part is not None or not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise NotApplicable(
                f"'{site.name}' is no convolution ({type(conv).__name__}). Name a Conv1d, Conv2d or Conv3d."
            )
        kinds = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
        if getattr(type(conv), "_evolve_base", type(conv)).forward not in kinds:
            raise NotApplicable(f"'{site.name}' pads in a forward of its own, which does not follow a larger kernel.")
        if conv.padding_mode != "zeros":
            raise NotApplicable(f"'{site.name}' pads by '{conv.padding_mode}'; only zeros can be padded further.")
        if not isinstance(conv._parameters.get("weight"), nn.Parameter):
            raise NotApplicable(f"The weight of '{site.name}' is computed from others (a parametrization).")
        half = self.options.add // 2
        padding: Any = conv.padding
        if not isinstance(padding, str):
            padding = [old + half * dilation for old, dilation in zip(padding, conv.dilation, strict=True)]
        elif padding == "valid":
            padding = [half * dilation for dilation in conv.dilation]
        return {"padding": padding, "kernel_size": [size + self.options.add for size in conv.kernel_size]}

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Puts zeros around the weights."""
        conv: nn.Conv2d = site.module  # type: ignore[assignment]
        half, before = self.options.add // 2, conv.weight.numel()
        rim = torch.full((half,), -1)
        cuts = [
            Cut(f"{site.name}.weight" if site.name else "weight", axis, torch.cat([rim, torch.arange(size), rim]))
            for axis, size in enumerate(conv.weight.shape)
            if axis > 1
        ]
        resize(model, cuts)
        padding = plan["padding"]
        conv.kernel_size = tuple(plan["kernel_size"])
        if isinstance(padding, str):
            # Behind padding="same" the convolution keeps its sizes for the rarer padding modes too.
            total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
            sides = [side for size in reversed(total) for side in (size // 2, size - size // 2)]
        else:
            conv.padding = tuple(padding)
            sides = [size for size in reversed(padding) for _ in range(2)]
        conv._reversed_padding_repeated_twice = sides
        old, new = ("x".join(map(str, sizes)) for sizes in (_less(plan["kernel_size"], 2 * half), plan["kernel_size"]))
        added = conv.weight.numel() - before
        return Change(f"Enlarged the kernel of '{site.name}' from {old} to {new} (+{added:,} parameters).", added, cuts)


def _less(sizes: list[int], by: int) -> list[int]:
    return [size - by for size in sizes]
