"""Which parts of a model's parameters are new after a mutation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from evolve.structure.tracing.tape import Shape
from evolve.surgery.resize import Cut

T = TypeVar("T")


class ParametersBefore:
    """The parameters of a model before a mutation: a layer that was wrapped is not new, though its name is.

    Attributes:
        shapes: Their shapes, by name.

    Args:
        model: Before the mutation.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self.shapes: dict[str, Shape] = {name: tuple(p.shape) for name, p in self._parameters.items()}

    def renamed(self, model: nn.Module) -> dict[str, str]:
        """Returns old names, with the new ones, of parameters that are the same objects and have other names now."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        new = {name: names.get(id(parameter), name) for name, parameter in self._parameters.items()}
        return {old: name for old, name in new.items() if old != name}


def renamed_keys(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Returns values by parameter name under the names that the parameters have now.

    Where a parameter has the name of one that is gone, the value of that one is left out.
    """
    taken = set(names.values())
    return {names.get(name, name): value for name, value in values.items() if name in names or name not in taken}


def new_parts(model: nn.Module, shapes: Mapping[str, Shape], cuts: Sequence[Cut] = ()) -> dict[str, Tensor]:
    """Returns a mask of what is new for each trainable parameter in which anything is.

    A copy of an old position is new, the first one of each excepted. Where a parameter has another shape and no cut
    says how, what lies beyond the old shape is new.

    Args:
        model: After the mutation.
        shapes: Of its parameters before, by the names that they have now.
        cuts: What was done to their axes.

    Returns:
        Boolean tensors of the parameters' shapes.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        old, own = shapes.get(name), [cut for cut in cuts if cut.name == name]
        mask = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        if old is not None and own:
            mask = follow(mask.new_zeros(old), own, fresh=True)
        elif old is not None and len(old) == parameter.dim():
            mask[tuple(slice(size) for size in old)] = False
        if bool(mask.any()):
            found[name] = mask
    return found


def follow(mask: Tensor, cuts: Iterable[Cut], *, fresh: bool) -> Tensor:
    """Returns a mask of a parameter after it was cut.

    Args:
        mask: Of its shape before.
        cuts: What was done to it.
        fresh: What the mask says of the positions that came in: new ones, and all but the first copy of an old one.
    """
    for cut in cuts:
        source = cut.source.tolist()
        first = {old: position for position, old in reversed(list(enumerate(source)))}
        came = [position for position, old in enumerate(source) if old < 0 or first[old] != position]
        mask = mask.index_select(cut.axis, cut.source.clamp(min=0).to(mask.device))
        mask.index_fill_(cut.axis, torch.tensor(came, dtype=torch.long, device=mask.device), fresh)
    return mask
