"""Devices by name, seeds for everything, and random states as plain values."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

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
        raise EvolveError(f"Device '{name}' is not at hand: {reason} Use 'auto', 'cpu', 'cuda' or 'mps'.") from error
    return device


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
