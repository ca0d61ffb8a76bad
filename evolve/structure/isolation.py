"""Running a user's model without leaving a trace in it.

`preserved_rng` and `ModuleState` put back what a forward pass may touch: random number generators, BatchNorm
statistics, train/eval modes, attributes that a forward pass caches on `self`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from evolve.runtime.generators import preserved_rng
from evolve.structure.attributes import TensorAttributes
from evolve.structure.containers import SIMPLE, Kept
from evolve.structure.gradients import kept_gradients


class ModuleState:
    """What every module of a model holds: its class, its attributes, what is in them, the values of its tensors.

    Args:
        model: The model to remember.
        parameters: Remember the values of parameters and their gradients too, not only of buffers. Doubles the memory
            they take.
        device: Where to keep the copies; None for where the tensors are.
    """

    def __init__(self, model: nn.Module, *, parameters: bool, device: torch.device | None = None) -> None:
        self._modules: list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]] = []
        modules, roots = list(model.modules()), []
        for module in modules:
            attributes = dict(vars(module))
            # Most tables are empty (hooks of all kinds): looking at those closely would be most of the work.
            tables = {k: v.copy() for k in _TABLES if (v := attributes.get(k)) and isinstance(v, (dict, set))}
            self._modules.append((module, module.__class__, attributes, tables))
            roots += [v for k, v in attributes.items() if type(v) not in SIMPLE and k not in _TABLES]
        self._kept = Kept(roots)
        scripted = (module for module in modules if isinstance(module, torch.jit.ScriptModule))
        self._modes = [(module, module.training) for module in scripted]  # not among their attributes in Python
        held, buffers = _own(modules, "_parameters"), _own(modules, "_buffers")
        valued = [*buffers]
        if parameters:
            grads = [p.grad for p in held if p.grad is not None and not p.grad.is_sparse]
            valued += [*held, *grads]  # a backward pass adds to gradients in place
        values = {id(tensor): copied(tensor, device) for tensor in valued}
        tensors = {id(tensor): tensor for tensor in (*held, *valued)}
        self._tensors = [(t, _data_of(t), values.get(key)) for key, t in tensors.items()]
        self._attributes = [TensorAttributes(tensor) for tensor in (*held, *buffers)]

    def restore(self) -> None:
        """Puts everything back, bit for bit; objects keep their identity."""
        for module, cls, own, tables in self._modules:
            if module.__class__ is not cls:
                module.__class__ = cls
            live = vars(module)
            if not _same(live, own):
                live.clear()
                live.update(own)
            for key in _TABLES:
                table = own.get(key)
                if (table or key in tables) and isinstance(table, (dict, set)):
                    table.clear()
                    table.update(tables.get(key, ()))
        self._kept.restore()
        for module, training in self._modes:
            module.training = training
        for attributes in self._attributes:
            attributes.restore()
        with torch.no_grad():
            for tensor, data, values in self._tensors:
                if values is not None:
                    put_back(data, values)
                if _elsewhere(tensor, data):  # a forward may give a parameter other data, too, such as fake ones
                    exchange(tensor, data)


def _own(modules: Iterable[nn.Module], table: str) -> list[Tensor]:
    """Returns what modules hold, whatever an overridden `parameters()` leaves out; lazy tensors have no data yet."""
    found = [tensor for module in modules for tensor in getattr(module, table).values() if tensor is not None]
    return [tensor for tensor in found if not nn.parameter.is_lazy(tensor)]


def _same(attributes: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether two dictionaries hold the same objects under the same names, in the same order."""
    return list(attributes) == list(others) and [*map(id, attributes.values())] == [*map(id, others.values())]


def _data_of(tensor: Tensor) -> Tensor:
    """The memory of a tensor; a sparse one, or one that consists of others, has none that another could stand for."""
    whole = tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor)
    return tensor if whole else tensor.data


def _elsewhere(tensor: Tensor, data: Tensor) -> bool:
    if tensor is data:
        return False
    if tensor.device != data.device:  # fake data are on no device that has an address
        return True
    return _place(tensor) != _place(data)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """What memory a tensor sees, and how."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tensor.data_ptr(), tensor.shape, strides, tensor.dtype, tensor.is_conj(), tensor.is_neg()


def copied(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """Returns the values of a tensor in memory of their own, in the same layout; None for the device it is on."""
    values = tensor.detach()
    return values.clone() if device in (None, tensor.device) else values.to(device)


def put_back(tensor: Tensor, values: Tensor) -> None:
    """Writes values to a tensor; of one that is expanded, where one place stands for many, to each place once."""
    if tensor.layout == torch.strided:
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if size > 1 and stride == 0:
                tensor, values = tensor.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    tensor.copy_(values)


def exchange(tensor: Tensor, data: Tensor) -> None:
    """Gives a tensor other data, of another shape too; it stays the object it was.

    Where a graph of an earlier step is still alive (a loss that somebody keeps), autograd would go on with the node
    that accumulates gradients of the old shape. It lets go of that node where the dtype changes, so it changes on
    the way.
    """
    if tensor.requires_grad and tensor.shape != data.shape:
        other = torch.float64 if data.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


# What every module keeps its parts and hooks in.
_TABLES = dict.fromkeys(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))


class CallsSeen(TorchFunctionMode):
    """Looks at the functions of torch that this thread calls, and lets them run."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of torch."""
        return func(*args, **(kwargs or {}))


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Lets PyTorch's transformer layers call their parts in this thread, as they do in training.

    In eval mode without gradients they may run as one fused kernel instead. Encoders then hand nested tensors without
    the padding from layer to layer, which have no shape, and leave out what is padding. Layers do not run fused where
    something looks at the functions that they call, and encoders have a setting of their own; the switch in
    `torch.backends.mha` is one for all threads.
    """
    nested = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder) and getattr(m, _NESTED, False)]
    fused = any(isinstance(module, (nn.TransformerEncoderLayer, nn.MultiheadAttention)) for module in model.modules())
    for encoder in nested:
        setattr(encoder, _NESTED, False)
    try:
        with CallsSeen() if fused else nullcontext():
            yield
    finally:
        for encoder in nested:
            setattr(encoder, _NESTED, True)


_NESTED = "use_nested_tensor"


@contextmanager
def undisturbed(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Lets the model be run; afterwards buffers, modes, cached attributes and generators are as before.

    Inside a `torch.autocast` of the user's, the casts of weights that it remembers from other runs are forgotten: the
    weights may be others by now.

    Args:
        model: The model.
        seed: Of all generators meanwhile; None lets them go on where they stand.
    """
    with preserved_rng(seed):
        state = ModuleState(model, parameters=False)
        torch.clear_autocast_cache()
        try:
            with kept_gradients(model) if torch.is_grad_enabled() else nullcontext():  # a forward may call `backward()`
                yield
        finally:
            torch.clear_autocast_cache()
            state.restore()
