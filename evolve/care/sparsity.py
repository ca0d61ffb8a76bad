"""A regulariser that lets what will be pruned go to zero before it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evolve.care.config import SparsityConfig
from evolve.errors import EvolveError, NotApplicable
from evolve.operators.members import Members, Tensors
from evolve.structure.analysis import analyse
from evolve.structure.inputs import as_inputs

_STRONGEST = 16.0  # how much stronger it is on the least member of a group than on the greatest


@dataclass(frozen=True)
class _Place:
    """Where a group lies in a parameter: positions along an axis, (members, positions of one)."""

    name: str
    axis: int
    index: Tensor


class GroupSparsity:
    """Adds to the gradients what shrinks the members of coupled groups, the less important ones more.

    For the member k of a group, `strength * gamma_k * w` is added to the gradient of each of its weights w, where
    `gamma_k = 16 ** ((I_max - I_k) / (I_max - I_min))` and `I_k` is the norm of all its weights in all layers of the
    group (DepGraph, Fang et al. 2023). These are the weights that make and read it and its BatchNorm scales, not its
    biases. A weight that lies in two groups is shrunk for both.

    Args:
        config: How strongly, and until when.
        example_inputs: What the structure of the model is found out with.
    """

    def __init__(self, config: SparsityConfig, example_inputs: Any) -> None:
        self._config = config
        self._example = example_inputs
        self._groups: list[list[_Place]] = []
        self._known: list[tuple[str, torch.Size, torch.device]] = []  # the parameters that they were found in

    @torch.no_grad()
    def add(self, model: nn.Module, narrowed: int) -> None:
        """Adds to the gradients of a step; to be called when they are complete, on their own scale.

        Args:
            model: The model.
            narrowed: How often it has been narrowed.

        Raises:
            EvolveError: If the structure of the model cannot be found out.
        """
        if narrowed >= self._config.until_narrowed:
            return
        parameters = dict(model.named_parameters())
        known = [(name, parameter.shape, parameter.device) for name, parameter in parameters.items()]
        if known != self._known:  # at first, and when a mutation was made or taken back
            self._groups, self._known = _places(model, self._example), known
        squares = {
            (place.name, place.axis): _squares(parameters[place.name], place.axis)
            for places in self._groups
            for place in places
        }
        factors = {key: torch.zeros_like(values) for key, values in squares.items()}
        for places in self._groups:
            gamma = _gamma([squares[place.name, place.axis][place.index].sum(dim=1) for place in places])
            for place in places:
                factors[place.name, place.axis][place.index] += gamma[:, None]
        for (name, axis), factor in factors.items():
            gradient = parameters[name].grad
            if gradient is not None and not gradient.is_sparse:
                shape = [-1 if dim == axis else 1 for dim in range(gradient.dim())]
                gradient.add_(parameters[name] * factor.view(shape).to(gradient.dtype), alpha=self._config.strength)


def _places(model: nn.Module, example_inputs: Any) -> list[list[_Place]]:
    """Returns for each group that `narrow` could take members out of the places of its weights."""
    try:
        analysis = analyse(model, as_inputs(model, example_inputs))
    except NotApplicable as error:
        raise EvolveError(f"care.sparsity shrinks the groups of a model, and finds none: {error}") from error
    held = Tensors(model, analysis)
    groups = [Members(held, group) for group in analysis.changeable if group.size > 1 and not group.mixed]
    return [
        [
            _Place(place.name, place.axis, place.index.to(held.parameters[place.name].device))
            for place in group.places
            if place.name in held.parameters and (held.parameters[place.name].dim() > 1 or place.name in held.scales)
        ]
        for group in groups
    ]


def _squares(tensor: Tensor, axis: int) -> Tensor:
    """Returns the sum of squares of each slice along an axis."""
    rest = [dim for dim in range(tensor.dim()) if dim != axis]
    norms = torch.linalg.vector_norm(tensor, dim=rest, dtype=torch.float32) if rest else tensor.float()
    return norms.square()


def _gamma(squares: Sequence[Tensor]) -> Tensor:
    """Returns the factor of each member of a group from its sums of squares, place by place."""
    importance = torch.stack([one.to(squares[0].device) for one in squares]).sum(dim=0).sqrt()
    least, most = importance.aminmax()
    return torch.pow(_STRONGEST, (most - importance) / (most - least).clamp(min=1e-12))
