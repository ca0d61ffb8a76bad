"""`kernel`: a larger kernel, zeros around the old one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from evolve.errors import NotApplicable
from evolve.operators.base import Change, MutationOperator, OperatorOptions, operators
from evolve.operators.past import planned
from evolve.structure.probe import Probe
from evolve.structure.site_order import order_at
from evolve.structure.sites import Site
from evolve.surgery.resize import Cut, resize

# Padding that differs before and behind is what PyTorch's convolutions have for the rarer modes: F.pad in this mode.
_UNEVEN: Any = "constant"


@operators.register("kernel")
class Kernel(MutationOperator):
    """Enlarges the kernel of a convolution by zeros around its weights, and its padding with it: exact.

    Net2Net and network morphism (Wei et al. 2016) call it kernel-size morphing. In a causal model the kernel grows
    towards earlier positions only.
    """

    preserves = "exact"

    class Options(OperatorOptions):
        """Options of `kernel`.

        Attributes:
            add: Positions to add along each spatial axis, even: half of them on each side, all of them before the old
                ones along an axis on which the model is causal.
        """

        add: int = Field(default=2, ge=2, le=30, multiple_of=2)

    def plan(self, model: nn.Module, site: Site, probe: Probe) -> dict[str, Any]:
        """Settles the new size, and the axes along which it grows towards earlier positions only."""
        conv = site.module
        if site.span is not None or site.part is not None or not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise NotApplicable(
                f"'{site.name}' is no convolution ({type(conv).__name__}). Name a Conv1d, Conv2d or Conv3d."
            )
        kinds = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
        if getattr(type(conv), "_evolve_base", type(conv)).forward not in kinds:
            raise NotApplicable(f"'{site.name}' pads in a forward of its own, which does not follow a larger kernel.")
        if conv.padding_mode not in {"zeros", _UNEVEN}:
            raise NotApplicable(f"'{site.name}' pads by '{conv.padding_mode}'; only zeros can be padded further.")
        if not isinstance(conv._parameters.get("weight"), nn.Parameter):
            raise NotApplicable(f"The weight of '{site.name}' is computed from others (a parametrization).")
        kernel_size = [size + self.options.add for size in conv.kernel_size]
        return {"kernel_size": kernel_size, **planned(self._past(model, site, probe))}

    def _past(self, model: nn.Module, site: Site, probe: Probe) -> list[int]:
        """Returns the spatial axes along which the kernel may grow towards earlier positions only."""
        order = order_at(model, site, probe)
        if order is None:
            return []
        taken, dims = order[0], len(site.module.kernel_size)  # type: ignore[arg-type]
        spatial = set(range(2, 2 + dims))
        if taken.tangled & spatial:
            raise NotApplicable(
                f"The model is causal, and '{site.name}' sees earlier and later positions mixed along an axis that its "
                "kernel would join. Choose another site."
            )
        return [axis - 2 for axis in sorted(spatial & taken.ordered.keys())]

    def apply(self, model: nn.Module, site: Site, plan: Mapping[str, Any]) -> Change:
        """Puts zeros around the weights."""
        conv: nn.Conv2d = site.module  # type: ignore[assignment]
        before, old = conv.weight.numel(), conv.kernel_size
        add, past = self.options.add, plan.get("past", ())
        rims = [(add, 0) if axis in past else (add // 2, add // 2) for axis in range(len(old))]
        cuts = [
            Cut(f"{site.name}.weight" if site.name else "weight", axis, _with_rim(size, *rims[axis - 2]))
            for axis, size in enumerate(conv.weight.shape)
            if axis > 1
        ]
        resize(model, cuts)
        sides = [
            (first + rim[0] * dilation, last + rim[1] * dilation)
            for (first, last), rim, dilation in zip(_padding(conv, old), rims, conv.dilation, strict=True)
        ]
        conv.kernel_size = tuple(plan["kernel_size"])
        _pad(conv, sides, same=all(first == last for first, last in rims))
        sizes = ("x".join(map(str, each)) for each in (old, conv.kernel_size))
        added = conv.weight.numel() - before
        way = " towards earlier positions" if past else ""
        message = (
            f"Enlarged the kernel of '{site.name}' from {next(sizes)} to {next(sizes)}{way} (+{added:,} parameters)."
        )
        return Change(message, added, cuts)


def _with_rim(size: int, first: int, last: int) -> torch.Tensor:
    return torch.cat([torch.full((first,), -1), torch.arange(size), torch.full((last,), -1)])


def _padding(conv: nn.Conv2d, kernel_size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns how far a convolution pads before and behind, for each spatial axis."""
    if conv.padding_mode == _UNEVEN:
        pads = conv._reversed_padding_repeated_twice
        return list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    if conv.padding == "same":
        total = [dilation * (size - 1) for dilation, size in zip(conv.dilation, kernel_size, strict=True)]
        return [(each // 2, each - each // 2) for each in total]
    padding: Any = (0,) * len(kernel_size) if conv.padding == "valid" else conv.padding
    return [(each, each) for each in padding]


def _pad(conv: nn.Conv2d, sides: list[tuple[int, int]], *, same: bool) -> None:
    """Lets a convolution pad with zeros, also by different amounts before and behind.

    Args:
        conv: The convolution.
        sides: The amounts, for each spatial axis.
        same: Whether they are those of padding="same", if that is what it has.
    """
    conv._reversed_padding_repeated_twice = [side for pair in reversed(sides) for side in pair]
    if conv.padding == "same" and same:
        return
    if conv.padding_mode != _UNEVEN and all(first == last for first, last in sides):
        conv.padding = tuple(first for first, _ in sides)
    else:
        conv.padding_mode = _UNEVEN  # F.pad by the amounts above, then a convolution without padding
        conv.padding = (0,) * len(sides)
