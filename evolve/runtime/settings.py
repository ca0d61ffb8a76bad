"""Settings of torch and Python that a piece of code may leave changed: remembered, and put back on demand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as every_optimizer

logger = logging.getLogger(__name__)

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]  # how to read it, how to set it


class ProcessSettings:
    """What torch, `warnings` and `logging` are set to, and the hooks that all modules and optimizers run.

    The choice of attention kernels is left out: it is mostly set for one forward pass, perhaps by another thread right
    now. Only what differs is put back.
    """

    def __init__(self) -> None:
        self._values = [(name, setting, _read(name, setting)) for name, setting in _SETTINGS.items()]
        self._device = _default_device()
        self._tables = [(table, dict(table)) for table in _TABLES]
        self._filters = list(warnings.filters)

    def restore(self) -> None:
        """Puts back what differs."""
        for name, (read, write), value in self._values:
            if value is not None and _read(name, (read, write)) != value:
                write(value)
        if _default_device() is not self._device:
            torch.set_default_device(None if self._device is None else self._device.device)
        for table, content in self._tables:
            if table != content:
                table.clear()
                table.update(content)
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]


def _read(name: str, setting: Setting) -> Any:
    try:
        return setting[0]()
    except RuntimeError as error:  # torch tells nobody of TF32 where its old and its new setting do not agree
        logger.debug("The setting %s cannot be read: %s", name, error)
        return None


def _default_device() -> Any:
    """The context that `torch.set_default_device` has opened in this thread."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _attribute(owner: Any, name: str) -> Setting:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _autocast(device: str) -> dict[str, Setting]:
    return {
        f"autocast on {device}": (
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        f"autocast dtype on {device}": (
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    }


_backends = torch.backends
_SETTINGS: dict[str, Setting] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "fill uninitialized memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "TF32 in cuDNN": _attribute(_backends.cudnn, "allow_tf32"),
    "fp16 reductions": _attribute(_backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "bf16 reductions": _attribute(_backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    "cuDNN": _attribute(_backends.cudnn, "enabled"),
    "cuDNN benchmark": _attribute(_backends.cudnn, "benchmark"),
    "cuDNN deterministic": _attribute(_backends.cudnn, "deterministic"),
    "fast path of attention": (_backends.mha.get_fastpath_enabled, _backends.mha.set_fastpath_enabled),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "grad mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "anomaly mode": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "autocast cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    **_autocast("cpu"),
    **_autocast("cuda"),
    "logging below": _attribute(logging.root.manager, "disable"),
    "log level": (lambda: logging.root.level, logging.root.setLevel),
}
_TABLES: list[dict[Any, Any]] = [
    table
    for module in (nn.modules.module, every_optimizer)
    for name, table in vars(module).items()
    if name.startswith("_global_") and isinstance(table, dict)
]
