"""What a forward pass can read of a model beside its weights, as a key: where it is the same, so is the structure.

Everything that a module holds counts: numbers, flags and strings, also in lists, dictionaries, configs and objects of
any class, modules that are kept in plain containers, and what classes keep: its own, those of the objects it holds,
and those it holds themselves. Of tensors the shape counts; a forward that looks at their values is never remembered
(see `analyse`). Globals of a Python file, variables of a closure and `os.environ` cannot be seen: after a change of
one that a forward reads, the structure stays as it was first seen.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from evolve.structure.inputs import Inputs

_DEPTH = 6  # containers and objects in one another
_MOST = 20_000  # items of one model: what has more is a data set, not a part of a model
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum, range, slice)
_CALLED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_PASSING = _TABLES | {"training", "_evolve_links", "_compiled_call_impl"}


def fingerprint(model: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Returns what an analysis depends on.

    Those are classes, shapes and settings of every module, shapes of the inputs, and autocast around them.
    """
    reader = _Reader()
    classes = tuple(reader.of_class(cls) for cls in dict.fromkeys(type(module) for module in model.modules()))
    modules = tuple(
        (
            name,
            type(module),
            reader.fields(vars(module)),
            tuple(map(id, vars(module).get("_evolve_links", ()))),
            (*module._forward_pre_hooks, *module._forward_hooks),
            tuple((key, id(child)) for key, child in module._modules.items()),  # one may be there under many names
            tuple((key, tuple(tensor.shape), tensor.dtype, id(tensor)) for key, tensor in _lasting(module)),
        )
        for name, module in model.named_modules()
    )
    leaves, arrangement = tree_flatten((inputs.args, dict(inputs.kwargs)))
    arguments = tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else reader.value(leaf, _DEPTH)
        for leaf in leaves
    )
    kinds = {tensor.device.type for tensor in inputs.tensors} - {"meta"}
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)]
    return modules, classes, arguments, str(arrangement), tuple(casts)


def _lasting(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields a module's own parameters and buffers, those left out that a forward may make anew each time."""
    fleeting = module._non_persistent_buffers_set
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and key not in fleeting:
            yield key, tensor


class _Reader:
    """Makes values of containers and objects; what it has met before it names by a number."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # ids are unique only among living objects
        self._classes: set[type] = set()
        self._items = 0

    def fields(self, table: dict[str, Any], depth: int = _DEPTH) -> tuple[Any, ...]:
        """Returns the values of attributes by name."""
        return tuple((key, self.value(item, depth)) for key, item in list(table.items()) if key not in _PASSING)

    def of_class(self, cls: type, depth: int = _DEPTH) -> tuple[Any, ...]:
        """Returns what a class and its bases keep beside functions, those of PyTorch excepted."""
        if cls in self._classes:
            return ()
        self._classes.add(cls)
        own = [base for base in cls.__mro__ if not base.__module__.startswith(("torch.", "builtins", "typing"))]
        tables = ({k: v for k, v in vars(base).items() if k[:2] != "__"} for base in own)
        return tuple(
            tuple((k, self.value(v, depth)) for k, v in table.items() if not hasattr(v, "__get__")) for table in tables
        )

    def value(self, value: Any, depth: int) -> Hashable:
        """Returns something that is equal where a forward reads the same."""
        self._items += 1
        if isinstance(value, _PLAIN):
            return type(value), repr(value) if isinstance(value, (float, slice)) else value
        if isinstance(value, Tensor) and not value.is_nested:
            return Tensor, tuple(value.shape), value.dtype
        if isinstance(value, (Tensor, *_CALLED)) or depth == 0 or self._items > _MOST:
            return type(value), id(value)
        if isinstance(value, type):
            return type, id(value), self.of_class(value, depth - 1)
        if id(value) in self._met:
            return "met", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        kept = self.of_class(type(value), depth - 1)
        return type(value), kept, self._inside(value, depth - 1), self._held(value, depth - 1)

    def _inside(self, value: Any, depth: int) -> Hashable:
        """Returns the items of a container; () where it is none."""
        match value:
            case dict():
                return tuple((self.value(key, depth), self.value(item, depth)) for key, item in list(value.items()))
            case list() | tuple() | deque():
                return tuple(self.value(item, depth) for item in list(value))
            case set() | frozenset():
                return frozenset(self.value(item, depth) for item in list(value))
            case functools.partial():
                return id(value.func), self.value(value.args, depth), self.value(value.keywords, depth)
            case _ if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
                return str(value.dtype), value.shape, value.tobytes() if value.nbytes <= _MOST else id(value)
        return ()

    def _held(self, value: Any, depth: int) -> Hashable:
        """Returns the attributes of an object; what can be read of none is told by where it is."""
        slots = [name for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)]
        held = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
        if isinstance(value, nn.Module):  # in a plain container: it is none of the model's modules
            tensors = tuple((key, tuple(tensor.shape), id(tensor)) for key, tensor in _lasting(value))
            return tensors, self.value(dict(value._modules), depth), self.fields(held, depth)
        known = isinstance(value, (dict, list, tuple, set, frozenset, deque, functools.partial))
        return self.fields(held, depth) if held or known else id(value)


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
