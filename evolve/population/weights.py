"""Weights of individuals as blobs of safetensors: all, or what differs from those of the parent if that is less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from evolve.errors import EvolveError
from evolve.population.jobs import Blobs
from evolve.training.tensors import unique_tensors

_WORTH = 0.5  # part of the whole below which only what differs is written
_LONGEST = 8  # blobs on top of each other, after which all is written anew


def read_weights(names: Sequence[str], blobs: Blobs) -> dict[str, Tensor]:
    """Returns the tensors that blobs hold, those of later ones over those of earlier ones."""
    found: dict[str, Tensor] = {}
    for name in names:
        found |= load(blobs.read(name))
    return found


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model the tensors that were read for it.

    Raises:
        EvolveError: If one is missing or has another shape.
    """
    wanted, aliases = unique_tensors(model)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise EvolveError(f"The weights of this individual lack {', '.join(missing[:5])}: its records lead elsewhere.")
    given = {name: tensors[name] for name in wanted}
    given |= {name: tensors[source] for name, source in aliases.items()}
    try:
        model.load_state_dict(given, strict=False)  # beside the tensors there may be extra state
    except RuntimeError as error:
        raise EvolveError(f"The weights of this individual do not fit what its records lead to: {error}") from error


def write_weights(model: nn.Module, blobs: Blobs, parent: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """Writes the weights of a model and returns the names of the blobs that hold them.

    Args:
        model: The model.
        blobs: Where they are written.
        parent: Tensors of its parent; empty where it has none.
        names: The blobs that hold those.
    """
    tensors, _ = unique_tensors(model)
    other = {name: tensor for name, tensor in tensors.items() if not _same(tensor, parent.get(name))}
    share = _bytes(other) / max(_bytes(tensors), 1)
    if names and len(names) < _LONGEST and share < _WORTH:
        return [*names, blobs.write(save(other))] if other else list(names)
    return [blobs.write(save(tensors))]


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
