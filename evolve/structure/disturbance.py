"""Runs a model on inputs that differ from one position on, to see what depends on what."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_unflatten

from evolve.runtime.generators import preserved_rng
from evolve.structure.gradients import without_gradients
from evolve.structure.inputs import Inputs
from evolve.structure.isolation import undisturbed, unfused
from evolve.structure.outputs import copied_parts, output_tensors
from evolve.structure.tracing.calls import watched_calls

_MOVABLE = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_STEP = 0.5  # how far parameters are moved, relative to their spread
_SCALE_STEP = 0.3  # the same for vectors and numbers: scales, gates, biases


@dataclass(frozen=True)
class Place:
    """Positions of an input that have an order.

    Attributes:
        tensor: Number of the tensor among `Inputs.tensors`.
        axes: One axis, such as that of a sequence, or two that are read row by row.
        own: Whether disturbed values are the tensor's own in another order, for models that check their range.
    """

    tensor: int
    axes: tuple[int, ...]
    own: bool = False

    def sizes(self, inputs: Inputs) -> tuple[int, ...]:
        """Returns the sizes of the axes."""
        return tuple(inputs.tensors[self.tensor].shape[axis] for axis in self.axes)


@contextmanager
def moved(model: nn.Module) -> Iterator[None]:
    """Lets every trainable parameter have other values, as training would give it; afterwards it is as it was.

    A layer that starts at zero hides what depends on what. The old values stay where they are, in their own memory, so
    that nothing has to be written back. Takes the memory of one more copy of the parameters.
    """
    held = [p for p in model.parameters() if p.requires_grad and _movable(p)]
    kept = [parameter.data for parameter in held]
    try:
        with preserved_rng(0):
            for parameter in held:
                parameter.data = parameter.data + _noise(parameter.data)
        yield
    finally:
        for parameter, data in zip(held, kept, strict=True):
            parameter.data = data


def _movable(parameter: Tensor) -> bool:
    whole = parameter.layout == torch.strided and not is_traceable_wrapper_subclass(parameter)
    return whole and parameter.dtype in _MOVABLE and parameter.device.type != "meta"


def _noise(values: Tensor) -> Tensor:
    if values.dim() < 2:
        return _SCALE_STEP * (0.5 + torch.rand_like(values)) * torch.randn_like(values).sign()  # never close to none
    spread = float(values.float().std()) if values.numel() > 1 else 0.0
    if not spread > 0:  # a layer that starts at zero, or a constant
        spread = 1 / math.sqrt(max(1, values[0].numel()))
    return _STEP * spread * torch.randn_like(values)


class Disturber:
    """Runs a model in eval mode on its inputs, or on inputs that differ at some positions.

    The model is left as it was after each run. Random numbers that a forward draws are the same in each.

    Args:
        model: The model.
        inputs: What it runs on.
        module: Whose output is looked at; None for what the model itself gives.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, module: str | None = None) -> None:
        self.model, self.inputs, self.module = model, inputs, module
        self._leaves, self._tree = tree_flatten((inputs.args, dict(inputs.kwargs)))
        self._numbers = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    def run(self, place: Place | None = None, start: int = 0, stop: int | None = None) -> list[Tensor]:
        """Returns the tensors that the model gives, or that of the module: none if it was not called.

        Args:
            place: Where the inputs are disturbed; None leaves them as they are.
            start: First position that is disturbed.
            stop: The one after the last; None for the end.
        """
        leaves = list(self._leaves)
        if place is not None:
            number = self._numbers[place.tensor]
            leaves[number] = _disturbed(leaves[number], place, start, stop)
        args, kwargs = tree_unflatten(leaves, self._tree)
        inputs = Inputs(args, kwargs)

        def once() -> list[Tensor]:
            with undisturbed(self.model, seed=0), unfused(self.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # recurrent layers say that their weights lie apart
                if self.module is None:
                    return output_tensors(copied_parts(inputs.run(self.model.eval())))
                inside = _inside(self.model.eval(), inputs, self.module)
                return [inside[self.module]] if self.module in inside else []

        return without_gradients(self.model, once)


def outputs_inside(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Returns the last output of each submodule that gives a tensor, in the order of their calls."""
    with undisturbed(model, seed=0), unfused(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return without_gradients(model, lambda: _inside(model.eval(), inputs, None))


def _inside(model: nn.Module, inputs: Inputs, wanted: str | None) -> dict[str, Tensor]:
    """Runs the model; a copy is made of the wanted output alone, which a later layer may overwrite."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found: dict[str, Tensor] = {}

    def noted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = module._call_impl(*args, **kwargs)
        name = names.get(id(module))
        if name is not None and isinstance(output, Tensor) and wanted in (None, name):
            found.pop(name, None)
            found[name] = output.detach() if wanted is None else output.detach().clone()
        return output

    with watched_calls(model, noted):
        inputs.run(model)
    return found


def cuts_of(sizes: tuple[int, ...]) -> list[int]:
    """Returns the positions from which inputs are disturbed, one in the middle first; two of them close to the end."""
    count, row = math.prod(sizes), sizes[-1]
    inside = count // 2 + (row // 2 if len(sizes) > 1 and sizes[0] % 2 == 0 else 0)
    wanted = [inside, count // 2, 1, count // 4, 3 * count // 4, count - 2, count - 1]
    return [cut for cut in dict.fromkeys(wanted) if 0 < cut < count]


def _disturbed(tensor: Tensor, place: Place, start: int, stop: int | None) -> Tensor:
    axes = place.axes
    sizes = [tensor.shape[axis] for axis in axes]
    flat = torch.zeros(math.prod(sizes), dtype=torch.bool, device=tensor.device)
    flat[start:stop] = True
    shape = [size if axis in axes else 1 for axis, size in enumerate(tensor.shape)]
    others = _rearranged if place.own else _others
    disturbed = torch.where(flat.view(shape), others(tensor.detach()), tensor.detach())
    return disturbed.requires_grad_(tensor.requires_grad)


def _others(tensor: Tensor) -> Tensor:
    """Returns other values for every element; of integers those that occur elsewhere: the model takes them."""
    if tensor.is_floating_point() or tensor.is_complex():
        with preserved_rng(1):
            spread = float(tensor.abs().float().std()) if tensor.numel() > 1 else 0.0
            return tensor + (spread if spread > 0 else 1.0) * torch.randn_like(tensor)
    known = tensor.unique()
    if len(known) < 2:
        return torch.where(tensor > 0, tensor - 1, tensor + 1)
    following: Tensor = known[(torch.searchsorted(known, tensor) + 1) % len(known)]
    return following


def _rearranged(tensor: Tensor) -> Tensor:
    """Returns the tensor's own values in another order."""
    with preserved_rng(1):
        order = torch.randperm(tensor.numel(), device=tensor.device)
    return tensor.flatten()[order].view(tensor.shape)


def changes(one: Tensor, other: Tensor) -> Tensor:
    """Returns where two results of the same shape differ by more than rounding."""
    if not (one.is_floating_point() or one.is_complex()):
        return one != other
    scale = one.abs()
    finite = scale[torch.isfinite(scale)]
    half = one.dtype in {torch.float16, torch.bfloat16}
    slack = torch.finfo(one.dtype).eps * (0.1 if half else 8.0) * (float(finite.max()) if finite.numel() else 0.0)
    same = (one == other) | (torch.isnan(one) & torch.isnan(other)) | ((one - other).abs() <= slack)
    return ~same


def marginal(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns for each position along axes, in row-major order, whether a mask is true anywhere at it."""
    others = [axis for axis in range(mask.dim()) if axis not in axes]
    return (mask.amax(others) if others else mask).permute(*_ranks(axes)).flatten()


def _ranks(axes: tuple[int, ...]) -> list[int]:
    ordered = sorted(axes)
    return [ordered.index(axis) for axis in axes]
