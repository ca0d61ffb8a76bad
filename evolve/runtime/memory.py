"""Memory: how much is in use, and giving back what a mutation left behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch
from torch import nn

from evolve.errors import text_of
from evolve.runtime.device import devices_of


def memory_in_use(model: nn.Module) -> int | None:
    """Returns bytes: allocated on the model's CUDA devices, else the process's resident memory (None if unknown)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = [device for device in devices_of(model) if device.type == "cuda"]
        if devices:
            return sum(torch.cuda.memory_allocated(device) for device in devices)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What torch's allocators say where they raise no `OutOfMemoryError`: those of the CPU, of MPS, of CUDA's libraries.
_EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and any(words in text_of(cause).lower() for words in _EXHAUSTED):
            return True
        cause = cause.__cause__
    return False


def free_memory() -> None:
    """Collects young reference cycles and hands cached accelerator memory back.

    What a mutation leaves behind is young: the oldest generation, which costs 0.1 s in a process with torch, is left to
    Python.
    """
    gc.collect(1)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
