"""Grows, shrinks and permutes axes of parameters and buffers; a parameter stays the object it was.

A `Cut` says where each position of an axis comes from. The same cuts carry the optimizer's state along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evolve.errors import NotApplicable
from evolve.structure.isolation import exchange

Fill = Callable[[Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Cut:
    """How one axis of a parameter or buffer is made anew.

    Attributes:
        name: Parameter or buffer.
        axis: Its axis.
        source: For each new position the old one it comes from; -1 for a new one.
        values: For each new position a factor of the values; None for 1 everywhere.
        gradients: For each new position the factor by which its gradient differs from that of its source: what an
            optimizer's averages of gradients are multiplied with, those of squared gradients with its square.
        merged: Positions whose values are added to others before they go: pairs (from, to) of old positions, one pair
            after the other.
        joined: Positions whose gradients are those of another position from now on as well: pairs (from, to).
        fill: Called as `fill(old values, shape of the new part)` for new positions; None for zeros.
    """

    name: str
    axis: int
    source: Tensor
    values: Tensor | None = None
    gradients: Tensor | None = None
    merged: Sequence[tuple[Tensor, Tensor]] = ()
    joined: Sequence[tuple[Tensor, Tensor]] = ()
    fill: Fill | None = None


def resize(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Carries out cuts, one after the other.

    Args:
        model: Its parameters and buffers are named by the cuts.
        cuts: The cuts.

    Raises:
        NotApplicable: If a tensor is computed from others (a parametrization) and cannot be resized.
    """
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for cut in cuts:
        tensor = tensors.get(cut.name)
        if tensor is None:
            raise NotApplicable(f"The model has no parameter or buffer '{cut.name}' to resize.")
        exchange(tensor, recut(tensor.data, cut))


def recut(data: Tensor, cut: Cut) -> Tensor:
    """Returns a tensor with one axis made anew; it keeps its memory format."""
    axis, source = cut.axis, cut.source.to(data.device)
    for gone, into in cut.merged:
        data = data.index_add(axis, into.to(data.device), data.index_select(axis, gone.to(data.device)))
    new = data.index_select(axis, source.clamp(min=0))
    fresh = (source < 0).nonzero().flatten()
    if len(fresh):
        shape = (*data.shape[:axis], len(fresh), *data.shape[axis + 1 :])
        new.index_copy_(axis, fresh, (cut.fill or _zeros)(data, shape).to(new))
    if cut.values is not None and (data.is_floating_point() or data.is_complex()):
        new.mul_(_along(cut.values.to(new), axis, new.dim()))
    formats = (torch.channels_last, torch.channels_last_3d)
    last = next((f for f in formats if data.dim() == f_dims(f) and not data.is_contiguous()), None)
    if last is not None and data.is_contiguous(memory_format=last):
        return new.contiguous(memory_format=last)
    return new.contiguous()


def f_dims(memory_format: torch.memory_format) -> int:
    """Returns how many axes a channels-last format has."""
    return 4 if memory_format == torch.channels_last else 5


def recut_state(value: Tensor, cuts: Iterable[Cut], power: int, *, level: bool = False) -> Tensor:
    """Returns an optimizer's tensor for a parameter that was cut.

    What was added starts at zero, as with a new optimizer.

    Args:
        value: Of the parameter's old shape.
        cuts: What was done to the parameter.
        power: 1 for averages of gradients, 2 for averages of their squares, 0 for what does not scale with them.
        level: Start what was added at the mean instead.
    """
    for cut in cuts:
        if power == 0:
            value = recut(value, Cut(cut.name, cut.axis, cut.source, fill=_mean if level else None))
            continue
        squares = power == 2 and bool(cut.joined)  # of a sum of gradients, by way of the gradients
        factors = cut.gradients
        if factors is not None and power == 2 and not squares:
            factors = factors.square()
        slopes = value.sqrt() if squares else value
        slopes = recut(slopes, Cut(cut.name, cut.axis, cut.source, values=factors, merged=cut.joined))
        value = slopes.square() if squares else slopes
    return value


def recut_copy(value: Tensor, cuts: Iterable[Cut], present: Tensor) -> Tensor:
    """Returns another tensor that goes with a parameter, cut as it was; what was added takes the present values."""
    known = torch.ones_like(value, dtype=torch.bool)
    for cut in cuts:
        value = recut(value, replace(cut, fill=None))
        known = recut(known, Cut(cut.name, cut.axis, cut.source))
    return torch.where(known, value, present) if value.shape == present.shape else value


def _along(factors: Tensor, axis: int, rank: int) -> Tensor:
    return factors.view([-1 if position == axis else 1 for position in range(rank)])


def _mean(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    return old.mean(dtype=torch.float32).to(old.dtype).expand(shape)


def _zeros(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    return old.new_zeros(shape)
