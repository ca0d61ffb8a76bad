"""What a layer reads: rows of its input, one for each place that it writes to."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evolve.errors import NotApplicable

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVS)


def is_layer(module: nn.Module | None) -> bool:
    """Returns whether a module is a matrix at work at every place: Linear, or a convolution without groups."""
    return isinstance(module, nn.Linear) or (isinstance(module, CONVS) and module.groups == 1)


def pick(places: tuple[int, ...], most: int) -> Tensor:
    """Returns coordinates of at most about `most` places, as many of each sample, (rows, axes).

    Args:
        places: Samples, then the sizes of the axes along which a layer works.
        most: Rows.
    """
    samples, count = places[0], 1
    for size in places[1:]:
        count *= size
    each = min(count, max(1, most // samples))
    inside = torch.stack([torch.randperm(count)[:each] for _ in range(samples)]) if each < count else None
    flat = torch.arange(count).expand(samples, count) if inside is None else inside
    rows = torch.arange(samples)[:, None].expand_as(flat)
    return torch.stack([rows.flatten(), *torch.unravel_index(flat.flatten(), places[1:] or (1,))][: len(places)], dim=1)


def every_second(at: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which rows are of samples with even numbers, and their coordinates among these samples alone."""
    even = at[:, 0] % 2 == 0
    halved = at[even].clone()
    halved[:, 0] //= 2
    return even, halved


def places_of(layer: nn.Module, given: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes of the axes along which a layer that gives this shape works: all but that of its channels."""
    return (given[0], *given[2:]) if isinstance(layer, CONVS) else given[:-1]


def rows_of(tensor: Tensor, channel: int, at: Tensor) -> Tensor:
    """Returns the channels of a tensor at some places, (rows, channels)."""
    return tensor.movedim(channel, -1)[tuple(at.to(tensor.device).unbind(1))]


def slopes_of(layer: nn.Module, slope: Tensor, at: Tensor) -> Tensor:
    """Returns the slope of the loss at what a layer writes to these places, (rows, outputs)."""
    return rows_of(slope, 1 if isinstance(layer, CONVS) else -1, at).float()


def windows_of(layer: nn.Module, taken: Tensor, at: Tensor, units: int) -> Tensor:
    """Returns what a layer reads for these places, (rows, units, taps).

    Args:
        layer: Linear, or a convolution without groups.
        taken: Its input, or one of other channels in its stead: (N, units, ...) before a convolution, (..., features)
            before a Linear layer, whose features are `units` with one value each or, of a flattened image, more.
        at: Places of its output.
        units: How many channels or units the input has.
    """
    if not isinstance(layer, CONVS):
        rows = rows_of(taken, -1, at)
        if rows.shape[1] % units:
            raise NotApplicable(f"{rows.shape[1]} features are not those of {units} units.")
        return rows.view(len(rows), units, -1).float()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(taken, layer._reversed_padding_repeated_twice, mode=mode)
    taps = []
    for offset in itertools.product(*(range(size) for size in layer.kernel_size)):
        moved = at.clone()
        for axis, step in enumerate(offset):
            moved[:, axis + 1] = at[:, axis + 1] * layer.stride[axis] + step * layer.dilation[axis]
        taps.append(rows_of(padded, 1, moved))
    return torch.stack(taps, dim=2).float()


def present_of(layer: nn.Module, taken: Tensor, at: Tensor, most: int = 128) -> Tensor:
    """Returns what a layer reads already, (rows, features): all or, where that is much, random sums of channels."""
    axis = 1 if isinstance(layer, CONVS) else -1
    taps = math.prod(layer.kernel_size) if isinstance(layer, CONVS) else 1
    channels = taken.shape[axis]
    fewer = max(1, most // taps)
    if channels > fewer:
        sums = torch.randn(channels, fewer).to(taken) / channels**0.5
        taken, channels = (taken.movedim(axis, -1) @ sums).movedim(-1, axis), fewer
    return windows_of(layer, taken, at, channels).flatten(1)


def apply_units(layer: nn.Module, taken: Tensor, directions: Tensor) -> Tensor:
    """Returns what new units of a layer would make of its input.

    Args:
        layer: Linear, or a convolution without groups.
        taken: Its input.
        directions: Their input weights, (units, values); their bias is the mean of the present ones.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias = layer.bias.detach().mean().expand(len(directions)) if isinstance(layer.bias, Tensor) else None
    new = directions.view(len(directions), *weight.shape[1:]).to(weight.dtype)
    if not isinstance(layer, CONVS):
        return F.linear(taken, new, bias)
    out: Tensor = layer._conv_forward(taken, new, bias)
    return out
