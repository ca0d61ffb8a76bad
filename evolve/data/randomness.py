"""Keeps a data set's own randomness (its transforms draw from global generators) apart from the model's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
