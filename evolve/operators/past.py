"""What operators that set a block at a site have to heed in a causal model: no position may see a later one."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from evolve.errors import NotApplicable
from evolve.operators.shapes import SiteShape
from evolve.structure.probe import Probe
from evolve.structure.site_order import AxisOrder, Steps, order_at
from evolve.structure.sites import Site

Axes = tuple[int, ...]


def past_behind(model: nn.Module, site: Site, probe: Probe, shape: SiteShape, joined: Axes) -> list[int]:
    """Returns the axes along which a block behind a site may see earlier positions only.

    Args:
        model: The root module.
        site: Where the block is to stand.
        probe: Of the model.
        shape: Of the site.
        joined: Axes of the site's output, from 0, along which the block joins positions, beside the channels.

    Returns:
        Those of `joined` along which later positions lie behind earlier ones; none where the model is not causal.

    Raises:
        NotApplicable: If positions lie along the channels, or in another order than that of the axis.
    """
    order = order_at(model, site, probe)
    return [] if order is None else _ordered(site, probe, shape, order[1], joined)


def past_beside(model: nn.Module, site: Site, probe: Probe, shape: SiteShape, joined: Axes) -> list[tuple[int, int]]:
    """Returns the same for a block beside a site, each axis with how far its output has to be moved to later positions.

    A block beside a site sees the site's input. Where the site delays it (the first layer of a PixelCNN) or begins
    later (a convolution without padding), the block has to do the same.

    Raises:
        NotApplicable: As `past_behind`, or if the block cannot be brought in line with the site.
    """
    order = order_at(model, site, probe)
    if order is None:
        return []
    taken, given = order
    axes = _ordered(site, probe, shape, taken, joined)
    _ordered(site, probe, shape, given, joined)
    shifts = dict.fromkeys(axes, 0)
    for axis, steps in given.ordered.items():
        if axis not in taken.ordered and (axis in taken.tangled or taken.ordered):
            raise NotApplicable(f"The model is causal, and '{site.name}' moves its positions from one axis to another.")
        stride = shape.stride[axis - 2] if shape.layout == "channels_first" and axis > 1 else 1
        shift = _delay(taken.ordered.get(axis, steps), steps, stride)
        if axis in joined:
            shifts[axis] = shift
        elif shift > 0:
            raise NotApplicable(
                f"The model is causal, and '{site.name}' delays its input by {shift} positions: what stands beside it "
                "would show the output what it must not see. Choose another site."
            )
    return list(shifts.items())


def spatial_past(model: nn.Module, site: Site, probe: Probe, shape: SiteShape, *, beside: bool) -> list[list[int]]:
    """Returns the `past` of a block for (N, C, ...): spatial axes, from 0, and shifts."""
    joined = tuple(range(2, 2 + shape.dims))
    if beside:
        return [[axis - 2, shift] for axis, shift in past_beside(model, site, probe, shape, joined)]
    return [[axis - 2, 0] for axis in past_behind(model, site, probe, shape, joined)]


def planned(past: list[Any]) -> dict[str, Any]:
    """Returns what a plan says of it: nothing where the model is not causal."""
    return {"past": past} if past else {}


def _ordered(site: Site, probe: Probe, shape: SiteShape, order: AxisOrder, joined: Axes) -> list[int]:
    shapes = probe.shapes(site)
    channels = 1 if shape.layout == "channels_first" or shapes is None else len(shapes[1]) - 1
    if joined and 0 in order.ordered:
        raise NotApplicable(
            f"The positions of '{site.name}' lie along its first axis, as in (L, N, D): a block that joins positions "
            "would join the samples of the batch instead. Choose another site, or another kind of block."
        )
    wrong = [
        axis for axis in (channels, *joined) if axis in order.tangled or (axis == channels and axis in order.ordered)
    ]
    if wrong:
        raise NotApplicable(
            f"The model is causal, and at '{site.name}' earlier and later positions lie along axis {wrong[0]} in a way "
            "that a block cannot keep apart. Choose another site."
        )
    return [axis for axis in joined if axis in order.ordered]


def _delay(taken: Steps, given: Steps, stride: int) -> int:
    """Returns by how many positions the output of a site stands behind its input, at most."""
    pairs = [(one, other) for one, other in zip(taken, given, strict=True) if one is not None and other]
    return max((other - math.ceil(one / stride) for one, other in pairs), default=0)
