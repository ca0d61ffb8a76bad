"""Random number generators: seeding them, and saving and restoring their states."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from evolve.runtime.device import devices_of


@contextmanager
def preserved_rng(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Puts the generators of Python, NumPy (where loaded), torch and the model's devices back on exit.

    Args:
        model: Its devices' generators are preserved too.
        seed: Seeds all of them on entry; None leaves them where they stand.
    """
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    devices = devices_of(model) if torch.accelerator.is_available() else []  # going through a model takes its time
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    kind = accelerators[0].type if accelerators else "cuda"
    with torch.random.fork_rng(devices=[device.index or 0 for device in accelerators], device_type=kind):
        try:
            if seed is not None:
                random.seed(seed)
                if numpy:
                    numpy.random.seed(seed % 2**32)
                torch.default_generator.manual_seed(seed)
                for device in accelerators:
                    getattr(torch, device.type).manual_seed_all(seed)
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's (where it is in use) and torch's generators."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def random_state() -> dict[str, Any]:
    """Returns the state of all global generators as tensors, numbers and lists."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(internal), gauss], "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [kind, keys.tolist(), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np

        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Gives back the global random states of Python, NumPy and torch (CPU) as they were before the block."""
    ours, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


def seed_random_state(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch on the CPU; a GPU's are left alone."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
