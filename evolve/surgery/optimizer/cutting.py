"""Cuts what an optimizer keeps for a parameter as the parameter was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from evolve.structure.tracing.tape import Shape
from evolve.surgery.optimizer.kinds import Kind, Kinds
from evolve.surgery.optimizer.layers import reachable
from evolve.surgery.optimizer.places import Owned, Path, hidden_tensors, mapped
from evolve.surgery.resize import Cut, recut_copy, recut_state


class UnfitError(Exception):
    """An entry of an optimizer's state cannot follow a change of its parameter; says which."""


def follow_cuts(entry: Owned, kinds: Kinds, old: Shape, cuts: Sequence[Cut]) -> None:
    """Cuts all tensors of an entry as its parameter, which had another shape, was cut.

    Raises:
        UnfitError: If one of them cannot be cut.
    """

    def cut(value: Tensor, path: Path) -> Tensor:
        kind = kinds.of(entry, path)

        def whole(dense: Tensor) -> Tensor:
            if kind.weights:
                return recut_copy(dense, cuts, entry.owner.detach().to(dense))
            return recut_state(dense, cuts, kind.power, level=kind.level)

        return _changed(value, entry, path, kinds, kind, old, cuts, whole)

    _replace(entry, old, cut)


def follow_shape(entry: Owned, kinds: Kinds, old: Shape, new: Shape, owner: Parameter) -> None:
    """Carries the tensors of an entry over the common range of the old and the new shape of its parameter.

    Raises:
        UnfitError: If one of them cannot be carried.
    """
    if len(old) != len(new):
        raise UnfitError(f"its parameter has {len(new)} axes instead of {len(old)}")
    common = tuple(slice(min(a, b)) for a, b in zip(old, new, strict=True))
    ranges = [torch.arange(size) for size in new]
    cuts = [
        Cut("", axis, torch.where(ranges[axis] < before, ranges[axis], -1))
        for axis, (before, after) in enumerate(zip(old, new, strict=True))
        if before != after
    ]

    def carry(value: Tensor, path: Path) -> Tensor:
        kind = kinds.of(entry, path)

        def whole(dense: Tensor) -> Tensor:
            start = owner.detach().to(dense, copy=True) if kind.weights else dense.new_zeros(new)
            start[common] = dense[common]
            return start

        return _changed(value, entry, path, kinds, kind, old, cuts, whole)

    _replace(entry, old, carry)


def _replace(entry: Owned, old: Shape, change: Callable[[Tensor, Path], Tensor]) -> None:
    if hidden_tensors(entry.value):
        raise UnfitError("it is kept in objects of its own")
    if any(isinstance(thing, tuple) and thing == old for thing in reachable(entry.value)):
        raise UnfitError(f"it has noted the shape {old}")
    entry.holder[entry.place] = mapped(entry.value, change)


def _changed(
    value: Tensor,
    entry: Owned,
    path: Path,
    kinds: Kinds,
    kind: Kind,
    old: Shape,
    cuts: Sequence[Cut],
    whole: Callable[[Tensor], Tensor],
) -> Tensor:
    """Returns a tensor of the state after a change; `whole` makes it for one of the parameter's shape."""
    shape = tuple(value.shape)
    if kinds.whole(entry, path, shape, old):
        if is_traceable_wrapper_subclass(value):
            return _requantised(value, whole)
        dense = value.to_dense() if value.layout == torch.sparse_coo else value
        changed = whole(dense)
        return changed.to_sparse(value.sparse_dim()) if value.layout == torch.sparse_coo else changed
    if value.numel() <= 1:  # a count of steps, a norm of the whole tensor
        return value
    label = f"'{'.'.join((*entry.path, *path))}' of shape {shape}"
    if is_traceable_wrapper_subclass(value):
        raise UnfitError(label)
    if shape == (prod(old),):
        return whole(value.view(old)).reshape(-1)
    if shape == old:
        raise UnfitError(label)
    if len(shape) == len(old) and all(own in (1, size) for own, size in zip(shape, old, strict=True)):
        along = {axis: axis for axis, own in enumerate(shape) if own == old[axis]}
    elif len(shape) == 2 and shape[0] == shape[1] and len(shape) != len(old) + 1 and kind.power == 2:
        return _both_axes(value, label, old, cuts)
    else:
        axes = kinds.axes(entry, path, shape, old)
        if axes is None:
            raise UnfitError(label)
        along = {axis: own for own, axis in enumerate(axes)}
    own_cuts = [replace(cut, axis=along[cut.axis]) for cut in cuts if cut.axis in along]
    if kind.weights:
        raise UnfitError(label)
    return recut_state(value, own_cuts, kind.power, level=kind.level)


def _both_axes(value: Tensor, label: str, old: Shape, cuts: Sequence[Cut]) -> Tensor:
    """Cuts a matrix of products of gradients along one axis (Shampoo, Gupta et al. 2018): its rows and its columns."""
    axes = [axis for axis, size in enumerate(old) if size == value.shape[0]]
    if len(axes) != 1:
        raise UnfitError(label)
    for cut in cuts:
        if cut.axis == axes[0]:
            value = recut_state(recut_state(value, [replace(cut, axis=0)], 1), [replace(cut, axis=1)], 1)
    return value


def _requantised(value: Tensor, whole: Callable[[Tensor], Tensor]) -> Tensor:
    """Cuts a quantised tensor by way of its values; it stays quantised where blocks of its size fit the new one."""
    if not callable(getattr(type(value), "dequantize", None)):
        raise UnfitError(f"a {type(value).__name__}")
    dense = whole(value.dequantize())
    zeros, block = getattr(type(value), "zeros", None), getattr(value, "block_size", None)
    if zeros is None or not isinstance(block, int) or dense.numel() % block:
        return dense
    options = {"signed": value.signed} if hasattr(value, "signed") else {}
    quantised: Tensor = zeros(dense.shape, block_size=block, device=dense.device, **options)
    return quantised.copy_(dense)
