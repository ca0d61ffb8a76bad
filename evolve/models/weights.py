"""Initial weights of a model from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from evolve.errors import EvolveError, described, did_you_mean

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training scripts save a state_dict
_PREFIXES = ("module.", "_orig_mod.")  # that DistributedDataParallel and torch.compile put in front of names
_TOLD = 5


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Gives a model the weights in a file, in place: `.safetensors`, or what `torch.save` wrote.

    The latter is read with `weights_only=True`, so nothing in it runs. It holds a `state_dict`, or one under the key
    `state_dict`, `model` or `model_state_dict`.

    Args:
        model: The model.
        file: The file.

    Raises:
        EvolveError: If the file cannot be read, or has not exactly the tensors of the model; nothing is changed then.
    """
    path = Path(file)
    given = _read(path)
    own = model.state_dict()
    faults = [*_names_faults(own, given), *_shape_faults(own, given)]
    if faults:
        raise EvolveError(
            f"The weights in '{path}' do not fit {type(model).__name__}: {'; '.join(faults)}. Build the model as "
            "the one that was saved (model.options), or save what this one needs."
        )
    model.load_state_dict(dict(given), strict=False)  # a tied tensor may be there under one of its names


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise EvolveError(f"There is no file '{path}' with weights (model.weights). Looked from {Path.cwd()}.")
    try:
        safe = path.suffix == ".safetensors"
        found: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is damaged or holds other objects
        raise EvolveError(
            f"'{path}' cannot be read as weights: {described(error).splitlines()[0]} Save `model.state_dict()`, with "
            "torch.save or safetensors."
        ) from error
    inside = [found[key] for key in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    weights = inside[0] if inside else found
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise EvolveError(f"'{path}' holds no state_dict. Save `model.state_dict()`, with torch.save or safetensors.")
    return weights


def _names_faults(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    told = {tensor.data_ptr() for name, tensor in own.items() if name in given and tensor.numel()}
    missing = [name for name, tensor in own.items() if name not in given and tensor.data_ptr() not in told]
    unexpected = [name for name in given if name not in own]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_listed(missing)})")
    if unexpected:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in given)), None)
        hint = f", all of which begin with '{prefix}'" if prefix else did_you_mean(unexpected[0], own)
        faults.append(f"{len(unexpected)} unexpected ({_listed(unexpected)}){hint.rstrip('?.')}")
    return faults


def _shape_faults(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return [
        f"'{name}' has shape {tuple(given[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ][:_TOLD]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", ..." if len(names) > _TOLD else "")
