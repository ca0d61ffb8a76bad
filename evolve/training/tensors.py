"""Tensors in files that run no code when they are read: a model's in safetensors, all else as plain containers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evolve.errors import CheckpointError, described
from evolve.training.folder import DamagedError

_ALIASES = "aliases"
_EXTRA = "_extra_state"  # torch's name, in a `state_dict`, for what `get_extra_state` returns


def write_model(model: nn.Module, path: Path) -> None:
    """Writes parameters and buffers; tied tensors are written once, and the metadata says which names share them.

    What `extra_state` returns is left to `write_state`.

    Raises:
        CheckpointError: If something in the model's state is no tensor, or one that cannot be written.
    """
    unique, aliases = unique_tensors(model)
    save_file(unique, path, metadata={_ALIASES: json.dumps(aliases)})


def unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns parameters and buffers on the CPU, tied ones once; and for their other names those they are under.

    Raises:
        CheckpointError: If something in the model's state is no tensor, or one that cannot be written.
    """
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if _is_extra(name, tensor):
            continue
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            what = f"a tensor of layout {tensor.layout}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"'{name}' in the model's state is {what}; only dense tensors can be saved.")
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            unique[name] = tensor.detach().cpu().contiguous().clone()
    return unique, aliases


def extra_state(model: nn.Module) -> dict[str, Any]:
    """Returns what modules give in `get_extra_state` that is no dense tensor, by its key in the `state_dict`.

    Raises:
        CheckpointError: If it could not be read again without running code.
    """
    extra = {name: value for name, value in model.state_dict().items() if _is_extra(name, value)}
    for name, value in extra.items():
        try:
            file = io.BytesIO()
            torch.save(value, file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a class of anybody's may raise anything where it is pickled
            module = name.removesuffix(_EXTRA).removesuffix(".")
            where = f"module '{module}'" if module else "the model"
            raise CheckpointError(
                f"The extra state of {where} cannot be saved: {described(error).splitlines()[0]} Return tensors, "
                "numbers, texts, lists and dicts from its get_extra_state()."
            ) from error
    return extra


def _is_extra(name: str, value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return name.rpartition(".")[2] == _EXTRA and not dense


def read_model(path: Path) -> dict[str, Tensor]:
    """Returns what `write_model` wrote, by every name.

    Raises:
        DamagedError: If the file is not one of those.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as opened:
            aliases = json.loads((opened.metadata() or {})[_ALIASES])
        return tensors | {name: tensors[source] for name, source in aliases.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path.name} is unreadable: {error}") from error


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], extra: Mapping[str, Any], source: Path) -> None:
    """Gives a model the tensors and the extra state that were saved; every name and shape has to fit.

    Raises:
        CheckpointError: If one does not.
    """
    try:
        model.load_state_dict({**tensors, **extra}, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {source} do not fit the model after its mutations were replayed: {error} Build the base "
            "model as it was built for the run."
        ) from error


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes tensors, numbers and texts in mappings and lists.

    Raises:
        CheckpointError: If they cannot be written.
    """
    try:
        torch.save(state, path)
    except RuntimeError as error:  # so torch tells of a full disk
        raise CheckpointError(f"'{path}' could not be written, as on a full disk: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Returns what `write_state` wrote; no code of the file is run.

    Raises:
        DamagedError: If the file is not one of those.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is damaged or holds other objects
        raise DamagedError(f"{path.name} is unreadable: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path.name} holds a {type(state).__name__}, not a mapping")
    return state
