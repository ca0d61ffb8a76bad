"""Random number generators: the only place where their states are seeded, saved and restored.

The generators are those that every thread of the process shares: of Python, of NumPy, of torch on the CPU, and of all
devices of the accelerator (`torch.accelerator`: CUDA, MPS, XPU, ...) once it is in use.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evolve.runtime.exclusive import exclusive


class _States(NamedTuple):
    """What all generators stand at; `devices` holds one state for each device of the accelerator called `kind`."""

    python: tuple[Any, ...]
    numpy: Any
    torch: Tensor
    kind: str | None
    devices: list[Tensor]


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Puts all generators back on exit; other threads that would seed or restore them wait.

    Args:
        seed: Seeds all of them on entry; None leaves them where they stand.
    """
    with exclusive:
        states = _saved()
        try:
            if seed is not None:
                seed_generators(seed)
            yield
        finally:
            _restore(states)


def seed_generators(seed: int) -> None:
    """Seeds all generators; those of an accelerator that is not in use yet are left alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    _, accelerator = _accelerator()
    if accelerator is not None:  # not all have `manual_seed_all`: MPS is one device
        seed_devices = getattr(accelerator, "manual_seed_all", None) or getattr(accelerator, "manual_seed", None)
        if seed_devices is not None:
            seed_devices(seed)


def seed_everything(seed: int) -> None:
    """Seeds all generators, also those of an accelerator that will only be used later."""
    seed_generators(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Returns the states of all generators as tensors, numbers and lists."""
    with exclusive:
        states = _saved()
    version, internal, gauss = states.python
    kind, keys, *rest = states.numpy
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": states.torch,
    }
    if states.kind is not None:
        state[states.kind] = states.devices
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned; devices that this machine does not have are left out."""
    version, internal, gauss = state["python"]
    kind, keys, *rest = state["numpy"]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = device.type if device is not None else "cpu"
    numpy = (kind, np.array(keys, dtype=np.uint32), *rest)
    with exclusive:
        _restore(_States((version, tuple(internal), gauss), numpy, state["torch"], name, state.get(name, [])))


def _saved() -> _States:
    kind, accelerator = _accelerator()
    devices: list[Tensor] = []
    if hasattr(accelerator, "get_rng_state_all"):
        devices = accelerator.get_rng_state_all()
    elif hasattr(accelerator, "get_rng_state"):
        devices = [accelerator.get_rng_state()]
    return _States(random.getstate(), np.random.get_state(), torch.get_rng_state(), kind, devices)


def _restore(states: _States) -> None:
    random.setstate(states.python)
    np.random.set_state(states.numpy)
    torch.set_rng_state(states.torch)
    if states.kind is None or not states.devices:
        return
    accelerator = torch.get_device_module(states.kind)
    if hasattr(accelerator, "get_rng_state_all"):
        for index, state in enumerate(states.devices[: accelerator.device_count()]):
            accelerator.set_rng_state(state, index)
    else:
        accelerator.set_rng_state(states.devices[0])


def _accelerator() -> tuple[str | None, Any]:
    """Returns the accelerator's name and its module in torch (`torch.cuda`, `torch.mps`); Nones where none is in use.

    One that has not been used yet would be started by a look at its generators. In a forked process it cannot be.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return None, None
    module: Any = torch.get_device_module(device)
    forked = getattr(module, "_is_in_bad_fork", None)
    started = getattr(module, "is_initialized", None)
    unusable = (forked is not None and forked()) or (started is not None and not started())
    return (None, None) if unusable else (device.type, module)
