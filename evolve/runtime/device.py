"""Devices by name, and those that a model is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from evolve.errors import EvolveError


def resolve_device(name: str) -> torch.device:
    """Returns the device called `name`; "auto" is the first of cuda, mps and cpu that is there.

    Raises:
        EvolveError: If the name is no device or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise EvolveError(f"Device '{name}' is not available: {reason} Use 'auto', 'cpu', 'cuda' or 'mps'.") from error
    return device


def devices_of(model: nn.Module) -> list[torch.device]:
    """Returns the devices that hold the model's parameters and buffers, in order of first use."""
    tensors = [*model.parameters(), *model.buffers()]
    return list(dict.fromkeys(tensor.device for tensor in tensors))


@contextmanager
def making_parts_for(model: nn.Module) -> Iterator[None]:
    """Lets what is made meanwhile become part of a model, whatever surrounds it.

    Tensors made in inference mode could never be trained. Those on another default device than the model's, such as
    `meta`, might have no values.
    """
    devices, default = devices_of(model), torch.get_default_device()
    foreign = bool(devices) and default.type not in {device.type for device in devices}
    with torch.inference_mode(False), devices[0] if foreign else nullcontext():
        yield
