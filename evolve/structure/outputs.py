"""What a forward returns, taken apart into what can be compared, whatever it is nested in.

Tensors, numbers and arrays are found in tuples, lists, mappings, dataclasses and plain objects. What is nested in what
is kept beside them, so that a missing key shows.
"""

from __future__ import annotations

import enum
import numbers
import types
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Say what they are by themselves: compared by `==`.
_CONSTANTS = (str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.layout, range, slice)
_ATOMS = (numbers.Number, *_CONSTANTS)
# Say nothing about what a model computes, or lead out of the outputs.
_CLOSED = (
    *(nn.Module, torch.optim.Optimizer, torch.Generator, type, types.ModuleType, types.FunctionType),
    *(types.MethodType, types.BuiltinFunctionType, types.GeneratorType, Set),
)


@dataclass(frozen=True)
class Holder:
    """Something that holds others: a list, a dict, an object.

    Attributes:
        kind: The name of its class.
    """

    kind: str


@dataclass(frozen=True)
class Opaque:
    """Something that cannot be looked into, such as a function.

    Attributes:
        kind: The name of its class.
    """

    kind: str


@dataclass(frozen=True)
class Part:
    """One place in the outputs.

    Attributes:
        path: Where it is, as in Python: `.logits[0]`; "" for the outputs themselves.
        value: A tensor (arrays become one), a number, a constant, a `Holder` or an `Opaque`.
    """

    path: str
    value: Any


def parts(outputs: Any) -> list[Part]:
    """Takes outputs apart, each holder before what it holds; what is met again, as in a cycle, is not entered twice."""
    return _taken_apart(outputs, (Holder, Tensor))


def _taken_apart(outputs: Any, entering: tuple[type, ...]) -> list[Part]:
    found: list[Part] = []
    entered: dict[int, Any] = {}  # ids are unique only among living objects
    waiting = [("", outputs)]
    while waiting:
        path, value = waiting.pop()
        found.append(Part(path, _comparable(value)))
        if isinstance(found[-1].value, entering) and id(value) not in entered:
            entered[id(value)] = value
            waiting += [(path + step, item) for step, item in reversed(list(_held(value)))]
    return found


def output_tensors(outputs: Any) -> list[Tensor]:
    """Returns the tensors (and arrays, as tensors) in a forward pass's outputs, whatever they are nested in.

    Parts that were taken out of outputs may be given in their place. Attributes of tensors are left out: while a
    model is traced they belong to the tracer.
    """
    return [part.value for part in _taken_apart(outputs, (Holder,)) if isinstance(part.value, Tensor)]


def copied_parts(outputs: Any) -> list[Part]:
    """Takes outputs apart and copies their values.

    They may be the model's own tensors and containers, which a mutation changes and which are put back after a run.
    """
    return [
        Part(part.path, part.value.detach().clone()) if isinstance(part.value, Tensor) else part
        for part in parts(outputs)
    ]


def differentiable(outputs: Any) -> list[Tensor]:
    """Returns the outputs through which gradients flow, dense and real."""
    found = [dense(tensor) for tensor in output_tensors(outputs) if tensor.requires_grad]
    return [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in found]


def single_or_wider(dtype: torch.dtype) -> torch.dtype:
    """Returns a floating-point type in which every value of a narrower one can be computed with."""
    return dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: a sum hides no other one and is much quicker to take, but it may overflow."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return True
    wide = tensor.to(single_or_wider(tensor.dtype))
    return bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())


def dense(tensor: Tensor) -> Tensor:
    """Returns the values of a tensor of any layout, strided."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _comparable(value: Any) -> Any:
    """Returns what stands for a value: a tensor, an atom, a `Holder` of others, or an `Opaque`."""
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in "biufcSU" else str(value)
    if isinstance(value, Tensor):
        return Holder(_kind(value)) if value.is_nested else value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return _tensor_of(value)
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, Set) and all(isinstance(item, _ATOMS) for item in value):
        return frozenset(value)
    if isinstance(value, _CLOSED):
        return Opaque(_kind(value))
    nests = isinstance(value, (Mapping, tuple, list, deque, np.ndarray)) or hasattr(value, "__dict__")
    return Holder(_kind(value)) if nests or any(True for _ in _slots(value)) else Opaque(_kind(value))


def _tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Returns the values of an array; those of a type that torch has not in double precision."""
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what something holds, each with the step that leads there."""
    if isinstance(value, Tensor) and value.is_nested:
        yield from ((f"[{i}]", item) for i, item in enumerate(value.unbind()))
    elif isinstance(value, Tensor) or isinstance(_comparable(value), Tensor):  # one value, but it may carry others
        yield from ((f".{key}", item) for key, item in _attributes(value))
    elif isinstance(value, Mapping):
        items = [(_step(key, i), item) for i, (key, item) in enumerate(value.items())]
        yield from items
        keys = ((f"{_step(key, i)} key", key) for i, key in enumerate(value))
        yield from (key for key in keys if not isinstance(key[1], (*_ATOMS, *_CLOSED)))
        if isinstance(value, dict):  # Hugging Face's ModelOutput has its fields as keys and as attributes
            yield from ((f".{key}", item) for key, item in _attributes(value) if _step(key, 0) not in dict(items))
    elif isinstance(value, (tuple, list, deque, np.ndarray)):
        names = getattr(value, "_fields", None)
        steps = [f".{name}" for name in names] if isinstance(names, tuple) else [f"[{i}]" for i in range(len(value))]
        yield from zip(steps, value, strict=True)
        yield from ((f".{key}", item) for key, item in _attributes(value))
    else:
        yield from ((f".{key}", item) for key, item in _attributes(value))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from dict(getattr(value, "__dict__", {})).items()
    yield from _slots(value)


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            key = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, key):
                yield key, getattr(value, key)


def _step(key: Any, position: int) -> str:
    """Says where a mapping's item is; the text of any other key may hold an address."""
    return f"[{key!r}]" if isinstance(key, (str, int, float, bytes, type(None))) else f"[{_kind(key)} {position}]"


def _kind(value: Any) -> str:
    """The name of a class: one that a forward makes each time it runs is another object each time."""
    return type(value).__qualname__
